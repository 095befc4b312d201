//! B-tree, rmid 11 (spec walredo.md 9). Splits and deduplication, which rebuild a page, are in `btree_rebuild`.
//!
//! ```text
//! special area, 16 bytes at 8176:  0 prev u32  4 next u32  8 level u32  12 flags u16  14 cycle id u16
//! index tuple:  0 tid (block high u16, block low u16, offset u16)  6 info u16: size 13 bits, 0x2000 "tid is special"  8 ...
//! posting list: info bit 0x2000 and tid offset bit 0x2000; tid block = where the list begins, tid offset & 0xFFF = count
//! ```

use crate::page::{item_pointer, maxalign, Fault, Page};
use crate::BLCKSZ;

use super::btree_rebuild;
use super::decode::PageRecord;
use super::fields::{bytes_at, u16_at, u32_at, Fields, U16s};
use super::{Applied, Change};

const INSERT_LEAF: u8 = 0x00;
const INSERT_UPPER: u8 = 0x10;
const INSERT_META: u8 = 0x20;
const SPLIT_L: u8 = 0x30;
const SPLIT_R: u8 = 0x40;
const INSERT_POST: u8 = 0x50;
const DEDUP: u8 = 0x60;
const DELETE: u8 = 0x70;
const UNLINK_PAGE: u8 = 0x80;
const UNLINK_PAGE_META: u8 = 0x90;
const NEWROOT: u8 = 0xA0;
const MARK_PAGE_HALFDEAD: u8 = 0xB0;
const VACUUM: u8 = 0xC0;
const META_CLEANUP: u8 = 0xE0;

pub const SPECIAL_SIZE: usize = 16;
const SPECIAL: usize = BLCKSZ - SPECIAL_SIZE;
const PREV: usize = SPECIAL;
const NEXT: usize = SPECIAL + 4;
const LEVEL: usize = SPECIAL + 8;
const FLAGS: usize = SPECIAL + 12;
const CYCLE_ID: usize = SPECIAL + 14;

pub const LEAF: u16 = 1;
const ROOT: u16 = 2;
const DELETED: u16 = 4;
const META: u16 = 8;
const HALF_DEAD: u16 = 0x10;
pub const HAS_GARBAGE: u16 = 0x40;
pub const INCOMPLETE_SPLIT: u16 = 0x80;
const HAS_FULL_XID: u16 = 0x100;

const META_MAGIC: u32 = 0x0005_3162;

const SIZE_MASK: u16 = 0x1FFF;
const SPECIAL_TID: u16 = 0x2000;
const IS_POSTING: u16 = 0x2000;
const COUNT_MASK: u16 = 0x0FFF;
const TUPLE_HEADER: usize = 8;
pub const TID_SIZE: usize = 6;

pub fn knows(info: u8) -> bool {
    // 0xD0, REUSE_PAGE, has no page.
    info <= VACUUM || info == META_CLEANUP
}

pub fn apply(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let id = record.target.id;
    match (record.info, id) {
        (INSERT_LEAF | INSERT_UPPER | INSERT_META, 0) => {
            check_special(page)?;
            page.add_item(u16_at(record.main, 0)?, record.target.data)?;
        }
        (INSERT_UPPER | INSERT_META | NEWROOT, 1) => clear_incomplete_split(page)?,
        (INSERT_META | NEWROOT, 2) | (META_CLEANUP, 0) | (UNLINK_PAGE_META, 4) => rebuild_meta(record, page)?,
        (INSERT_POST, 0) => insert_into_posting(record, page)?,
        (SPLIT_L, 0) => btree_rebuild::split_left(record, page, true)?,
        (SPLIT_R, 0) => btree_rebuild::split_left(record, page, false)?,
        (SPLIT_L | SPLIT_R, 1) => btree_rebuild::split_right(record, page)?,
        (SPLIT_L | SPLIT_R, 2) => page.put_u32(PREV, need_block(record, 1)?)?,
        (SPLIT_L | SPLIT_R, 3) => clear_incomplete_split(page)?,
        (DEDUP, 0) => btree_rebuild::deduplicate(record, page)?,
        (DELETE, 0) => delete_tuples(record, page, u16_at(record.main, 4)?, u16_at(record.main, 6)?)?,
        (VACUUM, 0) => delete_tuples(record, page, u16_at(record.main, 0)?, u16_at(record.main, 2)?)?,
        (MARK_PAGE_HALFDEAD, 0) => {
            let main = record.main;
            make_half_dead(page, u32_at(main, 8)?, u32_at(main, 12)?, u32_at(main, 16)?)?;
        }
        (MARK_PAGE_HALFDEAD, 1) => unlink_from_parent(page, u16_at(record.main, 0)?)?,
        (UNLINK_PAGE | UNLINK_PAGE_META, 0) => make_deleted(record, page)?,
        (UNLINK_PAGE | UNLINK_PAGE_META, 1) => page.put_u32(NEXT, u32_at(record.main, 4)?)?,
        (UNLINK_PAGE | UNLINK_PAGE_META, 2) => page.put_u32(PREV, u32_at(record.main, 0)?)?,
        (UNLINK_PAGE | UNLINK_PAGE_META, 3) => {
            let main = record.main;
            make_half_dead(page, u32_at(main, 24)?, u32_at(main, 28)?, u32_at(main, 32)?)?;
        }
        (NEWROOT, 0) => make_root(record, page)?,
        _ => return Err(Fault::Record("unknown operation or block id")),
    }
    Ok(Change::Stamp)
}

pub fn need_block(record: &PageRecord<'_>, id: u8) -> Result<u32, Fault> {
    record.block_of(id).ok_or(Fault::Record("a block reference is missing"))
}

/// Fails unless the special area is where a B-tree page has it.
pub fn check_special(page: &Page<'_>) -> Result<(), Fault> {
    if page.limits()?.special == SPECIAL {
        Ok(())
    } else {
        Err(Fault::Page("it has no special area of a B-tree page"))
    }
}

pub fn next(page: &Page<'_>) -> Result<u32, Fault> {
    page.u32_at(NEXT)
}

pub fn flags(page: &Page<'_>) -> Result<u16, Fault> {
    page.u16_at(FLAGS)
}

pub fn set_flags(page: &mut Page<'_>, flags: u16) -> Result<(), Fault> {
    page.put_u16(FLAGS, flags)
}

pub fn set_next(page: &mut Page<'_>, next: u32) -> Result<(), Fault> {
    page.put_u32(NEXT, next)
}

pub fn clear_cycle_id(page: &mut Page<'_>) -> Result<(), Fault> {
    page.put_u16(CYCLE_ID, 0)
}

/// An empty page with these links.
pub fn init(page: &mut Page<'_>, prev: u32, next: u32, level: u32, flags: u16) -> Result<(), Fault> {
    page.init(SPECIAL_SIZE);
    page.put_u32(PREV, prev)?;
    page.put_u32(NEXT, next)?;
    page.put_u32(LEVEL, level)?;
    page.put_u16(FLAGS, flags)
}

/// Offset number of the first item that is not the high key; a rightmost page has none.
pub fn first_data_key(page: &Page<'_>) -> Result<u16, Fault> {
    Ok(if next(page)? == 0 { 1 } else { 2 })
}

/// Clears one flag of a page that is only finished by this record.
fn clear_incomplete_split(page: &mut Page<'_>) -> Result<(), Fault> {
    check_special(page)?;
    let flags = flags(page)?;
    set_flags(page, flags & !INCOMPLETE_SPLIT)
}

pub fn clear_garbage_flag(page: &mut Page<'_>) -> Result<(), Fault> {
    let flags = flags(page)?;
    set_flags(page, flags & !HAS_GARBAGE)
}

fn rebuild_meta(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    const CONTENTS: usize = 24;
    let data = record.target.data;
    init(page, 0, 0, 0, META)?;
    page.put_u32(CONTENTS, META_MAGIC)?;
    // Version, root, level, fast root, fast level, number of deleted pages.
    page.put(CONTENTS + 4, bytes_at(data, 0, 24)?)?;
    page.put(CONTENTS + 32, &(-1.0f64).to_le_bytes())?;
    page.put(CONTENTS + 40, bytes_at(data, 24, 1)?)?;
    page.set_lower(CONTENTS + 48);
    Ok(())
}

/// Puts tuples back onto an empty page. The one listed last becomes the first item.
pub fn restore_items(page: &mut Page<'_>, data: &[u8]) -> Result<(), Fault> {
    // No page holds more tuples than this, and a tuple has at least 8 bytes.
    let mut places = [(0u16, 0u16); BLCKSZ / TUPLE_HEADER];
    let mut count = 0;
    let mut at = 0;
    while at < data.len() {
        let size = maxalign(tuple_size(bytes_at(data, at, data.len() - at)?)?);
        let place = places.get_mut(count).ok_or(Fault::Record("there are more tuples than a page holds"))?;
        bytes_at(data, at, size)?;
        *place = (at as u16, size as u16);
        count += 1;
        at += size;
    }
    for (i, &(at, size)) in places.iter().take(count).rev().enumerate() {
        page.add_item(i as u16 + 1, bytes_at(data, usize::from(at), usize::from(size))?)?;
    }
    Ok(())
}

/// Size of the index tuple at the start of `bytes`, from its own header; at least 8.
pub fn tuple_size(bytes: &[u8]) -> Result<usize, Fault> {
    let size = usize::from(u16_at(bytes, 6)? & SIZE_MASK);
    if size < TUPLE_HEADER {
        return Err(Fault::Record("an index tuple is shorter than its header"));
    }
    Ok(size)
}

/// Where the TID list of a tuple begins and how many it has; none if it is no posting list.
pub fn posting(tuple: &[u8]) -> Result<Option<(usize, usize)>, Fault> {
    let offset = u16_at(tuple, 4)?;
    if u16_at(tuple, 6)? & SPECIAL_TID == 0 || offset & IS_POSTING == 0 {
        return Ok(None);
    }
    let start = usize::from(u16_at(tuple, 0)?) << 16 | usize::from(u16_at(tuple, 2)?);
    let count = usize::from(offset & COUNT_MASK);
    if start < TUPLE_HEADER || count == 0 || start + count * TID_SIZE > tuple.len() {
        return Err(Fault::Page("a posting list lies outside its tuple"));
    }
    Ok(Some((start, count)))
}

/// Writes the header of a tuple that is one key with `count` TIDs behind `key_size` bytes; with one TID, a plain tuple.
/// Returns the tuple's size.
pub fn set_posting_header(tuple: &mut [u8], key_size: usize, count: usize) -> Result<usize, Fault> {
    let short = Fault::Page("a posting list does not fit into its tuple");
    let info = u16_at(tuple, 6)? & !(SIZE_MASK | SPECIAL_TID);
    let size = if count > 1 { maxalign(key_size + count * TID_SIZE) } else { key_size };
    if size > usize::from(SIZE_MASK) || size > tuple.len() || count > usize::from(COUNT_MASK) {
        return Err(short);
    }
    let info = info | size as u16 | if count > 1 { SPECIAL_TID } else { 0 };
    let header = tuple.get_mut(..TUPLE_HEADER).ok_or(short)?;
    header[6..8].copy_from_slice(&info.to_le_bytes());
    if count > 1 {
        header[..6].copy_from_slice(&item_pointer(key_size as u32, count as u16 | IS_POSTING));
    }
    Ok(size)
}

/// Splits a posting list for a new tuple whose TID falls into it: TIDs from `at` on move one place up, the new TID takes
/// the free place, and the new tuple gets the TID that fell off the end.
pub fn swap_posting(list: &mut [u8], new_tuple: &mut [u8], at: u16) -> Result<(), Fault> {
    let (start, count) = posting(list)?.ok_or(Fault::Page("the tuple to be split is no posting list"))?;
    let at = usize::from(at);
    if at == 0 || at >= count {
        return Err(Fault::Record("a posting list is split outside its TIDs"));
    }
    let tids = list.get_mut(start..start + count * TID_SIZE).ok_or(Fault::Page("a posting list is cut"))?;
    let new_tid = new_tuple.get_mut(..TID_SIZE).ok_or(Fault::Record("the new tuple is too short"))?;
    let mut last = [0; TID_SIZE];
    last.copy_from_slice(&tids[(count - 1) * TID_SIZE..]);
    tids.copy_within(at * TID_SIZE..(count - 1) * TID_SIZE, (at + 1) * TID_SIZE);
    tids[at * TID_SIZE..(at + 1) * TID_SIZE].copy_from_slice(new_tid);
    new_tid.copy_from_slice(&last);
    Ok(())
}

fn insert_into_posting(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    check_special(page)?;
    let offset = u16_at(record.main, 0)?;
    let mut data = Fields::new(record.target.data);
    let split_at = data.u16()?;
    let tuple = data.rest();
    let mut buffer = [0; BLCKSZ];
    let new = buffer.get_mut(..tuple.len()).ok_or(Fault::Record("the new tuple is longer than a page"))?;
    new.copy_from_slice(tuple);
    let (start, length) = page.item_place(offset.wrapping_sub(1))?;
    swap_posting(page.slice_mut(start, length)?, new, split_at)?;
    page.add_item(offset, new)
}

/// DELETE and VACUUM: first posting lists lose some of their TIDs, then whole tuples go.
fn delete_tuples(record: &PageRecord<'_>, page: &mut Page<'_>, deleted: u16, updated: u16) -> Result<(), Fault> {
    check_special(page)?;
    let mut data = Fields::new(record.target.data);
    let deleted = data.u16s(usize::from(deleted))?;
    let updated = data.u16s(usize::from(updated))?;
    for offset in updated.iter() {
        let count = usize::from(data.u16()?);
        remove_tids(page, offset, data.u16s(count)?)?;
    }
    delete_listed(page, deleted)?;
    clear_garbage_flag(page)
}

/// Deletes the items of a list that a record carries.
pub fn delete_listed(page: &mut Page<'_>, list: U16s<'_>) -> Result<(), Fault> {
    let mut offsets = [0u16; BLCKSZ / 4];
    let offsets = offsets.get_mut(..list.len()).ok_or(Fault::Record("more items than a page holds are deleted"))?;
    offsets.iter_mut().zip(list.iter()).for_each(|(to, from)| *to = from);
    page.delete_items(offsets)
}

/// Drops the TIDs with the given indexes from a posting list.
fn remove_tids(page: &mut Page<'_>, offset: u16, gone: U16s<'_>) -> Result<(), Fault> {
    let old = page.item_bytes(offset)?;
    let (start, count) = posting(old)?.ok_or(Fault::Item { offset, what: "is no posting list" })?;
    if gone.len() >= count {
        return Err(Fault::Record("all TIDs of a posting list are removed"));
    }
    let mut buffer = [0; BLCKSZ];
    let key = bytes_at(old, 0, start)?;
    buffer[..start].copy_from_slice(key);
    let mut gone = gone.iter().peekable();
    let mut kept = 0;
    for i in 0..count {
        if gone.next_if_eq(&(i as u16)).is_none() {
            let tid = bytes_at(old, start + i * TID_SIZE, TID_SIZE)?;
            let at = start + kept * TID_SIZE;
            buffer[at..at + TID_SIZE].copy_from_slice(tid);
            kept += 1;
        }
    }
    if gone.next().is_some() {
        return Err(Fault::Record("a TID to be removed is not in its posting list"));
    }
    let size = set_posting_header(&mut buffer, start, kept)?;
    if kept == 1 {
        buffer.copy_within(start..start + TID_SIZE, 0);
        buffer[start..start + TID_SIZE].fill(0);
    }
    page.overwrite_item(offset, &buffer[..size])
}

/// A page whose last tuple is gone: an empty leaf, with the top of its doomed subtree in a dummy high key.
fn make_half_dead(page: &mut Page<'_>, left: u32, right: u32, top_parent: u32) -> Result<(), Fault> {
    init(page, left, right, 0, HALF_DEAD | LEAF)?;
    let mut dummy = [0; TUPLE_HEADER];
    dummy[..6].copy_from_slice(&item_pointer(top_parent, 0));
    dummy[6..].copy_from_slice(&(SPECIAL_TID | TUPLE_HEADER as u16).to_le_bytes());
    page.add_item(1, &dummy)
}

/// The downlink at `offset` takes over the child of the next one, which is deleted.
fn unlink_from_parent(page: &mut Page<'_>, offset: u16) -> Result<(), Fault> {
    check_special(page)?;
    let next = offset.wrapping_add(1);
    let mut child = [0; 4];
    child.copy_from_slice(bytes_at(page.item_bytes(next)?, 0, 4)?);
    let (start, _) = page.item_place(offset)?;
    page.put(start, &child)?;
    page.delete_item(next)
}

fn make_deleted(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let main = record.main;
    let level = u32_at(main, 8)?;
    let leaf = if level == 0 { LEAF } else { 0 };
    init(page, u32_at(main, 0)?, u32_at(main, 4)?, level, DELETED | HAS_FULL_XID | leaf)?;
    page.put(24, bytes_at(main, 16, 8)?)?;
    page.set_lower(32);
    page.set_upper(SPECIAL);
    Ok(())
}

fn make_root(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let level = u32_at(record.main, 4)?;
    let leaf = if level == 0 { LEAF } else { 0 };
    init(page, 0, 0, level, ROOT | leaf)?;
    if level > 0 {
        restore_items(page, record.target.data)?;
    }
    Ok(())
}
