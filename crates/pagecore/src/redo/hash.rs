//! Hash, rmid 12 (spec walredo.md 14).
//!
//! ```text
//! special area, 16 bytes at 8176:  0 prev u32  4 next u32  8 bucket u32  12 flag u16  14 page id 0xFF80
//! ```
//!
//! Some blocks are in a record only so that PostgreSQL locks them; they stay as they are, LSN included.

use crate::page::{maxalign, Fault, Page};
use crate::BLCKSZ;

use super::btree::{delete_listed, tuple_size};
use super::decode::PageRecord;
use super::fields::{bytes_at, u16_at, u32_at, u8_at, Fields, U16s};
use super::{Applied, Change};

const INIT_META_PAGE: u8 = 0x00;
const INIT_BITMAP_PAGE: u8 = 0x10;
const INSERT: u8 = 0x20;
const ADD_OVFL_PAGE: u8 = 0x30;
const SPLIT_ALLOCATE_PAGE: u8 = 0x40;
const SPLIT_PAGE: u8 = 0x50;
const SPLIT_COMPLETE: u8 = 0x60;
const MOVE_PAGE_CONTENTS: u8 = 0x70;
const SQUEEZE_PAGE: u8 = 0x80;
const DELETE: u8 = 0x90;
const SPLIT_CLEANUP: u8 = 0xA0;
const UPDATE_META_PAGE: u8 = 0xB0;
const VACUUM_ONE_PAGE: u8 = 0xC0;

const SPECIAL: usize = BLCKSZ - 16;
const PREV: usize = SPECIAL;
const NEXT: usize = SPECIAL + 4;
const BUCKET: usize = SPECIAL + 8;
const FLAG: usize = SPECIAL + 12;
const PAGE_ID: usize = SPECIAL + 14;
const PAGE_ID_VALUE: u16 = 0xFF80;
const NONE: u32 = u32::MAX;

const UNUSED_PAGE: u16 = 0;
const OVERFLOW_PAGE: u16 = 1;
const BITMAP_PAGE: u16 = 4;
const META_PAGE: u16 = 8;
const SPLIT_CLEANUP_FLAG: u16 = 0x40;
const HAS_DEAD: u16 = 0x80;

/// Contents of pages without items begin here.
const CONTENTS: usize = 24;

/// Fields of the metapage, from the page's start.
mod meta {
    use super::CONTENTS;

    pub const MAGIC: usize = CONTENTS;
    pub const VERSION: usize = CONTENTS + 4;
    pub const NTUPLES: usize = CONTENTS + 8;
    pub const FFACTOR: usize = CONTENTS + 16;
    pub const BSIZE: usize = CONTENTS + 18;
    pub const BMSIZE: usize = CONTENTS + 20;
    pub const BMSHIFT: usize = CONTENTS + 22;
    pub const MAXBUCKET: usize = CONTENTS + 24;
    pub const HIGHMASK: usize = CONTENTS + 28;
    pub const LOWMASK: usize = CONTENTS + 32;
    pub const OVFLPOINT: usize = CONTENTS + 36;
    pub const FIRSTFREE: usize = CONTENTS + 40;
    pub const NMAPS: usize = CONTENTS + 44;
    pub const PROCID: usize = CONTENTS + 48;
    pub const SPARES: usize = CONTENTS + 52;
    pub const SPARES_COUNT: u32 = 98;
    pub const MAPP: usize = CONTENTS + 444;
    pub const MAPP_COUNT: u32 = 1024;
    pub const END: usize = CONTENTS + 4544;
}

/// From 17 on, SQUEEZE_PAGE stamps the page that takes the tuples only if it changes it.
fn squeeze_stamps_always(major: u8) -> bool {
    major < 17
}

pub fn knows(info: u8) -> bool {
    info <= VACUUM_ONE_PAGE
}

/// Flags that are set even if the page was just restored from an image (spec 7.2, point 2).
pub fn after_restore(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    if let (SPLIT_ALLOCATE_PAGE, 0) | (SPLIT_COMPLETE, 0 | 1) = (record.info, record.target.id) {
        apply(record, page)?;
    }
    Ok(())
}

pub fn apply(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let (main, data) = (record.main, record.target.data);
    match (record.info, record.target.id) {
        (INIT_META_PAGE, 0) => init_meta(page, main)?,
        (INIT_BITMAP_PAGE, 0) => init_bitmap(page, u16_at(main, 0)?)?,
        (INIT_BITMAP_PAGE, 1) => {
            let block = page.u32_at(meta::MAXBUCKET)?.wrapping_add(2);
            add_map(page, block)?;
        }
        (INSERT, 0) => page.add_item(u16_at(main, 0)?, data)?,
        (INSERT, 1) => add_to_count(page, 1.0)?,
        (ADD_OVFL_PAGE, 0) => {
            let prev = record.block_of(1).ok_or(Fault::Record("it has no page before the new one"))?;
            init_page(page, prev, u32_at(data, 0)?, OVERFLOW_PAGE)?;
        }
        (ADD_OVFL_PAGE, 1) => page.put_u32(NEXT, record.block_of(0).unwrap_or(NONE))?,
        (ADD_OVFL_PAGE, 2) => set_bit(page, u32_at(data, 0)?, true)?,
        (ADD_OVFL_PAGE, 3) => init_bitmap(page, u16_at(main, 0)?)?,
        (ADD_OVFL_PAGE, 4) => {
            page.put_u32(meta::FIRSTFREE, u32_at(data, 0)?)?;
            if u8_at(main, 2)? == 0 {
                add_spare(page)?;
                if let Some(block) = record.block_of(3) {
                    add_map(page, block)?;
                    add_spare(page)?;
                }
            }
        }
        (SPLIT_ALLOCATE_PAGE, 0) => {
            page.put_u32(PREV, u32_at(main, 0)?)?;
            page.put_u16(FLAG, u16_at(main, 4)?)?;
        }
        (SPLIT_ALLOCATE_PAGE, 1) => {
            let bucket = u32_at(main, 0)?;
            init_page(page, bucket, bucket, u16_at(main, 6)?)?;
        }
        (SPLIT_ALLOCATE_PAGE, 2) => grow_meta(record, page)?,
        (SPLIT_PAGE, _) => return Err(Fault::Record("a page image is missing")),
        (SPLIT_COMPLETE, id @ (0 | 1)) => page.put_u16(FLAG, u16_at(main, 2 * usize::from(id))?)?,
        (MOVE_PAGE_CONTENTS | SQUEEZE_PAGE | DELETE, 0) => return Ok(Change::Keep),
        (MOVE_PAGE_CONTENTS, 1) => add_tuples(page, data, u16_at(main, 0)?)?,
        (MOVE_PAGE_CONTENTS, 2) => delete_listed(page, U16s::new(data))?,
        (SQUEEZE_PAGE, id) => return squeeze(record, page, id),
        (DELETE, 1) => {
            delete_listed(page, U16s::new(data))?;
            if u8_at(main, 0)? != 0 {
                clear_flag(page, HAS_DEAD)?;
            }
        }
        (SPLIT_CLEANUP, 0) => clear_flag(page, SPLIT_CLEANUP_FLAG)?,
        (UPDATE_META_PAGE, 0) => page.put(meta::NTUPLES, bytes_at(main, 0, 8)?)?,
        (VACUUM_ONE_PAGE, 0) => {
            // The count is 32 bits up to 15 and 16 bits after, the list is at the same place.
            let count = usize::from(u16_at(main, 4)?);
            delete_listed(page, U16s::new(bytes_at(main, 8, 2 * count)?))?;
            clear_flag(page, HAS_DEAD)?;
        }
        (VACUUM_ONE_PAGE, 1) => add_to_count(page, -f64::from(u16_at(main, 4)?))?,
        _ => return Err(Fault::Record("unknown operation or block id")),
    }
    Ok(Change::Stamp)
}

fn init_page(page: &mut Page<'_>, prev: u32, bucket: u32, flag: u16) -> Result<(), Fault> {
    page.init(16);
    page.put_u32(PREV, prev)?;
    page.put_u32(NEXT, NONE)?;
    page.put_u32(BUCKET, bucket)?;
    page.put_u16(FLAG, flag)?;
    page.put_u16(PAGE_ID, PAGE_ID_VALUE)
}

fn clear_flag(page: &mut Page<'_>, flag: u16) -> Result<(), Fault> {
    let old = page.u16_at(FLAG)?;
    page.put_u16(FLAG, old & !flag)
}

fn init_bitmap(page: &mut Page<'_>, size: u16) -> Result<(), Fault> {
    init_page(page, NONE, NONE, BITMAP_PAGE)?;
    let size = usize::from(size);
    if CONTENTS + size > SPECIAL {
        return Err(Fault::Record("the bitmap is longer than a page"));
    }
    page.slice_mut(CONTENTS, size)?.fill(0xFF);
    page.set_lower(CONTENTS + size);
    Ok(())
}

fn set_bit(page: &mut Page<'_>, bit: u32, on: bool) -> Result<(), Fault> {
    let at = CONTENTS + 4 * (bit / 32) as usize;
    if at + 4 > SPECIAL {
        return Err(Fault::Record("the bit lies beyond the bitmap"));
    }
    let word = page.u32_at(at)?;
    let mask = 1 << (bit % 32);
    page.put_u32(at, if on { word | mask } else { word & !mask })
}

fn add_to_count(page: &mut Page<'_>, delta: f64) -> Result<(), Fault> {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(page.slice(meta::NTUPLES, 8)?);
    page.put(meta::NTUPLES, &(f64::from_le_bytes(bytes) + delta).to_le_bytes())
}

/// Place of an entry of one of the metapage's two arrays.
fn entry(start: usize, count: u32, index: u32) -> Result<usize, Fault> {
    if index < count {
        Ok(start + 4 * index as usize)
    } else {
        Err(Fault::Page("an index into the metapage is out of range"))
    }
}

fn add_map(page: &mut Page<'_>, block: u32) -> Result<(), Fault> {
    let maps = page.u32_at(meta::NMAPS)?;
    page.put_u32(entry(meta::MAPP, meta::MAPP_COUNT, maps)?, block)?;
    page.put_u32(meta::NMAPS, maps + 1)
}

fn add_spare(page: &mut Page<'_>) -> Result<(), Fault> {
    let at = entry(meta::SPARES, meta::SPARES_COUNT, page.u32_at(meta::OVFLPOINT)?)?;
    let spares = page.u32_at(at)?;
    page.put_u32(at, spares.wrapping_add(1))
}

fn grow_meta(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let flags = u8_at(record.main, 8)?;
    let mut data = Fields::new(record.target.data);
    page.put_u32(meta::MAXBUCKET, u32_at(record.main, 0)?)?;
    if flags & 1 != 0 {
        page.put_u32(meta::LOWMASK, data.u32()?)?;
        page.put_u32(meta::HIGHMASK, data.u32()?)?;
    }
    if flags & 2 != 0 {
        let point = data.u32()?;
        page.put_u32(entry(meta::SPARES, meta::SPARES_COUNT, point)?, data.u32()?)?;
        page.put_u32(meta::OVFLPOINT, point)?;
    }
    Ok(())
}

/// Adds tuples at the offsets that are listed before them, each with its size rounded up.
fn add_tuples(page: &mut Page<'_>, data: &[u8], count: u16) -> Result<(), Fault> {
    let mut data = Fields::new(data);
    for offset in data.u16s(usize::from(count))?.iter() {
        let size = maxalign(tuple_size(data.rest())?);
        page.add_item(offset, data.take(size)?)?;
    }
    Ok(())
}

/// Tuples of an overflow page move to an earlier page of the bucket, and the page is freed.
fn squeeze(record: &PageRecord<'_>, page: &mut Page<'_>, id: u8) -> Applied {
    let (main, data) = (record.main, record.target.data);
    let (prev, next) = (u32_at(main, 0)?, u32_at(main, 4)?);
    match id {
        1 => {
            let count = u16_at(main, 8)?;
            let is_previous = u8_at(main, 11)? != 0;
            add_tuples(page, data, count)?;
            if is_previous {
                page.put_u32(NEXT, next)?;
            }
            if count == 0 && !is_previous && !squeeze_stamps_always(record.major) {
                return Ok(Change::Keep);
            }
        }
        2 => init_page(page, NONE, NONE, UNUSED_PAGE)?,
        3 => page.put_u32(NEXT, next)?,
        4 => page.put_u32(PREV, prev)?,
        5 => set_bit(page, u32_at(data, 0)?, false)?,
        6 => page.put_u32(meta::FIRSTFREE, u32_at(data, 0)?)?,
        _ => return Err(Fault::Record("unknown block id")),
    }
    Ok(Change::Stamp)
}

/// The phase of growth in which bucket number `buckets` is allocated.
fn spare_index(buckets: u32) -> u32 {
    let group = buckets.max(1).next_power_of_two().trailing_zeros();
    if group < 10 {
        return group;
    }
    10 + 4 * (group - 10) + (((buckets - 1) >> (group - 3)) & 3)
}

/// Buckets that exist after a phase of growth.
fn total_buckets(phase: u32) -> u32 {
    if phase < 10 {
        return 1 << phase;
    }
    let group = 10 + (phase - 10) / 4;
    let half = 1u32.checked_shl(group - 1).unwrap_or(0);
    half + half / 4 * (((phase - 10) & 3) + 1)
}

fn init_meta(page: &mut Page<'_>, main: &[u8]) -> Result<(), Fault> {
    const BUCKETS_MAX: u32 = 0x4000_0000;
    let mut tuples = [0; 8];
    tuples.copy_from_slice(bytes_at(main, 0, 8)?);
    let proc_id = u32_at(main, 8)?;
    let fill_factor = u16_at(main, 12)?;
    let wanted = f64::from_le_bytes(tuples) / f64::from(fill_factor);
    let buckets = if wanted <= 2.0 {
        2
    } else if wanted >= f64::from(BUCKETS_MAX) {
        BUCKETS_MAX
    } else {
        total_buckets(spare_index(wanted as u32))
    };
    let phase = spare_index(buckets);
    let high_mask = (buckets + 1).next_power_of_two() - 1;
    init_page(page, NONE, NONE, META_PAGE)?;
    page.put_u32(meta::MAGIC, 0x0644_0640)?;
    page.put_u32(meta::VERSION, 4)?;
    page.put_u16(meta::FFACTOR, fill_factor)?;
    page.put_u16(meta::BSIZE, 8152)?;
    page.put_u16(meta::BMSIZE, 4096)?;
    page.put_u16(meta::BMSHIFT, 15)?;
    page.put_u32(meta::MAXBUCKET, buckets - 1)?;
    page.put_u32(meta::HIGHMASK, high_mask)?;
    page.put_u32(meta::LOWMASK, high_mask >> 1)?;
    page.put_u32(meta::OVFLPOINT, phase)?;
    page.put_u32(meta::PROCID, proc_id)?;
    page.put_u32(entry(meta::SPARES, meta::SPARES_COUNT, phase)?, 1)?;
    page.set_lower(meta::END);
    Ok(())
}
