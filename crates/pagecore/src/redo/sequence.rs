//! Sequence, rmid 15: every record makes the page again from nothing (spec walredo.md 15).

use crate::page::{Fault, Page};

use super::decode::PageRecord;
use super::{Applied, Change};

const LOG: u8 = 0x00;
/// Length of the relation's name in front of the tuple.
const RELATION_SIZE: usize = 12;
const MAGIC: u32 = 0x1717;
const MAGIC_AT: usize = 8184;

pub fn knows(info: u8) -> bool {
    info == LOG
}

pub fn apply(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let tuple = record.main.get(RELATION_SIZE..).ok_or(Fault::Record("the tuple is missing"))?;
    page.init(4);
    page.put_u32(MAGIC_AT, MAGIC)?;
    page.add_item(1, tuple)?;
    Ok(Change::Stamp)
}
