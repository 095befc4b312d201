//! Compares pages of a timeline with those of a cleanly stopped data directory (spec stock.md 4, walredo.md 16).
//!
//! A stopped server's files differ legitimately from what its WAL says. What may differ is listed in [`Reason`];
//! everything else is [`Verdict::Different`].

use crate::key::{Key, VM_FORK};
use crate::mask::{mask, PageKind};
use crate::page::PageBytes;
use crate::BLCKSZ;

/// Why two pages that are not the same bytes still agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// LSN, checksum, hint bits and the like: what PostgreSQL masks for `wal_consistency_checking`.
    Hints,
    /// Zeros, or an initialised empty page with LSN 0, where the timeline has zeros or nothing: files grow without WAL.
    NeverUsed,
    /// The visibility map's fork or page is absent, and the timeline has only zero bits.
    NoVisibilityBits,
    /// The logged value of a sequence is ahead by calls that were not logged.
    SequenceAhead,
    /// The cache of last used pages in an SP-GiST metapage is never logged.
    SpGistCache,
}

/// What became of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Equal,
    Masked(Reason),
    /// The first byte that differs after masking.
    Different {
        offset: usize,
    },
    /// Only the timeline has it.
    Missing,
    /// Only the directory has it.
    Extra,
}

/// Compares one block; `None` where a side has none. The kind is that of the side that tells it.
pub fn compare_block(
    fork: u8,
    block: u32,
    ours: Option<&PageBytes>,
    theirs: Option<&PageBytes>,
) -> (Option<PageKind>, Verdict) {
    let key = Key { field1: 0, field2: 0, field3: 0, field4: 1, field5: fork, field6: block };
    let kind_of = |page: &PageBytes| PageKind::of(&key, page);
    match (ours, theirs) {
        (None, None) => (Some(PageKind::New), Verdict::Equal),
        (Some(a), Some(b)) if a == b => (kind_of(a), Verdict::Equal),
        (Some(a), Some(b)) => {
            let kind = kind_of(a).filter(|kind| *kind != PageKind::New).or_else(|| kind_of(b));
            (kind, compare_pages(fork, block, kind, a, b))
        }
        (Some(a), None) if fork == VM_FORK && is_blank(a, fork) => {
            (kind_of(a), Verdict::Masked(Reason::NoVisibilityBits))
        }
        (Some(a), None) => (kind_of(a), Verdict::Missing),
        (None, Some(b)) if is_blank(b, fork) => {
            let reason = if fork == VM_FORK { Reason::NoVisibilityBits } else { Reason::NeverUsed };
            (kind_of(b), Verdict::Masked(reason))
        }
        (None, Some(b)) => (kind_of(b), Verdict::Extra),
    }
}

fn compare_pages(fork: u8, block: u32, kind: Option<PageKind>, ours: &PageBytes, theirs: &PageBytes) -> Verdict {
    if fork == VM_FORK && is_blank(ours, fork) && is_blank(theirs, fork) {
        return Verdict::Masked(Reason::NoVisibilityBits);
    }
    if ours.iter().all(|b| *b == 0) && is_blank(theirs, fork) {
        return Verdict::Masked(Reason::NeverUsed);
    }
    let (mut a, mut b) = (*ours, *theirs);
    if let Some(kind) = kind {
        // A page that cannot be masked is compared as it is: a damaged page must not pass for an equal one.
        if mask(kind, block, &mut a).is_err() || mask(kind, block, &mut b).is_err() {
            (a, b) = (*ours, *theirs);
        }
        if a == b {
            return Verdict::Masked(Reason::Hints);
        }
        match kind {
            PageKind::Sequence if clear_sequence_counters(&mut a) && clear_sequence_counters(&mut b) && a == b => {
                return Verdict::Masked(Reason::SequenceAhead);
            }
            PageKind::SpGist if block == 0 && clear_spgist_cache(&mut a) && clear_spgist_cache(&mut b) && a == b => {
                return Verdict::Masked(Reason::SpGistCache);
            }
            _ => {}
        }
    }
    let offset = a.iter().zip(b.iter()).position(|(x, y)| x != y).unwrap_or(0);
    Verdict::Different { offset }
}

/// A page that nobody has used yet: zeros; or initialised and empty with LSN 0; of a visibility map: no bit set.
fn is_blank(page: &PageBytes, fork: u8) -> bool {
    if page.iter().all(|b| *b == 0) {
        return true;
    }
    if fork == VM_FORK {
        return page[24..].iter().all(|b| *b == 0);
    }
    let word = |at: usize| usize::from(u16::from_le_bytes([page[at], page[at + 1]]));
    let (lower, upper, special) = (word(12), word(14), word(16));
    page[..8] == [0; 8]
        && lower == 24
        && upper == special
        && (24..=BLCKSZ).contains(&special)
        && page[lower..upper].iter().all(|b| *b == 0)
}

/// Zeroes last_value, log_cnt and is_called of a sequence's only tuple (17 bytes behind its header).
fn clear_sequence_counters(page: &mut PageBytes) -> bool {
    let pointer = u32::from_le_bytes([page[24], page[25], page[26], page[27]]);
    let tuple = (pointer & 0x7FFF) as usize;
    let Some(header) = page.get(tuple + 22).map(|hoff| usize::from(*hoff)) else { return false };
    match page.get_mut(tuple + header..tuple + header + 17) {
        Some(counters) => {
            counters.fill(0);
            true
        }
        None => false,
    }
}

/// Zeroes the cache of last used pages: 8 entries of 8 bytes behind the magic number, and the metapage's unused rest.
fn clear_spgist_cache(page: &mut PageBytes) -> bool {
    page[28..28 + 8 * 8].fill(0);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty_page() -> PageBytes {
        let mut page = [0; BLCKSZ];
        page[12..14].copy_from_slice(&24u16.to_le_bytes());
        page[14..16].copy_from_slice(&8192u16.to_le_bytes());
        page[16..18].copy_from_slice(&8192u16.to_le_bytes());
        page[18..20].copy_from_slice(&0x2004u16.to_le_bytes());
        page
    }

    /// A heap page with one tuple of 32 bytes whose last byte is `last`.
    fn heap_page(lsn: u8, last: u8) -> PageBytes {
        let mut page = empty_page();
        page[4] = lsn;
        page[12..14].copy_from_slice(&28u16.to_le_bytes());
        page[14..16].copy_from_slice(&8160u16.to_le_bytes());
        page[24..28].copy_from_slice(&(8160u32 | 1 << 15 | 32 << 17).to_le_bytes());
        page[8160 + 22] = 24;
        page[8191] = last;
        page
    }

    #[test]
    fn a_flipped_tuple_byte_is_a_difference_and_an_lsn_is_not() {
        let verdict = |a: &PageBytes, b: &PageBytes| compare_block(0, 3, Some(a), Some(b)).1;
        assert_eq!(verdict(&heap_page(1, 1), &heap_page(1, 1)), Verdict::Equal);
        assert_eq!(verdict(&heap_page(1, 1), &heap_page(2, 1)), Verdict::Masked(Reason::Hints));
        assert_eq!(verdict(&heap_page(1, 1), &heap_page(1, 9)), Verdict::Different { offset: 8191 });
    }

    #[test]
    fn pages_that_were_never_used_do_not_count() {
        let used = heap_page(1, 1);
        assert_eq!(compare_block(0, 0, None, Some(&[0; BLCKSZ])).1, Verdict::Masked(Reason::NeverUsed));
        assert_eq!(compare_block(0, 0, Some(&[0; BLCKSZ]), Some(&empty_page())).1, Verdict::Masked(Reason::NeverUsed));
        assert_eq!(compare_block(0, 0, None, Some(&used)).1, Verdict::Extra);
        assert_eq!(compare_block(0, 0, Some(&used), None).1, Verdict::Missing);
        assert_eq!(compare_block(0, 0, Some(&used), Some(&[0; BLCKSZ])).1, Verdict::Different { offset: 4 });
    }

    #[test]
    fn a_visibility_map_without_bits_may_be_absent() {
        let mut map = empty_page();
        map[4] = 7;
        assert_eq!(compare_block(2, 0, Some(&map), None).1, Verdict::Masked(Reason::NoVisibilityBits));
        map[100] = 3;
        assert_eq!(compare_block(2, 0, Some(&map), None).1, Verdict::Missing);
    }
}
