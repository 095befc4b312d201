//! GiST, rmid 14 (spec walredo.md 11).
//!
//! ```text
//! special area, 16 bytes at 8176:  0 NSN (high u32, low u32)  8 right link u32  12 flags u16  14 page id 0xFF81
//! ```

use crate::page::{Fault, Page};
use crate::{Lsn, BLCKSZ};

use super::btree::{delete_listed, tuple_size};
use super::decode::PageRecord;
use super::fields::{bytes_at, u16_at, u32_at, u8_at, Fields, U16s};
use super::{Applied, Change};

const PAGE_UPDATE: u8 = 0x00;
const DELETE: u8 = 0x10;
const PAGE_SPLIT: u8 = 0x30;
const PAGE_DELETE: u8 = 0x60;

const SPECIAL: usize = BLCKSZ - 16;
const NSN: usize = SPECIAL;
const RIGHT_LINK: usize = SPECIAL + 8;
const FLAGS: usize = SPECIAL + 12;
const PAGE_ID: usize = SPECIAL + 14;
const PAGE_ID_VALUE: u16 = 0xFF81;
const NO_BLOCK: u32 = u32::MAX;
const ROOT: u32 = 0;

const LEAF: u16 = 1;
const DELETED: u16 = 2;
const TUPLES_DELETED: u16 = 4;
const FOLLOW_RIGHT: u16 = 8;
const HAS_GARBAGE: u16 = 16;

/// Where the offsets begin in DELETE's main data.
fn delete_list_at(major: u8) -> usize {
    if major < 16 {
        6
    } else {
        8
    }
}

pub fn knows(info: u8) -> bool {
    // 0x20, PAGE_REUSE, and 0x70, ASSIGN_LSN, have no page.
    matches!(info, PAGE_UPDATE | DELETE | PAGE_SPLIT | PAGE_DELETE)
}

/// True for the child whose split this record finishes.
fn finishes_split(record: &PageRecord<'_>) -> bool {
    matches!((record.info, record.target.id), (PAGE_UPDATE, 1) | (PAGE_SPLIT, 0))
}

/// The child's flag is cleared even if its page was just restored from an image (spec 7.2, point 2).
pub fn after_restore(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    if finishes_split(record) {
        clear_follow_right(page, record.lsn)?;
    }
    Ok(())
}

pub fn apply(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let main = record.main;
    match (record.info, record.target.id) {
        _ if finishes_split(record) => clear_follow_right(page, record.lsn)?,
        (PAGE_UPDATE, 0) => update(page, u16_at(main, 0)?, u16_at(main, 2)?, record.target.data)?,
        (DELETE, 0) => {
            let count = usize::from(u16_at(main, 4)?);
            delete_listed(page, U16s::new(bytes_at(main, delete_list_at(record.major), 2 * count)?))?;
            change_flags(page, TUPLES_DELETED, HAS_GARBAGE)?;
        }
        (PAGE_SPLIT, id) => split(record, page, id)?,
        (PAGE_DELETE, 0) => {
            change_flags(page, DELETED, 0)?;
            page.set_lower(32);
            page.put(24, bytes_at(main, 0, 8)?)?;
        }
        (PAGE_DELETE, 1) => page.delete_item(u16_at(main, 8)?)?,
        _ => return Err(Fault::Record("unknown operation or block id")),
    }
    Ok(Change::Stamp)
}

fn change_flags(page: &mut Page<'_>, set: u16, clear: u16) -> Result<(), Fault> {
    let flags = page.u16_at(FLAGS)?;
    page.put_u16(FLAGS, flags & !clear | set)
}

fn put_nsn(page: &mut Page<'_>, nsn: u64) -> Result<(), Fault> {
    page.put_u32(NSN, (nsn >> 32) as u32)?;
    page.put_u32(NSN + 4, nsn as u32)
}

fn clear_follow_right(page: &mut Page<'_>, lsn: Lsn) -> Result<(), Fault> {
    put_nsn(page, lsn.0)?;
    change_flags(page, 0, FOLLOW_RIGHT)
}

/// Appends the tuples that follow each other in `data`.
fn append_tuples(page: &mut Page<'_>, data: &mut Fields<'_>) -> Result<u16, Fault> {
    let mut count = 0;
    while !data.is_empty() {
        let tuple = data.take(tuple_size(data.rest())?)?;
        page.add_item(page.item_count()? + 1, tuple)?;
        count += 1;
    }
    Ok(count)
}

fn update(page: &mut Page<'_>, delete: u16, insert: u16, data: &[u8]) -> Result<(), Fault> {
    let mut data = Fields::new(data);
    if delete == 1 && insert == 1 {
        let offset = data.u16()?;
        let tuple = data.take(tuple_size(data.rest())?)?;
        return page.overwrite_item(offset, tuple);
    }
    if delete > 0 {
        delete_listed(page, data.u16s(usize::from(delete))?)?;
        if page.u16_at(FLAGS)? & LEAF != 0 {
            change_flags(page, TUPLES_DELETED, 0)?;
        }
    }
    if append_tuples(page, &mut data)? != insert {
        return Err(Fault::Record("it has another number of tuples than announced"));
    }
    Ok(())
}

/// One of the pages into which a page was split: id 1 is the first, at the place of the old one.
fn split(record: &PageRecord<'_>, page: &mut Page<'_>, id: u8) -> Result<(), Fault> {
    let main = record.main;
    let old_right_link = u32_at(main, 0)?;
    let old_nsn = u64::from(u32_at(main, 8)?) | u64::from(u32_at(main, 12)?) << 32;
    let was_leaf = u8_at(main, 16)? != 0;
    let count = u16_at(main, 18)?;
    let mark_follow_right = u8_at(main, 20)? != 0;
    let splits_root = record.block_of(1) == Some(ROOT);
    let is_root = record.block == ROOT;

    page.init(16);
    page.put_u16(PAGE_ID, PAGE_ID_VALUE)?;
    let mut data = Fields::new(record.target.data);
    let tuples = data.u32()?;
    if u32::from(append_tuples(page, &mut data)?) != tuples {
        return Err(Fault::Record("it has another number of tuples than announced"));
    }
    let mut flags = if was_leaf && !is_root { LEAF } else { 0 };
    let right_link = if is_root {
        NO_BLOCK
    } else if u16::from(id) < count {
        record.block_of(id + 1).ok_or(Fault::Record("a page of the split is missing"))?
    } else {
        old_right_link
    };
    if !is_root && u16::from(id) < count && !splits_root && mark_follow_right {
        flags |= FOLLOW_RIGHT;
    }
    page.put_u32(RIGHT_LINK, right_link)?;
    page.put_u16(FLAGS, flags)?;
    put_nsn(page, old_nsn)
}
