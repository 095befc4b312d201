//! The last witness: the pages that the server itself wrote (spec stock.md 4).

use pagecore::compare::{compare_block, Reason, Verdict};
use pagecore::key::{FSM_FORK, INIT_FORK, VM_FORK};
use pagecore::page::PageBytes;
use pagecore::{Key, Lsn};

use super::agreement::{disagreement, Rule};
use super::data_files::{BasePages, DataFiles};
use super::pages::{Entry, State};
use super::replay::{lsn_of, Replay};
use super::report::{Difference, Report, Witness};
use super::RedoDiffError;

const PAGE_HEADER: usize = 24;

/// Compares every page that is known, and that a record has touched, with its file.
pub(super) fn compare(replay: &mut Replay, files: &DataFiles, report: &mut Report) -> Result<(), RedoDiffError> {
    for rel in replay.pages.relations() {
        // The free space map is a hint that the server changes without WAL.
        if rel.forknum == FSM_FORK {
            continue;
        }
        for (key, entry) in replay.pages.entries_of(&rel) {
            let Some(last) = entry.last else { continue };
            match entry.state {
                State::Absent => {}
                State::Unknown => report.files.unknown += 1,
                State::At(_) => {
                    let Some(ours) = replay.page(&key)? else { continue };
                    report.witness(Witness::File).compared += 1;
                    report.kind(last.rmid, last.info).compared += u64::from(!last.compared);
                    compare_page(&key, &entry, &ours, files, report);
                }
            }
        }
    }
    Ok(())
}

fn compare_page(key: &Key, entry: &Entry, ours: &PageBytes, files: &DataFiles, report: &mut Report) {
    let last = entry.last.unwrap_or_default();
    let difference = |detail: String| Difference {
        witness: Witness::File,
        key: *key,
        rmid: last.rmid,
        info: last.info,
        start: last.start,
        end: last.end,
        detail,
        ours: Some(Box::new(*ours)),
        theirs: None,
        lines: vec![],
    };
    let theirs = match files.read(key) {
        Ok(theirs) => theirs,
        Err(error) => return report.note(difference(error.to_string())),
    };
    let mask = |report: &mut Report, reason| *report.files.masked.entry(reason).or_default() += 1;
    match (compare_block(key.field5, key.field6, Some(ours), theirs.as_deref()).1, theirs) {
        (Verdict::Equal, _) => report.files.equal += 1,
        (_, None) if key.field5 == VM_FORK && ours[PAGE_HEADER..].iter().all(|byte| *byte == 0) => {
            mask(report, reason_name(Reason::NoVisibilityBits));
        }
        (_, None) => report.note(difference("the file has no such block".to_string())),
        (Verdict::Masked(reason), Some(theirs)) => match stamp_differs(key, entry, ours, &theirs) {
            None => mask(report, reason_name(reason)),
            Some(detail) => {
                report.note(Difference { theirs: Some(theirs), lines: vec![0], ..difference(detail) });
            }
        },
        (_, Some(theirs)) if entry.lacks_bits && only_lacks_bits(ours, &theirs) => mask(report, "bits not copied"),
        (_, Some(theirs)) => {
            let found = disagreement(key, ours, &theirs, Rule::Postgres);
            let (detail, lines) = found.map_or_else(Default::default, |found| (found.detail, found.lines));
            report.note(Difference { theirs: Some(theirs), lines, ..difference(detail) });
        }
    }
}

/// The page's LSN shows whether each record was applied or skipped as the server did.
///
/// A server does not stamp a map when it clears bits, writes some init forks before it logs them, and gives pages of
/// GiST indexes that were built by sorting LSN 1.
fn stamp_differs(key: &Key, entry: &Entry, ours: &PageBytes, theirs: &PageBytes) -> Option<String> {
    let (here, there) = (lsn_of(ours), lsn_of(theirs));
    let has_no_meaning = matches!(key.field5, VM_FORK | INIT_FORK) || !entry.lsn_is_known || there <= Lsn(1);
    if has_no_meaning || here == there {
        return None;
    }
    Some(format!("only the LSN differs: {here} here, {there} there"))
}

/// CREATE DATABASE logs a page of a visibility map as one of the usual layout, with its bits in the hole.
fn only_lacks_bits(ours: &PageBytes, theirs: &PageBytes) -> bool {
    ours[PAGE_HEADER..].iter().zip(&theirs[PAGE_HEADER..]).all(|(a, b)| a & !b == 0)
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
