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

/// A heap page with three tuples of a vanilla server; the block data of each is 5 bytes of header and 12 of body.
fn three_tuples() -> Vec<u8> {
    let mut page = Vec::new();
    for offset in 1..=3u16 {
        let mut data = vec![2, 0, 2, 8, 24, 0];
        data.extend([offset as u8; 12]);
        let (info, flags) = if offset == 1 { (0x80, 0x60) } else { (0x00, 0x20) };
        let main = [offset as u8, 0, 0];
        let insert = record(rmgr::HEAP, info, 500, flags, &data, &main);
        apply(&STOCK_16, Key::rel_block(REL, 0), &mut page, Lsn(u64::from(offset)), &postgres(&insert)).unwrap();
    }
    page
}

const CID: u32 = 0x0A0B_0C0D;

/// Field 3, which holds the command id, and the infomask of a tuple.
fn cid_and_mask(page: &[u8], offset: usize) -> (u32, u16) {
    let pointer = u32::from_le_bytes(page[20 + 4 * offset..24 + 4 * offset].try_into().unwrap());
    let at = (pointer & 0x7FFF) as usize;
    let cid = u32::from_le_bytes(page[at + 8..at + 12].try_into().unwrap());
    (cid, u16::from_le_bytes([page[at + 20], page[at + 21]]))
}

/// The page with command ids and the combo flag taken out of its tuples.
fn without_cids(page: &[u8], tuples: usize) -> Vec<u8> {
    let mut out = page.to_vec();
    for offset in 1..=tuples {
        let pointer = u32::from_le_bytes(page[20 + 4 * offset..24 + 4 * offset].try_into().unwrap());
        let at = (pointer & 0x7FFF) as usize;
        out[at + 8..at + 12].fill(0);
        out[at + 20] &= !0x20;
    }
    out
}

fn concat(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// One change in the three dialects: name, tuples to look at, and (rmid, info, block data, main data) of each.
type Change3 = (&'static str, &'static [usize], usize, [(u8, u8, Vec<u8>, Vec<u8>); 3]);

/// The same changes as vanilla, Neon 14/15 and Neon 16/17 records (spec 8.1).
fn changes() -> Vec<Change3> {
    let (xmax, cid, two, four) = (700u32.to_le_bytes(), CID.to_le_bytes(), [2, 0], [4, 0]);
    let heap = rmgr::HEAP;
    let neon = rmgr::NEON;
    let bits = [0x10 | 0x20];
    let plain_bits = [0x10];
    let header = [2, 0, 2, 8];
    let body = [0, 9, 9, 9, 9];
    let tuple = concat(&[&header, &[24], &body]);
    let neon_tuple = concat(&[&header, &cid, &[24], &body]);
    let several = concat(&[&[4, 0], &header, &[24], &body[..4]]);
    let several_15 = concat(&[&[4, 0], &header, &[0xEE, 0xEE], &cid, &[24], &body[..4]]);
    vec![
        (
            "INSERT",
            &[4],
            4,
            [
                (heap, 0x00, tuple.clone(), vec![4, 0, 0]),
                (heap, 0x00, neon_tuple.clone(), vec![4, 0, 0]),
                (neon, 0x00, neon_tuple.clone(), vec![4, 0, 0]),
            ],
        ),
        (
            "DELETE",
            &[2],
            3,
            [
                (heap, 0x10, vec![], concat(&[&xmax, &two, &plain_bits, &[0]])),
                (heap, 0x10, vec![], concat(&[&xmax, &two, &[0xEE, 0xEE], &cid, &bits, &[0]])),
                (neon, 0x10, vec![], concat(&[&xmax, &two, &bits, &[0], &cid])),
            ],
        ),
        (
            "HOT_UPDATE",
            &[2, 4],
            4,
            [
                (heap, 0x40, tuple.clone(), concat(&[&xmax, &two, &plain_bits, &[0], &[0; 4], &four])),
                (heap, 0x40, neon_tuple.clone(), concat(&[&xmax, &two, &bits, &[0], &cid, &[0; 4], &four])),
                (neon, 0x30, neon_tuple.clone(), concat(&[&xmax, &two, &bits, &[0], &cid, &[0; 4], &four])),
            ],
        ),
        (
            "UPDATE",
            &[2, 4],
            4,
            [
                (heap, 0x20, tuple, concat(&[&xmax, &two, &plain_bits, &[0], &[0; 4], &four])),
                (heap, 0x20, neon_tuple.clone(), concat(&[&xmax, &two, &bits, &[0], &cid, &[0; 4], &four])),
                (neon, 0x20, neon_tuple, concat(&[&xmax, &two, &bits, &[0], &cid, &[0; 4], &four])),
            ],
        ),
        (
            "LOCK",
            &[2],
            3,
            [
                (heap, 0x60, vec![], concat(&[&xmax, &two, &plain_bits, &[0]])),
                (heap, 0x60, vec![], concat(&[&xmax, &two, &[0xEE, 0xEE], &cid, &bits, &[0]])),
                (neon, 0x40, vec![], concat(&[&xmax, &cid, &two, &bits, &[0]])),
            ],
        ),
        (
            "MULTI_INSERT",
            &[4, 5],
            5,
            [
                (rmgr::HEAP2, 0x50, [&several[..], &several[..]].join(&0), vec![0, 0, 2, 0, 4, 0, 5, 0]),
                (rmgr::HEAP2, 0x50, [&several_15[..], &several_15[..]].join(&0), vec![0, 0, 2, 0, 4, 0, 5, 0]),
                (neon, 0x50, [&several[..], &several[..]].join(&0), concat(&[&[0, 0, 2, 0], &cid, &[4, 0, 5, 0]])),
            ],
        ),
    ]
}

#[test]
fn neon_records_do_what_vanilla_ones_do_and_keep_the_command_id() {
    let neon_16 = Context { flavour: Flavour::Neon, ..STOCK_16 };
    let base = three_tuples();
    for (name, touched, tuples, forms) in changes() {
        let [vanilla, in_place, rmgr_134] = [STOCK_16, NEON_15, neon_16].map(|ctx| {
            let form = match (ctx.flavour, ctx.major) {
                (Flavour::Stock, _) => &forms[0],
                (Flavour::Neon, 15) => &forms[1],
                (Flavour::Neon, _) => &forms[2],
            };
            let change = record(form.0, form.1, 700, 0x20, &form.2, &form.3);
            assert!(can_apply(&ctx, &postgres(&change)), "{name}");
            let mut page = base.clone();
            apply(&ctx, Key::rel_block(REL, 0), &mut page, Lsn(0x99), &postgres(&change)).unwrap();
            page
        });
        for page in [&in_place, &rmgr_134] {
            assert_eq!(without_cids(page, tuples), without_cids(&vanilla, tuples), "{name}");
        }
        for &offset in touched {
            let is_old = offset == 2;
            assert_eq!(cid_and_mask(&vanilla, offset).0, 0, "{name}");
            for page in [&in_place, &rmgr_134] {
                let (cid, mask) = cid_and_mask(page, offset);
                assert_eq!((cid, mask & 0x20 != 0), (CID, is_old), "{name} item {offset}");
            }
        }
    }
}
