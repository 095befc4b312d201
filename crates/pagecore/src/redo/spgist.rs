//! SP-GiST, rmid 16 (spec walredo.md 12). Everything is in the main data; the tuples there are not aligned.
//!
//! ```text
//! special area, 8 bytes at 8184:  0 flags u16  2 number of redirects u16  4 number of placeholders u16  6 page id 0xFF82
//! leaf tuple:   0 state 2 bits, size 30 bits  4 info u16 (14 bits: next tuple of the chain)  6 tid
//! dead tuple:   the same, 16 bytes, transaction id at 12
//! inner tuple:  0 state 2 bits, 1 bit, 13 bits nodes, 16 bits size of the prefix  4 size u16  8 prefix, then nodes
//! node:         an index tuple, whose TID is the link
//! ```

use crate::page::{item_pointer, Fault, Page};
use crate::BLCKSZ;

use super::btree::tuple_size;
use super::decode::PageRecord;
use super::fields::{u16_at, u32_at, u8_at, Fields, U16s};
use super::{Applied, Change};

const ADD_LEAF: u8 = 0x10;
const MOVE_LEAFS: u8 = 0x20;
const ADD_NODE: u8 = 0x30;
const SPLIT_TUPLE: u8 = 0x40;
const PICKSPLIT: u8 = 0x50;
const VACUUM_LEAF: u8 = 0x60;
const VACUUM_ROOT: u8 = 0x70;
const VACUUM_REDIRECT: u8 = 0x80;

const SPECIAL_SIZE: usize = 8;
const FLAGS: usize = BLCKSZ - 8;
const REDIRECTS: usize = BLCKSZ - 6;
const PLACEHOLDERS: usize = BLCKSZ - 4;
const PAGE_ID: usize = BLCKSZ - 2;
const PAGE_ID_VALUE: u16 = 0xFF82;

const LEAF: u16 = 4;
const NULLS: u16 = 8;

const DEAD_SIZE: usize = 16;
const INNER_HEADER: usize = 8;
const NEXT_MASK: u16 = 0x3FFF;
const NOWHERE: Link = Link { block: u32::MAX, offset: 0 };

/// Where the offsets begin in VACUUM_REDIRECT's main data.
fn redirect_list_at(major: u8) -> usize {
    if major < 16 {
        8
    } else {
        10
    }
}

/// States of a tuple.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Redirect = 1,
    Dead = 2,
    Placeholder = 3,
}

/// Where a tuple is.
#[derive(Clone, Copy)]
struct Link {
    block: u32,
    offset: u16,
}

/// The last field of several records: whose redirects these are, and whether the index was being built.
#[derive(Clone, Copy)]
struct Source {
    xid: u32,
    is_build: bool,
}

impl Source {
    fn at(main: &[u8], at: usize) -> Result<Source, Fault> {
        Ok(Source { xid: u32_at(main, at)?, is_build: u8_at(main, at + 4)? != 0 })
    }

    /// While an index is built nobody else reads it, so nothing needs redirecting.
    fn redirect(self) -> State {
        if self.is_build {
            State::Placeholder
        } else {
            State::Redirect
        }
    }
}

/// A parent's node that is pointed to a new place.
struct Downlink {
    parent: u16,
    node: u16,
}

impl Downlink {
    fn at(main: &[u8], at: usize) -> Result<Downlink, Fault> {
        Ok(Downlink { parent: u16_at(main, at)?, node: u16_at(main, at + 2)? })
    }

    fn set(&self, page: &mut Page<'_>, to: Link) -> Result<(), Fault> {
        let (start, length) = page.item_place(self.parent)?;
        let tuple = page.slice(start, length)?;
        let word = u32_at(tuple, 0)?;
        if u32::from(self.node) >= word >> 3 & 0x1FFF {
            return Err(Fault::Item { offset: self.parent, what: "has no such node" });
        }
        let mut at = INNER_HEADER + (word >> 16) as usize;
        for _ in 0..self.node {
            at += tuple_size(tuple.get(at..).unwrap_or(&[]))?;
        }
        if at + 8 > length {
            return Err(Fault::Item { offset: self.parent, what: "is shorter than its nodes" });
        }
        page.put(start + at, &item_pointer(to.block, to.offset))
    }
}

pub fn knows(info: u8) -> bool {
    (ADD_LEAF..=VACUUM_REDIRECT).contains(&info)
}

pub fn apply(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    match record.info {
        ADD_LEAF => add_leaf(record, page)?,
        MOVE_LEAFS => move_leafs(record, page)?,
        ADD_NODE => add_node(record, page)?,
        SPLIT_TUPLE => split_tuple(record, page)?,
        PICKSPLIT => picksplit(record, page)?,
        VACUUM_LEAF => vacuum_leaf(record.main, page)?,
        VACUUM_ROOT => {
            let mut fields = Fields::new(record.main);
            let count = usize::from(fields.u16()?);
            fields.take(10)?;
            page.delete_items(&sorted(fields.u16s(count)?))?;
        }
        VACUUM_REDIRECT => vacuum_redirects(record, page)?,
        _ => return Err(Fault::Record("unknown operation")),
    }
    Ok(Change::Stamp)
}

fn init(page: &mut Page<'_>, flags: u16) -> Result<(), Fault> {
    page.init(SPECIAL_SIZE);
    page.put_u16(FLAGS, flags)?;
    page.put_u16(PAGE_ID, PAGE_ID_VALUE)
}

/// Makes the page from nothing if the record says so.
fn init_if_asked(record: &PageRecord<'_>, page: &mut Page<'_>, kind: u16, stores_nulls: bool) -> Result<(), Fault> {
    if record.target.will_init {
        init(page, if stores_nulls { kind | NULLS } else { kind })?;
    }
    Ok(())
}

fn count(page: &mut Page<'_>, which: usize, delta: i32) -> Result<(), Fault> {
    let old = page.u16_at(which)?;
    let new = i32::from(old) + delta;
    page.put_u16(which, u16::try_from(new).map_err(|_| Fault::Page("a counter of dead tuples is wrong"))?)
}

fn count_dead(page: &mut Page<'_>, state: State) -> Result<(), Fault> {
    match state {
        State::Redirect => count(page, REDIRECTS, 1),
        State::Placeholder => count(page, PLACEHOLDERS, 1),
        State::Dead => Ok(()),
    }
}

/// The inner or leaf tuple that `data` begins with.
fn take_tuple<'a>(data: &mut Fields<'a>, is_leaf: bool) -> Result<&'a [u8], Fault> {
    let size = if is_leaf { (u32_at(data.rest(), 0)? >> 2) as usize } else { usize::from(u16_at(data.rest(), 4)?) };
    if size < INNER_HEADER {
        return Err(Fault::Record("a tuple is shorter than its header"));
    }
    data.take(size)
}

/// Puts a tuple at an offset that is free, or that a placeholder keeps free.
fn add(page: &mut Page<'_>, offset: u16, tuple: &[u8]) -> Result<(), Fault> {
    if offset <= page.item_count()? {
        if u32_at(page.item_bytes(offset)?, 0)? & 3 != State::Placeholder as u32 {
            return Err(Fault::Item { offset, what: "is no placeholder" });
        }
        count(page, PLACEHOLDERS, -1)?;
        page.delete_item(offset)?;
    }
    page.add_item(offset, tuple)
}

fn replace(page: &mut Page<'_>, offset: u16, tuple: &[u8]) -> Result<(), Fault> {
    page.delete_item(offset)?;
    page.add_item(offset, tuple)
}

fn dead_tuple(state: State, to: Link, xid: u32) -> [u8; DEAD_SIZE] {
    let (to, xid) = if state == State::Redirect { (to, xid) } else { (NOWHERE, 0) };
    let mut tuple = [0; DEAD_SIZE];
    tuple[..4].copy_from_slice(&((DEAD_SIZE as u32) << 2 | state as u32).to_le_bytes());
    tuple[6..12].copy_from_slice(&item_pointer(to.block, to.offset));
    tuple[12..].copy_from_slice(&xid.to_le_bytes());
    tuple
}

fn sorted(list: U16s<'_>) -> Vec<u16> {
    let mut offsets: Vec<u16> = list.iter().collect();
    offsets.sort_unstable();
    offsets
}

/// Replaces tuples by dead ones: the first of the list gets one state, the others another.
fn kill(page: &mut Page<'_>, list: U16s<'_>, (first, rest): (State, State), to: Link, xid: u32) -> Result<(), Fault> {
    let Some(first_offset) = list.get(0) else { return Ok(()) };
    let offsets = sorted(list);
    page.delete_items(&offsets)?;
    for offset in offsets {
        let state = if offset == first_offset { first } else { rest };
        page.add_item(offset, &dead_tuple(state, to, xid))?;
        count_dead(page, state)?;
    }
    Ok(())
}

/// Sets the next tuple of a leaf tuple's chain.
fn set_next(page: &mut Page<'_>, offset: u16, next: u16) -> Result<(), Fault> {
    let (at, _) = page.item_place(offset)?;
    let info = page.u16_at(at + 4)?;
    page.put_u16(at + 4, info & !NEXT_MASK | next & NEXT_MASK)
}

fn need_block(record: &PageRecord<'_>, id: u8) -> Result<u32, Fault> {
    record.block_of(id).ok_or(Fault::Record("a block reference is missing"))
}

fn add_leaf(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let main = record.main;
    let offset = u16_at(main, 2)?;
    let head = u16_at(main, 4)?;
    if record.target.id == 1 {
        let to = Link { block: need_block(record, 0)?, offset };
        return Downlink::at(main, 6)?.set(page, to);
    }
    let mut fields = Fields::new(main);
    fields.take(10)?;
    let tuple = take_tuple(&mut fields, true)?;
    init_if_asked(record, page, LEAF, u8_at(main, 1)? != 0)?;
    if offset == head {
        return replace(page, offset, tuple);
    }
    add(page, offset, tuple)?;
    if head != 0 {
        set_next(page, head, offset)?;
    }
    Ok(())
}

fn move_leafs(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let main = record.main;
    let moves = usize::from(u16_at(main, 0)?);
    let replaces_dead = u8_at(main, 3)? != 0;
    let source = Source::at(main, 12)?;
    let mut fields = Fields::new(main);
    fields.take(20)?;
    let gone = fields.u16s(moves)?;
    let inserts = if replaces_dead { 1 } else { moves + 1 };
    let places = fields.u16s(inserts)?;
    let last = places.get(inserts - 1).ok_or(Fault::Record("no tuple is moved"))?;
    let to = Link { block: need_block(record, 1)?, offset: last };
    match record.target.id {
        0 => kill(page, gone, (source.redirect(), State::Placeholder), to, source.xid),
        1 => {
            init_if_asked(record, page, LEAF, u8_at(main, 4)? != 0)?;
            places.iter().try_for_each(|offset| add(page, offset, take_tuple(&mut fields, true)?))
        }
        _ => Downlink::at(main, 6)?.set(page, to),
    }
}

fn add_node(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let main = record.main;
    let offset = u16_at(main, 0)?;
    let new_offset = u16_at(main, 2)?;
    let parent_block = u8_at(main, 5)?;
    let source = Source::at(main, 12)?;
    let mut fields = Fields::new(main);
    fields.take(20)?;
    let tuple = take_tuple(&mut fields, false)?;
    let Some(new_block) = record.block_of(1) else {
        return replace(page, offset, tuple);
    };
    let to = Link { block: new_block, offset: new_offset };
    match record.target.id {
        0 => {
            let state = source.redirect();
            replace(page, offset, &dead_tuple(state, to, source.xid))?;
            count_dead(page, state)?;
        }
        1 => {
            init_if_asked(record, page, 0, false)?;
            add(page, new_offset, tuple)?;
        }
        _ => {}
    }
    if parent_block == record.target.id {
        Downlink::at(main, 6)?.set(page, to)?;
    }
    Ok(())
}

fn split_tuple(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let main = record.main;
    let prefix_offset = u16_at(main, 0)?;
    let postfix_offset = u16_at(main, 2)?;
    let same_page = u8_at(main, 5)? != 0;
    let mut fields = Fields::new(main);
    fields.take(6)?;
    let prefix = take_tuple(&mut fields, false)?;
    let postfix = take_tuple(&mut fields, false)?;
    if record.target.id == 1 {
        init_if_asked(record, page, 0, false)?;
        return add(page, postfix_offset, postfix);
    }
    replace(page, prefix_offset, prefix)?;
    if same_page {
        add(page, postfix_offset, postfix)?;
    }
    Ok(())
}

fn picksplit(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let main = record.main;
    let deletes = usize::from(u16_at(main, 2)?);
    let inserts = usize::from(u16_at(main, 4)?);
    let inner = Link { block: need_block(record, 2)?, offset: u16_at(main, 8)? };
    let stores_nulls = u8_at(main, 11)? != 0;
    let inner_is_parent = u8_at(main, 12)? != 0;
    let downlink = Downlink::at(main, 14)?;
    let source = Source::at(main, 20)?;
    let mut fields = Fields::new(main);
    fields.take(28)?;
    let gone = fields.u16s(deletes)?;
    let places = fields.u16s(inserts)?;
    let select = fields.take(inserts)?;
    let inner_tuple = take_tuple(&mut fields, false)?;
    match record.target.id {
        id @ (0 | 1) => {
            if record.target.will_init {
                init_if_asked(record, page, LEAF, stores_nulls)?;
            } else if id == 0 {
                kill(page, gone, (source.redirect(), State::Placeholder), inner, source.xid)?;
            }
            for (offset, &on_destination) in places.iter().zip(select) {
                let tuple = take_tuple(&mut fields, true)?;
                if (on_destination != 0) == (id == 1) {
                    add(page, offset, tuple)?;
                }
            }
            Ok(())
        }
        2 => {
            init_if_asked(record, page, 0, stores_nulls)?;
            add(page, inner.offset, inner_tuple)?;
            if inner_is_parent {
                downlink.set(page, inner)?;
            }
            Ok(())
        }
        _ => downlink.set(page, inner),
    }
}

fn vacuum_leaf(main: &[u8], page: &mut Page<'_>) -> Result<(), Fault> {
    let mut fields = Fields::new(main);
    let [dead, placeholder, moved, chained] =
        [fields.u16()?, fields.u16()?, fields.u16()?, fields.u16()?].map(usize::from);
    fields.take(8)?;
    let dead = fields.u16s(dead)?;
    let placeholder = fields.u16s(placeholder)?;
    let (move_from, move_to) = (fields.u16s(moved)?, fields.u16s(moved)?);
    let (chain_from, chain_to) = (fields.u16s(chained)?, fields.u16s(chained)?);
    kill(page, dead, (State::Dead, State::Dead), NOWHERE, 0)?;
    kill(page, placeholder, (State::Placeholder, State::Placeholder), NOWHERE, 0)?;
    for (from, to) in move_from.iter().zip(move_to.iter()) {
        let (one, other) = (page.item(from)?, page.item(to)?);
        page.set_item(from, other)?;
        page.set_item(to, one)?;
    }
    kill(page, move_from, (State::Placeholder, State::Placeholder), NOWHERE, 0)?;
    for (from, to) in chain_from.iter().zip(chain_to.iter()) {
        set_next(page, from, to)?;
    }
    Ok(())
}

/// Redirects that nobody can follow any more become placeholders; placeholders at the end of the page go.
fn vacuum_redirects(record: &PageRecord<'_>, page: &mut Page<'_>) -> Result<(), Fault> {
    let main = record.main;
    let redirects = u16_at(main, 0)?;
    let first_placeholder = u16_at(main, 2)?;
    let mut fields = Fields::new(main);
    fields.take(redirect_list_at(record.major))?;
    for offset in fields.u16s(usize::from(redirects))?.iter() {
        let (at, _) = page.item_place(offset)?;
        let word = page.u32_at(at)?;
        page.put_u32(at, word | State::Placeholder as u32)?;
        page.put(at + 6, &item_pointer(NOWHERE.block, NOWHERE.offset))?;
    }
    count(page, REDIRECTS, -i32::from(redirects))?;
    count(page, PLACEHOLDERS, i32::from(redirects))?;
    if first_placeholder != 0 {
        let offsets: Vec<u16> = (first_placeholder..=page.item_count()?).collect();
        count(page, PLACEHOLDERS, -(offsets.len() as i32))?;
        page.delete_items(&offsets)?;
    }
    Ok(())
}
