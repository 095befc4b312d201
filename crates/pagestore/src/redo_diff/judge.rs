//! Holds each page version against the witnesses that are there.

use pagecore::page::PageBytes;
use pagecore::wal::rmgr;

use super::agreement::{disagreement, Rule};
use super::peer::{Job, Queue};
use super::replay::{After, RecordAt, Verdict, Version, Watch};
use super::report::{Difference, Report, Witness};

/// From here on numbers belong to extensions.
const FIRST_CUSTOM_RMID: u8 = 128;

pub(super) struct Judge<'r, 'q> {
    found: &'r mut Report,
    /// The redo process, if there is one.
    queue: Option<&'q mut Queue>,
}

impl<'r, 'q> Judge<'r, 'q> {
    pub fn new(found: &'r mut Report, queue: Option<&'q mut Queue>) -> Judge<'r, 'q> {
        Judge { found, queue }
    }

    /// Compares with the after-image, if there is one; returns whether the two agree.
    fn compare_image(&mut self, version: &Version<'_>, ours: &PageBytes) -> Option<bool> {
        let shown = version.shown?;
        self.found.witness(Witness::Image).compared += 1;
        let difference = match shown {
            Ok(theirs) => disagreement(&version.key, ours, theirs, Rule::Postgres).map(|found| Difference {
                theirs: Some(Box::new(*theirs)),
                lines: found.lines,
                ..difference(Witness::Image, version, found.detail)
            }),
            Err(error) => Some(difference(Witness::Image, version, error.to_string())),
        };
        let agrees = difference.is_none();
        if let Some(difference) = difference {
            self.found.note(Difference { ours: Some(Box::new(*ours)), ..difference });
        }
        Some(agrees)
    }
}

impl Watch for Judge<'_, '_> {
    fn record(&mut self, record: &RecordAt<'_>) {
        self.found.kind(record.rmid, record.info).records += 1;
    }

    fn version(&mut self, version: &Version<'_>) -> Verdict {
        let RecordAt { rmid, info, .. } = version.record;
        self.found.kind(rmid, info).versions += 1;
        match version.after {
            After::WithoutBase => self.found.kind(rmid, info).without_base += 1,
            After::Unsupported if rmid < FIRST_CUSTOM_RMID || rmid == rmgr::NEON => {
                self.found.kind(rmid, info).unsupported += 1;
            }
            After::Unsupported => {}
            After::Failed(error) => {
                let theirs = version.shown.and_then(Result::ok).map(|page| Box::new(*page));
                let ours = version.before.map(|page| Box::new(*page));
                let noted = difference(Witness::Engine, version, error.to_string());
                self.found.note(Difference { ours, theirs, ..noted });
            }
            After::Page(page) => {
                let agrees = self.compare_image(version, page);
                let asked = self.queue.as_mut().is_some_and(|queue| queue.put(Job::new(version, page)));
                let compared = asked || agrees.is_some();
                self.found.kind(rmid, info).compared += u64::from(compared);
                return Verdict { compared, agrees: agrees.unwrap_or(true) };
            }
        }
        Verdict { compared: false, agrees: false }
    }

    fn side_effect(&mut self, record: &RecordAt<'_>) {
        self.found.kind(record.rmid, record.info).versions += 1;
    }
}

fn difference(witness: Witness, version: &Version<'_>, detail: String) -> Difference {
    let RecordAt { rmid, info, start, end, .. } = version.record;
    Difference { witness, key: version.key, rmid, info, start, end, detail, ours: None, theirs: None, lines: vec![] }
}
