//! GIN, rmid 13 (spec walredo.md 10). Leaves of posting trees are packed; what changes them is in `gin_leaf`.
//!
//! ```text
//! special area, 8 bytes at 8184:  0 right link u32  4 maxoff u16  6 flags u16
//! posting tree page:  24 right bound (padded to 8)  32 data; inner pages: (child block high u16, low u16, key TID)[maxoff]
//! ```
//!
//! "Data size s" means that `pd_lower` is 32 + s.

use crate::page::{item_pointer, Fault, Page};
use crate::BLCKSZ;

use super::btree::tuple_size;
use super::decode::PageRecord;
use super::fields::{bytes_at, u16_at, u32_at, u8_at, Fields};
use super::gin_leaf;
use super::{Applied, Change};

const CREATE_PTREE: u8 = 0x10;
const INSERT: u8 = 0x20;
const SPLIT: u8 = 0x30;
const VACUUM_PAGE: u8 = 0x40;
const DELETE_PAGE: u8 = 0x50;
const UPDATE_META_PAGE: u8 = 0x60;
const INSERT_LISTPAGE: u8 = 0x70;
const DELETE_LISTPAGE: u8 = 0x80;
const VACUUM_DATA_LEAF_PAGE: u8 = 0x90;

const SPECIAL_SIZE: usize = 8;
const SPECIAL: usize = BLCKSZ - SPECIAL_SIZE;
const RIGHT_LINK: usize = SPECIAL;
const MAXOFF: usize = SPECIAL + 4;
const FLAGS: usize = SPECIAL + 6;
const NO_BLOCK: u32 = u32::MAX;

const DATA: u16 = 1;
const LEAF: u16 = 2;
const DELETED: u16 = 4;
const META: u16 = 8;
const LIST: u16 = 16;
const LIST_FULL_ROW: u16 = 32;
const INCOMPLETE_SPLIT: u16 = 64;
pub const COMPRESSED: u16 = 128;

/// Flags of an INSERT record.
const INSERT_IS_DATA: u16 = 1;
const INSERT_IS_LEAF: u16 = 2;

const META_SIZE: usize = 56;
const CONTENTS: usize = 24;
/// Where the data of posting tree pages begins.
pub const DATA_START: usize = 32;
const POSTING_ITEM: usize = 10;

pub fn knows(info: u8) -> bool {
    (CREATE_PTREE..=VACUUM_DATA_LEAF_PAGE).contains(&info)
}

pub fn apply(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let (main, data) = (record.main, record.target.data);
    match (record.info, record.target.id) {
        (CREATE_PTREE, 0) => {
            init(page, DATA | LEAF | COMPRESSED)?;
            let size = u32_at(main, 0)? as usize;
            page.put(DATA_START, bytes_at(main, 4, size)?)?;
            set_data_size(page, size)?;
        }
        (INSERT, 0) => insert(record, page)?,
        (INSERT, 1) | (SPLIT, 3) => change_flags(page, 0, INCOMPLETE_SPLIT)?,
        (SPLIT, 0..=2) | (VACUUM_PAGE, 0) => return Err(Fault::Record("a page image is missing")),
        (DELETE_PAGE, 0) => {
            change_flags(page, DELETED, 0)?;
            page.set_prune_xid(u32_at(main, 8)?);
        }
        (DELETE_PAGE, 1) => remove_posting_item(page, u16_at(main, 0)?)?,
        (DELETE_PAGE, 2) => page.put_u32(RIGHT_LINK, u32_at(main, 4)?)?,
        (UPDATE_META_PAGE, 0) => rebuild_meta(page, bytes_at(main, 16, META_SIZE)?)?,
        (UPDATE_META_PAGE, 1) => update_list_tail(record, page)?,
        (INSERT_LISTPAGE, 0) => make_list_page(record, page)?,
        (DELETE_LISTPAGE, 0) => rebuild_meta(page, bytes_at(main, 0, META_SIZE)?)?,
        (DELETE_LISTPAGE, _) => init(page, DELETED)?,
        (VACUUM_DATA_LEAF_PAGE, 0) => gin_leaf::recompress(page, data)?,
        _ => return Err(Fault::Record("unknown operation or block id")),
    }
    Ok(Change::Stamp)
}

fn init(page: &mut Page<'_>, flags: u16) -> Result<(), Fault> {
    page.init(SPECIAL_SIZE);
    page.put_u32(RIGHT_LINK, NO_BLOCK)?;
    page.put_u16(FLAGS, flags)
}

pub fn flags(page: &Page<'_>) -> Result<u16, Fault> {
    page.u16_at(FLAGS)
}

pub fn change_flags(page: &mut Page<'_>, set: u16, clear: u16) -> Result<(), Fault> {
    let flags = flags(page)?;
    page.put_u16(FLAGS, flags & !clear | set)
}

pub fn maxoff(page: &Page<'_>) -> Result<u16, Fault> {
    page.u16_at(MAXOFF)
}

pub fn set_maxoff(page: &mut Page<'_>, maxoff: u16) -> Result<(), Fault> {
    page.put_u16(MAXOFF, maxoff)
}

pub fn set_data_size(page: &mut Page<'_>, size: usize) -> Result<(), Fault> {
    if DATA_START + size > SPECIAL {
        return Err(Fault::Record("the data is longer than a page"));
    }
    page.set_lower(DATA_START + size);
    Ok(())
}

fn rebuild_meta(page: &mut Page<'_>, data: &[u8]) -> Result<(), Fault> {
    init(page, META)?;
    page.put(CONTENTS, data)?;
    page.set_lower(CONTENTS + META_SIZE);
    Ok(())
}

/// A block number as records store it: high half first.
fn block_number(data: &[u8], at: usize) -> Result<u32, Fault> {
    Ok(u32::from(u16_at(data, at)?) << 16 | u32::from(u16_at(data, at + 2)?))
}

fn insert(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let (main, data) = (record.main, record.target.data);
    let flags = u16_at(main, 0)?;
    let is_leaf = flags & INSERT_IS_LEAF != 0;
    let right_child = if is_leaf { None } else { Some(block_number(main, 6)?) };
    match (flags & INSERT_IS_DATA != 0, right_child) {
        (true, None) => gin_leaf::recompress(page, data),
        (true, Some(right_child)) => insert_posting_item(page, data, right_child),
        (false, right_child) => insert_entry(page, data, right_child),
    }
}

/// Entry tree: the item at the offset gets the new right child as its downlink, the new item goes before it.
fn insert_entry(page: &mut Page<'_>, data: &[u8], right_child: Option<u32>) -> Result<(), Fault> {
    let offset = u16_at(data, 0)?;
    let replaces = u8_at(data, 2)? != 0;
    let tuple = data.get(4..).ok_or(Fault::Record("the tuple is missing"))?;
    let tuple = bytes_at(tuple, 0, tuple_size(tuple)?)?;
    if let Some(block) = right_child {
        let (at, _) = page.item_place(offset)?;
        page.put(at, &item_pointer(block, 0))?;
    }
    if replaces {
        page.delete_item(offset)?;
    }
    page.add_item(offset, tuple)
}

/// Place of a posting item of an inner posting tree page; `offset` from 1 to `limit`.
fn posting_item_place(offset: u16, limit: u16) -> Result<usize, Fault> {
    let at = DATA_START + POSTING_ITEM * usize::from(offset.wrapping_sub(1));
    if offset == 0 || offset > limit || at + POSTING_ITEM > SPECIAL {
        return Err(Fault::Item { offset, what: "is no posting item of the page" });
    }
    Ok(at)
}

fn insert_posting_item(page: &mut Page<'_>, data: &[u8], right_child: u32) -> Result<(), Fault> {
    let offset = u16_at(data, 0)?;
    let item = bytes_at(data, 2, POSTING_ITEM)?;
    let count = maxoff(page)?;
    let at = posting_item_place(offset, count)?;
    // The last one must fit as well.
    let end = posting_item_place(count.saturating_add(1), u16::MAX)?;
    page.put(at, &item_pointer(right_child, 0)[..4])?;
    page.bytes_mut().copy_within(at..end, at + POSTING_ITEM);
    page.put(at, item)?;
    set_maxoff(page, count + 1)?;
    set_data_size(page, POSTING_ITEM * (usize::from(count) + 1))
}

fn remove_posting_item(page: &mut Page<'_>, offset: u16) -> Result<(), Fault> {
    let count = maxoff(page)?;
    let at = posting_item_place(offset, count)?;
    let end = posting_item_place(count, count)? + POSTING_ITEM;
    page.bytes_mut().copy_within(at + POSTING_ITEM..end, at);
    set_maxoff(page, count - 1)?;
    set_data_size(page, POSTING_ITEM * (usize::from(count) - 1))
}

fn append_tuples(page: &mut Page<'_>, data: &[u8], count: u32) -> Result<(), Fault> {
    let mut data = Fields::new(data);
    for _ in 0..count {
        let tuple = data.take(tuple_size(data.rest())?)?;
        page.add_item(page.item_count()? + 1, tuple)?;
    }
    Ok(())
}

/// The last page of the pending list takes the tuples of one more row, or gets a successor.
fn update_list_tail(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let main = record.main;
    let (prev_tail, new_right_link, count) = (u32_at(main, 72)?, u32_at(main, 76)?, u32_at(main, 80)?);
    if count > 0 {
        append_tuples(page, record.target.data, count)?;
        let rows = maxoff(page)?;
        set_maxoff(page, rows.wrapping_add(1))
    } else if prev_tail != NO_BLOCK {
        page.put_u32(RIGHT_LINK, new_right_link)
    } else {
        Err(Fault::Record("there is nothing to do for the list's last page"))
    }
}

fn make_list_page(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let right_link = u32_at(record.main, 0)?;
    let count = u32_at(record.main, 4)?;
    let is_last = right_link == NO_BLOCK;
    init(page, if is_last { LIST | LIST_FULL_ROW } else { LIST })?;
    page.put_u32(RIGHT_LINK, right_link)?;
    set_maxoff(page, u16::from(is_last))?;
    append_tuples(page, record.target.data, count)
}
