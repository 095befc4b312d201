//! The worked examples of spec walredo.md 3.1 and 5, and the rules of its section 17 that need no server.

use sha2::{Digest, Sha256};

use super::*;
use crate::key::{RelTag, SlruKind, VM_FORK};

const NEON_15: Context = Context { major: 15, flavour: Flavour::Neon, hint_bits_logged: false };
const STOCK_16: Context = Context { major: 16, flavour: Flavour::Stock, hint_bits_logged: false };
const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16397, forknum: 0 };

/// A record with one block reference to block 0 of `REL`; lengths are filled in.
fn record(rmid: u8, info: u8, xid: u32, fork_flags: u8, data: &[u8], main: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 24];
    out[4..8].copy_from_slice(&xid.to_le_bytes());
    out[16] = info;
    out[17] = rmid;
    out.extend([0, fork_flags]);
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

fn postgres(record: &[u8]) -> Record<'_> {
    Record::Postgres { will_init: false, record: record.into() }
}

fn first_insert() -> Vec<u8> {
    hex::decode(concat!(
        "4300000004040000f8cc4c0100000000800a0000739d5719",
        "006012007f060000050000000d40000000000000ff03",
        "0300010804000000180301000000000000000100",
        "08"
    ))
    .unwrap()
}

fn second_insert() -> Vec<u8> {
    let data = hex::decode("030001080400000018030200000000000000").unwrap();
    record(rmgr::HEAP, 0x00, 0x404, 0x20, &data, &[2, 0, 8])
}

#[test]
fn two_inserts_of_a_neon_compute_give_the_page_of_the_spec() {
    let key = Key::rel_block(REL, 0);
    let mut page = Vec::new();
    apply(&NEON_15, key, &mut page, Lsn(0x014C_CD78), &postgres(&first_insert())).unwrap();
    assert_eq!(hex::encode(&page[..28]), "0000000078cd4c01000000001c00e01f0020042000000000e09f4000");
    assert_eq!(hex::encode(&page[8160..]), "0404000000000000040000000000000001000300010818030100000000000000");
    apply(&NEON_15, key, &mut page, Lsn(0x014C_CDC0), &postgres(&second_insert())).unwrap();
    assert_eq!(hex::encode(Sha256::digest(&page)), "4df2b79421a2274b3738fd6d519ff01d83a29df6d5d3057468377017363f2d50");
    let before = page.clone();
    apply(&NEON_15, key, &mut page, Lsn(0x014C_CDC0), &postgres(&second_insert())).unwrap();
    assert_eq!(page, before, "a record that the page contains already changes nothing");
}

#[test]
fn a_record_without_a_page_is_refused_unless_it_makes_one() {
    let error = apply(&NEON_15, Key::rel_block(REL, 0), &mut Vec::new(), Lsn(8), &postgres(&second_insert()));
    assert!(matches!(error, Err(RedoError::MissingBase { .. })), "{error:?}");
    let error = apply(&NEON_15, Key::rel_block(REL, 1), &mut Vec::new(), Lsn(8), &postgres(&first_insert()));
    assert!(matches!(error, Err(RedoError::Fault { .. })), "a record for another block: {error:?}");
}

#[test]
fn damaged_records_and_pages_are_errors() {
    let key = Key::rel_block(REL, 0);
    for good in [first_insert(), second_insert()] {
        let mut base = Vec::new();
        apply(&NEON_15, key, &mut base, Lsn(0x10), &postgres(&first_insert())).unwrap();
        for at in 0..good.len() {
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = apply(&NEON_15, key, &mut base.clone(), Lsn(0x20), &postgres(&bad));
                let cut = &bad[..at];
                assert!(apply(&NEON_15, key, &mut base.clone(), Lsn(0x20), &postgres(cut)).is_err());
            }
        }
        for at in (0..28).chain(8160..8192) {
            for value in [0, 1, 0x7F, 0xFF] {
                let mut page = base.clone();
                page[at] = value;
                let _ = apply(&NEON_15, key, &mut page, Lsn(0x20), &postgres(&second_insert()));
            }
        }
    }
}

#[test]
fn what_is_not_implemented_is_not_claimed() {
    let custom = record(200, 0x00, 0, 0x20, &[], &[]);
    assert!(!can_apply(&STOCK_16, &postgres(&custom)));
    assert!(!can_apply(&STOCK_16, &postgres(&record(rmgr::NEON, 0x00, 0, 0x20, &[], &[]))));
    assert!(!can_apply(&STOCK_16, &postgres(&[])));
    let error = apply(&STOCK_16, Key::rel_block(REL, 0), &mut vec![0; BLCKSZ], Lsn(8), &postgres(&custom));
    assert!(matches!(error, Err(RedoError::Unsupported { .. })), "{error:?}");
}

fn map_key(block: u32) -> Key {
    Key::rel_block(RelTag { forknum: VM_FORK, ..REL }, block)
}

fn clear(heap_block: u32) -> Record<'static> {
    Record::ClearVisibilityMapFlags { new_heap_block: Some(heap_block), old_heap_block: None, flags: 3 }
}

#[test]
fn visibility_bits_are_cleared_where_the_spec_says() {
    for (heap_block, map_block, at, left) in [(12345, 0, 3110, 0xF3), (100_000, 3, 520, 0xFC)] {
        let mut page = vec![0xFF; BLCKSZ];
        apply(&STOCK_16, map_key(map_block), &mut page, Lsn(0x1_0000_0020), &clear(heap_block)).unwrap();
        assert_eq!(page[at], left);
        assert_eq!(page[..8], [1, 0, 0, 0, 0x20, 0, 0, 0]);
        assert!(page[8..].iter().enumerate().all(|(i, &b)| b == 0xFF || i + 8 == at));
    }
    let mut new = vec![0; BLCKSZ];
    apply(&STOCK_16, map_key(0), &mut new, Lsn(0x20), &clear(12345)).unwrap();
    assert!(new.iter().all(|&b| b == 0), "a new page stays as it is");
    assert!(apply(&STOCK_16, map_key(1), &mut new, Lsn(0x20), &clear(12345)).is_err());
    assert!(apply(&STOCK_16, Key::rel_block(REL, 0), &mut new, Lsn(0x20), &clear(12345)).is_err());
}

#[test]
fn a_truncated_map_forgets_what_lies_behind_the_end() {
    let mut page = vec![0xFF; BLCKSZ];
    let cut = |byte, bit_offset| Record::TruncateVisibilityMap { byte, bit_offset };
    apply(&STOCK_16, map_key(0), &mut page, Lsn(0x20), &cut(10, 4)).unwrap();
    assert_eq!(page[33..36], [0xFF, 0x0F, 0]);
    assert!(page[36..].iter().all(|&b| b == 0));
    assert_eq!(page[0], 0xFF, "the LSN stays");
    assert!(apply(&STOCK_16, map_key(0), &mut page, Lsn(0x20), &cut(8168, 0)).is_err());
    assert!(apply(&STOCK_16, map_key(0), &mut page, Lsn(0x20), &cut(u64::MAX, 0)).is_err());
}

#[test]
fn transaction_status_pages_carry_the_time_of_the_last_commit() {
    let key = Key::slru_block(SlruKind::Clog, 0, 0);
    let mut page = vec![0; BLCKSZ];
    let commit = |timestamp| Record::ClogSetCommitted { xids: vec![1000], timestamp };
    apply(&STOCK_16, key, &mut page, Lsn(8), &commit(740_000_000_123_456)).unwrap();
    assert_eq!((page.len(), page[250]), (8200, 1));
    assert_eq!(hex::encode(&page[8192..]), "0002a106ad242240");
    apply(&STOCK_16, key, &mut page, Lsn(8), &commit(1)).unwrap();
    assert_eq!((page.len(), page[8199]), (8200, 1));
    apply(&STOCK_16, key, &mut page, Lsn(8), &Record::ClogSetAborted { xids: vec![1001, 1000] }).unwrap();
    assert_eq!((page.len(), page[250]), (8200, 0b1010));
    let far = Record::ClogSetAborted { xids: vec![2_000_003] };
    assert!(apply(&STOCK_16, key, &mut page, Lsn(8), &far).is_err());
    let mut other = vec![0; BLCKSZ];
    apply(&STOCK_16, Key::slru_block(SlruKind::Clog, 1, 29), &mut other, Lsn(8), &far).unwrap();
    assert_eq!((other.len(), other[288]), (8192, 0x80));
}

#[test]
fn multixact_members_land_where_the_spec_says() {
    for (offset, page_number, flags_at, lane, xid_at) in
        [(7, 0, 20, 3, 36), (123_456_789, 75462, 4780, 1, 4788), (u32::MAX, 2_625_285, 5160, 3, 5176)]
    {
        let key = Key::slru_block(SlruKind::MultiXactMembers, page_number / 32, page_number % 32);
        let mut page = vec![0; BLCKSZ];
        let create = Record::MultixactMembersCreate { offset, members: vec![(0x0102_0304, 5)] };
        apply(&STOCK_16, key, &mut page, Lsn(8), &create).unwrap();
        assert_eq!(page[flags_at + lane], 5);
        assert_eq!(page[xid_at..xid_at + 4], [4, 3, 2, 1]);
    }
}

#[test]
fn multixact_offsets_of_a_stock_server_include_the_next_one() {
    let create = |multi: u32, offset: u32, count: u32| {
        let mut out = vec![0; 24];
        out[16] = 0x20;
        out[17] = rmgr::MULTIXACT;
        out.extend([0xFF, 12]);
        [multi, offset, count].iter().for_each(|field| out.extend(field.to_le_bytes()));
        let total = out.len() as u32;
        out[..4].copy_from_slice(&total.to_le_bytes());
        out
    };
    let key = Key::slru_block(SlruKind::MultiXactOffsets, 1, 2);
    let mut page = vec![0; BLCKSZ];
    apply(&STOCK_16, key, &mut page, Lsn(8), &postgres(&create(70000, 9, 3))).unwrap();
    assert_eq!(page[1472..1480], [9, 0, 0, 0, 12, 0, 0, 0]);
    apply(&STOCK_16, key, &mut page, Lsn(8), &postgres(&create(70001, u32::MAX - 1, 2))).unwrap();
    assert_eq!(page[1476..1484], [0xFE, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0], "offset 0 is skipped");
    let last = 70000 / 2048 * 2048 + 2047;
    apply(&STOCK_16, key, &mut page, Lsn(8), &postgres(&create(last, 9, 3))).unwrap();
    assert_eq!(page[..8], [0; 8], "the next multixact's entry is on the next page");
    assert_eq!(page[8188..], [9, 0, 0, 0]);
    let neon = Record::MultixactOffsetCreate { multi: 70000, offset: 77 };
    apply(&STOCK_16, key, &mut page, Lsn(8), &neon).unwrap();
    assert_eq!(page[1472], 77);
    assert!(apply(&STOCK_16, Key::slru_block(SlruKind::MultiXactOffsets, 1, 3), &mut page, Lsn(8), &neon).is_err());
}
