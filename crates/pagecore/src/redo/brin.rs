//! BRIN, rmid 17 (spec walredo.md 13).
//!
//! Regular pages hold items; the range map (revmap) is an array of TIDs from byte 24 on; block 0 is the metapage.

use crate::page::{item_pointer, Fault, Page};

use super::decode::PageRecord;
use super::fields::{u16_at, u32_at};
use super::{Applied, Change};

const CREATE_INDEX: u8 = 0x00;
const INSERT: u8 = 0x10;
const UPDATE: u8 = 0x20;
const SAMEPAGE_UPDATE: u8 = 0x30;
const REVMAP_EXTEND: u8 = 0x40;
const DESUMMARIZE: u8 = 0x50;
const OP_MASK: u8 = 0x70;

const PAGE_TYPE: usize = 8190;
const META: u16 = 0xF091;
const REVMAP: u16 = 0xF092;
const REGULAR: u16 = 0xF093;

const CONTENTS: usize = 24;
const META_END: usize = CONTENTS + 16;
const LAST_REVMAP_PAGE: usize = CONTENTS + 12;
const TIDS_PER_PAGE: u32 = 1360;
const NO_TID: (u32, u16) = (u32::MAX, 0);

pub fn knows(info: u8) -> bool {
    info & OP_MASK <= DESUMMARIZE
}

/// The part that INSERT's main data is and UPDATE's ends with.
struct Insertion {
    heap_block: u32,
    pages_per_range: u32,
    offset: u16,
}

impl Insertion {
    fn at(main: &[u8], at: usize) -> Result<Insertion, Fault> {
        Ok(Insertion {
            heap_block: u32_at(main, at)?,
            pages_per_range: u32_at(main, at + 4)?,
            offset: u16_at(main, at + 8)?,
        })
    }
}

pub fn apply(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let (main, data) = (record.main, record.target.data);
    match (record.info & OP_MASK, record.target.id) {
        (CREATE_INDEX, 0) => {
            init(page, META)?;
            page.put_u32(CONTENTS, 0xA810_9CFA)?;
            page.put_u32(CONTENTS + 4, u32::from(u16_at(main, 4)?))?;
            page.put_u32(CONTENTS + 8, u32_at(main, 0)?)?;
            page.set_lower(META_END);
        }
        (op @ (INSERT | UPDATE), 0) => {
            let insertion = Insertion::at(main, if op == UPDATE { 4 } else { 0 })?;
            if record.target.will_init {
                init(page, REGULAR)?;
            }
            let at = page.alloc_at(insertion.offset, data.len())?;
            page.put(at, data)?;
        }
        (op @ (INSERT | UPDATE), 1) => {
            let insertion = Insertion::at(main, if op == UPDATE { 4 } else { 0 })?;
            let block = record.block_of(0).ok_or(Fault::Record("it has no block 0"))?;
            set_range(page, insertion.heap_block, insertion.pages_per_range, (block, insertion.offset))?;
        }
        (UPDATE, 2) => page.delete_item_keep_pointer(u16_at(main, 0)?)?,
        (SAMEPAGE_UPDATE, 0) => page.overwrite_item(u16_at(main, 0)?, data)?,
        (REVMAP_EXTEND, 0) => {
            page.put_u32(LAST_REVMAP_PAGE, u32_at(main, 0)?)?;
            page.set_lower(META_END);
        }
        (REVMAP_EXTEND, 1) => init(page, REVMAP)?,
        (DESUMMARIZE, 0) => set_range(page, u32_at(main, 4)?, u32_at(main, 0)?, NO_TID)?,
        (DESUMMARIZE, 1) => page.delete_item_keep_pointer(u16_at(main, 8)?)?,
        _ => return Err(Fault::Record("unknown operation or block id")),
    }
    Ok(Change::Stamp)
}

fn init(page: &mut Page<'_>, page_type: u16) -> Result<(), Fault> {
    page.init(8);
    page.put_u16(PAGE_TYPE, page_type)
}

/// Points the range of a heap block to its summary.
fn set_range(page: &mut Page<'_>, heap_block: u32, pages_per_range: u32, tid: (u32, u16)) -> Result<(), Fault> {
    let range = heap_block.checked_div(pages_per_range).ok_or(Fault::Record("a range has no pages"))?;
    page.put(CONTENTS + 6 * (range % TIDS_PER_PAGE) as usize, &item_pointer(tid.0, tid.1))
}
