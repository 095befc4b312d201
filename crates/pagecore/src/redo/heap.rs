//! Heap, rmid 10, and the tuple work that Heap2 and Neon's resource manager share with it (spec walredo.md 8).
//!
//! ```text
//! tuple header:  0 xmin  4 xmax  8 cid  12 ctid (block high u16, block low u16, offset u16)  18 infomask2  20 infomask
//!               22 hoff  23 null bitmap ...
//! ```
//!
//! Neon's computes log the command id, so that a page that is evicted and read back is the same. [`Dialect`] says where
//! the fields are in each of the three forms of the records.

use crate::page::{item_pointer, Fault, ItemState, Page, ALL_VISIBLE, MAX_HEAP_TUPLES};
use crate::Flavour;

use super::decode::PageRecord;
use super::fields::{bytes_at, u16_at, u32_at, u8_at, Fields};
use super::{Applied, Change, Context};

const INSERT: u8 = 0x00;
const DELETE: u8 = 0x10;
const UPDATE: u8 = 0x20;
const HOT_UPDATE: u8 = 0x40;
const CONFIRM: u8 = 0x50;
const LOCK: u8 = 0x60;
const INPLACE: u8 = 0x70;
/// The record makes the page (heap, heap2 and Neon records).
pub const INIT_PAGE: u8 = 0x80;
pub const OP_MASK: u8 = 0x70;

/// Length of a tuple header up to the null bitmap; what follows comes from the record as it is.
pub const TUPLE_HEADER: usize = 23;

const XMAX: usize = 4;
const CID: usize = 8;
const CTID: usize = 12;
const INFOMASK2: usize = 18;
const INFOMASK: usize = 20;
const HOFF: usize = 22;

const COMBO_CID: u16 = 0x0020;
const XMAX_LOCK_ONLY: u16 = 0x0080;
const KEYS_UPDATED: u16 = 0x2000;
const HOT_UPDATED: u16 = 0x4000;

/// Record flags.
pub const OLD_ALL_VISIBLE_CLEARED: u8 = 0x01;
const NEW_ALL_VISIBLE_CLEARED: u8 = 0x02;
const DELETE_IS_SUPER: u8 = 0x08;
const DELETE_MOVED_PARTITION: u8 = 0x10;
const ALL_FROZEN_SET: u8 = 0x20;
const PREFIX_FROM_OLD: u8 = 0x20;
const SUFFIX_FROM_OLD: u8 = 0x40;

/// Where the fields of heap records are (spec 8.1). `cid` is none where the record has no command id.
pub struct Dialect {
    delete: TupleFields,
    lock: TupleFields,
    update: UpdateFields,
    tuple: TupleHeader,
    multi: MultiInsert,
}

/// Main data of DELETE and LOCK; xmax comes first in both.
struct TupleFields {
    offnum: usize,
    infobits: usize,
    flags: usize,
    cid: Option<usize>,
}

/// Main data of UPDATE; up to the flags it never changes.
struct UpdateFields {
    cid: Option<usize>,
    new_xmax: usize,
    new_offnum: usize,
}

/// The tuple header inside block data: infomask2, infomask, maybe a command id, hoff last.
struct TupleHeader {
    cid: Option<usize>,
    hoff: usize,
}

struct MultiInsert {
    cid: Option<usize>,
    offsets: usize,
    /// Per tuple: length u16, infomask2, infomask, maybe a command id, hoff last.
    tuple_cid: Option<usize>,
    tuple_hoff: usize,
}

pub const VANILLA: Dialect = Dialect {
    delete: TupleFields { offnum: 4, infobits: 6, flags: 7, cid: None },
    lock: TupleFields { offnum: 4, infobits: 6, flags: 7, cid: None },
    update: UpdateFields { cid: None, new_xmax: 8, new_offnum: 12 },
    tuple: TupleHeader { cid: None, hoff: 4 },
    multi: MultiInsert { cid: None, offsets: 4, tuple_cid: None, tuple_hoff: 6 },
};

/// Neon's 14 and 15 changed the records in place.
pub const NEON_IN_PLACE: Dialect = Dialect {
    delete: TupleFields { offnum: 4, infobits: 12, flags: 13, cid: Some(8) },
    lock: TupleFields { offnum: 4, infobits: 12, flags: 13, cid: Some(8) },
    update: UpdateFields { cid: Some(8), new_xmax: 12, new_offnum: 16 },
    tuple: TupleHeader { cid: Some(4), hoff: 8 },
    multi: MultiInsert { cid: None, offsets: 4, tuple_cid: Some(8), tuple_hoff: 12 },
};

/// Neon's 16 and 17 have a resource manager of their own, 134.
pub const NEON_RMGR: Dialect = Dialect {
    delete: TupleFields { offnum: 4, infobits: 6, flags: 7, cid: Some(8) },
    lock: TupleFields { offnum: 8, infobits: 10, flags: 11, cid: Some(4) },
    update: UpdateFields { cid: Some(8), new_xmax: 12, new_offnum: 16 },
    tuple: TupleHeader { cid: Some(4), hoff: 8 },
    multi: MultiInsert { cid: Some(4), offsets: 8, tuple_cid: None, tuple_hoff: 6 },
};

/// The dialect of rmids 9 and 10.
pub fn dialect(ctx: &Context) -> &'static Dialect {
    match ctx.flavour {
        Flavour::Neon if ctx.major <= 15 => &NEON_IN_PLACE,
        _ => &VANILLA,
    }
}

pub fn knows(info: u8) -> bool {
    // 0x30, TRUNCATE, has no page.
    info & OP_MASK != 0x30
}

pub fn apply(ctx: &Context, record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let dialect = dialect(ctx);
    match record.info & OP_MASK {
        INSERT => insert(dialect, record, page),
        DELETE => delete(dialect, record, page),
        UPDATE => update(dialect, record, page, false),
        HOT_UPDATE => update(dialect, record, page, true),
        CONFIRM => confirm(record, page),
        LOCK => lock(dialect, record, page),
        INPLACE => inplace(record, page),
        _ => Err(Fault::Record("unknown operation")),
    }
}

/// A tuple on the page, at a place known to hold at least its fixed header.
pub struct Tuple<'p> {
    bytes: &'p mut [u8],
}

impl<'p> Tuple<'p> {
    /// The tuple behind a normal line pointer.
    pub fn of<'a>(page: &'p mut Page<'a>, offset: u16) -> Result<Tuple<'p>, Fault> {
        if page.item(offset)?.state() != ItemState::Normal {
            return Err(Fault::Item { offset, what: "is not a tuple" });
        }
        let (start, length) = page.item_place(offset)?;
        if length < TUPLE_HEADER {
            return Err(Fault::Item { offset, what: "is too short for a tuple" });
        }
        Ok(Tuple { bytes: page.slice_mut(start, length)? })
    }

    fn u16<const AT: usize>(&self) -> u16 {
        self.bytes.get(AT..AT + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
    }

    fn put<const AT: usize>(&mut self, bytes: &[u8]) {
        if let Some(slot) = self.bytes.get_mut(AT..AT + bytes.len()) {
            slot.copy_from_slice(bytes);
        }
    }

    fn set_infomask(&mut self, value: u16) {
        self.put::<INFOMASK>(&value.to_le_bytes());
    }

    fn set_infomask2(&mut self, value: u16) {
        self.put::<INFOMASK2>(&value.to_le_bytes());
    }

    pub fn set_masks(&mut self, infomask2: u16, infomask: u16) {
        self.set_infomask2(infomask2);
        self.set_infomask(infomask);
    }

    pub fn set_xmax(&mut self, xmax: u32) {
        self.put::<XMAX>(&xmax.to_le_bytes());
    }

    /// The field that holds a command id, or the transaction that moved the tuple before 9.0.
    pub fn set_cid_field(&mut self, cid: u32) {
        self.put::<CID>(&cid.to_le_bytes());
    }

    fn set_ctid(&mut self, block: u32, offset: u16) {
        self.put::<CTID>(&item_pointer(block, offset));
    }

    fn set_hot_updated(&mut self, on: bool) {
        let mask = self.u16::<INFOMASK2>() & !HOT_UPDATED;
        self.set_infomask2(if on { mask | HOT_UPDATED } else { mask });
    }

    /// Forgets everything about xmax, then takes what the record says (XMAX-RESET of the spec, section 8).
    pub fn reset_xmax(&mut self, infobits: u8) {
        let mut mask = self.u16::<INFOMASK>() & !0xDCD0;
        let mut mask2 = self.u16::<INFOMASK2>() & !KEYS_UPDATED;
        for (bit, infomask) in [(0x01, 0x1000), (0x02, XMAX_LOCK_ONLY), (0x04, 0x0040), (0x08, 0x0010)] {
            if infobits & bit != 0 {
                mask |= infomask;
            }
        }
        if infobits & 0x10 != 0 {
            mask2 |= KEYS_UPDATED;
        }
        self.set_masks(mask2, mask);
    }

    /// Command id of the deleting transaction: 0 in vanilla WAL (CID0 of the spec, section 8).
    fn set_cmax(&mut self, cid: Option<u32>, infobits: u8) {
        let combo = cid.is_some() && infobits & 0x20 != 0;
        let mask = self.u16::<INFOMASK>() & !COMBO_CID;
        self.set_infomask(if combo { mask | COMBO_CID } else { mask });
        self.set_cid_field(cid.unwrap_or(0));
    }

    /// True if xmax only locked the tuple.
    fn is_only_locked(&self) -> bool {
        let mask = self.u16::<INFOMASK>();
        mask & XMAX_LOCK_ONLY != 0 || mask & 0x1050 == 0x0040
    }
}

fn optional_u32(data: &[u8], at: Option<usize>) -> Result<Option<u32>, Fault> {
    at.map(|at| u32_at(data, at)).transpose()
}

/// What a record says of a new tuple's header.
struct NewTuple {
    offset: u16,
    infomask2: u16,
    infomask: u16,
    hoff: u8,
    xmin: u32,
    xmax: u32,
    cid: u32,
}

/// Allocates a heap tuple of `TUPLE_HEADER + body` bytes and writes its header; returns where the body goes.
fn place_tuple(page: &mut Page<'_>, block: u32, new: &NewTuple, body: usize) -> Result<usize, Fault> {
    if new.offset > MAX_HEAP_TUPLES {
        return Err(Fault::Item { offset: new.offset, what: "is more than a heap page can hold" });
    }
    let at = page.alloc_at(new.offset, TUPLE_HEADER + body)?;
    let mut header = [0; TUPLE_HEADER];
    header[..4].copy_from_slice(&new.xmin.to_le_bytes());
    header[XMAX..XMAX + 4].copy_from_slice(&new.xmax.to_le_bytes());
    header[CID..CID + 4].copy_from_slice(&new.cid.to_le_bytes());
    header[CTID..CTID + 6].copy_from_slice(&item_pointer(block, new.offset));
    header[INFOMASK2..INFOMASK2 + 2].copy_from_slice(&new.infomask2.to_le_bytes());
    header[INFOMASK..INFOMASK + 2].copy_from_slice(&(new.infomask & !COMBO_CID).to_le_bytes());
    header[HOFF] = new.hoff;
    page.put(at, &header)?;
    Ok(at + TUPLE_HEADER)
}

pub fn insert(dialect: &Dialect, record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let data = record.target.data;
    let body = data.get(dialect.tuple.hoff + 1..).ok_or(Fault::Record("the tuple is missing"))?;
    let new = NewTuple {
        offset: u16_at(record.main, 0)?,
        infomask2: u16_at(data, 0)?,
        infomask: u16_at(data, 2)?,
        hoff: u8_at(data, dialect.tuple.hoff)?,
        xmin: record.xid,
        xmax: 0,
        cid: optional_u32(data, dialect.tuple.cid)?.unwrap_or(0),
    };
    let flags = u8_at(record.main, 2)?;
    if record.target.will_init {
        page.init(0);
    }
    let at = place_tuple(page, record.block, &new, body.len())?;
    page.put(at, body)?;
    if flags & OLD_ALL_VISIBLE_CLEARED != 0 {
        page.set_flag(ALL_VISIBLE, false);
    }
    Ok(Change::Stamp)
}

/// Several tuples of one page (Heap2 0x50, Neon 0x50).
pub fn multi_insert(dialect: &Dialect, record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let layout = &dialect.multi;
    let main = record.main;
    let flags = u8_at(main, 0)?;
    let count = u16_at(main, 2)?;
    let common_cid = optional_u32(main, layout.cid)?;
    let init = record.info & INIT_PAGE != 0;
    if record.target.will_init {
        page.init(0);
    }
    let mut data = Fields::new(record.target.data);
    for i in 0..count {
        data.align(2);
        let header = data.take(layout.tuple_hoff + 1)?;
        let body = data.take(usize::from(u16_at(header, 0)?))?;
        let offset = if init { i + 1 } else { u16_at(main, layout.offsets + 2 * usize::from(i))? };
        let new = NewTuple {
            offset,
            infomask2: u16_at(header, 2)?,
            infomask: u16_at(header, 4)?,
            hoff: u8_at(header, layout.tuple_hoff)?,
            xmin: record.xid,
            xmax: 0,
            cid: optional_u32(header, layout.tuple_cid)?.or(common_cid).unwrap_or(0),
        };
        let at = place_tuple(page, record.block, &new, body.len())?;
        page.put(at, body)?;
    }
    if !data.is_empty() {
        return Err(Fault::Record("there are more tuples than announced"));
    }
    if flags & OLD_ALL_VISIBLE_CLEARED != 0 {
        page.set_flag(ALL_VISIBLE, false);
    }
    if flags & ALL_FROZEN_SET != 0 {
        page.set_flag(ALL_VISIBLE, true);
    }
    Ok(Change::Stamp)
}

pub fn delete(dialect: &Dialect, record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let (main, layout) = (record.main, &dialect.delete);
    let xmax = u32_at(main, 0)?;
    let offset = u16_at(main, layout.offnum)?;
    let infobits = u8_at(main, layout.infobits)?;
    let flags = u8_at(main, layout.flags)?;
    let cid = optional_u32(main, layout.cid)?;
    let mut tuple = Tuple::of(page, offset)?;
    tuple.reset_xmax(infobits);
    tuple.set_hot_updated(false);
    if flags & DELETE_IS_SUPER != 0 {
        tuple.put::<0>(&[0; 4]);
    } else {
        tuple.set_xmax(xmax);
    }
    tuple.set_cmax(cid, infobits);
    if flags & DELETE_MOVED_PARTITION != 0 {
        tuple.set_ctid(u32::MAX, 0xFFFD);
    } else {
        tuple.set_ctid(record.block, offset);
    }
    page.set_prunable(record.xid);
    if flags & OLD_ALL_VISIBLE_CLEARED != 0 {
        page.set_flag(ALL_VISIBLE, false);
    }
    Ok(Change::Stamp)
}

/// One page of an update: block 0 holds the new tuple, block 1 the old one; without block 1 both are on block 0.
pub fn update(dialect: &Dialect, record: &PageRecord<'_>, page: &mut Page<'_>, hot: bool) -> Applied {
    let (main, layout) = (record.main, &dialect.update);
    let flags = u8_at(main, 7)?;
    let old_offset = u16_at(main, 4)?;
    let new_offset = u16_at(main, layout.new_offnum)?;
    let cid = optional_u32(main, layout.cid)?;
    let same_page = record.block_of(1).is_none();
    if record.target.id == 1 || same_page {
        let new_block = record.block_of(0).ok_or(Fault::Record("it has no block 0"))?;
        let infobits = u8_at(main, 6)?;
        let mut old = Tuple::of(page, old_offset)?;
        old.reset_xmax(infobits);
        old.set_hot_updated(hot);
        old.set_xmax(u32_at(main, 0)?);
        old.set_cmax(cid, infobits);
        old.set_ctid(new_block, new_offset);
        page.set_prunable(record.xid);
        if flags & OLD_ALL_VISIBLE_CLEARED != 0 {
            page.set_flag(ALL_VISIBLE, false);
        }
    }
    if record.target.id == 0 {
        if record.target.will_init {
            page.init(0);
        }
        let new_xmax = u32_at(main, layout.new_xmax)?;
        let shared = same_page.then_some(old_offset);
        add_updated_tuple(dialect, record, page, new_offset, new_xmax, shared, flags)?;
        if flags & NEW_ALL_VISIBLE_CLEARED != 0 {
            page.set_flag(ALL_VISIBLE, false);
        }
    }
    Ok(Change::Stamp)
}

/// Adds the new version of an updated tuple; its beginning and end may have to be copied from the old one.
fn add_updated_tuple(
    dialect: &Dialect,
    record: &PageRecord<'_>,
    page: &mut Page<'_>,
    offset: u16,
    xmax: u32,
    old_offset: Option<u16>,
    flags: u8,
) -> Result<(), Fault> {
    let mut data = Fields::new(record.target.data);
    let prefix = if flags & PREFIX_FROM_OLD != 0 { usize::from(data.u16()?) } else { 0 };
    let suffix = if flags & SUFFIX_FROM_OLD != 0 { usize::from(data.u16()?) } else { 0 };
    let header = data.take(dialect.tuple.hoff + 1)?;
    let body = data.rest();
    let hoff = u8_at(header, dialect.tuple.hoff)?;
    let new = NewTuple {
        offset,
        infomask2: u16_at(header, 0)?,
        infomask: u16_at(header, 2)?,
        hoff,
        xmin: record.xid,
        xmax,
        cid: optional_u32(header, dialect.tuple.cid)?.unwrap_or(0),
    };
    let at = place_tuple(page, record.block, &new, body.len() + prefix + suffix)?;
    if prefix == 0 && suffix == 0 {
        return page.put(at, body);
    }
    let old_offset = old_offset.ok_or(Fault::Record("it copies from a tuple of another page"))?;
    let (old_at, old_length) = page.item_place(old_offset)?;
    let old_hoff = usize::from(page.slice(old_at, TUPLE_HEADER)?[HOFF]);
    if old_hoff + prefix > old_length || suffix > old_length {
        return Err(Fault::Item { offset: old_offset, what: "is shorter than what is copied from it" });
    }
    // The null bitmap and its padding come from the record, then the old tuple's data begins.
    let bitmap = if prefix == 0 { 0 } else { usize::from(hoff).saturating_sub(TUPLE_HEADER) };
    let rest = body.get(bitmap..).ok_or(Fault::Record("the null bitmap is missing"))?;
    page.put(at, bytes_at(body, 0, bitmap)?)?;
    page.bytes_mut().copy_within(old_at + old_hoff..old_at + old_hoff + prefix, at + bitmap);
    page.put(at + bitmap + prefix, rest)?;
    let suffix_start = old_at + old_length - suffix;
    page.bytes_mut().copy_within(suffix_start..suffix_start + suffix, at + prefix + body.len());
    Ok(())
}

fn confirm(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let offset = u16_at(record.main, 0)?;
    Tuple::of(page, offset)?.set_ctid(record.block, offset);
    Ok(Change::Stamp)
}

pub fn lock(dialect: &Dialect, record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let (main, layout) = (record.main, &dialect.lock);
    let offset = u16_at(main, layout.offnum)?;
    let infobits = u8_at(main, layout.infobits)?;
    let cid = optional_u32(main, layout.cid)?;
    let mut tuple = Tuple::of(page, offset)?;
    tuple.reset_xmax(infobits);
    if tuple.is_only_locked() {
        tuple.set_hot_updated(false);
        tuple.set_ctid(record.block, offset);
    }
    tuple.set_xmax(u32_at(main, 0)?);
    tuple.set_cmax(cid, infobits);
    Ok(Change::Stamp)
}

fn inplace(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let offset = u16_at(record.main, 0)?;
    let tuple = Tuple::of(page, offset)?;
    let hoff = usize::from(tuple.bytes.get(HOFF).copied().unwrap_or(0));
    match tuple.bytes.get_mut(hoff..) {
        Some(body) if body.len() == record.target.data.len() => {
            body.copy_from_slice(record.target.data);
            Ok(Change::Stamp)
        }
        _ => Err(Fault::Item { offset, what: "has another length than the record's tuple" }),
    }
}
