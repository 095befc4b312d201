//! Closing the gaps between the items of a page (compactify_tuples and PageRepairFragmentation of PostgreSQL).

use super::{maxalign, Fault, ItemId, Limits, Page, HAS_FREE_LINES, HEADER_SIZE};

/// Items that lie side by side: where their line pointers begin, and the bytes of all.
#[derive(Clone, Copy, Default)]
struct Run {
    first: usize,
    start: usize,
    end: usize,
}

/// A page with more gaps is compacted item by item.
const MOST_RUNS: usize = 32;

impl Page<'_> {
    /// Places the items with storage one below the other, in line pointer order, from `special` downwards.
    ///
    /// Nearly always they are in that order already, in a few runs of items that lie side by side: then each run moves
    /// up as one, and its line pointers by one addition. What is not so simple goes to [`Page::compact_each`].
    pub(super) fn compact(&mut self) -> Result<(), Fault> {
        let limits = self.limits()?;
        let mut runs = [Run::default(); MOST_RUNS];
        let Some(count) = self.find_runs(&limits, &mut runs) else {
            return self.compact_each(limits);
        };
        let mut upper = limits.special;
        let mut behind = limits.lower;
        let mut places = [0; MOST_RUNS];
        for (run, place) in runs[..count].iter().zip(&mut places) {
            upper -= run.end - run.start;
            *place = upper;
            // From the top down: no run's new place reaches into one that has still to move.
            if run.start != upper {
                self.0.copy_within(run.start..run.end, upper);
            }
        }
        for (run, place) in runs[..count].iter().zip(places).rev() {
            let pointers = self.0.get_mut(run.first..behind).unwrap_or(&mut []);
            let distance = (place - run.start) as u32;
            behind = run.first;
            if distance == 0 {
                continue;
            }
            for slot in pointers.chunks_exact_mut(4) {
                let id = ItemId::read(slot);
                let raised = id.0 + if id.has_storage() { distance } else { 0 };
                slot.copy_from_slice(&raised.to_le_bytes());
            }
        }
        self.set_upper(upper);
        Ok(())
    }

    /// Fills in the runs of items that lie side by side, from `special` downwards; returns how many. None: the items are
    /// not in the order of their line pointers, some lie outside of their space, or there are too many runs.
    fn find_runs(&self, limits: &Limits, runs: &mut [Run; MOST_RUNS]) -> Option<usize> {
        let mut closed = 0;
        let mut run = Run { first: HEADER_SIZE, start: limits.special, end: limits.special };
        for (i, id) in self.line_pointers(limits).enumerate() {
            if !id.has_storage() {
                continue;
            }
            let start = usize::from(id.offset());
            let end = start + maxalign(usize::from(id.length()));
            if end != run.start {
                if end > run.start || closed + 1 == MOST_RUNS {
                    return None;
                }
                runs[closed] = run;
                closed += 1;
                run = Run { first: HEADER_SIZE + 4 * i, start, end };
            }
            run.start = start;
        }
        runs[closed] = run;
        // Starts only go down: the last is the lowest.
        (run.start >= limits.lower).then_some(closed + 1)
    }

    /// [`Page::compact`] for items in any order, and for pages that contradict themselves: all items are checked before
    /// any moves.
    fn compact_each(&mut self, limits: Limits) -> Result<(), Fault> {
        let mut upper = limits.special;
        for (i, id) in self.line_pointers(&limits).enumerate() {
            if !id.has_storage() {
                continue;
            }
            let (start, size) = (usize::from(id.offset()), maxalign(usize::from(id.length())));
            if start < limits.lower || start + size > limits.special {
                return Err(Fault::Item { offset: i as u16 + 1, what: "lies outside the space for items" });
            }
            upper = match upper.checked_sub(size) {
                Some(upper) if upper >= limits.lower => upper,
                _ => return Err(Fault::Page("items overlap")),
            };
        }
        self.set_upper(upper);
        let copy = *self.0;
        let mut to = limits.special;
        for offset in 1..=limits.item_count() {
            let id = self.line_pointer(offset);
            if !id.has_storage() {
                continue;
            }
            let (start, size) = (usize::from(id.offset()), maxalign(usize::from(id.length())));
            to -= size;
            self.0[to..to + size].copy_from_slice(&copy[start..start + size]);
            self.set_line_pointer(offset, id.with_offset(to as u16));
        }
        Ok(())
    }

    /// Closes the gaps between items after pruning (RepairFragmentation). `truncate`: line pointers that are unused to
    /// the end of the array are cut off, as 15 and newer do.
    pub fn repair_fragmentation(&mut self, truncate: bool) -> Result<(), Fault> {
        let limits = self.limits()?;
        let mut unused = self.line_pointers(&limits).filter(|id| !id.is_used()).count();
        if unused > 0 {
            let array = self.0.get_mut(HEADER_SIZE..limits.lower).unwrap_or(&mut []);
            for slot in array.chunks_exact_mut(4) {
                if !ItemId::read(slot).is_used() {
                    slot.copy_from_slice(&ItemId::UNUSED.0.to_le_bytes());
                }
            }
        }
        if truncate {
            let at_end = self.line_pointers(&limits).rev().take_while(|id| !id.is_used()).count();
            unused -= at_end;
            self.set_lower(limits.lower - 4 * at_end);
        }
        self.compact()?;
        self.set_flag(HAS_FREE_LINES, unused > 0);
        Ok(())
    }
}
