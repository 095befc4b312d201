//! Masks: what two versions of a page may differ in and still be the same (spec walredo.md 16).
//!
//! [`mask`] follows PostgreSQL's `wal_consistency_checking`: it clears what its own redo does not keep equal, such as hint
//! bits. [`mask_strict`] is for two redo implementations fed with the same input: it clears only bytes that nobody
//! reads. Masked bytes are zero.

use crate::key::{Key, FSM_FORK, VM_FORK};
use crate::page::{
    item_pointer, maxalign, Fault, ItemState, Page, PageBytes, ALL_VISIBLE, HAS_FREE_LINES, HEADER_SIZE, PAGE_FULL,
};
use crate::BLCKSZ;

/// What a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageKind {
    Heap,
    Btree,
    Gin,
    Gist,
    SpGist,
    Brin,
    Hash,
    Sequence,
    /// Changed through generic WAL records (contrib's bloom index).
    Generic,
    /// Visibility map or free space map.
    Map,
    /// Never initialised.
    New,
}

const LAST_U16: usize = BLCKSZ - 2;
const HASH_ID: u16 = 0xFF80;
const GIST_ID: u16 = 0xFF81;
const SPGIST_ID: u16 = 0xFF82;
const BLOOM_ID: u16 = 0xFF83;
const SEQUENCE_MAGIC: u32 = 0x1717;
const BRIN_META: u16 = 0xF091;
const BRIN_REVMAP: u16 = 0xF092;
const BRIN_REGULAR: u16 = 0xF093;

impl PageKind {
    /// Tells the kind of a page from its key and its special area; none if it looks like nothing that we know.
    ///
    /// A GIN page of the inner entry tree with one item whose right sibling is block 5911 would pass for a sequence.
    pub fn of(key: &Key, bytes: &PageBytes) -> Option<PageKind> {
        let mut copy = *bytes;
        let page = Page::new(&mut copy);
        if page.is_new() {
            return Some(PageKind::New);
        }
        if matches!(key.field5, VM_FORK | FSM_FORK) {
            return Some(PageKind::Map);
        }
        let limits = page.limits().ok();
        let special = limits.map_or_else(|| page.u16_at(16).ok().map(usize::from), |limits| Some(limits.special))?;
        let last = page.u16_at(LAST_U16).ok()?;
        match (BLCKSZ.checked_sub(special)?, last) {
            (0, _) => Some(PageKind::Heap),
            (16, HASH_ID) => Some(PageKind::Hash),
            (16, GIST_ID) => Some(PageKind::Gist),
            (16, _) => Some(PageKind::Btree),
            (8, SPGIST_ID) => Some(PageKind::SpGist),
            (8, BLOOM_ID) => Some(PageKind::Generic),
            (8, BRIN_META | BRIN_REVMAP | BRIN_REGULAR) => Some(PageKind::Brin),
            (8, _) => {
                let is_sequence = page.u32_at(BLCKSZ - 8).ok()? == SEQUENCE_MAGIC
                    && page.u32_at(BLCKSZ - 4).ok()? == 0
                    && limits.is_some_and(|limits| limits.item_count() == 1);
                Some(if is_sequence { PageKind::Sequence } else { PageKind::Gin })
            }
            _ => None,
        }
    }
}

/// Clears what redo and the server that wrote the WAL may legitimately disagree about. `block` is the page's number.
pub fn mask(kind: PageKind, block: u32, bytes: &mut PageBytes) -> Result<(), Fault> {
    let mut page = Page::new(bytes);
    page.put(0, &[0; 10])?;
    if !matches!(kind, PageKind::Sequence | PageKind::Generic | PageKind::New | PageKind::Map) {
        page.set_prune_xid(0);
        page.set_flag(HAS_FREE_LINES | PAGE_FULL | ALL_VISIBLE, false);
    }
    match kind {
        PageKind::New | PageKind::Map => Ok(()),
        PageKind::Heap => {
            clear_hole(&mut page)?;
            mask_tuples(&mut page, block)
        }
        PageKind::Sequence | PageKind::Generic => clear_hole(&mut page),
        PageKind::Btree => mask_btree(&mut page),
        PageKind::Gin => mask_gin(&mut page),
        PageKind::Gist => mask_gist(&mut page),
        PageKind::SpGist => clear_hole_if_lower(&mut page, HEADER_SIZE),
        PageKind::Brin => mask_brin(&mut page),
        PageKind::Hash => mask_hash(&mut page),
    }
}

/// Clears the hole, the padding behind items, the checksum, and GiST's mark of deleted tuples: nobody reads it, and minor
/// releases differ in whether redo sets it (spec walredo.md 11).
pub fn mask_strict(kind: PageKind, bytes: &mut PageBytes) -> Result<(), Fault> {
    let mut page = Page::new(bytes);
    page.put(8, &[0; 2])?;
    match kind {
        PageKind::New | PageKind::Map => return Ok(()),
        PageKind::Brin if page.u16_at(LAST_U16)? == BRIN_REVMAP => return Ok(()),
        PageKind::Gin if page.u16_at(GIN_FLAGS)? & GIN_DATA != 0 => {
            return clear_hole_if_lower(&mut page, HEADER_SIZE + 1);
        }
        _ => clear_hole(&mut page)?,
    }
    if has_items(kind, &page)? {
        clear_padding(&mut page)?;
    }
    if kind == PageKind::Gist {
        clear_bits(&mut page, GIST_FLAGS, GIST_TUPLES_DELETED)?;
    }
    Ok(())
}

/// False for pages whose bytes from 24 on are not line pointers.
fn has_items(kind: PageKind, page: &Page<'_>) -> Result<bool, Fault> {
    Ok(match kind {
        PageKind::Heap | PageKind::Sequence => true,
        PageKind::Btree => page.u16_at(BTREE_FLAGS)? & (8 | 0x100) == 0,
        PageKind::Gist => page.u16_at(GIST_FLAGS)? & 2 == 0,
        PageKind::Hash => matches!(page.u16_at(HASH_FLAGS)? & 0x0F, 1 | 2),
        PageKind::Gin => page.u16_at(GIN_FLAGS)? & (GIN_DATA | GIN_DELETED | 8) == 0,
        PageKind::SpGist => page.u16_at(BLCKSZ - 8)? & 1 == 0,
        PageKind::Brin => page.u16_at(LAST_U16)? == BRIN_REGULAR,
        PageKind::Generic | PageKind::Map | PageKind::New => false,
    })
}

const BTREE_FLAGS: usize = BLCKSZ - 4;
const GIN_FLAGS: usize = BLCKSZ - 2;
const GIN_DATA: u16 = 1;
const GIN_DELETED: u16 = 4;
const GIST_FLAGS: usize = BLCKSZ - 4;
const GIST_TUPLES_DELETED: u16 = 4;
const HASH_FLAGS: usize = BLCKSZ - 4;

fn clear_hole(page: &mut Page<'_>) -> Result<(), Fault> {
    let limits = page.limits()?;
    page.slice_mut(limits.lower, limits.upper - limits.lower)?.fill(0);
    Ok(())
}

fn clear_hole_if_lower(page: &mut Page<'_>, at_least: usize) -> Result<(), Fault> {
    if usize::from(page.u16_at(12)?) >= at_least {
        clear_hole(page)?;
    }
    Ok(())
}

fn clear_contents(page: &mut Page<'_>) -> Result<(), Fault> {
    page.slice_mut(HEADER_SIZE, BLCKSZ - HEADER_SIZE)?.fill(0);
    page.set_lower(0);
    page.set_upper(0);
    Ok(())
}

/// The state of line pointers is a hint in index leaves: scans mark items as dead.
fn clear_item_states(page: &mut Page<'_>) -> Result<(), Fault> {
    for offset in 1..=page.item_count()? {
        let id = page.item(offset)?;
        if id.is_used() {
            page.set_item(offset, id.without_state())?;
        }
    }
    Ok(())
}

fn clear_padding(page: &mut Page<'_>) -> Result<(), Fault> {
    for offset in 1..=page.item_count()? {
        if page.item(offset)?.has_storage() {
            let (start, length) = page.item_place(offset)?;
            page.slice_mut(start + length, maxalign(length) - length)?.fill(0);
        }
    }
    Ok(())
}

fn clear_bits(page: &mut Page<'_>, at: usize, bits: u16) -> Result<(), Fault> {
    let value = page.u16_at(at)?;
    page.put_u16(at, value & !bits)
}

/// Hint bits, command ids, speculative tokens and padding of heap tuples.
fn mask_tuples(page: &mut Page<'_>, block: u32) -> Result<(), Fault> {
    const XMIN_FROZEN: u16 = 0x0300;
    const SPECULATIVE: u16 = 0xFFFE;
    for offset in 1..=page.item_count()? {
        if page.item(offset)?.state() != ItemState::Normal {
            continue;
        }
        let (at, length) = page.item_place(offset)?;
        if length < 23 {
            return Err(Fault::Item { offset, what: "is too short for a tuple" });
        }
        let infomask = page.u16_at(at + 20)?;
        let frozen = infomask & XMIN_FROZEN == XMIN_FROZEN;
        page.put_u16(at + 20, if frozen { infomask & !0x0C00 } else { infomask & 0x000F })?;
        page.put_u32(at + 8, 0)?;
        if page.u16_at(at + 16)? == SPECULATIVE {
            page.put(at + 12, &item_pointer(block, offset))?;
        }
    }
    clear_padding(page)
}

fn mask_btree(page: &mut Page<'_>) -> Result<(), Fault> {
    clear_hole(page)?;
    let flags = page.u16_at(BTREE_FLAGS)?;
    // A deleted page's contents are an id, not line pointers.
    if flags & 1 != 0 && flags & 0x100 == 0 {
        clear_item_states(page)?;
    }
    clear_bits(page, BTREE_FLAGS, 0x40 | 0x20)?;
    page.put_u16(BTREE_FLAGS + 2, 0)
}

fn mask_gin(page: &mut Page<'_>) -> Result<(), Fault> {
    if page.u16_at(GIN_FLAGS)? & GIN_DELETED != 0 {
        clear_contents(page)
    } else {
        clear_hole_if_lower(page, HEADER_SIZE + 1)
    }
}

fn mask_gist(page: &mut Page<'_>) -> Result<(), Fault> {
    const LEAF: u16 = 1;
    const DELETED: u16 = 2;
    const FOLLOW_RIGHT: u16 = 8;
    clear_hole(page)?;
    page.put(BLCKSZ - 16, &[0; 8])?;
    let flags = page.u16_at(GIST_FLAGS)?;
    if flags & LEAF != 0 && flags & DELETED == 0 {
        clear_item_states(page)?;
    }
    clear_bits(page, GIST_FLAGS, GIST_TUPLES_DELETED | 16)?;
    let flags = page.u16_at(GIST_FLAGS)?;
    page.put_u16(GIST_FLAGS, flags | FOLLOW_RIGHT)
}

fn mask_brin(page: &mut Page<'_>) -> Result<(), Fault> {
    match page.u16_at(LAST_U16)? {
        BRIN_REVMAP => {}
        BRIN_META => clear_hole_if_lower(page, HEADER_SIZE + 1)?,
        _ => clear_hole(page)?,
    }
    clear_bits(page, BLCKSZ - 4, 1)
}

fn mask_hash(page: &mut Page<'_>) -> Result<(), Fault> {
    clear_hole(page)?;
    match page.u16_at(HASH_FLAGS)? & 0x0F {
        0 => clear_contents(page)?,
        1 | 2 => clear_item_states(page)?,
        _ => {}
    }
    clear_bits(page, HASH_FLAGS, 0x80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_engines_may_differ_in_gists_mark_of_deleted_tuples_and_in_no_other_flag() {
        let page_with = |flags: u16| {
            let mut bytes = [0; BLCKSZ];
            let mut page = Page::new(&mut bytes);
            for (at, value) in [(12, 24), (14, 8176), (16, 8176), (GIST_FLAGS, flags), (BLCKSZ - 2, 0xFF81)] {
                page.put_u16(at, value).unwrap();
            }
            mask_strict(PageKind::Gist, &mut bytes).unwrap();
            bytes
        };
        assert_eq!(page_with(1 | GIST_TUPLES_DELETED), page_with(1));
        assert_ne!(page_with(1 | 16), page_with(1));
        assert_ne!(page_with(1 | 8), page_with(1));
    }
}
