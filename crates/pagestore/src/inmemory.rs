//! The newest values: an open layer, later frozen, not yet a file (spec layer-files.md 12).
//!
//! The values lie one after the other in pieces (`values.rs`), in memory or in an *ephemeral file*. The index is in
//! memory only: per key a chain of entries, newest first, in one arena of 20 bytes an entry. A read walks the chain
//! from the newest entry down, which is the order in which it wants the values.
//!
//! One writer at a time appends (the timeline's writer lock sees to it); any number of readers run beside it.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard};
use std::time::Instant;

use bytes::Bytes;
use pagecore::{Key, Lsn};
use smallvec::SmallVec;

use crate::cache::{read, write, QuickHash};
use crate::error::StoreError;
use crate::values::{FilePart, Sealed, ValueMemory, Values};

/// A position has 35 bits.
const POSITION_MAX: u64 = (1 << 35) - 1;
/// A length has 28 bits.
const LENGTH_MAX: u64 = (1 << 28) - 1;
const CHUNK_ENTRIES: usize = 1 << 15;
const NONE: u32 = u32::MAX;

/// Values of one commit, encoded one after the other, and where each lies. Several entries may share bytes.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    pub raw: Vec<u8>,
    pub entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Key,
    pub lsn: Lsn,
    /// In `raw`.
    pub offset: u32,
    pub len: u32,
    pub will_init: bool,
}

impl WriteBatch {
    /// Adds an encoded value.
    pub fn push(&mut self, key: Key, lsn: Lsn, encoded: &[u8], will_init: bool) {
        let offset = self.raw.len() as u32;
        self.raw.extend_from_slice(encoded);
        self.entries.push(Entry { key, lsn, offset, len: encoded.len() as u32, will_init });
    }

    /// Adds an image.
    pub fn push_image(&mut self, key: Key, lsn: Lsn, image: &[u8]) {
        let offset = self.raw.len() as u32;
        pagecore::value::encode_image(&mut self.raw, image);
        self.entries.push(Entry { key, lsn, offset, len: self.raw.len() as u32 - offset, will_init: true });
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets everything but keeps the memory, for the next commit.
    pub fn clear(&mut self) {
        self.raw.clear();
        self.entries.clear();
    }
}

/// 20 bytes: LSN, then will_init 1 bit | length 28 bits | position 35 bits, each as two words; the next older entry.
#[derive(Clone, Copy)]
struct Slot {
    lsn: [u32; 2],
    place: [u32; 2],
    older: u32,
}

fn split(v: u64) -> [u32; 2] {
    [(v >> 32) as u32, v as u32]
}

fn join(v: [u32; 2]) -> u64 {
    u64::from(v[0]) << 32 | u64::from(v[1])
}

impl Slot {
    fn new(lsn: Lsn, will_init: bool, len: u64, position: u64, older: u32) -> Slot {
        Slot { lsn: split(lsn.0), place: split(u64::from(will_init) << 63 | len << 35 | position), older }
    }

    fn lsn(&self) -> Lsn {
        Lsn(join(self.lsn))
    }

    fn stored(&self) -> Stored {
        let place = join(self.place);
        Stored {
            lsn: self.lsn(),
            will_init: place >> 63 == 1,
            len: (place >> 35 & LENGTH_MAX) as u32,
            position: place & POSITION_MAX,
        }
    }
}

/// One stored value of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub lsn: Lsn,
    pub will_init: bool,
    pub len: u32,
    pub position: u64,
}

/// A value found by a read.
#[derive(Clone, Debug)]
pub struct Found {
    pub stored: Stored,
    /// None if the value is in the ephemeral file.
    pub bytes: Option<Bytes>,
}

struct Contents {
    newest: HashMap<Key, u32, QuickHash>,
    /// The keys of the sparse keyspace once more, in order, since only these are scanned.
    sparse: BTreeSet<Key>,
    slots: Vec<Vec<Slot>>,
    slot_count: u32,
    values: Values,
    max_lsn: Lsn,
    duplicates: u64,
}

impl Contents {
    fn slot(&self, i: u32) -> Slot {
        self.slots[i as usize / CHUNK_ENTRIES][i as usize % CHUNK_ENTRIES]
    }

    fn index(&mut self, entry: &Entry, position: u64) -> Result<(), StoreError> {
        let new = self.slot_count;
        let older = match self.newest.entry(entry.key) {
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(new);
                if entry.key.is_sparse() {
                    self.sparse.insert(entry.key);
                }
                NONE
            }
            std::collections::hash_map::Entry::Occupied(mut occupied) => {
                let older = *occupied.get();
                let slot = &mut self.slots[older as usize / CHUNK_ENTRIES][older as usize % CHUNK_ENTRIES];
                match slot.lsn().cmp(&entry.lsn) {
                    std::cmp::Ordering::Less => {
                        *occupied.get_mut() = new;
                        older
                    }
                    // Written twice at one LSN: the later value wins.
                    std::cmp::Ordering::Equal => {
                        *slot = Slot::new(entry.lsn, entry.will_init, u64::from(entry.len), position, slot.older);
                        self.duplicates += 1;
                        return Ok(());
                    }
                    std::cmp::Ordering::Greater => {
                        return Err(StoreError::Invalid(format!(
                            "key {} is written at {} after {}",
                            entry.key,
                            entry.lsn,
                            slot.lsn()
                        )))
                    }
                }
            }
        };
        if new as usize % CHUNK_ENTRIES == 0 {
            self.slots.push(Vec::with_capacity(CHUNK_ENTRIES));
        }
        if let Some(chunk) = self.slots.last_mut() {
            chunk.push(Slot::new(entry.lsn, entry.will_init, u64::from(entry.len), position, older));
        }
        self.slot_count += 1;
        Ok(())
    }

    /// The newest slot at or below `lsn` of the chain that begins at `next`.
    fn at_or_below(&self, mut next: u32, lsn: Lsn) -> u32 {
        while next != NONE && self.slot(next).lsn() > lsn {
            next = self.slot(next).older;
        }
        next
    }
}

/// An open or frozen layer.
pub struct InMemoryLayer {
    start: Lsn,
    /// Exclusive; set when the layer is frozen.
    end: OnceLock<Lsn>,
    path: PathBuf,
    file: OnceLock<File>,
    opened_at: Instant,
    contents: RwLock<Contents>,
}

impl InMemoryLayer {
    /// `path` is where the ephemeral file goes if one is needed, `memory` what all layers share.
    pub fn new(start: Lsn, path: PathBuf, opened_at: Instant, memory: Arc<ValueMemory>) -> InMemoryLayer {
        InMemoryLayer {
            start,
            end: OnceLock::new(),
            path,
            file: OnceLock::new(),
            opened_at,
            contents: RwLock::new(Contents {
                newest: HashMap::with_hasher(QuickHash),
                sparse: BTreeSet::new(),
                slots: Vec::new(),
                slot_count: 0,
                values: Values::new(memory),
                max_lsn: Lsn(0),
                duplicates: 0,
            }),
        }
    }

    pub fn start(&self) -> Lsn {
        self.start
    }

    /// Exclusive end, `Lsn::MAX` while open.
    pub fn end(&self) -> Lsn {
        self.end.get().copied().unwrap_or(Lsn::MAX)
    }

    pub fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// Bytes of the values.
    pub fn size(&self) -> u64 {
        read(&self.contents).values.end()
    }

    /// Highest LSN written.
    pub fn max_lsn(&self) -> Lsn {
        read(&self.contents).max_lsn
    }

    /// How often a key was written twice at one LSN.
    pub fn duplicates(&self) -> u64 {
        read(&self.contents).duplicates
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the layer immutable. Only the holder of the timeline's writer lock calls this.
    pub fn freeze(&self, end: Lsn) -> Result<(), StoreError> {
        self.end.set(end).map_err(|_| StoreError::Invalid("layer is frozen already".into()))
    }

    /// Checks what `put` will rely on, before anything is changed.
    fn check(&self, batch: &WriteBatch, end: u64) -> Result<(), StoreError> {
        if self.end.get().is_some() {
            return Err(StoreError::Invalid("write to a frozen layer".into()));
        }
        if end + batch.raw.len() as u64 > POSITION_MAX {
            return Err(StoreError::Invalid(format!("open layer of {end} bytes is full")));
        }
        for e in &batch.entries {
            if !e.lsn.is_aligned() || e.lsn < self.start {
                return Err(StoreError::Invalid(format!(
                    "write at lsn {} to an open layer that starts at {}",
                    e.lsn, self.start
                )));
            }
            if u64::from(e.len) > LENGTH_MAX || e.offset as usize + e.len as usize > batch.raw.len() {
                return Err(StoreError::Invalid(format!("value of key {} has {} bytes", e.key, e.len)));
            }
        }
        Ok(())
    }

    /// Appends a batch. Its values are readable at once by those who ask for their LSNs.
    ///
    /// All or nothing. A full disk is met after the values were taken, so they are kept in memory then, and it is the
    /// next call that fails, before it takes anything, until the file can be written: were a batch half taken, it could
    /// neither be repeated nor the layer be frozen.
    pub fn put(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        let unwritten = read(&self.contents).values.unwritten();
        if let Some((bytes, offset)) = unwritten {
            self.spill(bytes, offset)?;
        }
        let mut contents = write(&self.contents);
        let base = contents.values.end();
        self.check(batch, base)?;
        contents.values.append(&batch.raw);
        for entry in &batch.entries {
            contents.max_lsn = contents.max_lsn.max(entry.lsn);
            contents.index(entry, base + u64::from(entry.offset))?;
        }
        let Sealed::ToFile(bytes, offset) = contents.values.seal() else { return Ok(()) };
        drop(contents);
        // Told by the next call, if it still is so.
        let _ = self.spill(bytes, offset);
        Ok(())
    }

    /// Forgets all values above `lsn`. Their bytes keep their place, which is lost until the layer goes.
    pub fn forget_above(&self, lsn: Lsn) {
        let mut contents = write(&self.contents);
        let mut newest = std::mem::take(&mut contents.newest);
        newest.retain(|_, slot| {
            *slot = contents.at_or_below(*slot, lsn);
            *slot != NONE
        });
        contents.sparse.retain(|key| newest.contains_key(key));
        contents.newest = newest;
        contents.max_lsn = contents.max_lsn.min(lsn);
    }

    /// Writes sealed bytes to the ephemeral file, without the lock: readers find them in memory meanwhile.
    fn spill(&self, bytes: Arc<Vec<u8>>, offset: u64) -> Result<(), StoreError> {
        self.open_file()?
            .write_all_at(&bytes, offset)
            .map_err(|e| StoreError::io("write ephemeral file", &self.path, &e))?;
        drop(bytes);
        write(&self.contents).values.spilled();
        Ok(())
    }

    fn open_file(&self) -> Result<&File, StoreError> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&self.path)
            .map_err(|e| StoreError::io("create ephemeral file", &self.path, &e))?;
        Ok(self.file.get_or_init(|| file))
    }

    /// Collects values of `key` with LSNs in `floor..below`, newest first, down to one that initialises the page.
    /// Returns true if there was such a one.
    pub fn find(&self, key: &Key, lsns: Range<Lsn>, out: &mut Vec<Found>) -> bool {
        let contents = read(&self.contents);
        let mut next = contents.newest.get(key).copied().unwrap_or(NONE);
        while next != NONE {
            let slot = contents.slot(next);
            let lsn = slot.lsn();
            if lsn < lsns.start {
                return false;
            }
            if lsn < lsns.end {
                let stored = slot.stored();
                let bytes = contents.values.in_memory(stored.position, stored.len).map(Bytes::copy_from_slice);
                out.push(Found { stored, bytes });
                if stored.will_init {
                    return true;
                }
            }
            next = slot.older;
        }
        false
    }

    /// The keys of the sparse keyspace in a range, in order.
    pub fn sparse_keys(&self, range: &Range<Key>) -> Vec<Key> {
        if range.start >= range.end {
            return Vec::new();
        }
        read(&self.contents).sparse.range(range.clone()).copied().collect()
    }

    /// Bytes in the ephemeral file; the others are in memory.
    pub fn file_len(&self) -> u64 {
        read(&self.contents).values.file_len()
    }

    /// Copies any bytes, from the file or from memory.
    pub fn read_at(&self, out: &mut [u8], position: u64) -> Result<(), StoreError> {
        let contents = read(&self.contents);
        let in_file = self.copy(&contents, out, position)?;
        drop(contents);
        self.read_file(out, &in_file)
    }

    fn copy(&self, contents: &Contents, out: &mut [u8], position: u64) -> Result<SmallVec<[FilePart; 2]>, StoreError> {
        let (end, total) = (position + out.len() as u64, contents.values.end());
        contents
            .values
            .copy(out, position)
            .ok_or_else(|| StoreError::Invalid(format!("read to {end} of an open layer of {total} bytes")))
    }

    fn read_file(&self, out: &mut [u8], parts: &[FilePart]) -> Result<(), StoreError> {
        for part in parts {
            self.open_file()?
                .read_exact_at(&mut out[part.out.clone()], part.offset)
                .map_err(|e| StoreError::io("read ephemeral file", &self.path, &e))?;
        }
        Ok(())
    }

    /// The values for somebody who wants many of them. Writers wait meanwhile: for frozen layers, which have none.
    pub fn values(&self) -> ValuesView<'_> {
        ValuesView { layer: self, contents: read(&self.contents) }
    }

    pub fn is_empty(&self) -> bool {
        read(&self.contents).newest.is_empty()
    }
}

/// Holds the lock of a layer's contents for reading.
pub struct ValuesView<'a> {
    layer: &'a InMemoryLayer,
    contents: RwLockReadGuard<'a, Contents>,
}

impl ValuesView<'_> {
    /// All keys in order, each with its values in ascending LSN order, handed to `visit`.
    pub fn for_each_sorted<E>(&self, mut visit: impl FnMut(&Key, &[Stored]) -> Result<(), E>) -> Result<(), E> {
        let contents = &self.contents;
        let mut keys: Vec<(Key, u32)> = contents.newest.iter().map(|(k, i)| (*k, *i)).collect();
        keys.sort_unstable();
        let mut chain = Vec::new();
        for (key, newest) in keys {
            chain.clear();
            let mut next = newest;
            while next != NONE {
                let slot = contents.slot(next);
                chain.push(slot.stored());
                next = slot.older;
            }
            chain.reverse();
            visit(&key, &chain)?;
        }
        Ok(())
    }

    /// A value's bytes, if they are in memory.
    pub fn in_memory(&self, position: u64, len: u32) -> Option<&[u8]> {
        self.contents.values.in_memory(position, len)
    }

    /// Copies any bytes, from the file or from memory.
    pub fn read_at(&self, out: &mut [u8], position: u64) -> Result<(), StoreError> {
        let in_file = self.layer.copy(&self.contents, out, position)?;
        self.layer.read_file(out, &in_file)
    }
}

impl Drop for InMemoryLayer {
    fn drop(&mut self) {
        if self.file.get().is_some() {
            // What cannot be removed now is removed at the next start, like every leftover (2.4).
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
#[path = "inmemory_tests.rs"]
mod tests;
