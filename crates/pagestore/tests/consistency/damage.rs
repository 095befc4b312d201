//! Damaged records and pages: redo may refuse them or make something of them, but it must not panic (spec walredo.md 17,
//! point 48). Run it in a debug build, where arithmetic that overflows panics as well.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;

use pagecore::key::Key;
use pagecore::mask::{mask, mask_strict, PageKind};
use pagecore::redo::{self, Context};
use pagecore::value::Record;
use pagecore::wal::rmgr;
use pagecore::Lsn;
use pagestore::redo_diff::{After, RecordAt, Verdict, Version, Watch};

use crate::case::Case;

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
                let case = Case {
                    context: *ctx,
                    key: sample.key,
                    lsn: sample.lsn,
                    page: sample.page.clone(),
                    record: sample.record.clone(),
                    is_value: false,
                };
                let name = format!("{}-{rmid:03}-{info:02x}-{id}-{number}", ctx.major);
                fs::write(corpus.join(name), case.encode())?;
            }
        }
        Ok(())
    }

    /// Returns the kinds that panicked.
    pub fn damage(&self, ctx: &Context) -> Vec<String> {
        let mut panicked = Vec::new();
        let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
        for ((rmid, info, id), samples) in &self.0 {
            let (mut refused, mut made) = (0, 0);
            for sample in samples {
                for _ in 0..DAMAGES_PER_SAMPLE {
                    let (mut page, record) = (sample.page.clone(), &mut sample.record.clone());
                    if chance.below(3) != 0 {
                        damage_record(&mut chance, record);
                    }
                    if chance.below(3) != 0 {
                        damage_page(&mut chance, &mut page);
                    }
                    let value = Record::Postgres { will_init: false, record: (&record[..]).into() };
                    let outcome = catch_unwind(AssertUnwindSafe(|| {
                        let applied = redo::apply(ctx, sample.key, &mut page, sample.lsn, &value).is_ok();
                        if let Ok(mut page) = page[..].try_into() {
                            if let Some(kind) = PageKind::of(&sample.key, &page) {
                                let _ = mask_strict(kind, &mut page.clone());
                                let _ = mask(kind, sample.key.field6, &mut page);
                            }
                        }
                        applied
                    }));
                    match outcome {
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

/// A xorshift generator: the same damage in every run.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn damage_bytes(chance: &mut Chance, bytes: &mut [u8]) {
    for _ in 0..1 + chance.below(4) {
        let at = chance.below(bytes.len());
        if let Some(byte) = bytes.get_mut(at) {
            *byte = match chance.below(6) {
                0 => 0,
                1 => 0xFF,
                2 => byte.wrapping_add(1),
                3 => byte.wrapping_sub(1),
                4 => *byte ^ 1 << chance.below(8),
                _ => chance.next() as u8,
            };
        }
    }
}

/// Half of the time only what follows the headers, so that decoding does not refuse it at once.
fn damage_record(chance: &mut Chance, record: &mut Vec<u8>) {
    let from = if chance.below(2) == 0 { 24 } else { 48.min(record.len() - 1) };
    damage_bytes(chance, &mut record[from..]);
    if chance.below(8) == 0 {
        record.truncate(24 + chance.below(record.len() - 24));
        let total = (record.len() as u32).to_le_bytes();
        record[..4].copy_from_slice(&total);
    }
}

/// Header and line pointers, the special area, or anything.
fn damage_page(chance: &mut Chance, page: &mut [u8]) {
    if page.is_empty() {
        return;
    }
    match chance.below(4) {
        0 => damage_bytes(chance, &mut page[8..24]),
        1 => damage_bytes(chance, &mut page[24..64]),
        2 => damage_bytes(chance, &mut page[8176..]),
        _ => damage_bytes(chance, page),
    }
}
