//! Pure functions and values of the page server: bytes in, bytes out.
//!
//! This crate knows LSNs, keys, shards, values, WAL records, pages and redo. It never performs I/O, never starts a
//! thread, never reads a clock: the same input gives the same output. `pagestore` adds disk, `pageserve` sockets.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod compare;
pub mod directory;
pub mod key;
pub mod layer;
pub mod lsn;
pub mod mask;
pub mod page;
pub mod redo;
pub mod shard;
pub mod value;
pub mod wal;

pub use key::{Key, RelTag, SlruKind};
pub use lsn::Lsn;
pub use shard::ShardIdentity;

/// Size of a PostgreSQL data page and of a block of a layer file, in bytes.
pub const BLCKSZ: usize = 8192;

/// Which PostgreSQL wrote the WAL: fixed when a timeline is created (spec wal.md 8, 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Neon's patched PostgreSQL: heap records carry the command id.
    Neon,
    /// An unmodified PostgreSQL.
    Stock,
}
