//! Pages of the simple LRUs: transaction status and multixacts (spec walredo.md 5, 5.1; stock.md 2).
//!
//! These pages have no header and no LSN. A CLOG page may be 8 bytes longer: the tail is the time of the last commit on
//! it, big-endian, in microseconds since 2000.

use crate::key::{Key, SlruKind};
use crate::page::Fault;
use crate::BLCKSZ;

use super::decode::main_data;
use super::fields::u32_at;

/// Pages per segment file.
const PAGES_PER_SEGMENT: u32 = 32;
const XIDS_PER_PAGE: u32 = 32768;
const OFFSETS_PER_PAGE: u32 = 2048;
const MEMBERS_PER_PAGE: u32 = 1636;
const GROUPS_PER_PAGE: u32 = 409;
/// Four members: four flag bytes, four transaction ids.
const GROUP_SIZE: usize = 20;
const TIMESTAMP_SIZE: usize = 8;

const COMMITTED: u8 = 1;
const ABORTED: u8 = 2;

const CREATE_ID: u8 = 0x20;

/// Multixact records: only the creation of one.
pub fn knows(info: u8) -> bool {
    info == CREATE_ID
}

/// Fails unless `key` is page number `page` of the given kind.
fn check_page(key: &Key, kind: SlruKind, page: u32) -> Result<(), Fault> {
    if key.slru() == Some((kind, page / PAGES_PER_SEGMENT, page % PAGES_PER_SEGMENT)) {
        Ok(())
    } else {
        Err(Fault::Record("it belongs to another page"))
    }
}

fn set_status(key: &Key, page: &mut [u8], xids: &[u32], status: u8) -> Result<(), Fault> {
    for &xid in xids {
        check_page(key, SlruKind::Clog, xid / XIDS_PER_PAGE)?;
        let on_page = xid % XIDS_PER_PAGE;
        let shift = 2 * (on_page % 4);
        let byte = page.get_mut((on_page / 4) as usize).ok_or(Fault::Page("it is too short"))?;
        *byte = *byte & !(3 << shift) | status << shift;
    }
    Ok(())
}

/// Marks transactions as committed. A page of another length than 8192 or 8200 gets no timestamp.
pub fn clog_commit(key: &Key, page: &mut Vec<u8>, xids: &[u32], timestamp: i64) -> Result<(), Fault> {
    set_status(key, page, xids, COMMITTED)?;
    if page.len() == BLCKSZ + TIMESTAMP_SIZE {
        page.truncate(BLCKSZ);
    }
    if page.len() == BLCKSZ {
        page.extend_from_slice(&timestamp.to_be_bytes());
    }
    Ok(())
}

/// Marks transactions as aborted; a timestamp stays.
pub fn clog_abort(key: &Key, page: &mut [u8], xids: &[u32]) -> Result<(), Fault> {
    set_status(key, page, xids, ABORTED)
}

fn put_offset(page: &mut [u8], multi: u32, offset: u32) -> Result<(), Fault> {
    let at = 4 * (multi % OFFSETS_PER_PAGE) as usize;
    let slot = page.get_mut(at..at + 4).ok_or(Fault::Page("it is too short"))?;
    slot.copy_from_slice(&offset.to_le_bytes());
    Ok(())
}

/// Stores where a multixact's members begin.
pub fn set_offset(key: &Key, page: &mut [u8], multi: u32, offset: u32) -> Result<(), Fault> {
    check_page(key, SlruKind::MultiXactOffsets, multi / OFFSETS_PER_PAGE)?;
    put_offset(page, multi, offset)
}

/// A stock server's CREATE_ID record on an offsets page: also says where the next multixact's members will begin,
/// if that is stored on the same page (stock.md 2).
pub fn create_multi(key: &Key, page: &mut [u8], record: &[u8]) -> Result<(), Fault> {
    let main = main_data(record)?;
    let (multi, offset, count) = (u32_at(main, 0)?, u32_at(main, 4)?, u32_at(main, 8)?);
    set_offset(key, page, multi, offset)?;
    let next = multi.wrapping_add(1);
    if next % OFFSETS_PER_PAGE != 0 {
        // Offset 0 means "none", so it is never used.
        put_offset(page, next, offset.wrapping_add(count).max(1))?;
    }
    Ok(())
}

/// Stores members, all of which must lie on this page.
pub fn set_members(key: &Key, page: &mut [u8], offset: u32, members: &[(u32, u32)]) -> Result<(), Fault> {
    for (i, &(xid, status)) in members.iter().enumerate() {
        let offset = offset.wrapping_add(i as u32);
        check_page(key, SlruKind::MultiXactMembers, offset / MEMBERS_PER_PAGE)?;
        let group = (offset / 4 % GROUPS_PER_PAGE) as usize * GROUP_SIZE;
        let member = (offset % 4) as usize;
        let slots = page.get_mut(group..group + GROUP_SIZE).ok_or(Fault::Page("it is too short"))?;
        slots[member] = status as u8;
        slots[4 + 4 * member..8 + 4 * member].copy_from_slice(&xid.to_le_bytes());
    }
    Ok(())
}
