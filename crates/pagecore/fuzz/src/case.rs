//! One case of the redo fuzzer: a page, or none, and a record to apply to it; with its encoding as bytes and its mutation.
//!
//! Redo may refuse a record or make something of it. It must not panic, hang, or leave a page of another size. That nothing is
//! read or written outside of the page needs no check of its own: in Rust without `unsafe` that is a panic.
//!
//! ```text
//!   0      1       2        10         28             28 + 8192
//!   +------+-------+--------+----------+--------------+----------------+
//!   | major| flags | LSN LE | key      | page, if any | record (rest)  |
//!   +------+-------+--------+----------+--------------+----------------+
//! ```
//!
//! Every sequence of at least 28 bytes is a case: a short page is filled up with zeros, and the length that a PostgreSQL
//! record states is set right, since a wrong one is refused before anything else is looked at.

use pagecore::mask::{mask, mask_strict, PageKind};
use pagecore::redo::{self, Context};
use pagecore::value::{Record, Value};
use pagecore::{Flavour, Key, Lsn, BLCKSZ};

const HEAD: usize = 28;
const HINT_BITS_LOGGED: u8 = 1;
const NEON: u8 = 2;
const HAS_PAGE: u8 = 4;
/// The record is an encoded [`Value`] instead of a WAL record.
const IS_VALUE: u8 = 8;
const RECORD_HEADER: usize = 24;

/// Where seeds lie in one file: each with its length (u32 LE) before it, all compressed by zstd.
pub fn unpack_seeds(packed: &[u8]) -> std::io::Result<Vec<Vec<u8>>> {
    let bytes = zstd::decode_all(packed)?;
    let mut rest = &bytes[..];
    let mut seeds = Vec::new();
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        let (seed, tail) = tail
            .split_at_checked(u32::from_le_bytes(*len) as usize)
            .ok_or_else(|| std::io::Error::other("a seed ends early"))?;
        seeds.push(seed.to_vec());
        rest = tail;
    }
    Ok(seeds)
}

pub fn pack_seeds(seeds: &[Vec<u8>]) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for seed in seeds {
        bytes.extend((seed.len() as u32).to_le_bytes());
        bytes.extend(seed);
    }
    zstd::encode_all(&bytes[..], 19)
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub context: Context,
    pub key: Key,
    pub lsn: Lsn,
    /// 8192 bytes, or none.
    pub page: Vec<u8>,
    pub record: Vec<u8>,
    pub is_value: bool,
}

impl Case {
    /// None if there are too few bytes.
    pub fn decode(bytes: &[u8]) -> Option<Case> {
        let (head, mut rest) = bytes.split_first_chunk::<HEAD>()?;
        let flags = head[1];
        let mut page = Vec::new();
        if flags & HAS_PAGE != 0 {
            let (given, tail) = rest.split_at(rest.len().min(BLCKSZ));
            page.extend(given);
            page.resize(BLCKSZ, 0);
            rest = tail;
        }
        let is_value = flags & IS_VALUE != 0;
        let mut record = rest.to_vec();
        if !is_value && record.len() >= RECORD_HEADER {
            let len = (record.len() as u32).to_le_bytes();
            record[..4].copy_from_slice(&len);
        }
        let mut lsn = [0; 8];
        lsn.copy_from_slice(&head[2..10]);
        Some(Case {
            context: Context {
                major: 14 + head[0] % 5,
                flavour: if flags & NEON != 0 { Flavour::Neon } else { Flavour::Stock },
                hint_bits_logged: flags & HINT_BITS_LOGGED != 0,
            },
            key: Key::from_slice(&head[10..HEAD])?,
            lsn: Lsn(u64::from_le_bytes(lsn)),
            page,
            record,
            is_value,
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut flags = 0;
        flags |= if self.context.hint_bits_logged { HINT_BITS_LOGGED } else { 0 };
        flags |= if self.context.flavour == Flavour::Neon { NEON } else { 0 };
        flags |= if self.page.is_empty() { 0 } else { HAS_PAGE };
        flags |= if self.is_value { IS_VALUE } else { 0 };
        let mut out = vec![self.context.major - 14, flags];
        out.extend(self.lsn.0.to_le_bytes());
        out.extend(self.key.to_bytes());
        out.extend(&self.page);
        out.extend(&self.record);
        out
    }

    /// Applies the record; true if redo made something of it. Panics on what is a finding.
    pub fn run(&self) -> bool {
        let record = if self.is_value {
            match Value::decode(&self.record) {
                Ok(Value::Record(record)) => record,
                _ => return false,
            }
        } else {
            Record::Postgres { will_init: false, record: (&self.record[..]).into() }
        };
        let mut page = self.page.clone();
        let _ = redo::can_apply(&self.context, &record);
        if let Err(error) = redo::apply(&self.context, self.key, &mut page, self.lsn, &record) {
            assert!(!error.to_string().is_empty());
            return false;
        }
        assert!(page.len() == BLCKSZ || page.is_empty() || page.len() == BLCKSZ + 8, "a page of {} bytes", page.len());
        if let Ok(page) = <[u8; BLCKSZ]>::try_from(page) {
            if let Some(kind) = PageKind::of(&self.key, &page) {
                let _ = mask_strict(kind, &mut page.clone());
                let _ = mask(kind, self.key.field6, &mut page.clone());
            }
        }
        true
    }

    /// Damages the record, the page, or both, in the places where it matters most.
    pub fn damage(&mut self, chance: &mut Chance) {
        if self.page.is_empty() || chance.below(3) != 0 {
            self.damage_record(chance);
        }
        if chance.below(3) != 0 {
            damage_page(chance, &mut self.page);
        }
    }

    fn damage_record(&mut self, chance: &mut Chance) {
        // Half of the time only what follows the headers, so that decoding does not refuse it at once.
        let record = &mut self.record;
        let from = if chance.below(2) == 0 { RECORD_HEADER } else { 48 }.min(record.len());
        match chance.below(10) {
            0 => record.truncate(from + chance.below(record.len() - from + 1)),
            // The info bits: one kind of record with the data of another.
            1 if record.len() >= RECORD_HEADER => record[16] = (chance.below(16) as u8) << 4,
            _ => damage_bytes(chance, &mut record[from..]),
        }
        if chance.below(20) == 0 {
            self.context.major = 14 + chance.below(5) as u8;
        }
    }
}

/// Header, line pointers, special area, or anything.
fn damage_page(chance: &mut Chance, page: &mut [u8]) {
    if page.len() == BLCKSZ {
        let range = match chance.below(5) {
            0 => 10..24,
            1 => 24..64,
            2 => BLCKSZ - 16..BLCKSZ,
            3 => {
                // One of the tuples, which lie at the end.
                let upper = usize::from(u16::from_le_bytes([page[14], page[15]])).min(BLCKSZ - 64);
                upper..upper + 64
            }
            _ => 0..BLCKSZ,
        };
        damage_bytes(chance, &mut page[range]);
    }
}

fn damage_bytes(chance: &mut Chance, bytes: &mut [u8]) {
    for _ in 0..1 + chance.below(4) {
        let at = chance.below(bytes.len());
        if let Some(byte) = bytes.get_mut(at) {
            *byte = match chance.below(6) {
                0 => 0,
                1 => 0xFF,
                2 => byte.wrapping_add(1),
                3 => byte.wrapping_sub(1),
                4 => *byte ^ 1 << chance.below(8),
                _ => chance.next() as u8,
            };
        }
    }
}

/// A xorshift generator: the same damage for the same seed.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(seed ^ 0x9E37_79B9_7F4A_7C15)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = if self.0 == 0 { 1 } else { self.0 };
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}
