//! `cargo fuzz run redo`: see `src/case.rs`.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use pagecore_fuzz::{Case, Chance};

const RECORD_MAX: usize = 20_000;

fuzz_target!(|bytes: &[u8]| {
    if let Some(case) = Case::decode(bytes) {
        case.run();
    }
});

// A page is three hundred times as long as what matters on it: left to itself libFuzzer would change little else.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut chance = Chance::new(u64::from(seed));
    let Some(mut case) = Case::decode(&data[..size]) else { return fuzzer_mutate(data, size, max_size) };
    match chance.below(4) {
        0 => {
            // libFuzzer knows values that were compared with; let it put them into the record.
            let len = case.record.len();
            case.record.resize((len + 64).min(RECORD_MAX).max(len), 0);
            let room = case.record.len();
            let changed = fuzzer_mutate(&mut case.record, len, room);
            case.record.truncate(changed);
        }
        1 if !case.page.is_empty() => {
            let window = match chance.below(3) {
                0 => 10..64,
                1 => 8160..8192,
                _ => {
                    let at = chance.below(8128);
                    at..at + 64
                }
            };
            let part = &mut case.page[window];
            let len = part.len();
            fuzzer_mutate(part, len, len);
        }
        _ => case.damage(&mut chance),
    }
    let bytes = case.encode();
    let size = bytes.len().min(max_size);
    data[..size].copy_from_slice(&bytes[..size]);
    size
});
