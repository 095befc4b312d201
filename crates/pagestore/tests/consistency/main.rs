//! Redo in process over the WAL of real servers (spec walredo.md 16, 17), through the replay of `redo_diff`.
//!
//! `neon_pages` asks for exact bytes: pages that Neon's page server served, replayed by PostgreSQL 16.
//!
//! `damaged_records_and_pages_never_panic` needs runs of real servers, made by `python -m tests.redo.make_wal OUT` and
//! found through the environment variable `REDO_RUNS`, a list of their directories separated by colons. That redo makes
//! the right pages of them is what `pagectl redo-diff` shows.
#![expect(clippy::expect_used, reason = "a test may stop where its input is not what it must be")]

#[path = "../../../pagecore/fuzz/src/case.rs"]
#[expect(dead_code, reason = "shared with the fuzzer")]
mod case;
mod damage;
mod neon_pages;

use std::fs;
use std::path::{Path, PathBuf};

use pagecore::key::{Key, RelTag};
use pagecore::page::PageBytes;
use pagecore::redo::Context;
use pagecore::wal::framer::{StreamChecks, WalFramer};
use pagecore::{Flavour, Lsn, BLCKSZ};
use pagestore::redo_diff::{BasePages, RecordAt, RedoDiffError, Replay, Verdict, Version, Watch};

use damage::Samples;

const SEGMENT_BLOCKS: u32 = 131_072;

#[test]
#[ignore = "needs the runs that tests/redo/make_wal.py makes; set REDO_RUNS"]
fn damaged_records_and_pages_never_panic() {
    let runs = std::env::var("REDO_RUNS").expect("REDO_RUNS lists the directories of the runs");
    for run in runs.split(':') {
        let (context, samples) = samples_of(Path::new(run));
        let panicked = samples.damage(&context);
        assert!(panicked.is_empty(), "panics in {panicked:#?}");
    }
}

#[test]
#[ignore = "needs the runs that tests/redo/make_wal.py makes; set REDO_RUNS, and FUZZ_CORPUS to a directory"]
fn write_seeds_for_the_fuzzer() {
    let runs = std::env::var("REDO_RUNS").expect("REDO_RUNS lists the directories of the runs");
    let corpus = std::env::var("FUZZ_CORPUS").expect("FUZZ_CORPUS is a directory");
    for run in runs.split(':') {
        let (context, samples) = samples_of(Path::new(run));
        samples.write_seeds(&context, Path::new(&corpus)).expect("the corpus can be written");
    }
}

/// Replays a run and takes a few records of each kind, each with the page it was applied to.
fn samples_of(run: &Path) -> (Context, Samples) {
    let (before, after) = (run.join("before"), run.join("after"));
    let version = fs::read_to_string(before.join("PG_VERSION")).expect("PG_VERSION is readable");
    let major = version.trim().parse().expect("PG_VERSION is a number");
    let control = fs::read(before.join("global/pg_control")).expect("pg_control is readable");
    let u64_at = |at: usize| u64::from_le_bytes(control[at..at + 8].try_into().expect("8 bytes"));
    let (system_identifier, redo_start) = (u64_at(0), Lsn(u64_at(40)));
    let context = Context { major, flavour: Flavour::Stock, hint_bits_logged: false };
    let mut replay =
        Replay::new(context, Box::new(Base(Box::new(move |key| read_block(&before, key)))), scratch_file());
    let mut samples = Samples::default();

    let checks = StreamChecks { system_identifier: Some(system_identifier), check_prev: true };
    let mut framer = WalFramer::new(major, redo_start, checks).expect("a supported version");
    let mut skip = redo_start.segment_offset() as usize;
    for segment in redo_start.0 >> 24.. {
        let name = format!("{:08X}{:08X}{:08X}", 1, segment >> 8, segment & 0xFF);
        let Ok(bytes) = fs::read(after.join("pg_wal").join(&name)) else { break };
        framer.feed(&bytes[skip..]);
        skip = 0;
        // An error: zeros, or what a recycled segment held before.
        while let Ok(Some((lsn, record))) = framer.next_record() {
            replay.record(lsn, lsn, record, &mut samples).expect("the record is replayed");
        }
    }
    (context, samples)
}

/// The pages of a data directory before the WAL.
struct Base(Box<dyn Fn(Key) -> Option<Vec<u8>> + Send>);

impl BasePages for Base {
    fn read(&self, key: &Key) -> Result<Option<Box<PageBytes>>, RedoDiffError> {
        Ok((self.0)(*key).map(|page| page.into_boxed_slice().try_into().expect("a page has 8192 bytes")))
    }

    fn is_complete(&self) -> bool {
        true
    }
}

/// Watches nothing.
struct Unwatched;

impl Watch for Unwatched {
    fn record(&mut self, _record: &RecordAt<'_>) {}

    fn version(&mut self, _version: &Version<'_>) -> Verdict {
        Verdict { compared: false, agrees: true }
    }

    fn side_effect(&mut self, _record: &RecordAt<'_>) {}
}

/// A file without a name.
fn scratch_file() -> fs::File {
    let path =
        std::env::temp_dir().join(format!("consistency-test-{}-{:?}", std::process::id(), std::thread::current().id()));
    let file = fs::File::options().read(true).write(true).create_new(true).open(&path).expect("a scratch file");
    fs::remove_file(path).expect("the scratch file has a name");
    file
}

/// Where a block is: a file's path below the data directory, and the offset in it.
fn place_of(key: Key) -> (PathBuf, u64) {
    let rel: RelTag = key.rel_tag();
    let fork = ["", "_fsm", "_vm", "_init"][usize::from(rel.forknum)];
    let segment = key.field6 / SEGMENT_BLOCKS;
    let suffix = if segment == 0 { String::new() } else { format!(".{segment}") };
    let folder = match rel.spcnode {
        1664 => PathBuf::from("global"),
        _ => Path::new("base").join(rel.dbnode.to_string()),
    };
    let offset = u64::from(key.field6 % SEGMENT_BLOCKS) * BLCKSZ as u64;
    (folder.join(format!("{}{fork}{suffix}", rel.relnode)), offset)
}

fn read_block(data_dir: &Path, key: Key) -> Option<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let (path, offset) = place_of(key);
    let file = fs::File::open(data_dir.join(path)).ok()?;
    let mut page = vec![0; BLCKSZ];
    file.read_exact_at(&mut page, offset).ok()?;
    Some(page)
}
