//! Image layers: from pieces that the caller has (an import), or from what the timeline itself holds
//! (spec layer-files.md 8.4, 9; read-path-compaction-gc.md 9.3).
//!
//! A writer must put every existing key of the range into the layer: a key that is absent from it does not exist.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use pagecore::key::{FSM_FORK, VM_FORK};
use pagecore::layer::Compression;
use pagecore::{Key, Lsn, BLCKSZ};

use crate::error::StoreError;
use crate::layer_writer::{ImageWriter, WrittenLayer};
use crate::timeline::TimelineStore;

/// Blocks read from a data file, or reconstructed, at once.
const BATCH_BLOCKS: u32 = 128;

/// What goes into a layer, in ascending order of keys.
#[derive(Clone, Debug)]
pub enum Piece<'a> {
    Bytes {
        key: Key,
        value: &'a [u8],
    },
    /// Consecutive blocks of a data file, for consecutive keys.
    File {
        first_key: Key,
        path: PathBuf,
        offset: u64,
        blocks: u32,
    },
}

/// The key range, LSN and storage of a new image layer.
#[derive(Clone, Debug)]
pub struct ImageLayerPlan {
    pub keys: Range<Key>,
    pub lsn: Lsn,
    pub generation: Option<u32>,
    pub compression: Compression,
}

fn copy_blocks(
    out: &mut ImageWriter,
    first_key: Key,
    path: &PathBuf,
    offset: u64,
    blocks: u32,
) -> Result<(), StoreError> {
    let file = File::open(path).map_err(|e| StoreError::io("open data file", path, &e))?;
    let mut buffer = vec![0; BATCH_BLOCKS as usize * BLCKSZ];
    let mut done = 0;
    while done < blocks {
        let n = (blocks - done).min(BATCH_BLOCKS);
        let bytes = &mut buffer[..n as usize * BLCKSZ];
        file.read_exact_at(bytes, offset + u64::from(done) * BLCKSZ as u64)
            .map_err(|e| StoreError::io("read data file", path, &e))?;
        for (i, page) in (done..).zip(bytes.chunks_exact(BLCKSZ)) {
            out.append(&first_key.add(i), page)?;
        }
        done += n;
    }
    Ok(())
}

impl TimelineStore {
    /// Writes a layer from pieces and adds it to the map.
    pub fn write_image_layer<'a>(
        &self,
        plan: &ImageLayerPlan,
        pieces: impl IntoIterator<Item = Piece<'a>>,
    ) -> Result<WrittenLayer, StoreError> {
        self.check_running()?;
        let mut out = ImageWriter::create(&self.home, plan.keys.clone(), plan.lsn, plan.compression)?;
        for piece in pieces {
            match piece {
                Piece::Bytes { key, value } => out.append(&key, value)?,
                Piece::File { first_key, path, offset, blocks } => {
                    copy_blocks(&mut out, first_key, &path, offset, blocks)?;
                }
            }
        }
        let written = out.finish(plan.generation)?;
        self.add_layers(std::slice::from_ref(&written))?;
        Ok(written)
    }

    /// Writes a layer from the timeline's own values at the plan's LSN and adds it to the map; none if nothing exists
    /// there. `dense` are the ranges in which every key of this shard exists, `sparse` those to be scanned; together
    /// ascending, and inside the plan's range.
    pub fn create_image_layer(
        &self,
        plan: &ImageLayerPlan,
        dense: &[Range<Key>],
        sparse: &[Range<Key>],
    ) -> Result<Option<WrittenLayer>, StoreError> {
        self.check_running()?;
        let mut out = ImageWriter::create(&self.home, plan.keys.clone(), plan.lsn, plan.compression)?;
        let mut batch: Vec<(Key, Lsn)> = Vec::with_capacity(BATCH_BLOCKS as usize);
        for range in dense {
            let mut key = range.start;
            while key < range.end {
                if self.shard.is_local(&key) || (!self.shard.is_disposable(&key) && !key.is_rel_block()) {
                    batch.push((key, plan.lsn));
                }
                key = key.next();
                if batch.len() == BATCH_BLOCKS as usize {
                    self.append_images(&mut out, &mut batch)?;
                }
            }
        }
        self.append_images(&mut out, &mut batch)?;
        for range in sparse {
            for (key, image) in self.scan(range.clone(), plan.lsn)? {
                // A tombstone need not be kept: what the layer covers and does not hold is absent anyway.
                if !image.is_empty() {
                    out.append(&key, &image)?;
                }
            }
        }
        if out.is_empty() {
            return Ok(None);
        }
        let written = out.finish(plan.generation)?;
        self.add_layers(std::slice::from_ref(&written))?;
        Ok(Some(written))
    }

    fn append_images(&self, out: &mut ImageWriter, batch: &mut Vec<(Key, Lsn)>) -> Result<(), StoreError> {
        for ((key, _), image) in batch.iter().zip(self.get_vectored(batch)) {
            match image {
                Ok(image) => out.append(key, &image)?,
                // Both maps are hints and heal by themselves (spec walredo.md 1.1).
                Err(StoreError::Redo { .. }) if key.is_rel_block() && matches!(key.field5, FSM_FORK | VM_FORK) => {
                    out.append(key, &[0; BLCKSZ])?;
                }
                Err(e) => return Err(e),
            }
        }
        batch.clear();
        Ok(())
    }
}
