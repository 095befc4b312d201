//! A data page: its header, its line pointers, and the moves that redo makes on it (spec walredo.md 7.3).
//!
//! ```text
//!   0 pd_lsn: high u32, low u32      12 pd_lower u16            24 line pointers, u32 each: offset 15 bits, flags 2, length 15
//!   8 pd_checksum u16                14 pd_upper u16            [lower, upper) the hole
//!  10 pd_flags u16                   16 pd_special u16          [upper, special) items
//!                                    18 size and version 0x2004 [special, 8192) special area
//!                                    20 pd_prune_xid u32
//! ```
//!
//! Invariant: no operation reads or writes outside the 8192 bytes, whatever the page or the record holds; a page that
//! contradicts itself is a [`Fault`]. The bytes of the hole and of the padding after items come out as PostgreSQL leaves
//! them, because whole pages are compared with its own.

mod compact;
mod line_pointer;

pub use line_pointer::{ItemId, ItemState};

use crate::{Lsn, BLCKSZ};

/// The bytes of one page.
pub type PageBytes = [u8; BLCKSZ];

/// Where line pointers, or the contents of a page without items, begin.
pub const HEADER_SIZE: usize = 24;
/// Most tuples that a heap page can hold.
pub const MAX_HEAP_TUPLES: u16 = 291;

pub const HAS_FREE_LINES: u16 = 1;
pub const PAGE_FULL: u16 = 2;
pub const ALL_VISIBLE: u16 = 4;

/// Why a record cannot be applied to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the record is malformed: {0}")]
    Record(&'static str),
    #[error("the page is damaged or does not fit the record: {0}")]
    Page(&'static str),
    #[error("the page is damaged or does not fit the record: item {offset}: {what}")]
    Item { offset: u16, what: &'static str },
}

/// Rounds up to a multiple of 8.
pub const fn maxalign(n: usize) -> usize {
    (n + 7) & !7
}

/// A tuple identifier as tuples store it.
pub fn item_pointer(block: u32, offset: u16) -> [u8; 6] {
    let (high, low, offset) =
        (((block >> 16) as u16).to_le_bytes(), (block as u16).to_le_bytes(), offset.to_le_bytes());
    [high[0], high[1], low[0], low[1], offset[0], offset[1]]
}

/// The three limits of a page, known to be in order: 24 <= lower <= upper <= special <= 8192.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub lower: usize,
    pub upper: usize,
    pub special: usize,
}

impl Limits {
    pub fn item_count(self) -> u16 {
        ((self.lower - HEADER_SIZE) / 4) as u16
    }
}

/// True if transaction id `a` is older than `b`, in the circular order of normal ids.
pub fn xid_precedes(a: u32, b: u32) -> bool {
    if a < 3 || b < 3 {
        a < b
    } else {
        (a.wrapping_sub(b) as i32) < 0
    }
}

/// A page that is being changed in place.
pub struct Page<'a>(&'a mut PageBytes);

impl<'a> Page<'a> {
    pub fn new(bytes: &'a mut PageBytes) -> Page<'a> {
        Page(bytes)
    }

    pub fn bytes(&self) -> &PageBytes {
        self.0
    }

    pub fn bytes_mut(&mut self) -> &mut PageBytes {
        self.0
    }

    fn header_u16<const AT: usize>(&self) -> u16 {
        u16::from_le_bytes([self.0[AT], self.0[AT + 1]])
    }

    fn set_header_u16<const AT: usize>(&mut self, value: u16) {
        let bytes = value.to_le_bytes();
        self.0[AT] = bytes[0];
        self.0[AT + 1] = bytes[1];
    }

    pub fn lsn(&self) -> Lsn {
        let b = &self.0;
        let high = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let low = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
        Lsn(u64::from(high) << 32 | u64::from(low))
    }

    pub fn set_lsn(&mut self, lsn: Lsn) {
        self.0[..4].copy_from_slice(&((lsn.0 >> 32) as u32).to_le_bytes());
        self.0[4..8].copy_from_slice(&(lsn.0 as u32).to_le_bytes());
    }

    pub fn flags(&self) -> u16 {
        self.header_u16::<10>()
    }

    pub fn set_flag(&mut self, flag: u16, on: bool) {
        let flags = self.flags();
        self.set_header_u16::<10>(if on { flags | flag } else { flags & !flag });
    }

    /// PostgreSQL calls a page new that was never initialised: its `pd_upper` is 0.
    pub fn is_new(&self) -> bool {
        self.header_u16::<14>() == 0
    }

    pub fn set_lower(&mut self, lower: usize) {
        self.set_header_u16::<12>(lower as u16);
    }

    pub fn set_upper(&mut self, upper: usize) {
        self.set_header_u16::<14>(upper as u16);
    }

    pub fn prune_xid(&self) -> u32 {
        u32::from_le_bytes([self.0[20], self.0[21], self.0[22], self.0[23]])
    }

    pub fn set_prune_xid(&mut self, xid: u32) {
        self.0[20..24].copy_from_slice(&xid.to_le_bytes());
    }

    /// Remembers that pruning may pay once `xid` is over (SetPrunable).
    pub fn set_prunable(&mut self, xid: u32) {
        let old = self.prune_xid();
        if old == 0 || xid_precedes(xid, old) {
            self.set_prune_xid(xid);
        }
    }

    pub fn limits(&self) -> Result<Limits, Fault> {
        let lower = usize::from(self.header_u16::<12>());
        let upper = usize::from(self.header_u16::<14>());
        let special = usize::from(self.header_u16::<16>());
        if lower < HEADER_SIZE || lower > upper || upper > special || special > BLCKSZ {
            return Err(Fault::Page("lower, upper and special are not in order"));
        }
        Ok(Limits { lower, upper, special })
    }

    /// Makes an empty page with a special area of `special_size` bytes (PageInit).
    pub fn init(&mut self, special_size: usize) {
        self.0.fill(0);
        let special = BLCKSZ - maxalign(special_size).min(BLCKSZ - HEADER_SIZE);
        self.set_lower(HEADER_SIZE);
        self.set_upper(special);
        self.set_header_u16::<16>(special as u16);
        self.set_header_u16::<18>(0x2004);
    }

    pub fn slice(&self, at: usize, len: usize) -> Result<&[u8], Fault> {
        at.checked_add(len).and_then(|end| self.0.get(at..end)).ok_or(Fault::Page("an offset beyond the page's end"))
    }

    pub fn slice_mut(&mut self, at: usize, len: usize) -> Result<&mut [u8], Fault> {
        at.checked_add(len)
            .and_then(|end| self.0.get_mut(at..end))
            .ok_or(Fault::Page("an offset beyond the page's end"))
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.slice_mut(at, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    pub fn u16_at(&self, at: usize) -> Result<u16, Fault> {
        let b = self.slice(at, 2)?;
        Ok(u16::from_le_bytes([b[0], b[1]]))
    }

    pub fn u32_at(&self, at: usize) -> Result<u32, Fault> {
        let b = self.slice(at, 4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub fn put_u16(&mut self, at: usize, value: u16) -> Result<(), Fault> {
        self.put(at, &value.to_le_bytes())
    }

    pub fn put_u32(&mut self, at: usize, value: u32) -> Result<(), Fault> {
        self.put(at, &value.to_le_bytes())
    }

    pub fn item_count(&self) -> Result<u16, Fault> {
        Ok(self.limits()?.item_count())
    }

    /// The line pointer of item `offset`; the caller knows that it lies in the array or at least on the page.
    fn line_pointer(&self, offset: u16) -> ItemId {
        let at = HEADER_SIZE + 4 * (usize::from(offset).wrapping_sub(1) & 0x7FF);
        let b = self.0.get(at..at + 4).unwrap_or(&[0; 4]);
        ItemId(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn set_line_pointer(&mut self, offset: u16, id: ItemId) {
        let at = HEADER_SIZE + 4 * (usize::from(offset).wrapping_sub(1) & 0x7FF);
        if let Some(slot) = self.0.get_mut(at..at + 4) {
            slot.copy_from_slice(&id.0.to_le_bytes());
        }
    }

    /// The line pointer of item `offset`, numbered from 1.
    pub fn item(&self, offset: u16) -> Result<ItemId, Fault> {
        if offset == 0 || offset > self.item_count()? {
            return Err(Fault::Item { offset, what: "no such line pointer" });
        }
        Ok(self.line_pointer(offset))
    }

    pub fn set_item(&mut self, offset: u16, id: ItemId) -> Result<(), Fault> {
        self.item(offset)?;
        self.set_line_pointer(offset, id);
        Ok(())
    }

    /// Start and length of an item with storage, known to lie between the line pointers and the page's end.
    pub fn item_place(&self, offset: u16) -> Result<(usize, usize), Fault> {
        let limits = self.limits()?;
        if offset == 0 || offset > limits.item_count() {
            return Err(Fault::Item { offset, what: "no such line pointer" });
        }
        let id = self.line_pointer(offset);
        let (start, length) = (usize::from(id.offset()), usize::from(id.length()));
        if length == 0 {
            return Err(Fault::Item { offset, what: "has no storage" });
        }
        if start < limits.lower || start + length > limits.special {
            return Err(Fault::Item { offset, what: "lies outside the space for items" });
        }
        Ok((start, length))
    }

    pub fn item_bytes(&self, offset: u16) -> Result<&[u8], Fault> {
        let (start, length) = self.item_place(offset)?;
        self.slice(start, length)
    }

    /// Makes room for an item at line pointer `offset`, moving the ones behind it up (index mode of AddItem).
    /// Returns where its bytes go.
    pub fn alloc_shifting(&mut self, offset: u16, length: usize) -> Result<usize, Fault> {
        let limits = self.limits()?;
        let count = limits.item_count();
        if offset == 0 || offset > count + 1 {
            return Err(Fault::Item { offset, what: "is beyond the first free line pointer" });
        }
        let lower = limits.lower + 4;
        let size = maxalign(length);
        if length > 0x7FFF || lower + size > limits.upper {
            return Err(Fault::Item { offset, what: "does not fit into the page" });
        }
        let upper = limits.upper - size;
        let at = HEADER_SIZE + 4 * usize::from(offset - 1);
        self.0.copy_within(at..limits.lower, at + 4);
        self.set_line_pointer(offset, ItemId::new(upper as u16, ItemState::Normal, length as u16));
        self.set_lower(lower);
        self.set_upper(upper);
        Ok(upper)
    }

    /// Adds an index item before the one that is now at `offset`.
    pub fn add_item(&mut self, offset: u16, item: &[u8]) -> Result<(), Fault> {
        let at = self.alloc_shifting(offset, item.len())?;
        self.put(at, item)
    }

    /// Makes room for an item whose line pointer is `offset`: an unused one, or the next one behind the array
    /// (overwrite mode of AddItem). Returns where its bytes go.
    pub fn alloc_at(&mut self, offset: u16, length: usize) -> Result<usize, Fault> {
        let limits = self.limits()?;
        let count = limits.item_count();
        if offset == 0 || offset > count + 1 {
            return Err(Fault::Item { offset, what: "is beyond the first free line pointer" });
        }
        let mut lower = limits.lower;
        if offset == count + 1 {
            lower += 4;
        } else {
            let id = self.line_pointer(offset);
            if id.is_used() || id.has_storage() {
                return Err(Fault::Item { offset, what: "is in use already" });
            }
        }
        let size = maxalign(length);
        if length > 0x7FFF || lower + size > limits.upper {
            return Err(Fault::Item { offset, what: "does not fit into the page" });
        }
        let upper = limits.upper - size;
        self.set_line_pointer(offset, ItemId::new(upper as u16, ItemState::Normal, length as u16));
        self.set_lower(lower);
        self.set_upper(upper);
        Ok(upper)
    }

    /// Adds `delta` to the offset of every line pointer at or below `limit`; of those without storage only if asked.
    fn shift_items(&mut self, limit: usize, delta: isize, storage_only: bool) -> Result<(), Fault> {
        let end = self.limits()?.lower;
        let pointers = self.0.get_mut(HEADER_SIZE..end).ok_or(Fault::Page("lower is beyond the page's end"))?;
        for slot in pointers.chunks_exact_mut(4) {
            let id = ItemId::read(slot);
            let offset = usize::from(id.offset());
            if offset <= limit && (id.has_storage() || !storage_only) {
                slot.copy_from_slice(&id.with_offset((offset as isize + delta) as u16).0.to_le_bytes());
            }
        }
        Ok(())
    }

    /// Start and aligned size of item `offset`, as the moves below need it: entirely within [upper, special).
    fn movable(&self, offset: u16) -> Result<(Limits, usize, usize), Fault> {
        let limits = self.limits()?;
        let (start, length) = self.item_place(offset)?;
        let size = maxalign(length);
        if start < limits.upper || start + size > limits.special {
            return Err(Fault::Item { offset, what: "lies outside the space for items" });
        }
        Ok((limits, start, size))
    }

    /// Removes an item and its line pointer (IndexTupleDelete).
    pub fn delete_item(&mut self, offset: u16) -> Result<(), Fault> {
        let (limits, start, size) = self.movable(offset)?;
        let at = HEADER_SIZE + 4 * usize::from(offset - 1);
        self.0.copy_within(at + 4..limits.lower, at);
        self.0.copy_within(limits.upper..start, limits.upper + size);
        self.set_lower(limits.lower - 4);
        self.set_upper(limits.upper + size);
        self.shift_items(start, size as isize, false)
    }

    /// Removes several items, given in ascending order (IndexMultiDelete).
    pub fn delete_items(&mut self, offsets: &[u16]) -> Result<(), Fault> {
        if offsets.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(Fault::Record("offsets to delete are not in ascending order"));
        }
        if offsets.len() <= 2 {
            return offsets.iter().rev().try_for_each(|&offset| self.delete_item(offset));
        }
        let count = self.item_count()?;
        let mut gone = offsets.iter().copied().peekable();
        let mut kept = 0;
        for offset in 1..=count {
            if gone.next_if_eq(&offset).is_none() {
                kept += 1;
                self.set_line_pointer(kept, self.line_pointer(offset));
            }
        }
        if let Some(offset) = gone.next() {
            return Err(Fault::Item { offset, what: "no such line pointer" });
        }
        self.set_lower(HEADER_SIZE + 4 * usize::from(kept));
        self.compact()
    }

    /// Removes an item, leaving its line pointer unused unless it is the last one (IndexTupleDeleteNoCompact).
    pub fn delete_item_keep_pointer(&mut self, offset: u16) -> Result<(), Fault> {
        let (limits, start, size) = self.movable(offset)?;
        if offset == limits.item_count() {
            self.set_lower(limits.lower - 4);
        } else {
            self.set_line_pointer(offset, ItemId::UNUSED);
        }
        self.0.copy_within(limits.upper..start, limits.upper + size);
        self.set_upper(limits.upper + size);
        self.shift_items(start, size as isize, true)
    }

    /// Replaces an item by one of possibly another size, keeping its line pointer's state (IndexTupleOverwrite).
    pub fn overwrite_item(&mut self, offset: u16, item: &[u8]) -> Result<(), Fault> {
        let (limits, start, old_size) = self.movable(offset)?;
        let new_size = maxalign(item.len());
        if item.is_empty() || new_size > old_size + (limits.upper - limits.lower) {
            return Err(Fault::Item { offset, what: "does not fit into the page" });
        }
        let mut place = start;
        if new_size != old_size {
            let delta = old_size as isize - new_size as isize;
            let upper = limits.upper + old_size - new_size;
            self.0.copy_within(limits.upper..start, upper);
            self.set_upper(upper);
            self.shift_items(start, delta, true)?;
            place = start + old_size - new_size;
        }
        self.set_line_pointer(offset, self.line_pointer(offset).with_length(item.len() as u16));
        self.put(place, item)
    }

    fn line_pointers(&self, limits: &Limits) -> impl DoubleEndedIterator<Item = ItemId> + '_ {
        let array = self.0.get(HEADER_SIZE..limits.lower).unwrap_or(&[]);
        array.chunks_exact(4).map(ItemId::read)
    }

    /// Cuts unused line pointers off the end of the array, but never the first one (TruncateLinePointerArray).
    pub fn truncate_line_pointers(&mut self) -> Result<(), Fault> {
        let mut count = self.item_count()?;
        while count > 1 && !self.line_pointer(count).is_used() {
            count -= 1;
        }
        self.set_lower(HEADER_SIZE + 4 * usize::from(count));
        let has_free = (1..=count).any(|offset| !self.line_pointer(offset).is_used());
        self.set_flag(HAS_FREE_LINES, has_free);
        Ok(())
    }

    /// An empty page with a copy of this one's special area, to be filled and then written over this one
    /// (TempPageCopySpecial).
    pub fn successor(&self) -> Result<PageBytes, Fault> {
        let special = self.limits()?.special;
        let mut bytes = [0; BLCKSZ];
        Page::new(&mut bytes).init(BLCKSZ - special);
        if let (Some(to), Some(from)) = (bytes.get_mut(special..), self.0.get(special..)) {
            to.copy_from_slice(from);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests;
