//! Little-endian fields of record data, read with their bounds checked.

use crate::page::Fault;

const SHORT: Fault = Fault::Record("data ends early");

pub fn bytes_at(data: &[u8], at: usize, len: usize) -> Result<&[u8], Fault> {
    at.checked_add(len).and_then(|end| data.get(at..end)).ok_or(SHORT)
}

pub fn u8_at(data: &[u8], at: usize) -> Result<u8, Fault> {
    data.get(at).copied().ok_or(SHORT)
}

pub fn u16_at(data: &[u8], at: usize) -> Result<u16, Fault> {
    let b = bytes_at(data, at, 2)?;
    Ok(u16::from_le_bytes([b[0], b[1]]))
}

pub fn u32_at(data: &[u8], at: usize) -> Result<u32, Fault> {
    let b = bytes_at(data, at, 4)?;
    Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Reads fields one after the other.
#[derive(Clone)]
pub struct Fields<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub fn new(data: &'a [u8]) -> Fields<'a> {
        Fields { data, at: 0 }
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let out = bytes_at(self.data, self.at, len)?;
        self.at += len;
        Ok(out)
    }

    pub fn u8(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    pub fn u16(&mut self) -> Result<u16, Fault> {
        let b = self.take(2)?;
        Ok(u16::from_le_bytes([b[0], b[1]]))
    }

    pub fn u32(&mut self) -> Result<u32, Fault> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    /// The next `count` numbers of 16 bits.
    pub fn u16s(&mut self, count: usize) -> Result<U16s<'a>, Fault> {
        Ok(U16s(self.take(2 * count)?))
    }

    pub fn rest(&self) -> &'a [u8] {
        self.data.get(self.at..).unwrap_or(&[])
    }

    pub fn is_empty(&self) -> bool {
        self.at >= self.data.len()
    }

    /// Skips to a multiple of `n` bytes from the start of the data.
    pub fn align(&mut self, n: usize) {
        self.at = self.at.div_ceil(n) * n;
    }
}

/// A list of 16-bit numbers, as offsets are stored; not necessarily aligned.
#[derive(Clone, Copy)]
pub struct U16s<'a>(&'a [u8]);

impl<'a> U16s<'a> {
    /// All of `data`; an odd last byte is left out.
    pub fn new(data: &'a [u8]) -> U16s<'a> {
        U16s(data)
    }

    pub fn len(self) -> usize {
        self.0.len() / 2
    }

    pub fn get(self, i: usize) -> Option<u16> {
        let b = self.0.get(2 * i..2 * i + 2)?;
        Some(u16::from_le_bytes([b[0], b[1]]))
    }

    pub fn iter(self) -> impl Iterator<Item = u16> + Clone + 'a {
        self.0.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]))
    }
}
