//! One record becomes values for its blocks and at most one metadata record (spec wal.md 3).
//!
//! No stored state is needed. Values go straight into the caller's buffer through `ValueSink`, so that a record's bytes
//! are copied once.

use super::metadata::{self, ClearVmBits, MetadataRecord};
use super::{image, le, rmgr, DecodedRecord, WalError, RMGR_INFO_MASK};
use crate::key::VM_FORK;
use crate::{Flavour, Key, Lsn, RelTag, ShardIdentity, BLCKSZ};

/// Heap blocks whose visibility bits one page of the map holds.
pub const HEAP_BLOCKS_PER_VM_PAGE: u32 = 32672;

pub const VM_ALL_VISIBLE: u8 = 0x01;
pub const VM_ALL_FROZEN: u8 = 0x02;
const VM_VALID_BITS: u8 = VM_ALL_VISIBLE | VM_ALL_FROZEN;

const XLOG_FPI_FOR_HINT: u8 = 0xA0;
const XLOG_FPI: u8 = 0xB0;
const HEAP_OPMASK: u8 = 0x70;
const PD_UPPER: usize = 14;

/// Takes what a record does to data blocks, in the order of its block references.
pub trait ValueSink {
    /// A complete page.
    fn put_image(&mut self, key: Key, lsn: Lsn, page: &[u8; BLCKSZ]);
    /// A change: the whole record, stored once per block.
    fn put_record(&mut self, key: Key, lsn: Lsn, will_init: bool, record: &[u8]);
    /// A block that another shard stores; only shard 0 hears of it, because it tracks relation sizes.
    fn observe(&mut self, key: Key, lsn: Lsn);
}

/// What does not change from record to record.
#[derive(Clone, Copy, Debug)]
pub struct Interpreter {
    pub major: u8,
    pub flavour: Flavour,
    pub shard: ShardIdentity,
}

impl Interpreter {
    /// Interprets `record`, which decodes `bytes` and ends at `next_lsn`.
    ///
    /// Raises: `WalError` if the record's structure is wrong, or its keys cannot be stored.
    pub fn interpret<'a>(
        &self,
        next_lsn: Lsn,
        bytes: &'a [u8],
        record: &DecodedRecord<'a>,
        sink: &mut impl ValueSink,
    ) -> Result<Option<MetadataRecord<'a>>, WalError> {
        self.blocks(next_lsn, bytes, record, sink)?;
        self.metadata(record).map_err(|error| error.at_record_end(next_lsn))
    }

    /// True if all effects of earlier records must be readable before this one is applied: it copies data pages
    /// (spec wal.md 3, `flush_uncommitted`).
    pub fn reads_data_pages(record: &DecodedRecord<'_>) -> bool {
        record.rmid == rmgr::DBASE && record.info & RMGR_INFO_MASK == 0x00
    }

    /// Values for the blocks that a record registers (spec wal.md 3.2).
    pub fn blocks(
        &self,
        next_lsn: Lsn,
        bytes: &[u8],
        record: &DecodedRecord<'_>,
        sink: &mut impl ValueSink,
    ) -> Result<(), WalError> {
        // Exactly these: with a framework bit set such a record is stored like any other.
        let is_page_image = record.rmid == rmgr::XLOG && matches!(record.info, XLOG_FPI | XLOG_FPI_FOR_HINT);
        for block in &record.blocks {
            let key = Key::rel_block(block.rel, block.block);
            self.check_key(next_lsn, &key)?;
            if !self.shard.is_local(&key) {
                if self.shard.is_shard_zero() {
                    sink.observe(key, next_lsn);
                }
                continue;
            }
            match &block.image {
                Some(image)
                    if is_page_image
                        && block.apply_image
                        && image.compression == super::Compression::None
                        && !image.data.is_empty() =>
                {
                    let mut page = [0; BLCKSZ];
                    image::restore_into(image, &mut page).map_err(|error| error.at_record_end(next_lsn))?;
                    // A page LSN on a new page would make it "initialised, but corrupt".
                    if page[PD_UPPER..PD_UPPER + 2] != [0, 0] {
                        page[..4].copy_from_slice(&((next_lsn.0 >> 32) as u32).to_le_bytes());
                        page[4..8].copy_from_slice(&(next_lsn.0 as u32).to_le_bytes());
                    }
                    sink.put_image(key, next_lsn, &page);
                }
                _ => sink.put_record(key, next_lsn, block.initialises(), bytes),
            }
        }
        Ok(())
    }

    /// Refuses keys that cannot be stored. Neon's flavour has a compact form of keys in which most tablespaces have
    /// no room (spec wal.md 3.1).
    pub fn check_key(&self, lsn: Lsn, key: &Key) -> Result<(), WalError> {
        if self.flavour == Flavour::Neon && !key.is_compactable() {
            return Err(WalError::UnsupportedKey { lsn, key: *key });
        }
        if key.field4 == 0 {
            return Err(WalError::Record { problem: "invalid relnode 0".to_string(), lsn });
        }
        if key.field6 == u32::MAX {
            return Err(WalError::Record { problem: "invalid block number 4294967295".to_string(), lsn });
        }
        Ok(())
    }

    /// The metadata record, if there is one for this shard (spec wal.md 3.4).
    pub fn metadata<'a>(&self, record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
        match record.rmid {
            rmgr::HEAP => self.heap(record),
            rmgr::HEAP2 => self.heap2(record),
            rmgr::NEON if self.flavour == Flavour::Neon => self.neon(record),
            rmgr::XLOG => Ok(metadata::xlog(record)),
            rmgr::XACT => metadata::xact(self.major, record),
            rmgr::SMGR => metadata::smgr(record),
            rmgr::CLOG => metadata::clog(self.major, record),
            rmgr::DBASE => metadata::dbase(self.major, record),
            rmgr::TBLSPC if self.flavour == Flavour::Stock => metadata::tablespace(record),
            rmgr::MULTIXACT => metadata::multixact(self.major, record),
            rmgr::RELMAP => metadata::relmap(record),
            rmgr::STANDBY => metadata::standby(record),
            rmgr::REPLORIGIN => metadata::replorigin(record),
            // Any user of a stock server may write such a message; only Neon's compute means an aux file by it.
            rmgr::LOGICALMSG if self.flavour == Flavour::Neon && self.shard.is_shard_zero() => {
                metadata::logical_message(record)
            }
            _ => Ok(None),
        }
    }

    fn heap<'a>(&self, record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
        // Neon's 14 and 15 put the command id before the flags (spec wal.md 8.1).
        let delete_flags_at = if self.flavour == Flavour::Neon && self.major < 16 { 13 } else { 7 };
        match record.info & HEAP_OPMASK {
            0x00 => self.clear_new(record, 2),
            0x10 => self.clear_new(record, delete_flags_at),
            0x20 | 0x40 => self.clear_update(record, 7),
            0x60 => self.clear_frozen(record, delete_flags_at),
            _ => Ok(None),
        }
    }

    fn heap2<'a>(&self, record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
        match record.info & HEAP_OPMASK {
            0x50 => self.clear_new(record, 0),
            0x60 => self.clear_frozen(record, 7),
            _ => Ok(None),
        }
    }

    /// Records of Neon's own resource manager (spec wal.md 8.2).
    fn neon<'a>(&self, record: &DecodedRecord<'a>) -> Result<Option<MetadataRecord<'a>>, WalError> {
        if !matches!(self.major, 16 | 17) {
            let text = format!("Neon RMGR has no known compatibility with PostgreSQL version {}", self.major);
            return Err(WalError::Decode(text));
        }
        match record.info & HEAP_OPMASK {
            0x00 => self.clear_new(record, 2),
            0x10 => self.clear_new(record, 7),
            0x20 | 0x30 => self.clear_update(record, 7),
            0x40 => self.clear_frozen(record, 11),
            0x50 => self.clear_new(record, 0),
            _ => Err(WalError::Decode(format!("Unknown WAL record type for Neon RMGR: {:#04x}", record.info))),
        }
    }

    fn clear_new<'a>(
        &self,
        record: &DecodedRecord<'a>,
        flags_at: usize,
    ) -> Result<Option<MetadataRecord<'a>>, WalError> {
        if le::u8(record.main_data, flags_at)? & 0x01 == 0 {
            return Ok(None);
        }
        self.clear(record, record.blocks.first().map(|b| b.block), None, VM_VALID_BITS)
    }

    fn clear_update<'a>(
        &self,
        record: &DecodedRecord<'a>,
        flags_at: usize,
    ) -> Result<Option<MetadataRecord<'a>>, WalError> {
        let flags = le::u8(record.main_data, flags_at)?;
        // The old page is registered only if it is another one.
        let old = if flags & 0x01 != 0 { record.blocks.last().map(|b| b.block) } else { None };
        let new = if flags & 0x02 != 0 { record.blocks.first().map(|b| b.block) } else { None };
        self.clear(record, new, old, VM_VALID_BITS)
    }

    fn clear_frozen<'a>(
        &self,
        record: &DecodedRecord<'a>,
        flags_at: usize,
    ) -> Result<Option<MetadataRecord<'a>>, WalError> {
        if le::u8(record.main_data, flags_at)? & 0x01 == 0 {
            return Ok(None);
        }
        self.clear(record, None, record.blocks.first().map(|b| b.block), VM_ALL_FROZEN)
    }

    fn clear<'a>(
        &self,
        record: &DecodedRecord<'a>,
        new: Option<u32>,
        old: Option<u32>,
        flags: u8,
    ) -> Result<Option<MetadataRecord<'a>>, WalError> {
        let Some(first) = record.blocks.first() else {
            return Err(WalError::Decode("heap record without a block".to_string()));
        };
        let vm_rel = RelTag { forknum: VM_FORK, ..first.rel };
        let is_local =
            |heap_block: &u32| self.shard.is_local(&Key::rel_block(vm_rel, heap_block / HEAP_BLOCKS_PER_VM_PAGE));
        let (new_heap_block, old_heap_block) = (new.filter(is_local), old.filter(is_local));
        if new_heap_block.is_none() && old_heap_block.is_none() {
            return Ok(None);
        }
        let is_neon_rmgr = record.rmid == rmgr::NEON;
        Ok(Some(MetadataRecord::ClearVmBits(ClearVmBits {
            new_heap_block,
            old_heap_block,
            vm_rel,
            flags,
            is_neon_rmgr,
        })))
    }
}

#[cfg(test)]
#[path = "interpret_tests.rs"]
mod tests;
