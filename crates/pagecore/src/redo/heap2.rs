//! Heap2, rmid 9: pruning, vacuum, freezing, visibility, several tuples at once (spec walredo.md 8.3, stock.md 2).
//!
//! 14 to 16 have one record each for pruning, vacuum and freezing; 17 and newer one layout under three codes.
//! [`Layout`] holds what differs.

use crate::page::{Fault, ItemId, ItemState, Page, ALL_VISIBLE};

use super::decode::PageRecord;
use super::fields::{u16_at, u32_at, u8_at, Fields, U16s};
use super::heap::{self, Tuple, OP_MASK};
use super::vm;
use super::{Applied, Change, Context};

const PRUNE: u8 = 0x10;
const VACUUM: u8 = 0x20;
const FREEZE_PAGE: u8 = 0x30;
const VISIBLE: u8 = 0x40;
const MULTI_INSERT: u8 = 0x50;
const LOCK_UPDATED: u8 = 0x60;

/// How 17 and newer describe the parts of a prune record.
const CLEANUP_LOCK: u8 = 0x04;
const HAS_FREEZE_PLANS: u8 = 0x10;
const HAS_REDIRECTIONS: u8 = 0x20;
const HAS_DEAD: u8 = 0x40;
const HAS_UNUSED: u8 = 0x80;

/// What differs between versions.
struct Layout {
    /// PRUNE, VACUUM and FREEZE_PAGE are one record.
    prune_freezes: bool,
    /// FREEZE_PAGE holds plans, each for many tuples, instead of one entry per tuple.
    freeze_plans: bool,
    /// Pruning cuts unused line pointers off the end of the array.
    prune_truncates: bool,
}

fn layout(major: u8) -> &'static Layout {
    match major {
        ..=14 => &Layout { prune_freezes: false, freeze_plans: false, prune_truncates: false },
        15 => &Layout { prune_freezes: false, freeze_plans: false, prune_truncates: true },
        16 => &Layout { prune_freezes: false, freeze_plans: true, prune_truncates: true },
        17.. => &Layout { prune_freezes: true, freeze_plans: true, prune_truncates: true },
    }
}

pub fn knows(info: u8) -> bool {
    // 0x00, REWRITE, and 0x70, NEW_CID, have no page.
    !matches!(info & OP_MASK, 0x00 | 0x70)
}

/// True for the one record that makes a page without saying so: VISIBLE on a visibility map page.
pub fn initialises(record: &PageRecord<'_>) -> bool {
    record.info & OP_MASK == VISIBLE && record.target.id == 0
}

pub fn apply(ctx: &Context, record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let layout = layout(record.major);
    match record.info & OP_MASK {
        PRUNE | VACUUM | FREEZE_PAGE if layout.prune_freezes => prune_and_freeze(layout, record, page),
        PRUNE => prune(layout, record, page),
        VACUUM => vacuum(record, page),
        FREEZE_PAGE if layout.freeze_plans => freeze_by_plans(record, page),
        FREEZE_PAGE => freeze_each(record, page),
        VISIBLE => visible(ctx, record, page),
        MULTI_INSERT => heap::multi_insert(heap::dialect(ctx), record, page),
        LOCK_UPDATED => lock_updated(record, page),
        _ => Err(Fault::Record("unknown operation")),
    }
}

fn redirect(page: &mut Page<'_>, pairs: U16s<'_>) -> Result<(), Fault> {
    let mut offsets = pairs.iter();
    while let (Some(from), Some(to)) = (offsets.next(), offsets.next()) {
        page.set_item(from, ItemId::new(to, ItemState::Redirect, 0))?;
    }
    Ok(())
}

fn set_all(page: &mut Page<'_>, offsets: U16s<'_>, id: ItemId) -> Result<(), Fault> {
    offsets.iter().try_for_each(|offset| page.set_item(offset, id))
}

/// PRUNE of 14 to 16.
fn prune(layout: &Layout, record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let redirected = usize::from(u16_at(record.main, 4)?);
    let dead = usize::from(u16_at(record.main, 6)?);
    let mut data = Fields::new(record.target.data);
    redirect(page, data.u16s(2 * redirected)?)?;
    set_all(page, data.u16s(dead)?, ItemId::new(0, ItemState::Dead, 0))?;
    set_all(page, U16s::new(data.rest()), ItemId::UNUSED)?;
    page.repair_fragmentation(layout.prune_truncates)?;
    Ok(Change::Stamp)
}

/// VACUUM of 14 to 16: dead line pointers become unused; no tuple moves.
fn vacuum(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let unused = usize::from(u16_at(record.main, 0)?);
    set_all(page, Fields::new(record.target.data).u16s(unused)?, ItemId::UNUSED)?;
    page.truncate_line_pointers()?;
    Ok(Change::Stamp)
}

/// FREEZE_PAGE of 14 and 15.
fn freeze_each(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let count = u16_at(record.main, 4)?;
    let mut data = Fields::new(record.target.data);
    for _ in 0..count {
        let entry = data.take(12)?;
        let plan = FreezePlan {
            xmax: u32_at(entry, 0)?,
            infomask2: u16_at(entry, 6)?,
            infomask: u16_at(entry, 8)?,
            flags: u8_at(entry, 10)?,
        };
        plan.execute(page, u16_at(entry, 4)?)?;
    }
    Ok(Change::Stamp)
}

/// FREEZE_PAGE of 16.
fn freeze_by_plans(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let plans = usize::from(u16_at(record.main, 4)?);
    let mut data = Fields::new(record.target.data);
    let plans = data.take(12 * plans)?;
    execute_plans(page, plans, U16s::new(data.rest()))?;
    Ok(Change::Stamp)
}

/// All three codes of 17 and newer.
fn prune_and_freeze(layout: &Layout, record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let flags = u8_at(record.main, 1)?;
    let mut data = Fields::new(record.target.data);
    let mut plans: &[u8] = &[];
    if flags & HAS_FREEZE_PLANS != 0 {
        let count = usize::from(data.u16()?);
        data.align(4);
        plans = data.take(12 * count)?;
    }
    let none = U16s::new(&[]);
    let mut part = |bit, per_item| -> Result<U16s<'_>, Fault> {
        if flags & bit == 0 {
            return Ok(none);
        }
        let count = usize::from(data.u16()?);
        data.u16s(per_item * count)
    };
    let redirected = part(HAS_REDIRECTIONS, 2)?;
    let dead = part(HAS_DEAD, 1)?;
    let unused = part(HAS_UNUSED, 1)?;
    redirect(page, redirected)?;
    set_all(page, dead, ItemId::new(0, ItemState::Dead, 0))?;
    set_all(page, unused, ItemId::UNUSED)?;
    if redirected.len() + dead.len() + unused.len() > 0 {
        if flags & CLEANUP_LOCK != 0 {
            page.repair_fragmentation(layout.prune_truncates)?;
        } else {
            page.truncate_line_pointers()?;
        }
    }
    execute_plans(page, plans, U16s::new(data.rest()))?;
    Ok(Change::Stamp)
}

/// The new header fields of tuples that are frozen.
struct FreezePlan {
    xmax: u32,
    infomask2: u16,
    infomask: u16,
    flags: u8,
}

impl FreezePlan {
    fn execute(&self, page: &mut Page<'_>, offset: u16) -> Result<(), Fault> {
        let mut tuple = Tuple::of(page, offset)?;
        tuple.set_xmax(self.xmax);
        if self.flags & 0x02 != 0 {
            tuple.set_cid_field(2);
        }
        if self.flags & 0x04 != 0 {
            tuple.set_cid_field(0);
        }
        tuple.set_masks(self.infomask2, self.infomask);
        Ok(())
    }
}

/// Plans of 12 bytes; `offsets` lists the tuples of the first plan, then those of the second, and so on.
fn execute_plans(page: &mut Page<'_>, plans: &[u8], offsets: U16s<'_>) -> Result<(), Fault> {
    let mut offsets = offsets.iter();
    for bytes in plans.chunks_exact(12) {
        let plan = FreezePlan {
            xmax: u32_at(bytes, 0)?,
            infomask2: u16_at(bytes, 4)?,
            infomask: u16_at(bytes, 6)?,
            flags: u8_at(bytes, 8)?,
        };
        for _ in 0..u16_at(bytes, 10)? {
            let offset = offsets.next().ok_or(Fault::Record("a freeze plan has too few offsets"))?;
            plan.execute(page, offset)?;
        }
    }
    Ok(())
}

/// VISIBLE: block 0 is the map's page, block 1 the heap page.
fn visible(ctx: &Context, record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let flags = u8_at(record.main, 4)? & vm::VALID_BITS;
    if record.target.id == 1 {
        page.set_flag(ALL_VISIBLE, true);
        return Ok(if ctx.hint_bits_logged { Change::Stamp } else { Change::Keep });
    }
    let heap_block = record.block_of(1).ok_or(Fault::Record("it has no heap block"))?;
    if page.is_new() {
        page.init(0);
    }
    vm::set(record.block, page, heap_block, flags)
}

fn lock_updated(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let mut tuple = Tuple::of(page, u16_at(record.main, 4)?)?;
    tuple.reset_xmax(u8_at(record.main, 6)?);
    tuple.set_xmax(u32_at(record.main, 0)?);
    Ok(Change::Stamp)
}
