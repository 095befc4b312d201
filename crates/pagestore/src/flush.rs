//! From a frozen layer to an L0 file (spec layer-files.md 12, read-path-compaction-gc.md 6.1).
//!
//! The values lie in the order of writing, the layer file wants them in key order. Those in memory are taken from there.
//! Reading each of the others for itself would cost a system call a value; so the keys are cut into windows of bounded
//! size, and for each window the ephemeral file is read once from its start to its end, in large parts.

use std::sync::Arc;

use pagecore::{Key, Lsn};

use crate::cache::lock;
use crate::error::StoreError;
use crate::inmemory::{InMemoryLayer, Stored, ValuesView};
use crate::layer_map::LayerMap;
use crate::layer_writer::{DeltaWriter, LayerHome, WrittenLayer};
use crate::timeline::TimelineStore;

/// Values of a window; the memory that a flush needs beside its lists.
const WINDOW_BYTES: u64 = 48 << 20;
const WINDOW_ENTRIES: usize = 1 << 17;
const PART_BYTES: u64 = 1 << 20;

/// Values of consecutive keys. The memory is kept from window to window, so that its pages are faulted in once.
#[derive(Default)]
struct Window {
    entries: Vec<(Key, Stored)>,
    /// Bytes of those values that are in the ephemeral file.
    bytes: u64,
    /// These values, in key order.
    buffer: Vec<u8>,
    /// A part of the layer's bytes.
    part: Vec<u8>,
    /// Position, length, place in `buffer`.
    copies: Vec<(u64, u32, u32)>,
}

impl Window {
    fn push(&mut self, values: &ValuesView<'_>, key: Key, stored: Stored) {
        if values.in_memory(stored.position, stored.len).is_none() {
            self.copies.push((stored.position, stored.len, self.bytes as u32));
            self.bytes += u64::from(stored.len);
        }
        self.entries.push((key, stored));
    }

    /// Copies what is in the ephemeral file out of it, in the order of positions, and appends all in key order.
    fn write(&mut self, values: &ValuesView<'_>, end: u64, out: &mut DeltaWriter) -> Result<(), StoreError> {
        let Window { buffer, part, copies, .. } = self;
        if buffer.len() < self.bytes as usize {
            buffer.resize(self.bytes as usize, 0);
        }
        part.clear();
        copies.sort_unstable();
        let mut part_start = 0;
        for (position, len, at) in copies.drain(..) {
            let value_end = position + u64::from(len);
            if position < part_start || value_end > part_start + part.len() as u64 {
                let part_end = value_end.max((position + PART_BYTES).min(end));
                part.resize((part_end - position) as usize, 0);
                values.read_at(part, position)?;
                part_start = position;
            }
            let from = (position - part_start) as usize;
            let at = at as usize;
            buffer[at..at + len as usize].copy_from_slice(&part[from..from + len as usize]);
        }
        let mut at = 0;
        for (key, stored) in self.entries.drain(..) {
            let value = match values.in_memory(stored.position, stored.len) {
                Some(value) => value,
                None => {
                    at += stored.len as usize;
                    &buffer[at - stored.len as usize..at]
                }
            };
            out.append(&key, stored.lsn, value, stored.will_init)?;
        }
        self.bytes = 0;
        Ok(())
    }
}

/// Writes a frozen layer as an L0 file.
pub fn write_l0(home: &LayerHome, layer: &InMemoryLayer, generation: Option<u32>) -> Result<WrittenLayer, StoreError> {
    let mut out = DeltaWriter::create(home, Key::MIN, layer.start()..layer.end())?;
    let end = layer.size();
    let values = layer.values();
    let mut window = Window::default();
    values.for_each_sorted(|key, chain| {
        for stored in chain {
            if window.bytes + u64::from(stored.len) > WINDOW_BYTES || window.entries.len() == WINDOW_ENTRIES {
                window.write(&values, end, &mut out)?;
            }
            window.push(&values, *key, *stored);
        }
        Ok::<(), StoreError>(())
    })?;
    window.write(&values, end, &mut out)?;
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
