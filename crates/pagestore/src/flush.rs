//! From a frozen layer to an L0 file (spec layer-files.md 12, read-path-compaction-gc.md 6.1).
//!
//! The ephemeral file has its values in the order of writing, the layer file wants them in key order. Reading each
//! value for itself would cost a system call a value; so the keys are cut into windows of bounded size, and for each
//! window the ephemeral file is read once from its start to its end, in large pieces.

use std::sync::Arc;

use pagecore::{Key, Lsn};

use crate::cache::lock;
use crate::error::StoreError;
use crate::inmemory::{InMemoryLayer, Stored};
use crate::layer_map::LayerMap;
use crate::layer_writer::{DeltaWriter, LayerHome, WrittenLayer};
use crate::timeline::TimelineStore;

/// Values of a window; the memory that a flush needs beside its lists.
const WINDOW_BYTES: u64 = 48 << 20;
const PIECE_BYTES: u64 = 1 << 20;

/// Values of consecutive keys. The memory is kept from window to window, so that its pages are faulted in once.
#[derive(Default)]
struct Window {
    entries: Vec<(Key, Stored)>,
    bytes: u64,
    /// The values in key order.
    buffer: Vec<u8>,
    /// A part of the ephemeral file.
    piece: Vec<u8>,
    /// Position, length, place in `buffer`.
    copies: Vec<(u64, u32, u32)>,
}

impl Window {
    /// Copies the values out of the ephemeral file, in the order of their positions, and appends them in key order.
    fn write(&mut self, layer: &InMemoryLayer, out: &mut DeltaWriter) -> Result<(), StoreError> {
        let Window { buffer, piece, copies, .. } = self;
        if buffer.len() < self.bytes as usize {
            buffer.resize(self.bytes as usize, 0);
        }
        copies.clear();
        piece.clear();
        let mut at = 0;
        for (_, stored) in &self.entries {
            copies.push((stored.position, stored.len, at));
            at += stored.len;
        }
        copies.sort_unstable();
        let mut piece_start = 0;
        for (position, len, at) in copies.iter().copied() {
            let end = position + u64::from(len);
            if position < piece_start || end > piece_start + piece.len() as u64 {
                let piece_end = end.max((position + PIECE_BYTES).min(layer.size()));
                piece.resize((piece_end - position) as usize, 0);
                layer.read_at(piece, position)?;
                piece_start = position;
            }
            let from = (position - piece_start) as usize;
            let at = at as usize;
            buffer[at..at + len as usize].copy_from_slice(&piece[from..from + len as usize]);
        }
        let mut at = 0;
        for (key, stored) in self.entries.drain(..) {
            let value = &buffer[at..at + stored.len as usize];
            out.append(&key, stored.lsn, value, stored.will_init)?;
            at += stored.len as usize;
        }
        self.bytes = 0;
        Ok(())
    }
}

/// Writes a frozen layer as an L0 file.
pub fn write_l0(home: &LayerHome, layer: &InMemoryLayer, generation: Option<u32>) -> Result<WrittenLayer, StoreError> {
    let mut out = DeltaWriter::create(home, Key::MIN, layer.start()..layer.end())?;
    let mut window = Window::default();
    layer.for_each_sorted(|key, chain| {
        let bytes: u64 = chain.iter().map(|s| u64::from(s.len)).sum();
        if window.bytes + bytes > WINDOW_BYTES && !window.entries.is_empty() {
            window.write(layer, &mut out)?;
        }
        for stored in chain {
            // One key may be larger than a window.
            if window.bytes + u64::from(stored.len) > WINDOW_BYTES && !window.entries.is_empty() {
                window.write(layer, &mut out)?;
            }
            window.entries.push((*key, *stored));
            window.bytes += u64::from(stored.len);
        }
        Ok::<(), StoreError>(())
    })?;
    window.write(layer, &mut out)?;
    out.finish(Key::MAX, generation)
}

impl TimelineStore {
    /// Writes the oldest frozen layer to a file and puts that in its place; none if nothing is frozen. On error the
    /// layer stays frozen and the call may be repeated.
    pub fn flush_oldest(&self, generation: Option<u32>) -> Result<Option<WrittenLayer>, StoreError> {
        let _one_at_a_time = lock(&self.flush_lock);
        self.check_running()?;
        let Some(oldest) = self.map().frozen.first().cloned() else { return Ok(None) };
        let written = write_l0(&self.home, &oldest, generation)?;
        let file = self.layer_file(&written);
        self.change_map(|map| {
            let with_file = map.with_files([file], &[])?;
            let frozen = map.frozen.iter().filter(|l| !Arc::ptr_eq(l, &oldest)).cloned().collect();
            Ok((LayerMap { frozen, ..with_file }, ()))
        })?;
        self.set_disk_consistent_lsn(Lsn(oldest.end().0 - 1));
        Ok(Some(written))
    }
}
