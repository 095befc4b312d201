//! Neon's own resource manager of PostgreSQL 16 and 17, rmid 134: heap records with the command id (spec walredo.md 8.1).

use crate::page::{Fault, Page};
use crate::Flavour;

use super::decode::PageRecord;
use super::heap::{self, NEON_RMGR, OP_MASK};
use super::{Applied, Context};

const INSERT: u8 = 0x00;
const DELETE: u8 = 0x10;
const UPDATE: u8 = 0x20;
const HOT_UPDATE: u8 = 0x30;
const LOCK: u8 = 0x40;
const MULTI_INSERT: u8 = 0x50;

pub fn knows(ctx: &Context, info: u8) -> bool {
    ctx.flavour == Flavour::Neon && ctx.major >= 16 && info & OP_MASK <= MULTI_INSERT
}

pub fn apply(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    match record.info & OP_MASK {
        INSERT => heap::insert(&NEON_RMGR, record, page),
        DELETE => heap::delete(&NEON_RMGR, record, page),
        UPDATE => heap::update(&NEON_RMGR, record, page, false),
        HOT_UPDATE => heap::update(&NEON_RMGR, record, page, true),
        LOCK => heap::lock(&NEON_RMGR, record, page),
        MULTI_INSERT => heap::multi_insert(&NEON_RMGR, record, page),
        _ => Err(Fault::Record("unknown operation")),
    }
}
