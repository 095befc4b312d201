//! Redo against PostgreSQL itself (spec walredo.md 16, test recipe).
//!
//! `native_redo_agrees_with_postgres` replays WAL of real servers. The runs are made by
//! `python -m tests.redo.make_wal OUT` and found through the environment variable `REDO_RUNS`, a list of their
//! directories separated by colons. Every record is applied natively, page by page, starting from the data directory as it
//! was before. Then:
//!
//! - where a record carries the page it should lead to (`wal_consistency_checking`), both are masked and compared;
//! - in the end every page that is in the data directory is compared with the file.
//!
//! A table by record type is printed; any difference fails the test.
//!
//! `neon_pages` asks for exact bytes: pages that Neon's page server served, replayed by PostgreSQL 16.
#![expect(clippy::expect_used, reason = "a test may stop where its input is not what it must be")]

mod damage;
mod neon_pages;
mod replay;

use std::fs;
use std::path::{Path, PathBuf};

use pagecore::key::{Key, RelTag};
use pagecore::redo::Context;
use pagecore::wal::framer::{StreamChecks, WalFramer};
use pagecore::{Flavour, Lsn};

use damage::Samples;
use replay::{read_block, Replay};

#[test]
#[ignore = "needs the runs that tests/redo/make_wal.py makes; set REDO_RUNS"]
fn native_redo_agrees_with_postgres() {
    let runs = std::env::var("REDO_RUNS").expect("REDO_RUNS lists the directories of the runs");
    let mut failed = Vec::new();
    for run in runs.split(':') {
        let mut opened = open_run(Path::new(run));
        opened.apply_wal();
        opened.replay.compare_files(&opened.after);
        opened.replay.report.print(run);
        if opened.replay.report.differences() > 0 {
            failed.push(run.to_string());
        }
    }
    assert!(failed.is_empty(), "differences in {failed:?}");
}

#[test]
#[ignore = "needs the runs that tests/redo/make_wal.py makes; set REDO_RUNS"]
fn damaged_records_and_pages_never_panic() {
    let runs = std::env::var("REDO_RUNS").expect("REDO_RUNS lists the directories of the runs");
    for run in runs.split(':') {
        let mut replay = open_run(Path::new(run));
        replay.replay.samples = Some(Samples::default());
        replay.apply_wal();
        let samples = replay.replay.samples.take().expect("the samples that were put there");
        let panicked = samples.damage(&replay.ctx);
        assert!(panicked.is_empty(), "panics in {panicked:#?}");
    }
}

/// A run on disk.
struct Run {
    ctx: Context,
    after: PathBuf,
    system_identifier: u64,
    redo_start: Lsn,
    replay: Replay,
}

fn open_run(run: &Path) -> Run {
    let (before, after) = (run.join("before"), run.join("after"));
    let version = fs::read_to_string(before.join("PG_VERSION")).expect("PG_VERSION is readable");
    let major = version.trim().parse().expect("PG_VERSION is a number");
    let control = fs::read(before.join("global/pg_control")).expect("pg_control is readable");
    let u64_at = |at: usize| u64::from_le_bytes(control[at..at + 8].try_into().expect("8 bytes"));
    let (system_identifier, redo_start) = (u64_at(0), Lsn(u64_at(40)));
    let pg_class = Key::rel_block(RelTag { spcnode: 1663, dbnode: 1, relnode: 1259, forknum: 0 }, 0);
    let checksums = read_block(&after, pg_class).is_some_and(|page| page[8..10] != [0, 0]);
    let ctx = Context { major, flavour: Flavour::Stock, hint_bits_logged: checksums };
    let replay = Replay::new(ctx, Box::new(move |key| read_block(&before, key)));
    Run { ctx, after, system_identifier, redo_start, replay }
}

impl Run {
    fn apply_wal(&mut self) {
        let checks = StreamChecks { system_identifier: Some(self.system_identifier), check_prev: true };
        let mut framer = WalFramer::new(self.ctx.major, self.redo_start, checks).expect("a supported version");
        let mut skip = self.redo_start.segment_offset() as usize;
        for segment in self.redo_start.0 >> 24.. {
            let name = format!("{:08X}{:08X}{:08X}", 1, segment >> 8, segment & 0xFF);
            let Ok(bytes) = fs::read(self.after.join("pg_wal").join(&name)) else { return };
            framer.feed(&bytes[skip..]);
            skip = 0;
            loop {
                match framer.next_record() {
                    Ok(Some((lsn, record))) => self.replay.record(lsn, record),
                    Ok(None) => break,
                    // Zeros, or what a recycled segment held before.
                    Err(_) => return,
                }
            }
        }
    }
}
