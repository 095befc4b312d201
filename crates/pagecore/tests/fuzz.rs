//! The redo fuzzer without libFuzzer: the committed seeds, a fixed number of mutations of each, and every finding so far.
//!
//! Seeds are real records of PostgreSQL 14 to 18 with the pages they were applied to, the shortest of each kind, block id and
//! major (`cargo test -p pagestore --test consistency -- --ignored write_seeds_for_the_fuzzer` writes them); some of them
//! once more in the layouts of Neon's computes; and a few of Neon's own records. The search itself is `make fuzz`. This runs in the test profile, where arithmetic that overflows panics.
#![expect(clippy::expect_used, reason = "a test may stop where its input is not what it must be")]

use std::collections::BTreeSet;

use pagecore::wal::rmgr;
use pagecore::Flavour;

#[path = "../fuzz/src/case.rs"]
mod case;

use case::{pack_seeds, unpack_seeds, Case, Chance};

const SEEDS: &[u8] = include_bytes!("../fuzz/seeds.zst");
/// Also the depth: damage adds up until the record is refused.
const DAMAGES_PER_SEED: u64 = 600;

fn seeds() -> Vec<Case> {
    let seeds = unpack_seeds(SEEDS).expect("the seeds unpack");
    seeds.iter().map(|seed| Case::decode(seed).expect("a seed is a case")).collect()
}

#[test]
fn every_seed_applies_and_all_resource_managers_have_some() {
    let (mut seen, mut seen_neon) = (BTreeSet::new(), BTreeSet::new());
    for seed in seeds() {
        let name = format!("{} {:?} at {}", seed.context.major, seed.record.get(16..18), seed.lsn);
        assert!(seed.run(), "{name} was refused");
        if seed.is_value {
            continue;
        }
        if seed.context.flavour == Flavour::Neon {
            seen_neon.insert((seed.context.major, seed.record[17]));
        } else {
            seen.insert((seed.context.major, seed.record[17]));
        }
    }
    for major in 14..=18 {
        for rmid in [
            rmgr::XLOG,
            rmgr::HEAP,
            rmgr::HEAP2,
            rmgr::BTREE,
            rmgr::HASH,
            rmgr::GIN,
            rmgr::GIST,
            rmgr::SEQ,
            rmgr::SPGIST,
            rmgr::BRIN,
        ] {
            assert!(seen.contains(&(major, rmid)), "no seed of PostgreSQL {major}, {}", rmgr::name(rmid));
        }
        let neon = if major < 16 { rmgr::HEAP } else { rmgr::NEON };
        // Neon had no 18 when these were made.
        assert!(major == 18 || seen_neon.contains(&(major, neon)), "no seed of Neon's {major}");
    }
}

#[test]
fn damaged_seeds_are_refused_or_applied_and_nothing_else() {
    let mut chance = Chance::new(1);
    let (mut applied, mut refused) = (0u64, 0u64);
    for seed in seeds() {
        let mut case = seed.clone();
        for _ in 0..DAMAGES_PER_SEED {
            case.damage(&mut chance);
            if case.run() {
                applied += 1;
            } else {
                refused += 1;
                case = seed.clone();
            }
        }
    }
    println!("{applied} applied, {refused} refused");
    assert!(
        applied > refused / 20 && refused > applied / 20,
        "{applied} applied, {refused} refused: nothing is tested"
    );
}

#[test]
fn cases_and_seeds_survive_their_encoding() {
    let seeds = seeds();
    let first = &seeds[..20];
    for seed in first {
        assert_eq!(Case::decode(&seed.encode()).as_ref(), Some(seed));
    }
    let encoded: Vec<Vec<u8>> = first.iter().map(Case::encode).collect();
    let packed = pack_seeds(&encoded).expect("the seeds pack");
    assert_eq!(unpack_seeds(&packed).expect("the seeds unpack"), encoded);
    assert_eq!(Case::decode(&[0; 27]), None);
    assert!(unpack_seeds(&packed[..packed.len() - 9]).is_err());
}
