//! What one record costs: `cargo bench -p pagecore --bench redo`.
//!
//! Each line is JSON. A page is filled with records of one kind again and again, from a copy of a base page; the cost of the
//! copy is part of the figure, as the first thing a read does with a page is to copy it.
#![expect(clippy::expect_used, reason = "a benchmark may stop where its input is not what it must be")]

use std::hint::black_box;
use std::time::Instant;

use pagecore::key::{Key, RelTag};
use pagecore::redo::{self, Context};
use pagecore::value::Record;
use pagecore::{Flavour, Lsn};

const CTX: Context = Context { major: 16, flavour: Flavour::Stock, hint_bits_logged: false };
const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16397, forknum: 0 };
const HEAP: u8 = 10;
const BTREE: u8 = 11;
const WILL_INIT: u8 = 0x40;

/// A record with one block reference, to block 0 of `REL`.
fn record(rmid: u8, info: u8, fork_flags: u8, data: &[u8], main: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 24];
    out[4..8].copy_from_slice(&1000u32.to_le_bytes());
    out[16] = info;
    out[17] = rmid;
    out.extend([0, 0x20 | fork_flags]);
    out.extend((data.len() as u16).to_le_bytes());
    for field in [REL.spcnode, REL.dbnode, REL.relnode, 0] {
        out.extend(field.to_le_bytes());
    }
    out.extend([0xFF, main.len() as u8]);
    out.extend(data);
    out.extend(main);
    let total = out.len() as u32;
    out[..4].copy_from_slice(&total.to_le_bytes());
    out
}

fn heap_insert(offset: u16) -> Vec<u8> {
    let mut data = vec![4, 0, 2, 8, 24];
    data.extend([0; 1 + 88]);
    let init = if offset == 1 { (0x80, WILL_INIT) } else { (0, 0) };
    record(HEAP, init.0, init.1, &data, &[offset.to_le_bytes()[0], offset.to_le_bytes()[1], 0])
}

/// An update of tuple `old` on the same page that shares 30 bytes at the start and 40 at the end.
fn hot_update(old: u16) -> Vec<u8> {
    let mut data = vec![30, 0, 40, 0, 4, 0, 2, 0x28, 24];
    data.extend([0; 1 + 18]);
    let mut main = vec![0; 14];
    main[..4].copy_from_slice(&1000u32.to_le_bytes());
    main[4..6].copy_from_slice(&old.to_le_bytes());
    main[7] = 0x60;
    main[12..14].copy_from_slice(&(old + 1).to_le_bytes());
    record(HEAP, 0x40, 0, &data, &main)
}

fn btree_root() -> Vec<u8> {
    record(BTREE, 0xA0, WILL_INIT, &[], &[0; 8])
}

fn btree_insert(offset: u16) -> Vec<u8> {
    let mut tuple = vec![0; 16];
    tuple[6] = 16;
    record(BTREE, 0x00, 0, &tuple, &offset.to_le_bytes())
}

fn apply(page: &mut Vec<u8>, lsn: u64, record: &[u8]) {
    let record = Record::Postgres { will_init: false, record: record.into() };
    redo::apply(&CTX, Key::rel_block(REL, 0), page, Lsn(lsn), &record).expect("the record applies");
}

/// Applies `records` to copies of `base` and prints what one of them took.
fn measure(name: &str, base: &[u8], records: &[Vec<u8>]) {
    let mut page = base.to_vec();
    let mut best = f64::MAX;
    // Short batches, the best of many: on a busy machine a long one is never undisturbed.
    let rounds = 3000usize.div_ceil(records.len());
    for _ in 0..500 {
        let start = Instant::now();
        for _ in 0..rounds {
            page.clear();
            page.extend_from_slice(black_box(base));
            for (i, record) in records.iter().enumerate() {
                apply(&mut page, 100 + 8 * i as u64, black_box(record));
            }
        }
        best = best.min(start.elapsed().as_nanos() as f64 / (rounds * records.len()) as f64);
    }
    println!(r#"{{"bench": "redo", "record": "{name}", "records_per_page": {}, "ns": {best:.0}}}"#, records.len());
}

fn main() {
    let inserts: Vec<_> = (1..=60).map(heap_insert).collect();
    measure("heap insert", &[], &inserts);

    let mut base = Vec::new();
    apply(&mut base, 8, &heap_insert(1));
    let updates: Vec<_> = (1..=50).map(hot_update).collect();
    measure("heap hot update", &base, &updates);

    let mut base = Vec::new();
    apply(&mut base, 8, &btree_root());
    let ascending: Vec<_> = (1..=300).map(btree_insert).collect();
    measure("btree insert, ascending", &base, &ascending);
    let scattered: Vec<_> = (0..300u16).map(|i| btree_insert(1 + (i * 7919) % (i + 1))).collect();
    measure("btree insert, scattered", &base, &scattered);
}
