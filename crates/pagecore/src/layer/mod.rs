//! The bytes of layer files: names, summary, blobs and the index B-tree (spec layer-files.md).
//!
//! ```text
//! block 0         summary, zero padded
//! block 1 ..      blobs, packed, in the order of their index entries, zero padded to a block
//! index_start ..  B-tree nodes, one per block; the summary names the root
//! ```
//! Nothing here opens a file: `pagestore::layer_file` moves these bytes to and from disk.

pub mod blob;
pub mod btree;
pub mod names;
pub mod summary;

pub use blob::{Compression, BLOB_LEN_MAX};
pub use btree::{Builder, Cursor, Node, NodeError, NodeSource};
pub use names::{LayerKind, LayerName, LocalFile};
pub use summary::Summary;

/// Length of an index key of a delta layer: key, then LSN.
pub const DELTA_KEY_SIZE: usize = crate::key::KEY_SIZE + 8;
/// A delta file above this size is refused: a layer is uploaded with one PUT, which S3 limits to 5 GB.
pub const DELTA_FILE_SIZE_MAX: u64 = 4_500_000_000;

/// The index key of a value in a delta layer.
pub fn delta_key(key: &crate::Key, lsn: crate::Lsn) -> [u8; DELTA_KEY_SIZE] {
    let mut out = [0; DELTA_KEY_SIZE];
    out[..crate::key::KEY_SIZE].copy_from_slice(&key.to_bytes());
    out[crate::key::KEY_SIZE..].copy_from_slice(&lsn.0.to_be_bytes());
    out
}

/// The key and LSN of a delta index key; none if the length is wrong.
pub fn split_delta_key(bytes: &[u8]) -> Option<(crate::Key, crate::Lsn)> {
    let lsn = bytes.get(crate::key::KEY_SIZE..DELTA_KEY_SIZE)?.try_into().ok()?;
    Some((crate::Key::from_slice(bytes)?, crate::Lsn(u64::from_be_bytes(lsn))))
}

#[cfg(test)]
mod examples;
