//! Comparing the pages of a timeline with those of a data directory.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::store::TimelineStore;
use pagecore::compare::{compare_block, Reason, Verdict};
use pagecore::mask::PageKind;
use pagecore::page::PageBytes;
use pagecore::{Key, Lsn, RelTag, BLCKSZ};
use pagestore::StoreError;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// Keys of one vectored read.
const BATCH_KEYS: usize = 32;

/// (block, kind, verdict, reason, detail)
type Row = (u32, &'static str, &'static str, &'static str, String);

/// Reads consecutive blocks one by one, even if some cannot be made; see `_core.pyi`.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "a relation fork is four numbers in PostgreSQL")]
pub fn read_blocks_each<'py>(
    py: Python<'py>,
    store: &TimelineStore,
    spc: u32,
    db: u32,
    rel: u32,
    fork: u8,
    first: u32,
    count: u32,
    lsn: u64,
) -> (Bound<'py, PyBytes>, BTreeMap<u32, String>) {
    let rel = RelTag { spcnode: spc, dbnode: db, relnode: rel, forknum: fork };
    let (pages, failed) = py.detach(|| read_each(&store.store, rel, first, count, Lsn(lsn)));
    (PyBytes::new(py, &pages), failed)
}

fn read_each(
    store: &Arc<pagestore::TimelineStore>,
    rel: RelTag,
    first: u32,
    count: u32,
    lsn: Lsn,
) -> (Vec<u8>, BTreeMap<u32, String>) {
    let keys: Vec<(Key, Lsn)> = (0..count).map(|i| (Key::rel_block(rel, first.saturating_add(i)), lsn)).collect();
    let mut pages = Vec::with_capacity(keys.len() * BLCKSZ);
    let mut failed = BTreeMap::new();
    for batch in keys.chunks(BATCH_KEYS) {
        for ((key, _), page) in batch.iter().zip(store.get_vectored(batch)) {
            let end = pages.len() + BLCKSZ;
            match page {
                Ok(page) if page.len() == BLCKSZ => pages.extend_from_slice(&page),
                Ok(page) => {
                    failed.insert(key.field6, format!("error: page has {} bytes", page.len()));
                }
                Err(StoreError::RedoUnavailable { .. }) => {
                    failed.insert(key.field6, "unsupported".to_string());
                }
                Err(error) => {
                    failed.insert(key.field6, format!("error: {error}"));
                }
            }
            pages.resize(end, 0);
        }
    }
    (pages, failed)
}

/// Compares consecutive blocks of one relation fork; see `_core.pyi`.
#[pyfunction]
pub fn compare_blocks(
    py: Python<'_>,
    ours: &[u8],
    theirs: &[u8],
    fork: u8,
    first_block: u32,
    failed: BTreeMap<u32, String>,
) -> PyResult<Vec<Row>> {
    if ours.len() % BLCKSZ != 0 {
        return Err(PyValueError::new_err(format!("{} bytes are not whole pages", ours.len())));
    }
    Ok(py.detach(|| compare_all(ours, theirs, fork, first_block, &failed)))
}

fn compare_all(ours: &[u8], theirs: &[u8], fork: u8, first: u32, failed: &BTreeMap<u32, String>) -> Vec<Row> {
    let blocks = ours.len().max(theirs.len()).div_ceil(BLCKSZ);
    let mut rows = Vec::with_capacity(blocks);
    for (block, at) in (first..).zip((0..blocks).map(|i| i * BLCKSZ)) {
        let kind =
            kind_name(fork, page_at(theirs, at).and_then(|page| compare_block(fork, block, Some(page), Some(page)).0));
        rows.push(match failed.get(&block) {
            Some(why) if why == "unsupported" => (block, kind, "unsupported", "", why.clone()),
            Some(why) => (block, kind, "different", "", why.clone()),
            None if theirs.len() > at && page_at(theirs, at).is_none() => {
                (block, kind, "different", "", "the file ends inside of this page".to_string())
            }
            None => {
                let (kind, verdict) = compare_block(fork, block, page_at(ours, at), page_at(theirs, at));
                let (verdict, reason, detail) = describe(verdict);
                (block, kind_name(fork, kind), verdict, reason, detail)
            }
        });
    }
    rows
}

fn page_at(bytes: &[u8], at: usize) -> Option<&PageBytes> {
    bytes.get(at..at + BLCKSZ)?.try_into().ok()
}

fn describe(verdict: Verdict) -> (&'static str, &'static str, String) {
    match verdict {
        Verdict::Equal => ("equal", "", String::new()),
        Verdict::Masked(reason) => ("masked", reason_name(reason), String::new()),
        Verdict::Different { offset } => ("different", "", format!("first difference at byte {offset}")),
        Verdict::Missing => ("missing", "", String::new()),
        Verdict::Extra => ("extra", "", String::new()),
    }
}

fn reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::Hints => "hints",
        Reason::NeverUsed => "never used",
        Reason::NoVisibilityBits => "no visibility bits",
        Reason::SequenceAhead => "sequence ahead",
        Reason::SpGistCache => "spgist cache",
    }
}

fn kind_name(fork: u8, kind: Option<PageKind>) -> &'static str {
    match (fork, kind) {
        (2, _) => "visibility map",
        (_, None) => "unknown",
        (_, Some(PageKind::Heap)) => "heap",
        (_, Some(PageKind::Btree)) => "btree",
        (_, Some(PageKind::Gin)) => "gin",
        (_, Some(PageKind::Gist)) => "gist",
        (_, Some(PageKind::SpGist)) => "spgist",
        (_, Some(PageKind::Brin)) => "brin",
        (_, Some(PageKind::Hash)) => "hash",
        (_, Some(PageKind::Sequence)) => "sequence",
        (_, Some(PageKind::Generic)) => "generic",
        (_, Some(PageKind::Map)) => "map",
        (_, Some(PageKind::New)) => "new",
    }
}
