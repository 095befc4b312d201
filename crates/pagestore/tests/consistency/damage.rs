//! Damaged records and pages: redo may refuse them or make something of them, but it must not panic (spec walredo.md 17,
//! point 48). Run it in a debug build, where arithmetic that overflows panics as well.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;

use pagecore::key::Key;
use pagecore::redo::Context;
use pagecore::wal::rmgr;
use pagecore::Lsn;
use pagestore::redo_diff::{After, RecordAt, Verdict, Version, Watch};

use crate::case::{Case, Chance};

const SEEDS_PER_KIND: usize = 3;
const SAMPLES_PER_KIND: usize = 30;
const DAMAGES_PER_SAMPLE: u64 = 300;
/// Longer records mostly hold a page image, which hides the rest; a few of them are enough.
const LONG_RECORD: usize = 2000;
const LONG_SAMPLES: usize = 5;

/// A record and the page that it was applied to.
struct Sample {
    key: Key,
    lsn: Lsn,
    page: Vec<u8>,
    record: Vec<u8>,
}

impl Sample {
    fn case(&self, ctx: &Context) -> Case {
        Case {
            context: *ctx,
            key: self.key,
            lsn: self.lsn,
            page: self.page.clone(),
            record: self.record.clone(),
            is_value: false,
        }
    }
}

/// A few real records of each kind, by resource manager, info and block id.
#[derive(Default)]
pub struct Samples(BTreeMap<(u8, u8, u8), Vec<Sample>>);

impl Watch for Samples {
    fn record(&mut self, _record: &RecordAt<'_>) {}

    fn version(&mut self, version: &Version<'_>) -> Verdict {
        let page = version.before.map_or(&[][..], |page| &page[..]);
        self.take(version.block_id, version.key, version.record.end, page, version.record.bytes);
        Verdict { compared: false, agrees: !matches!(version.after, After::WithoutBase | After::Unsupported) }
    }

    fn side_effect(&mut self, _record: &RecordAt<'_>) {}
}

impl Samples {
    fn take(&mut self, block_id: u8, key: Key, lsn: Lsn, page: &[u8], record: &[u8]) {
        let samples = self.0.entry((record[17], record[16] & 0xF0, block_id)).or_default();
        let most = if record.len() > LONG_RECORD { LONG_SAMPLES } else { SAMPLES_PER_KIND };
        if samples.len() < most {
            samples.push(Sample { key, lsn, page: page.to_vec(), record: record.to_vec() });
        }
    }

    /// Writes the shortest records of each kind as inputs of the fuzzer.
    pub fn write_seeds(&self, ctx: &Context, corpus: &Path) -> std::io::Result<()> {
        fs::create_dir_all(corpus)?;
        for ((rmid, info, id), samples) in &self.0 {
            let mut order: Vec<&Sample> = samples.iter().collect();
            order.sort_by_key(|sample| sample.record.len());
            for (number, sample) in order.iter().take(SEEDS_PER_KIND).enumerate() {
                let name = format!("{}-{rmid:03}-{info:02x}-{id}-{number}", ctx.major);
                fs::write(corpus.join(name), sample.case(ctx).encode())?;
            }
        }
        Ok(())
    }

    /// Returns the kinds that panicked.
    pub fn damage(&self, ctx: &Context) -> Vec<String> {
        let mut panicked = Vec::new();
        let mut chance = Chance::new(0);
        for ((rmid, info, id), samples) in &self.0 {
            let (mut refused, mut made) = (0, 0);
            for sample in samples {
                let sound = sample.case(ctx);
                for _ in 0..DAMAGES_PER_SAMPLE {
                    let mut case = sound.clone();
                    case.damage(&mut chance);
                    match catch_unwind(AssertUnwindSafe(|| case.run())) {
                        Ok(true) => made += 1,
                        Ok(false) => refused += 1,
                        Err(_) => panicked.push(format!("{} {info:#04x} block id {id}", rmgr::name(*rmid))),
                    }
                }
            }
            println!("   {:<10} {info:#04x} block id {id}: {refused} refused, {made} applied", rmgr::name(*rmid));
        }
        panicked.dedup();
        panicked
    }
}
