//! The bytes of an in-memory layer's values, one after the other, in pieces of about a mebibyte.
//!
//! A full piece stays in memory while the process's budget for such pieces allows it, and goes to the layer's *ephemeral
//! file* otherwise; the last piece, the tail, is always in memory. Writing to the file and reading it back, once per
//! window of the flush, costs more than everything else that is done with a value, so a busy timeline should fit in the budget.
//!
//! ```text
//! position   0 ... pieces: in memory or in the file ... sealed: being written ... tail ... end
//! ```
//!
//! Invariant: a value lies within one piece, and a piece never moves. So a position stays good as long as the layer
//! lives.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use smallvec::SmallVec;

use crate::cache::lock;

/// The tail is a full piece when it has grown to this.
pub(crate) const PIECE_BYTES: usize = 1 << 20;
/// A buffer that a large commit made larger than this is not kept for the next piece.
const REUSED_CAPACITY_MAX: usize = 2 * PIECE_BYTES;

/// The memory of the whole process for full pieces. Buffers are used again, so that their pages are faulted in once.
pub struct ValueMemory {
    budget_bytes: usize,
    used: AtomicUsize,
    free: Mutex<Vec<Vec<u8>>>,
}

impl ValueMemory {
    pub fn new(budget_bytes: usize) -> ValueMemory {
        ValueMemory { budget_bytes, used: AtomicUsize::new(0), free: Mutex::default() }
    }

    /// Bytes of full pieces that are in memory now.
    pub fn used_bytes(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    fn reserve(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.budget_bytes);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// An empty buffer for a tail. The first tail of a layer begins without one: most layers are small.
    fn buffer(&self) -> Vec<u8> {
        lock(&self.free).pop().unwrap_or_else(|| Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 8))
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        let mut free = lock(&self.free);
        let held = self.used_bytes() + free.len() * PIECE_BYTES;
        if buffer.capacity() <= REUSED_CAPACITY_MAX && held + PIECE_BYTES <= self.budget_bytes {
            buffer.clear();
            free.push(buffer);
        }
    }
}

enum Place {
    Memory(Vec<u8>),
    /// The offset in the ephemeral file.
    File(u64),
}

struct Piece {
    start: u64,
    len: usize,
    place: Place,
}

/// Where the bytes at a position are, and how far into them the position is.
enum Part<'a> {
    Memory(&'a [u8], usize),
    File { offset: u64, len: usize, from: usize },
}

/// A part of a read that lies in the ephemeral file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FilePart {
    /// Where the bytes go.
    pub out: Range<usize>,
    pub offset: u64,
}

/// What became of a full tail.
pub(crate) enum Sealed {
    Kept,
    /// To be written at this offset of the file, and then reported by `spilled`.
    ToFile(Arc<Vec<u8>>, u64),
}

pub(crate) struct Values {
    memory: Arc<ValueMemory>,
    pieces: Vec<Piece>,
    /// The end of the pieces.
    pieces_end: u64,
    file_len: u64,
    /// A full tail on its way to the file.
    sealed: Option<Arc<Vec<u8>>>,
    tail: Vec<u8>,
}

impl Values {
    pub(crate) fn new(memory: Arc<ValueMemory>) -> Values {
        Values { memory, pieces: Vec::new(), pieces_end: 0, file_len: 0, sealed: None, tail: Vec::new() }
    }

    pub(crate) fn end(&self) -> u64 {
        self.tail_start() + self.tail.len() as u64
    }

    fn tail_start(&self) -> u64 {
        self.pieces_end + self.sealed.as_ref().map_or(0, |s| s.len() as u64)
    }

    /// Bytes in the ephemeral file.
    pub(crate) fn file_len(&self) -> u64 {
        self.file_len
    }

    /// What was sealed and is not in the file, since writing failed, and where it belongs.
    pub(crate) fn unwritten(&self) -> Option<(Arc<Vec<u8>>, u64)> {
        Some((Arc::clone(self.sealed.as_ref()?), self.file_len))
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
    }

    /// Makes the tail a piece if it is full.
    pub(crate) fn seal(&mut self) -> Sealed {
        if self.tail.len() < PIECE_BYTES {
            return Sealed::Kept;
        }
        let full = std::mem::replace(&mut self.tail, self.memory.buffer());
        if self.memory.reserve(full.len()) {
            self.push_piece(full.len(), Place::Memory(full));
            return Sealed::Kept;
        }
        let full = Arc::new(full);
        self.sealed = Some(Arc::clone(&full));
        Sealed::ToFile(full, self.file_len)
    }

    /// The sealed bytes are in the file.
    pub(crate) fn spilled(&mut self) {
        let Some(sealed) = self.sealed.take() else { return };
        self.push_piece(sealed.len(), Place::File(self.file_len));
        self.file_len += sealed.len() as u64;
        if let Ok(buffer) = Arc::try_unwrap(sealed) {
            self.memory.give_back(buffer);
        }
    }

    fn push_piece(&mut self, len: usize, place: Place) {
        self.pieces.push(Piece { start: self.pieces_end, len, place });
        self.pieces_end += len as u64;
    }

    /// The bytes at a position, if they are in memory.
    pub(crate) fn in_memory(&self, position: u64, len: u32) -> Option<&[u8]> {
        match self.part_at(position)? {
            Part::Memory(bytes, from) => bytes.get(from..from + len as usize),
            Part::File { .. } => None,
        }
    }

    fn part_at(&self, position: u64) -> Option<Part<'_>> {
        if position >= self.tail_start() {
            return Some(Part::Memory(&self.tail, (position - self.tail_start()) as usize));
        }
        if position >= self.pieces_end {
            return Some(Part::Memory(self.sealed.as_ref()?, (position - self.pieces_end) as usize));
        }
        let piece = self.pieces.get(self.pieces.partition_point(|piece| piece.start <= position).checked_sub(1)?)?;
        let from = (position - piece.start) as usize;
        Some(match &piece.place {
            Place::Memory(bytes) => Part::Memory(bytes, from),
            Place::File(offset) => Part::File { offset: *offset, len: piece.len, from },
        })
    }

    /// Copies what is in memory of `out.len()` bytes from `position` on; returns what is to be read from the file, or
    /// None if the values end before.
    pub(crate) fn copy(&self, out: &mut [u8], position: u64) -> Option<SmallVec<[FilePart; 2]>> {
        let mut in_file: SmallVec<[FilePart; 2]> = SmallVec::new();
        let mut at = 0;
        while at < out.len() {
            at += match self.part_at(position + at as u64)? {
                Part::Memory(bytes, from) => {
                    let bytes = bytes.get(from..).filter(|bytes| !bytes.is_empty())?;
                    let n = bytes.len().min(out.len() - at);
                    out[at..at + n].copy_from_slice(&bytes[..n]);
                    n
                }
                Part::File { offset, len, from } => {
                    let n = (len - from).min(out.len() - at);
                    let offset = offset + from as u64;
                    match in_file.last_mut() {
                        Some(last) if last.out.end == at && last.offset + last.out.len() as u64 == offset => {
                            last.out.end += n;
                        }
                        _ => in_file.push(FilePart { out: at..at + n, offset }),
                    }
                    n
                }
            };
        }
        Some(in_file)
    }
}

impl Drop for Values {
    fn drop(&mut self) {
        for piece in self.pieces.drain(..) {
            if let Place::Memory(bytes) = piece.place {
                self.memory.release(piece.len);
                self.memory.give_back(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends pieces that hold their number, and pretends to write those that must go to a file.
    fn fill(values: &mut Values, file: &mut Vec<u8>, pieces: Range<u8>) {
        for n in pieces {
            values.append(&vec![n; PIECE_BYTES + 10]);
            if let Sealed::ToFile(bytes, offset) = values.seal() {
                assert_eq!(offset, file.len() as u64);
                assert_eq!(values.in_memory(values.end() - 5, 5), Some(&[n; 5][..]), "readable while it is written");
                file.extend_from_slice(&bytes);
                drop(bytes);
                values.spilled();
            }
        }
    }

    fn read_all(values: &Values, file: &[u8]) -> Vec<u8> {
        let mut out = vec![0xFF; values.end() as usize];
        for part in values.copy(&mut out, 0).unwrap() {
            let from = part.offset as usize;
            let len = part.out.len();
            out[part.out].copy_from_slice(&file[from..from + len]);
        }
        out
    }

    #[test]
    fn pieces_beyond_the_budget_go_to_the_file_and_later_ones_stay_when_there_is_room_again() {
        let memory = Arc::new(ValueMemory::new(5 * PIECE_BYTES));
        let mut other = Values::new(Arc::clone(&memory));
        fill(&mut other, &mut Vec::new(), 0..2);
        let (mut values, mut file) = (Values::new(Arc::clone(&memory)), Vec::new());
        fill(&mut values, &mut file, 0..5);
        assert_eq!(values.file_len(), 3 * (PIECE_BYTES as u64 + 10));
        drop(other);
        fill(&mut values, &mut file, 5..7);
        values.append(b"tail");
        assert_eq!(values.file_len(), 3 * (PIECE_BYTES as u64 + 10));
        let mut want: Vec<u8> = (0..7).flat_map(|n| vec![n; PIECE_BYTES + 10]).collect();
        want.extend_from_slice(b"tail");
        assert!(read_all(&values, &file) == want);
        let middle = 2 * (PIECE_BYTES as u64 + 10);
        assert_eq!(values.in_memory(middle - 3, 3), Some(&[1; 3][..]));
        assert_eq!(values.in_memory(middle, 3), None, "in the file");
        assert_eq!(values.copy(&mut [0; 9], values.end() - 4), None);
        assert_eq!(memory.used_bytes(), 4 * (PIECE_BYTES + 10));
        drop(values);
        assert_eq!(memory.used_bytes(), 0);
        assert!(lock(&memory.free).len() <= 5);
    }

    #[test]
    fn without_a_budget_everything_but_the_tail_is_in_the_file() {
        let (mut values, mut file) = (Values::new(Arc::new(ValueMemory::new(0))), Vec::new());
        fill(&mut values, &mut file, 0..3);
        assert_eq!(values.file_len(), values.end());
        let mut out = [9; 20];
        let parts = values.copy(&mut out, PIECE_BYTES as u64).unwrap();
        assert_eq!(parts.as_slice(), &[FilePart { out: 0..20, offset: PIECE_BYTES as u64 }]);
        assert!(lock(&values.memory.free).is_empty());
    }
}
