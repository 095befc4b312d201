//! The differential prover: every page version that WAL describes is made in process, and held against witnesses
//! (spec walredo.md 16, stock.md 4).
//!
//! ```text
//!  WAL ─▶ framer ─▶ Replay ── each (record, block): page before, page after ──▶ Judge ─▶ Report
//!                     │ ▲                                                        │
//!                     ▼ │                                                        ├ after-image in the record: at once
//!                  PageTable (scratch file)                                      └ redo process: Peer's threads
//!                     │
//!                     └──── at the end, against the files of a cleanly stopped server ──▶ Report
//! ```
//!
//! Invariants:
//! - The in-process engine alone makes the state from which the next record starts. A witness never does, but where the
//!   engine failed, or was seen to be wrong: then the page goes on from the after-image, so that one mistake is
//!   counted once, or it is not known any more until a record makes it anew.
//! - A page that is not known is never compared; the records that would have needed it are counted as `without_base`.
//! - The process gets each record alone, with the page that the engine had before it: no difference hides behind, or
//!   comes from, an earlier one.
//! - An error of either engine is a difference. A process that dies takes the requests of other threads with it, so a
//!   request that failed is asked again alone before it counts.
//! - When `feed` returns, all that it began is compared: nothing is in flight between calls.
//!
//! What is never logged, and so never compared: free space maps in data files, SLRUs, temporary and unlogged relations.

mod agreement;
mod data_files;
mod files;
mod judge;
mod pages;
mod peer;
mod replay;
mod report;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pagecore::redo::Context;
use pagecore::wal::framer::{StreamChecks, WalFramer};
use pagecore::wal::WalError;
use pagecore::Lsn;

use crate::redo_process::RedoPool;

pub use agreement::{disagreement, Disagreement, Rule};
pub use data_files::{BasePages, DataFile, DataFiles, NoBase};
pub use pages::LastRecord;
pub use peer::PEER_FAILURES_MAX;
pub use replay::{After, RecordAt, Replay, Verdict, Version, Watch};
pub use report::{Difference, FileTally, Report, Tally, Witness, WitnessTally};

use judge::Judge;
use peer::Peer;

#[derive(Debug, thiserror::Error)]
pub enum RedoDiffError {
    /// A record whose checksum is right does not decode, or the version is not supported.
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error("scratch file of the pages: {0}")]
    Scratch(io::Error),
    #[error("{path}: {error}")]
    DataFile { path: PathBuf, error: io::Error },
}

/// What a run is about. Plain data, made by the owner of the settings.
pub struct RedoDiffConfig {
    pub context: Context,
    /// Where a record begins.
    pub start: Lsn,
    pub system_identifier: u64,
    /// Read and written at random; holds one page for each that the WAL touches.
    pub scratch: File,
    /// The pages at `start`.
    pub base: Box<dyn BasePages>,
    /// The redo process, with the number of threads that ask it.
    pub peer: Option<(Arc<RedoPool>, usize)>,
    /// Differences that are kept with their pages; all are counted.
    pub differences_max: usize,
}

/// Why no further record could be cut: the end of the WAL, or damage; the caller knows which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Where the next record should begin.
    pub at: Lsn,
    pub problem: String,
}

pub struct RedoDiff {
    framer: WalFramer,
    replay: Replay,
    peer: Option<Peer>,
    report: Mutex<Report>,
    /// The record at hand; reused.
    record: Vec<u8>,
    end: Lsn,
}

impl RedoDiff {
    pub fn new(config: RedoDiffConfig) -> Result<RedoDiff, RedoDiffError> {
        let RedoDiffConfig { context, start, system_identifier, scratch, base, peer, differences_max } = config;
        let checks = StreamChecks { system_identifier: Some(system_identifier), check_prev: true };
        Ok(RedoDiff {
            framer: WalFramer::new(context.major, start, checks)?,
            replay: Replay::new(context, base, scratch),
            peer: peer.map(|(pool, threads)| Peer::new(pool, &context, threads)),
            report: Mutex::new(Report::new(differences_max)),
            record: Vec::new(),
            end: start,
        })
    }

    /// Takes the next bytes of the WAL and compares every version that its complete records describe.
    ///
    /// Returns where and why no record could be cut, if so; the object takes no more WAL then.
    pub fn feed(&mut self, wal: &[u8]) -> Result<Option<Stopped>, RedoDiffError> {
        self.framer.feed(wal);
        let RedoDiff { framer, replay, peer, report, record, end } = self;
        let mut found = Report::new(lock(report).differences_max());
        let outcome = match peer {
            None => take_records(framer, replay, record, end, &mut Judge::new(&mut found, None)),
            Some(peer) => peer.run(report, |queue| {
                take_records(framer, replay, record, end, &mut Judge::new(&mut found, Some(queue)))
            }),
        };
        lock(report).merge(found);
        outcome
    }

    /// End of the last record that was taken.
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// Compares every page that is known with the files of the server, stopped cleanly behind the WAL's end.
    pub fn compare_files(&mut self, files: &DataFiles) -> Result<(), RedoDiffError> {
        files::compare(&mut self.replay, files, &mut lock(&self.report))
    }

    pub fn report(&self) -> MutexGuard<'_, Report> {
        lock(&self.report)
    }
}

fn take_records(
    framer: &mut WalFramer,
    replay: &mut Replay,
    record: &mut Vec<u8>,
    end: &mut Lsn,
    judge: &mut Judge<'_, '_>,
) -> Result<Option<Stopped>, RedoDiffError> {
    loop {
        let next = match framer.next_record() {
            Ok(None) => return Ok(None),
            Ok(Some((lsn, bytes))) => {
                record.clear();
                record.extend_from_slice(bytes);
                lsn
            }
            Err(WalError::Stream { problem, lsn }) => {
                return Ok(Some(Stopped { at: lsn, problem: problem.to_string() }));
            }
            Err(error) => return Err(error.into()),
        };
        let start = framer.last_record_start().unwrap_or_default();
        replay.record(start, next, record, judge)?;
        *end = next;
    }
}

/// Nothing that holds this lock leaves half-made counts behind.
fn lock(report: &Mutex<Report>) -> MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}
