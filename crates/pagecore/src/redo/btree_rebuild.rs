//! The B-tree records that rebuild a page item by item: split and deduplication (spec walredo.md 9).

use crate::page::{maxalign, Fault, Page};
use crate::BLCKSZ;

use super::btree::{
    check_special, clear_cycle_id, clear_garbage_flag, first_data_key, flags, init, need_block, posting, restore_items,
    set_flags, set_next, set_posting_header, swap_posting, tuple_size, HAS_GARBAGE, INCOMPLETE_SPLIT, LEAF, TID_SIZE,
};
use super::decode::PageRecord;
use super::fields::{bytes_at, u16_at, u32_at, Fields};

/// The new right sibling: made from nothing.
pub fn split_right(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let level = u32_at(record.main, 0)?;
    let left = need_block(record, 0)?;
    let right = record.block_of(2).unwrap_or(0);
    init(page, left, right, level, if level == 0 { LEAF } else { 0 })?;
    restore_items(page, record.target.data)
}

/// The page that is split: keeps the items before `firstright`, gets a new high key, and with `new_on_left` the new item.
pub fn split_left(record: &PageRecord<'_>, page: &mut Page<'_>, new_on_left: bool) -> Result<(), Fault> {
    check_special(page)?;
    let main = record.main;
    let level = u32_at(main, 0)?;
    let first_right = u16_at(main, 4)?;
    let new_offset = u16_at(main, 6)?;
    let posting_offset = u16_at(main, 8)?;
    let right = need_block(record, 1)?;

    let mut data = Fields::new(record.target.data);
    let mut take_tuple = || -> Result<_, Fault> {
        let size = maxalign(tuple_size(data.rest())?);
        data.take(size)
    };
    let mut new_buffer = [0; BLCKSZ];
    let mut list_buffer = [0; BLCKSZ];
    let mut new_item: &[u8] = &[];
    let mut list: Option<(u16, &[u8])> = None;
    if new_on_left || posting_offset != 0 {
        new_item = take_tuple()?;
    }
    if posting_offset != 0 {
        let offset = new_offset.wrapping_sub(1);
        let old_list = page.item_bytes(offset)?;
        let new_copy = new_buffer.get_mut(..new_item.len()).ok_or(Fault::Record("a tuple is longer than a page"))?;
        let list_copy = list_buffer.get_mut(..old_list.len()).ok_or(Fault::Page("a tuple is longer than a page"))?;
        new_copy.copy_from_slice(new_item);
        list_copy.copy_from_slice(old_list);
        swap_posting(list_copy, new_copy, posting_offset)?;
        new_item = new_copy;
        list = Some((offset, list_copy));
    }
    let high_key = take_tuple()?;

    let mut bytes = page.successor()?;
    let mut left = Page::new(&mut bytes);
    left.add_item(1, high_key)?;
    let mut at = 2;
    for offset in first_data_key(page)?..first_right {
        if let Some((_, list)) = list.filter(|&(list_offset, _)| list_offset == offset) {
            left.add_item(at, list)?;
            at += 1;
            continue;
        }
        if new_on_left && offset == new_offset {
            left.add_item(at, new_item)?;
            at += 1;
        }
        left.add_item(at, page.item_bytes(offset)?)?;
        at += 1;
    }
    if new_on_left && new_offset == first_right {
        left.add_item(at, new_item)?;
    }
    set_flags(&mut left, INCOMPLETE_SPLIT | if level == 0 { LEAF } else { 0 })?;
    set_next(&mut left, right)?;
    clear_cycle_id(&mut left)?;
    *page.bytes_mut() = bytes;
    Ok(())
}

/// Items that are being merged into one posting list.
struct Group {
    base: u16,
    /// Items in the group.
    items: u16,
    /// Bytes of the base tuple that come before its TIDs.
    key_size: usize,
    tids: usize,
    /// The merged tuple so far: key, then TIDs.
    tuple: [u8; BLCKSZ],
}

impl Group {
    fn start(&mut self, page: &Page<'_>, offset: u16) -> Result<(), Fault> {
        let tuple = page.item_bytes(offset)?;
        self.key_size = match posting(tuple)? {
            Some((start, _)) => start,
            None => tuple_size(tuple)?,
        };
        let key = bytes_at(tuple, 0, self.key_size)?;
        self.tuple[..self.key_size].copy_from_slice(key);
        self.base = offset;
        self.items = 0;
        self.tids = 0;
        self.join(page, offset)
    }

    fn join(&mut self, page: &Page<'_>, offset: u16) -> Result<(), Fault> {
        let tuple = page.item_bytes(offset)?;
        let tids = match posting(tuple)? {
            Some((start, count)) => bytes_at(tuple, start, count * TID_SIZE)?,
            None => bytes_at(tuple, 0, TID_SIZE)?,
        };
        let at = self.key_size + self.tids * TID_SIZE;
        let room = self.tuple.get_mut(at..at + tids.len()).ok_or(Fault::Page("a posting list outgrows the page"))?;
        room.copy_from_slice(tids);
        self.tids += tids.len() / TID_SIZE;
        self.items += 1;
        Ok(())
    }

    /// Writes the group as one item behind those that the new page has.
    fn finish(&mut self, old: &Page<'_>, new: &mut Page<'_>) -> Result<(), Fault> {
        let offset = new.item_count()? + 1;
        if self.items == 1 {
            let tuple = old.item_bytes(self.base)?;
            let size = tuple_size(tuple)?;
            return new.add_item(offset, bytes_at(tuple, 0, size)?);
        }
        let used = self.key_size + self.tids * TID_SIZE;
        if let Some(padding) = self.tuple.get_mut(used..maxalign(used)) {
            padding.fill(0);
        }
        let size = set_posting_header(&mut self.tuple, self.key_size, self.tids)?;
        new.add_item(offset, bytes_at(&self.tuple, 0, size)?)
    }
}

/// DEDUP: merges runs of equal keys into posting lists. The record lists (first offset, number of items) of each run.
pub fn deduplicate(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    check_special(page)?;
    let count = usize::from(u16_at(record.main, 0)?);
    let intervals = Fields::new(record.target.data).u16s(2 * count)?;
    let mut bytes = page.successor()?;
    let mut new = Page::new(&mut bytes);
    let first = first_data_key(page)?;
    if first == 2 {
        new.add_item(1, page.item_bytes(1)?)?;
    }
    let mut group = Group { base: 0, items: 0, key_size: 0, tids: 0, tuple: [0; BLCKSZ] };
    let mut interval = 0;
    for offset in first..=page.item_count()? {
        let joins = intervals.get(2 * interval) == Some(group.base)
            && intervals.get(2 * interval + 1).is_some_and(|items| group.items < items);
        if offset == first {
            group.start(page, offset)?;
        } else if joins {
            group.join(page, offset)?;
        } else {
            interval += usize::from(group.items > 1);
            group.finish(page, &mut new)?;
            group.start(page, offset)?;
        }
    }
    if group.items > 0 {
        group.finish(page, &mut new)?;
    }
    if flags(&new)? & HAS_GARBAGE != 0 {
        clear_garbage_flag(&mut new)?;
    }
    *page.bytes_mut() = bytes;
    Ok(())
}
