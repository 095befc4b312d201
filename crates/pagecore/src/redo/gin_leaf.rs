//! Leaves of GIN posting trees: segments of packed TIDs (spec walredo.md 10, "Recompress").
//!
//! ```text
//! segment: first TID (6 bytes), number of bytes u16, that many bytes, padded with zero to an even length
//! ```
//!
//! The bytes are differences between neighbours, 7 bits each, low bits first, the high bit meaning "goes on". A TID's value
//! is block << 11 | offset.

use crate::page::{item_pointer, Fault, Page};
use crate::BLCKSZ;

use super::fields::{bytes_at, u16_at, Fields};
use super::gin::{change_flags, flags, maxoff, set_data_size, set_maxoff, COMPRESSED, DATA_START};

const DELETE: u8 = 1;
const INSERT: u8 = 2;
const REPLACE: u8 = 3;
const ADD_ITEMS: u8 = 4;

const TID_SIZE: usize = 6;
const SEGMENT_HEADER: usize = 8;
const OFFSET_BITS: u32 = 11;
/// Bytes that one difference can take.
const VARBYTE_MAX: usize = 7;

/// Size of the segment at the start of `bytes`, padding included.
fn segment_size(bytes: &[u8]) -> Result<usize, Fault> {
    let packed = usize::from(u16_at(bytes, TID_SIZE)?);
    Ok(SEGMENT_HEADER + packed.next_multiple_of(2))
}

fn tid_value(tid: &[u8]) -> Result<u64, Fault> {
    let block = u64::from(u16_at(tid, 0)?) << 16 | u64::from(u16_at(tid, 2)?);
    Ok(block << OFFSET_BITS | u64::from(u16_at(tid, 4)?))
}

fn tid_of(value: u64) -> [u8; TID_SIZE] {
    item_pointer((value >> OFFSET_BITS) as u32, (value & ((1 << OFFSET_BITS) - 1)) as u16)
}

/// The TIDs of a segment, in ascending order.
struct Unpacked<'a> {
    next: Option<u64>,
    packed: &'a [u8],
}

impl<'a> Unpacked<'a> {
    fn new(segment: &'a [u8]) -> Result<Unpacked<'a>, Fault> {
        let packed = bytes_at(segment, SEGMENT_HEADER, usize::from(u16_at(segment, TID_SIZE)?))?;
        Ok(Unpacked { next: Some(tid_value(segment)?), packed })
    }

    /// Takes the current value and decodes the one after it.
    fn advance(&mut self) -> Result<(), Fault> {
        let Some(value) = self.next.take() else { return Ok(()) };
        if self.packed.is_empty() {
            return Ok(());
        }
        let mut difference = 0u64;
        for i in 0..VARBYTE_MAX {
            let &byte = self.packed.get(i).ok_or(Fault::Page("a packed TID is cut"))?;
            difference |= u64::from(byte & 0x7F) << (7 * i);
            if byte & 0x80 == 0 {
                self.packed = self.packed.get(i + 1..).unwrap_or(&[]);
                self.next = Some(value.wrapping_add(difference));
                return Ok(());
            }
        }
        Err(Fault::Page("a packed TID is too long"))
    }
}

/// The new data of a page, while it is put together.
struct Output {
    bytes: [u8; BLCKSZ],
    len: usize,
}

impl Output {
    fn new() -> Output {
        Output { bytes: [0; BLCKSZ], len: 0 }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let room =
            self.bytes.get_mut(self.len..self.len + bytes.len()).ok_or(Fault::Record("a leaf outgrows its page"))?;
        room.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    /// Packs ascending values as one segment; `next` gives them one by one.
    fn push_segment(&mut self, mut next: impl FnMut() -> Result<Option<u64>, Fault>) -> Result<(), Fault> {
        let Some(mut last) = next()? else { return Ok(()) };
        let start = self.len;
        self.push(&tid_of(last))?;
        self.push(&[0; 2])?;
        while let Some(value) = next()? {
            let mut difference = value.wrapping_sub(last);
            last = value;
            while difference > 0x7F {
                self.push(&[difference as u8 & 0x7F | 0x80])?;
                difference >>= 7;
            }
            self.push(&[difference as u8])?;
        }
        let packed = self.len - start - SEGMENT_HEADER;
        if let Some(length) = self.bytes.get_mut(start + TID_SIZE..start + SEGMENT_HEADER) {
            length.copy_from_slice(&(packed as u16).to_le_bytes());
        }
        if packed % 2 == 1 {
            self.push(&[0])?;
        }
        Ok(())
    }

    /// The TIDs of a segment and those of `added`, both ascending, each once.
    fn push_merged(&mut self, segment: &[u8], added: &[u8]) -> Result<(), Fault> {
        let mut old = Unpacked::new(segment)?;
        let mut added = added.chunks_exact(TID_SIZE).peekable();
        self.push_segment(|| {
            let new = added.peek().map(|tid| tid_value(tid)).transpose()?;
            let value = match (old.next, new) {
                (None, None) => return Ok(None),
                (Some(old), None) => old,
                (None, Some(new)) => new,
                (Some(old), Some(new)) => old.min(new),
            };
            if old.next == Some(value) {
                old.advance()?;
            }
            if new == Some(value) {
                added.next();
            }
            Ok(Some(value))
        })
    }
}

/// The data of the page, of which the caller may rely on the size.
fn current_data(page: &Page<'_>) -> Result<([u8; BLCKSZ], usize), Fault> {
    let size = usize::from(page.u16_at(12)?).checked_sub(DATA_START).ok_or(Fault::Page("lower is too small"))?;
    let data = page.slice(DATA_START, size)?;
    let mut copy = [0; BLCKSZ];
    copy[..data.len()].copy_from_slice(data);
    Ok((copy, size))
}

/// Before 9.4 a leaf was a plain list of TIDs; packs it as one segment.
fn pack_old_format(page: &mut Page<'_>) -> Result<(), Fault> {
    let count = usize::from(maxoff(page)?);
    let mut output = Output::new();
    let mut tids = page.slice(DATA_START, count * TID_SIZE)?.chunks_exact(TID_SIZE);
    output.push_segment(|| tids.next().map(tid_value).transpose())?;
    page.put(DATA_START, &output.bytes[..output.len])?;
    set_data_size(page, output.len)?;
    change_flags(page, COMPRESSED, 0)?;
    set_maxoff(page, 0)
}

/// Carries out the actions of a record: each names a segment of the old page, in ascending order.
pub fn recompress(page: &mut Page<'_>, data: &[u8]) -> Result<(), Fault> {
    if flags(page)? & COMPRESSED == 0 {
        pack_old_format(page)?;
    }
    let (copy, size) = current_data(page)?;
    let mut old = &copy[..size];
    let mut segment_number = 0u16;
    let mut output = Output::new();
    let mut data = Fields::new(data);
    for _ in 0..data.u16()? {
        let target = u16::from(data.u8()?);
        let action = data.u8()?;
        while segment_number < target {
            let size = segment_size(old)?;
            output.push(bytes_at(old, 0, size)?)?;
            old = old.get(size..).unwrap_or(&[]);
            segment_number += 1;
        }
        if matches!(action, INSERT | REPLACE) {
            let size = segment_size(data.rest())?;
            output.push(data.take(size)?)?;
        }
        if action == INSERT {
            continue;
        }
        let size = segment_size(old)?;
        let segment = bytes_at(old, 0, size)?;
        match action {
            DELETE | REPLACE => {}
            ADD_ITEMS => {
                let count = usize::from(data.u16()?);
                output.push_merged(segment, data.take(count * TID_SIZE)?)?;
            }
            _ => return Err(Fault::Record("unknown action on a segment")),
        }
        old = old.get(size..).unwrap_or(&[]);
        segment_number += 1;
    }
    output.push(old)?;
    set_data_size(page, output.len)?;
    page.put(DATA_START, &output.bytes[..output.len])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_packed_as_in_the_spec() {
        let tids: Vec<u8> = [(0, 1), (0, 2), (1, 1)].iter().flat_map(|&(b, o)| item_pointer(b, o)).collect();
        let mut output = Output::new();
        let mut chunks = tids.chunks_exact(TID_SIZE);
        output.push_segment(|| chunks.next().map(tid_value).transpose()).unwrap();
        assert_eq!(hex::encode(&output.bytes[..output.len]), "000000000100030001ff0f00");
        let first = output.bytes[..output.len].to_vec();
        let mut merged = Output::new();
        let added: Vec<u8> = [(0, 2), (0, 3), (7, 7)].iter().flat_map(|&(b, o)| item_pointer(b, o)).collect();
        merged.push_merged(&first, &added).unwrap();
        let mut values = Vec::new();
        let mut unpacked = Unpacked::new(&merged.bytes[..merged.len]).unwrap();
        while let Some(value) = unpacked.next {
            values.push((value >> OFFSET_BITS, value & 0x7FF));
            unpacked.advance().unwrap();
        }
        assert_eq!(values, [(0, 1), (0, 2), (0, 3), (1, 1), (7, 7)]);
    }
}
