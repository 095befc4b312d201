//! Whether two versions of a page agree (spec walredo.md 16).

use std::fmt::Write as _;

use pagecore::mask::{mask, mask_strict, PageKind};
use pagecore::page::PageBytes;
use pagecore::{Key, BLCKSZ};

/// Bytes that are shown in a line of a dump.
const LINE: usize = 16;
const SHOWN_BYTES: usize = 16;

/// What may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Two engines were given the same page and record: only bytes that nobody reads may differ.
    SameInput,
    /// What PostgreSQL masks for `wal_consistency_checking`.
    Postgres,
}

/// How two pages differ after masking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    pub detail: String,
    /// Offsets of the 16-byte lines in which they differ.
    pub lines: Vec<u16>,
}

/// Masks both pages and says where they differ; none if they agree.
pub fn disagreement(key: &Key, ours: &PageBytes, theirs: &PageBytes, rule: Rule) -> Option<Disagreement> {
    if ours == theirs {
        return None;
    }
    let kind = PageKind::of(key, theirs).filter(|kind| *kind != PageKind::New).or_else(|| PageKind::of(key, ours));
    let (mut a, mut b) = (*ours, *theirs);
    let fault = kind.and_then(|kind| {
        let masked = |page: &mut PageBytes| match rule {
            Rule::SameInput => mask_strict(kind, page),
            Rule::Postgres => mask(kind, key.field6, page),
        };
        masked(&mut a).err().or(masked(&mut b).err())
    });
    if fault.is_some() {
        // A damaged page must not pass for an equal one.
        (a, b) = (*ours, *theirs);
    }
    let count = a.iter().zip(&b).filter(|(x, y)| x != y).count();
    let first = a.iter().zip(&b).position(|(x, y)| x != y)?;
    let end = (first + SHOWN_BYTES).min(BLCKSZ);
    let kind = kind.map_or_else(|| "page of unknown kind".to_string(), |kind| format!("{kind:?} page"));
    let mut detail = format!("{kind}: {count} bytes differ, the first at {first}: ");
    // Writing to a string cannot fail.
    let _ = write!(detail, "{} here, {} there", hex(&a[first..end]), hex(&b[first..end]));
    if let Some(fault) = fault {
        let _ = write!(detail, " (not masked: {fault})");
    }
    let lines = (0..BLCKSZ).step_by(LINE).filter(|&at| a[at..at + LINE] != b[at..at + LINE]).map(|at| at as u16);
    Some(Disagreement { detail, lines: lines.collect() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagecore::RelTag;

    /// A heap page with one tuple of 32 bytes.
    fn heap_page() -> PageBytes {
        let mut page = [0; BLCKSZ];
        page[12..14].copy_from_slice(&28u16.to_le_bytes());
        page[14..16].copy_from_slice(&8160u16.to_le_bytes());
        page[16..18].copy_from_slice(&8192u16.to_le_bytes());
        page[18..20].copy_from_slice(&0x2004u16.to_le_bytes());
        page[24..28].copy_from_slice(&(8160u32 | 1 << 15 | 32 << 17).to_le_bytes());
        page[8160 + 22] = 24;
        page
    }

    fn key() -> Key {
        Key::rel_block(RelTag { spcnode: 1663, dbnode: 5, relnode: 7, forknum: 0 }, 3)
    }

    #[test]
    fn the_hole_may_differ_always_and_hints_only_from_the_servers_page() {
        let page = heap_page();
        let mut hole = page;
        hole[5000] = 1;
        assert_eq!(disagreement(&key(), &page, &hole, Rule::SameInput), None);
        let mut hint = page;
        hint[8160 + 21] = 1;
        assert_eq!(disagreement(&key(), &page, &hint, Rule::Postgres), None);
        let found = disagreement(&key(), &page, &hint, Rule::SameInput).unwrap();
        assert_eq!(found.lines, [8176]);
        assert!(found.detail.starts_with("Heap page: 1 bytes differ, the first at 8181: 00"), "{}", found.detail);
    }

    #[test]
    fn a_page_that_cannot_be_masked_is_compared_as_it_is() {
        let page = heap_page();
        let mut damaged = page;
        damaged[12..14].copy_from_slice(&9000u16.to_le_bytes());
        let found = disagreement(&key(), &page, &damaged, Rule::Postgres).unwrap();
        assert_eq!(found.lines, [0]);
        assert!(found.detail.contains("not masked"), "{}", found.detail);
        assert_eq!(disagreement(&key(), &damaged, &damaged, Rule::Postgres), None);
    }
}
