//! Redo: what a WAL record does to one page (spec walredo.md 5-15).
//!
//! In: a page (or none, if the record makes it), one record, the record's end LSN. Out: the page after the record, or
//! an error that names the record; a page that an error leaves behind is half changed and must be thrown away.
//! Never: a panic, a byte outside the page, a look at anything but the arguments.
//!
//! Each resource manager has a file, and in it one table for what differs between PostgreSQL versions. The order of
//! decisions is the same for all of them (spec 7.2) and is made here:
//!
//! 1. find the block reference to the page;
//! 2. an image to apply replaces the page, whatever it was;
//! 3. a reference that initialises lets the resource manager make the page from nothing;
//! 4. a page that was never initialised, or that already contains the record, stays as it is;
//! 5. otherwise the resource manager changes it, and the page gets the record's LSN.

use crate::key::Key;
use crate::page::{Fault, Page, PageBytes};
use crate::value::Record;
use crate::wal::image::restore_into;
use crate::wal::rmgr;
use crate::{Flavour, Lsn, BLCKSZ};

mod brin;
mod btree;
mod btree_rebuild;
mod decode;
mod fields;
mod generic;
mod gin;
mod gin_leaf;
mod gist;
mod hash;
mod heap;
mod heap2;
mod neon;
mod sequence;
mod slru;
mod spgist;
mod vm;
mod xlog;

pub use decode::PageRecord;

/// Facts about the source of the WAL that a record itself does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// PostgreSQL's major version, 14 to 18.
    pub major: u8,
    pub flavour: Flavour,
    /// The source has data checksums or wal_log_hints: then HEAP2_VISIBLE sets the heap page's LSN (spec 6.2, 14).
    pub hint_bits_logged: bool,
}

/// The kind of a record, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    Postgres { rmid: u8, info: u8 },
    Other(&'static str),
}

impl std::fmt::Display for RecordKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RecordKind::Postgres { rmid, info } => {
                let name = rmgr::name(*rmid);
                write!(f, "{name} record (rmid {rmid}, info {info:#04x})")
            }
            RecordKind::Other(name) => write!(f, "{name}"),
        }
    }
}

/// A record could not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedoError {
    /// The record or the page is damaged, or they do not belong together.
    #[error("cannot apply {kind} at {lsn} to {key}: {fault}")]
    Fault { key: Key, lsn: Lsn, kind: RecordKind, fault: Fault },
    /// The record changes a page, but there is none yet.
    #[error("cannot apply {kind} at {lsn} to {key}: there is no page to apply it to")]
    MissingBase { key: Key, lsn: Lsn, kind: RecordKind },
    #[error("cannot apply {kind} at {lsn} to {key}: the page has {size} bytes")]
    PageSize { key: Key, lsn: Lsn, kind: RecordKind, size: usize },
    /// `can_apply` is false for this record.
    #[error("cannot apply {kind} at {lsn} to {key}: this kind of record needs the redo process")]
    Unsupported { key: Key, lsn: Lsn, kind: RecordKind },
}

/// What a resource manager did to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// The page gets the record's LSN.
    Stamp,
    /// The page keeps its LSN: nothing changed, or nothing that counts.
    Keep,
}

type Applied = Result<Change, Fault>;

/// True if `apply` knows this kind of record. Looks at two bytes.
pub fn can_apply(ctx: &Context, record: &Record<'_>) -> bool {
    match record {
        Record::Postgres { record, .. } => match (record.get(17), record.get(16)) {
            (Some(&rmid), Some(&info)) => knows(ctx, rmid, info & 0xF0),
            _ => false,
        },
        _ => true,
    }
}

fn knows(ctx: &Context, rmid: u8, info: u8) -> bool {
    match rmid {
        rmgr::XLOG => xlog::knows(info),
        rmgr::MULTIXACT => slru::knows(info),
        rmgr::HEAP2 => heap2::knows(info),
        rmgr::HEAP => heap::knows(info),
        rmgr::BTREE => btree::knows(info),
        rmgr::HASH => hash::knows(info),
        rmgr::GIN => gin::knows(info),
        rmgr::GIST => gist::knows(info),
        rmgr::SEQ => sequence::knows(info),
        rmgr::SPGIST => spgist::knows(info),
        rmgr::BRIN => brin::knows(info),
        rmgr::GENERIC => true,
        rmgr::NEON => neon::knows(ctx, info),
        _ => false,
    }
}

/// Applies `record`, which ends at `lsn`, to the page of `key`.
///
/// Shape: `page` is empty (only if the record makes the page) or 8192 bytes; a CLOG page may carry its 8-byte timestamp
/// tail. On error its contents are unspecified.
pub fn apply(ctx: &Context, key: Key, page: &mut Vec<u8>, lsn: Lsn, record: &Record<'_>) -> Result<(), RedoError> {
    match record {
        Record::Postgres { record, .. } => {
            let kind = RecordKind::Postgres {
                rmid: record.get(17).copied().unwrap_or(0),
                info: record.get(16).copied().unwrap_or(0) & 0xF0,
            };
            apply_postgres(ctx, key, page, lsn, record, kind)
        }
        Record::ClearVisibilityMapFlags { new_heap_block, old_heap_block, flags } => {
            on_page(key, page, lsn, "ClearVisibilityMapFlags", |bytes| {
                vm::clear(&key, bytes, lsn, [*new_heap_block, *old_heap_block], *flags)
            })
        }
        Record::TruncateVisibilityMap { byte, bit_offset } => {
            on_page(key, page, lsn, "TruncateVisibilityMap", |bytes| vm::truncate(&key, bytes, *byte, *bit_offset))
        }
        Record::ClogSetCommitted { xids, timestamp } => {
            slru_page(key, page, lsn, "ClogSetCommitted", |page| slru::clog_commit(&key, page, xids, *timestamp))
        }
        Record::ClogSetAborted { xids } => {
            slru_page(key, page, lsn, "ClogSetAborted", |page| slru::clog_abort(&key, page, xids))
        }
        Record::MultixactOffsetCreate { multi, offset } => {
            slru_page(key, page, lsn, "MultixactOffsetCreate", |page| slru::set_offset(&key, page, *multi, *offset))
        }
        Record::MultixactMembersCreate { offset, members } => {
            slru_page(key, page, lsn, "MultixactMembersCreate", |page| slru::set_members(&key, page, *offset, members))
        }
        // Written by old versions of Neon; has no effect (spec 5).
        Record::AuxFile { .. } => Ok(()),
    }
}

/// Runs `change` on a page that must exist and have exactly 8192 bytes.
fn on_page(
    key: Key,
    page: &mut Vec<u8>,
    lsn: Lsn,
    name: &'static str,
    change: impl FnOnce(&mut PageBytes) -> Result<(), Fault>,
) -> Result<(), RedoError> {
    slru_page(key, page, lsn, name, |page| match page.as_mut_slice().try_into() {
        Ok(bytes) => change(bytes),
        Err(_) => Err(Fault::Page("it does not have 8192 bytes")),
    })
}

fn slru_page(
    key: Key,
    page: &mut Vec<u8>,
    lsn: Lsn,
    name: &'static str,
    change: impl FnOnce(&mut Vec<u8>) -> Result<(), Fault>,
) -> Result<(), RedoError> {
    let kind = RecordKind::Other(name);
    if page.is_empty() {
        return Err(RedoError::MissingBase { key, lsn, kind });
    }
    if page.len() < BLCKSZ {
        return Err(RedoError::PageSize { key, lsn, kind, size: page.len() });
    }
    change(page).map_err(|fault| RedoError::Fault { key, lsn, kind, fault })
}

fn apply_postgres(
    ctx: &Context,
    key: Key,
    page: &mut Vec<u8>,
    lsn: Lsn,
    record: &[u8],
    kind: RecordKind,
) -> Result<(), RedoError> {
    let fail = |fault| RedoError::Fault { key, lsn, kind, fault };
    if let RecordKind::Postgres { rmid, info } = kind {
        if !knows(ctx, rmid, info) {
            return Err(RedoError::Unsupported { key, lsn, kind });
        }
        if rmid == rmgr::MULTIXACT {
            return slru_page(key, page, lsn, "MultiXact CREATE_ID", |page| slru::create_multi(&key, page, record));
        }
    }
    let view = PageRecord::decode(ctx.major, &key, lsn, record).map_err(fail)?;
    let makes_page = view.target.will_init
        || view.target.image.is_some_and(|image| image.apply)
        || (view.rmid == rmgr::HEAP2 && heap2::initialises(&view));
    if page.is_empty() {
        if !makes_page {
            return Err(RedoError::MissingBase { key, lsn, kind });
        }
        page.resize(BLCKSZ, 0);
    }
    let size = page.len();
    let Ok(bytes) = <&mut PageBytes>::try_from(page.as_mut_slice()) else {
        return Err(RedoError::PageSize { key, lsn, kind, size });
    };
    apply_to_page(ctx, &view, bytes).map_err(fail)
}

/// Spec 7.2, from point 2 on.
fn apply_to_page(ctx: &Context, record: &PageRecord<'_>, bytes: &mut PageBytes) -> Result<(), Fault> {
    if let Some(image) = record.target.image.filter(|image| image.apply) {
        restore_into(&image.image, bytes).map_err(|_| Fault::Record("its page image cannot be restored"))?;
        let mut page = Page::new(bytes);
        if !page.is_new() {
            page.set_lsn(record.lsn);
        }
        return match record.rmid {
            rmgr::HASH => hash::after_restore(record, &mut page),
            rmgr::GIST => gist::after_restore(record, &mut page),
            _ => Ok(()),
        };
    }
    let mut page = Page::new(bytes);
    if !record.target.will_init {
        let makes_new_page = record.rmid == rmgr::HEAP2 && heap2::initialises(record);
        if (page.is_new() && !makes_new_page) || page.lsn() >= record.lsn {
            return Ok(());
        }
    }
    let change = match record.rmid {
        rmgr::XLOG => xlog::apply(record)?,
        rmgr::HEAP2 => heap2::apply(ctx, record, &mut page)?,
        rmgr::HEAP => heap::apply(ctx, record, &mut page)?,
        rmgr::BTREE => btree::apply(record, &mut page)?,
        rmgr::HASH => hash::apply(record, &mut page)?,
        rmgr::GIN => gin::apply(record, &mut page)?,
        rmgr::GIST => gist::apply(record, &mut page)?,
        rmgr::SEQ => sequence::apply(record, &mut page)?,
        rmgr::SPGIST => spgist::apply(record, &mut page)?,
        rmgr::BRIN => brin::apply(record, &mut page)?,
        rmgr::GENERIC => generic::apply(record, &mut page)?,
        rmgr::NEON => neon::apply(record, &mut page)?,
        _ => return Err(Fault::Record("unknown resource manager")),
    };
    if change == Change::Stamp {
        page.set_lsn(record.lsn);
    }
    Ok(())
}

#[cfg(test)]
mod vectors;
