//! The recorded segment of spec wal.md 12.1, and records by hand for each row of 3.4 and 5.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::*;
use crate::value::{encode_image, encode_postgres};
use crate::wal::metadata::XactEndKind;
use crate::wal::{StreamChecks, WalFramer};
use crate::SlruKind;

/// Collects values as the open layer does.
#[derive(Default)]
struct Batch {
    raw: Vec<u8>,
    entries: Vec<(Key, Lsn, usize, bool)>,
    observed: Vec<(Key, Lsn)>,
}

impl ValueSink for Batch {
    fn put_image(&mut self, key: Key, lsn: Lsn, page: &[u8; BLCKSZ]) {
        let before = self.raw.len();
        encode_image(&mut self.raw, page);
        self.entries.push((key, lsn, self.raw.len() - before, true));
    }

    fn put_record(&mut self, key: Key, lsn: Lsn, will_init: bool, record: &[u8]) {
        let before = self.raw.len();
        encode_postgres(&mut self.raw, will_init, record);
        self.entries.push((key, lsn, self.raw.len() - before, will_init));
    }

    fn observe(&mut self, key: Key, lsn: Lsn) {
        self.observed.push((key, lsn));
    }
}

const START: u64 = 0x14A_EC08;

fn segment() -> Vec<u8> {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors/neon-v15-pgbench/000000010000000000000001.zst");
    let bytes = zstd::stream::decode_all(std::fs::File::open(path).unwrap()).unwrap();
    assert_eq!(hex::encode(Sha256::digest(&bytes)), "4f5618f490b8ed1ed4647cf687dbeda2691d3fff8046999278ff79ba03063530");
    bytes
}

fn each_record(mut f: impl FnMut(Lsn, &[u8])) -> WalFramer {
    let segment = segment();
    let mut framer = WalFramer::new(15, Lsn(START), StreamChecks { check_prev: true, ..Default::default() }).unwrap();
    for chunk in segment[(START % (1 << 24)) as usize..].chunks(131_072) {
        framer.feed(chunk);
        while let Some((lsn, record)) = framer.next_record().unwrap() {
            f(lsn, record);
        }
    }
    framer
}

fn interpreter(major: u8, flavour: Flavour) -> Interpreter {
    Interpreter { major, flavour, shard: ShardIdentity::UNSHARDED }
}

fn count<K: Ord>(map: &mut BTreeMap<K, u32>, key: K) {
    *map.entry(key).or_default() += 1;
}

#[test]
fn the_recorded_segment_has_its_records() {
    let (mut n, mut total, mut last, mut blocks, mut images) = (0, 0u64, Lsn(0), 0, 0);
    let mut hash = Sha256::new();
    let mut kinds = BTreeMap::new();
    let framer = each_record(|lsn, bytes| {
        let r = DecodedRecord::decode(15, bytes).unwrap();
        n += 1;
        total += bytes.len() as u64;
        hash.update(bytes);
        last = lsn;
        blocks += r.blocks.len();
        images += r.blocks.iter().filter(|b| b.has_image).count();
        assert!(r.blocks.iter().all(|b| b.has_image == b.apply_image));
        count(&mut kinds, (r.rmid, r.info & 0xF0));
    });
    assert_eq!((n, total, last, blocks, images), (72_925, 11_541_335, Lsn(0x1FF_FF98), 72_821, 30));
    assert_eq!(hex::encode(hash.finalize()), "cdc8864bf49b3a1460dab59303648d0e4a8006020583f39bcfd08bdac699d8e1");
    assert!(framer.is_reassembling());
    assert_eq!(framer.position(), Lsn(0x200_0000));
    let want: BTreeMap<_, _> = [
        ((rmgr::XLOG, 0x30), 1),
        ((rmgr::XLOG, 0x60), 1),
        ((rmgr::XLOG, 0xB0), 12),
        ((rmgr::XACT, 0x80), 4),
        ((rmgr::XACT, 0x60), 8),
        ((rmgr::SMGR, 0x10), 8),
        ((rmgr::STANDBY, 0x00), 8),
        ((rmgr::HEAP2, 0x50), 20),
        ((rmgr::HEAP2, 0xD0), 1),
        ((rmgr::HEAP2, 0x70), 73),
        ((rmgr::HEAP, 0x00), 71_447),
        ((rmgr::HEAP, 0x80), 1_191),
        ((rmgr::HEAP, 0x20), 4),
        ((rmgr::HEAP, 0x30), 1),
        ((rmgr::BTREE, 0x00), 146),
    ]
    .into();
    assert_eq!(kinds, want);
}

#[test]
fn the_recorded_segment_has_its_values() {
    let it = interpreter(15, Flavour::Neon);
    let mut all = Batch::default();
    let (mut kinds, mut empty, mut clears) = (BTreeMap::new(), 0, Vec::new());
    each_record(|lsn, bytes| {
        let r = DecodedRecord::decode(15, bytes).unwrap();
        let before = all.entries.len();
        let metadata = it.interpret(lsn, bytes, &r, &mut all).unwrap();
        match metadata {
            None if all.entries.len() == before => empty += 1,
            None => {}
            Some(MetadataRecord::Xlog { .. }) => count(&mut kinds, "xlog"),
            Some(MetadataRecord::SmgrCreate { .. }) => count(&mut kinds, "smgr create"),
            Some(MetadataRecord::XactEnd(end)) => {
                assert_eq!(end.kind, XactEndKind::Commit);
                count(&mut kinds, "commit");
            }
            Some(MetadataRecord::ClearVmBits(c)) => {
                assert_eq!((c.old_heap_block, c.flags), (None, 3));
                clears.push((c.vm_rel.relnode, c.new_heap_block.unwrap(), lsn.0));
            }
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(kinds, [("xlog", 14), ("smgr create", 8), ("commit", 4)].into());
    assert_eq!(empty, 90);
    assert_eq!(
        clears,
        [
            (1247, 14, 0x14A_F478),
            (2608, 3, 0x14B_41D8),
            (2608, 13, 0x14B_A298),
            (1259, 0, 0x14B_BC50),
            (1249, 17, 0x14C_0EB8),
            (1249, 55, 0x14C_7F68)
        ]
    );
    assert_eq!(all.raw.len(), 12_769_150);
    let (mut tally, mut new_pages, mut at, mut entries_hash) = (BTreeMap::new(), 0, 0, Sha256::new());
    for (key, lsn, len, will_init) in &all.entries {
        let value = &all.raw[at..at + len];
        at += len;
        assert_eq!(crate::value::encoded_will_init(value), *will_init);
        let is_image = value[..4] == [0; 4];
        count(&mut tally, (is_image, *will_init));
        new_pages += u32::from(is_image && value[12..20] == [0; 8]);
        entries_hash.update(key.to_compact().to_be_bytes());
        entries_hash.update(lsn.0.to_be_bytes());
        entries_hash.update((*len as u32).to_be_bytes());
        entries_hash.update([u8::from(*will_init)]);
    }
    assert_eq!(tally, [((true, true), 12), ((false, true), 1_210), ((false, false), 71_599)].into());
    assert_eq!(new_pages, 3);
    assert_eq!(
        hex::encode(Sha256::digest(&all.raw)),
        "31c6c8c8151a2af36f16bcb58171f8fdf6dafbff39d35fc71924a5c96a33fd00"
    );
    assert_eq!(
        hex::encode(entries_hash.finalize()),
        "eefa4038a3c6b315e1e198ae41605f05b9c8b7f92717308b5218df8808951920"
    );
}

#[test]
fn the_recorded_segment_divides_over_shards() {
    for (count, stripe_size, want) in
        [(2, 2048, vec![72_625, 196]), (2, 8, vec![39_928, 32_893]), (4, 8, vec![17_878, 15_199, 22_050, 17_694])]
    {
        let mut batches: Vec<Batch> = want.iter().map(|_| Batch::default()).collect();
        let mut empty = 0;
        each_record(|lsn, bytes| {
            let r = DecodedRecord::decode(15, bytes).unwrap();
            for (number, batch) in batches.iter_mut().enumerate() {
                let shard = ShardIdentity { number: number as u8, count, stripe_size };
                let it = Interpreter { major: 15, flavour: Flavour::Neon, shard };
                let before = (batch.entries.len(), batch.observed.len());
                let metadata = it.interpret(lsn, bytes, &r, batch).unwrap();
                if number > 0 && metadata.is_none() && before == (batch.entries.len(), batch.observed.len()) {
                    empty += 1;
                }
            }
        });
        assert_eq!(batches.iter().map(|b| b.entries.len()).collect::<Vec<_>>(), want);
        assert_eq!(batches[0].observed.len(), want[1..].iter().sum::<usize>());
        assert!(batches[1..].iter().all(|b| b.observed.is_empty()));
        assert!(empty > 0, "other shards drop records that are nothing to them");
    }
}

fn unhex(text: &str) -> Vec<u8> {
    hex::decode(text.replace([' ', '|', '\n'], "")).unwrap()
}

/// A record without blocks.
fn bare(rmid: u8, info: u8, xid: u32, main: &str) -> Vec<u8> {
    with_blocks(rmid, info, xid, &[], main)
}

/// A record whose blocks, all of relation 1663/5/16389 and without data, are `blocks`.
fn with_blocks(rmid: u8, info: u8, xid: u32, blocks: &[u32], main: &str) -> Vec<u8> {
    let main = unhex(main);
    let mut r = vec![0; 24];
    for (id, block) in blocks.iter().enumerate() {
        r.extend([id as u8, 0, 0, 0]);
        r.extend(unhex("7f060000 05000000 05400000"));
        r.extend(block.to_le_bytes());
    }
    r.extend([0xFF, main.len() as u8]);
    r.extend(&main);
    let len = r.len() as u32;
    r[..4].copy_from_slice(&len.to_le_bytes());
    r[4..8].copy_from_slice(&xid.to_le_bytes());
    (r[16], r[17]) = (info, rmid);
    r
}

fn check(major: u8, flavour: Flavour, bytes: &[u8], f: impl FnOnce(Option<MetadataRecord<'_>>)) {
    let r = DecodedRecord::decode(major, bytes).unwrap();
    f(interpreter(major, flavour).interpret(Lsn(0x100), bytes, &r, &mut Batch::default()).unwrap());
}

fn stock(major: u8, bytes: &[u8], f: impl FnOnce(Option<MetadataRecord<'_>>)) {
    check(major, Flavour::Stock, bytes, f);
}

fn refused(major: u8, flavour: Flavour, bytes: &[u8]) -> String {
    let r = DecodedRecord::decode(major, bytes).unwrap();
    interpreter(major, flavour).interpret(Lsn(0x100), bytes, &r, &mut Batch::default()).unwrap_err().to_string()
}

fn xact_end(major: u8, bytes: &[u8], f: impl FnOnce(metadata::XactEnd<'_>)) {
    stock(major, bytes, |m| match m {
        Some(MetadataRecord::XactEnd(end)) => f(end),
        other => panic!("{other:?}"),
    });
}

#[test]
fn commits_and_aborts_parse() {
    let main = "c4505832bd030300 03000000 05000000 7f060000 02000000 e2020000 e3020000";
    xact_end(15, &bare(rmgr::XACT, 0x80, 737, main), |end| {
        assert_eq!((end.kind, end.xid, end.xl_xid, end.db, end.tablespace), (XactEndKind::Commit, 737, 737, 5, 1663));
        assert_eq!(end.subxacts.iter().collect::<Vec<_>>(), [738, 739]);
        assert!(!end.drops_relations());
    });
    let main = "66535832bd030300 d1000000 05000000 7f060000 e4020000 6769643100";
    xact_end(15, &bare(rmgr::XACT, 0xB0, 0, main), |end| {
        assert_eq!((end.kind, end.xid, end.xl_xid, end.gid), (XactEndKind::CommitPrepared, 740, 0, &b"gid1"[..]));
        assert_eq!(end.xinfo, 0xD1);
    });
    let main = "f05c5832bd030300 44010000 01000000 7f060000 05000000 0f400000 01000000 02000000 05000000 0f400000";
    xact_end(15, &bare(rmgr::XACT, 0xA1, 741, main), |end| {
        assert_eq!((end.kind, end.xid), (XactEndKind::Abort, 741));
        assert_eq!(end.relations().collect::<Vec<_>>(), [(1663, 5, 0x400F)]);
    });
    // The same with an item of 16 bytes, as 18 has them; then with a two-phase id and an origin behind a gid.
    let main =
        "f05c5832bd030300 b4010000 01000000 7f060000 05000000 0f400000 01000000 02000000 05000000 0f400000 00000000
        e5020000 6700 12efcdab00000000 9cb55a32bd030300";
    xact_end(18, &bare(rmgr::XACT, 0xC0, 0, main), |end| {
        assert_eq!((end.kind, end.xid, end.gid), (XactEndKind::AbortPrepared, 0x2E5, &b"g"[..]));
        assert_eq!(end.origin_lsn, 0xABCD_EF12);
    });
    let main = "e9b65a32bd030300 21000000 05000000 7f060000 12efcdab00000000 9cb55a32bd030300";
    xact_end(15, &bare(rmgr::XACT, 0x80, 1, main), |end| assert_eq!(end.origin_lsn, 0xABCD_EF12));
    stock(15, &bare(rmgr::XACT, 0x60, 1, "00"), |m| assert_eq!(m, None));
    stock(15, &bare(rmgr::XACT, 0x50, 1, "00"), |m| assert_eq!(m, None));
    stock(15, &bare(rmgr::XACT, 0x10, 9, "3445"), |m| {
        assert_eq!(m, Some(MetadataRecord::XactPrepare { xid: 9, data: &[0x34, 0x45] }))
    });
    assert!(refused(15, Flavour::Stock, &bare(rmgr::XACT, 0x80, 1, "e9b65a32bd030300 02000000 ffffffff"))
        .starts_with("invalid WAL record ending at 0/100: main data of 16 bytes"));
    assert!(refused(15, Flavour::Stock, &bare(rmgr::XACT, 0xB0, 0, "66535832bd030300 90000000 e4020000 67"))
        .contains("gid"));
}

#[test]
fn storage_database_and_tablespace_records_parse() {
    let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 0x4005, forknum: 3 };
    stock(15, &bare(rmgr::SMGR, 0x11, 0, "7f060000 05000000 05400000 03000000"), |m| {
        assert_eq!(m, Some(MetadataRecord::SmgrCreate { rel }))
    });
    assert!(refused(15, Flavour::Stock, &bare(rmgr::SMGR, 0x10, 0, "7f060000 05000000 05400000 04000000"))
        .contains("fork 4"));
    stock(15, &bare(rmgr::SMGR, 0x20, 0, "e8030000 7f060000 05000000 05400000 07000000"), |m| {
        let (spcnode, dbnode, relnode) = (1663, 5, 0x4005);
        assert_eq!(m, Some(MetadataRecord::SmgrTruncate { block: 1000, spcnode, dbnode, relnode, flags: 7 }))
    });
    let drop = "13400000 01000000 7f060000";
    let is_drop = |m: Option<MetadataRecord<'_>>| match m {
        Some(MetadataRecord::DatabaseDrop { db, tablespaces }) => {
            assert_eq!((db, tablespaces.iter().collect::<Vec<_>>()), (0x4013, vec![1663]))
        }
        other => panic!("{other:?}"),
    };
    stock(15, &bare(rmgr::DBASE, 0x21, 0, drop), is_drop);
    stock(14, &bare(rmgr::DBASE, 0x10, 0, drop), is_drop);
    stock(15, &bare(rmgr::DBASE, 0x10, 0, drop), |m| assert_eq!(m, None));
    let create = bare(rmgr::DBASE, 0x00, 0, "01000000 02000000 03000000 04000000");
    let want = MetadataRecord::DatabaseCreate { db: 1, tablespace: 2, src_db: 3, src_tablespace: 4 };
    stock(18, &create, |m| assert_eq!(m, Some(want)));
    assert!(Interpreter::reads_data_pages(&DecodedRecord::decode(15, &create).unwrap()));
    let create = bare(rmgr::TBLSPC, 0x00, 0, "90d00300 2f782f7900");
    stock(15, &create, |m| assert_eq!(m, Some(MetadataRecord::TablespaceCreate { oid: 250_000, path: b"/x/y" })));
    check(15, Flavour::Neon, &create, |m| assert_eq!(m, None));
    stock(15, &bare(rmgr::TBLSPC, 0x10, 0, "90d00300"), |m| {
        assert_eq!(m, Some(MetadataRecord::TablespaceDrop { oid: 250_000 }))
    });
}

#[test]
fn slru_page_numbers_grew_in_version_17() {
    for major in [14, 15, 16, 17, 18] {
        let page = if major < 17 { "05000000" } else { "0500000000000000" };
        for (rmid, info, kind) in [
            (rmgr::CLOG, 0x00, SlruKind::Clog),
            (rmgr::MULTIXACT, 0x00, SlruKind::MultiXactOffsets),
            (rmgr::MULTIXACT, 0x10, SlruKind::MultiXactMembers),
        ] {
            stock(major, &bare(rmid, info, 0, page), |m| {
                assert_eq!(m, Some(MetadataRecord::SlruZeroPage { kind, page: 5 }))
            });
        }
        stock(major, &bare(rmgr::CLOG, 0x10, 0, &format!("{page} d4020000 01000000")), |m| {
            let want = MetadataRecord::ClogTruncate { page: 5, oldest_xid: 724, oldest_xid_db: 1 };
            assert_eq!(m, Some(want))
        });
    }
    assert!(refused(15, Flavour::Stock, &bare(rmgr::CLOG, 0x20, 0, "05000000")).contains("CLOG record"));
    assert!(refused(15, Flavour::Stock, &bare(rmgr::MULTIXACT, 0x40, 0, "05000000")).contains("multixact record"));
}

#[test]
fn multixact_standby_relmap_origin_records_parse() {
    let create = "01000000 01000000 02000000 ff020000 01000000 00030000 01000000";
    stock(15, &bare(rmgr::MULTIXACT, 0x20, 0, create), |m| match m {
        Some(MetadataRecord::MultiXactCreate(c)) => {
            assert_eq!((c.multi, c.offset, c.len()), (1, 1, 2));
            assert_eq!(c.members().collect::<Vec<_>>(), [(0x2FF, 1), (0x300, 1)]);
        }
        other => panic!("{other:?}"),
    });
    let truncate = "01000000 02000000 03000000 04000000 05000000";
    stock(15, &bare(rmgr::MULTIXACT, 0x30, 0, truncate), |m| {
        let want = MetadataRecord::MultiXactTruncate {
            oldest_multi_db: 1,
            start_offset: 2,
            end_offset: 3,
            start_member: 4,
            end_member: 5,
        };
        assert_eq!(m, Some(want))
    });
    // The three bytes behind the bool are garbage.
    let running = "00000000 00000000 00dd72ce df020000 df020000 de020000";
    stock(15, &bare(rmgr::STANDBY, 0x10, 0, running), |m| {
        assert_eq!(m, Some(MetadataRecord::RunningXacts { oldest_running_xid: 0x2DF }))
    });
    stock(15, &bare(rmgr::STANDBY, 0x00, 0, running), |m| assert_eq!(m, None));
    stock(15, &bare(rmgr::RELMAP, 0x00, 0, "05000000 7f060000 02000000 abcd"), |m| {
        let want = MetadataRecord::RelmapUpdate { db: 5, tablespace: 1663, nbytes: 2, data: &[0xAB, 0xCD] };
        assert_eq!(m, Some(want))
    });
    assert!(refused(15, Flavour::Stock, &bare(rmgr::RELMAP, 0, 0, "05000000 7f060000 03000000 abcd")).contains("map"));
    stock(15, &bare(rmgr::REPLORIGIN, 0x00, 0, "99efcdab00000000 0100 01cd077f0000"), |m| {
        assert_eq!(m, Some(MetadataRecord::OriginSet { origin: 1, lsn: 0xABCD_EF99 }))
    });
    stock(15, &bare(rmgr::REPLORIGIN, 0x10, 0, "0700"), |m| {
        assert_eq!(m, Some(MetadataRecord::OriginDrop { origin: 7 }))
    });
    stock(15, &bare(rmgr::COMMIT_TS, 0x00, 0, "05000000"), |m| assert_eq!(m, None));
}

#[test]
fn aux_files_come_as_messages_of_neons_compute_only() {
    let path = hex::encode("neon-file:pg_logical/snapshots/0-1752A98.snap\0");
    let main = format!("05000000 00560000 2e00000000000000 0500000000000000 {path} {}", hex::encode("hello"));
    let bytes = bare(rmgr::LOGICALMSG, 0x00, 0, &main);
    check(15, Flavour::Neon, &bytes, |m| {
        let want = MetadataRecord::AuxFilePut { path: "pg_logical/snapshots/0-1752A98.snap", content: b"hello" };
        assert_eq!(m, Some(want))
    });
    stock(15, &bytes, |m| assert_eq!(m, None));
    let other = unhex(
        "40000000 00000000 0000000000000000 00 15 0000 aa22a6e3 ff 26 00000000 00000000 0700000000000000
         0700000000000000 70726566697800 6d657373616765",
    );
    assert_eq!(crate::wal::framer::record_crc(&other), 0xE3A6_22AA);
    check(15, Flavour::Neon, &other, |m| assert_eq!(m, None));
    let shard = ShardIdentity { number: 1, count: 2, stripe_size: 8 };
    let it = Interpreter { major: 15, flavour: Flavour::Neon, shard };
    assert_eq!(it.metadata(&DecodedRecord::decode(15, &bytes).unwrap()), Ok(None));
}

fn clear(major: u8, flavour: Flavour, bytes: &[u8]) -> Option<(Option<u32>, Option<u32>, u8)> {
    let mut out = None;
    check(major, flavour, bytes, |m| match m {
        Some(MetadataRecord::ClearVmBits(c)) => {
            assert_eq!(c.vm_rel, RelTag { spcnode: 1663, dbnode: 5, relnode: 0x4005, forknum: 2 });
            out = Some((c.new_heap_block, c.old_heap_block, c.flags));
        }
        None => {}
        other => panic!("{other:?}"),
    });
    out
}

#[test]
fn heap_records_ask_to_clear_visibility_bits() {
    use Flavour::{Neon, Stock};
    let with = |rmid, info, blocks: &[u32], main: &str| with_blocks(rmid, info, 7, blocks, main);
    for (major, flavour) in [(14, Stock), (15, Stock), (16, Stock), (17, Stock), (18, Stock), (15, Neon), (17, Neon)] {
        assert_eq!(clear(major, flavour, &with(rmgr::HEAP, 0x00, &[3], "0100 01")), Some((Some(3), None, 3)));
        assert_eq!(clear(major, flavour, &with(rmgr::HEAP, 0x80, &[3], "0100 08")), None);
        assert_eq!(clear(major, flavour, &with(rmgr::HEAP2, 0x50, &[4], "0100 0100 0100")), Some((Some(4), None, 3)));
        let lock_updated = with(rmgr::HEAP2, 0x60, &[4], "ea020000 0100 06 01");
        assert_eq!(clear(major, flavour, &lock_updated), Some((None, Some(4), 2)));
        for other in [0x30, 0x50, 0x70] {
            assert_eq!(clear(major, flavour, &with(rmgr::HEAP, other, &[4], "ff")), None);
        }
        for other in [0x00, 0x10, 0x20, 0x30, 0x40, 0x70] {
            assert_eq!(clear(major, flavour, &with(rmgr::HEAP2, other, &[4], "ff")), None);
        }
    }
    for flavour in [Stock, Neon] {
        let update = |flags: &str, blocks: &[u32]| {
            let main = format!("ea020000 0100 00 {flags} 00000000 7600");
            clear(15, flavour, &with(rmgr::HEAP, 0x20, blocks, &main))
        };
        assert_eq!(update("11", &[2, 0]), Some((None, Some(0), 3)));
        assert_eq!(update("03", &[2, 0]), Some((Some(2), Some(0), 3)));
        assert_eq!(update("02", &[2]), Some((Some(2), None, 3)));
        assert_eq!(update("10", &[2, 0]), None);
    }
    // The flags of DELETE and LOCK lie elsewhere in Neon's 14 and 15.
    for (info, want) in [(0x10, (Some(0), None, 3)), (0x60, (None, Some(0), 2))] {
        let plain = with(rmgr::HEAP, info, &[0], "ea020000 0100 06 01");
        let neon = with(rmgr::HEAP, info, &[0], "ea020000 0100 ffff 00000000 06 01");
        assert_eq!(clear(15, Stock, &plain), Some(want));
        assert_eq!(clear(16, Neon, &plain), Some(want));
        assert_eq!(clear(14, Neon, &neon), Some(want));
        assert_eq!(clear(15, Neon, &neon), Some(want));
        assert!(refused(15, Neon, &plain).contains("14 needed"));
    }
}

#[test]
fn neons_resource_manager_exists_in_16_and_17() {
    let with = |info, main: &str| with_blocks(rmgr::NEON, info, 7, &[5, 9], main);
    for major in [16, 17] {
        let clears = |info, main: &str| clear(major, Flavour::Neon, &with(info, main));
        assert_eq!(clears(0x80, "0100 01"), Some((Some(5), None, 3)));
        assert_eq!(clears(0x10, "ea020000 0100 06 01 00000000"), Some((Some(5), None, 3)));
        assert_eq!(clears(0x20, "ea020000 0100 06 01 00000000 00000000 0100"), Some((None, Some(9), 3)));
        assert_eq!(clears(0x30, "ea020000 0100 06 02 00000000 00000000 0100"), Some((Some(5), None, 3)));
        assert_eq!(clears(0x40, "ea020000 00000000 0100 06 01"), Some((None, Some(5), 2)));
        assert_eq!(clears(0x50, "01 00 0100 00000000 0100"), Some((Some(5), None, 3)));
        let unknown = refused(major, Flavour::Neon, &with(0x60, "00"));
        assert!(unknown.contains("Unknown WAL record type for Neon RMGR: 0x60"), "{unknown}");
    }
    for major in [14, 15] {
        let text = refused(major, Flavour::Neon, &with(0x00, "0100 01"));
        assert!(text.contains(&format!("Neon RMGR has no known compatibility with PostgreSQL version {major}")));
    }
    // On a stock server the number belongs to some extension.
    assert_eq!(clear(15, Flavour::Stock, &with(0x60, "00")), None);
}

#[test]
fn clears_go_to_the_shards_that_own_the_map_pages() {
    let bytes = with_blocks(rmgr::HEAP, 0x20, 7, &[0, 40_000], "ea020000 0100 00 03 00000000 7600");
    let r = DecodedRecord::decode(15, &bytes).unwrap();
    let mut seen = Vec::new();
    for number in 0..4 {
        let shard = ShardIdentity { number, count: 4, stripe_size: 1 };
        let it = Interpreter { major: 15, flavour: Flavour::Stock, shard };
        match it.metadata(&r).unwrap() {
            Some(MetadataRecord::ClearVmBits(c)) => seen.extend([c.new_heap_block, c.old_heap_block]),
            None => {}
            other => panic!("{other:?}"),
        }
    }
    seen.retain(Option::is_some);
    seen.sort();
    assert_eq!(seen, [Some(0), Some(40_000)], "each side on exactly one shard");
}

/// XLOG FPI of one block; `pd_upper` and `bits` choose the case.
fn page_image(info: u8, bits: u8, spcnode: u32, page: &[u8]) -> Vec<u8> {
    let mut r = vec![0; 24];
    r.extend([0, 0x10, 0, 0]);
    r.extend((page.len() as u16).to_le_bytes());
    r.extend([0, 0, bits]);
    r.extend(spcnode.to_le_bytes());
    r.extend(unhex("05000000 05400000 02000000"));
    r.extend(page);
    let len = r.len() as u32;
    r[..4].copy_from_slice(&len.to_le_bytes());
    (r[16], r[17]) = (info, rmgr::XLOG);
    r
}

fn values(major: u8, flavour: Flavour, bytes: &[u8]) -> Result<Batch, WalError> {
    let mut batch = Batch::default();
    let r = DecodedRecord::decode(major, bytes)?;
    interpreter(major, flavour).interpret(Lsn(0x12_3456_7890), bytes, &r, &mut batch)?;
    Ok(batch)
}

#[test]
fn only_plain_page_images_become_images() {
    let mut page = vec![0; BLCKSZ];
    page[PD_UPPER] = 1;
    page[100] = 0x77;
    for info in [0xA0, 0xB0] {
        let batch = values(15, Flavour::Stock, &page_image(info, 0x02, 1663, &page)).unwrap();
        let mut want = page.clone();
        want[..8].copy_from_slice(&unhex("12000000 90785634"));
        let mut raw = Vec::new();
        encode_image(&mut raw, &want);
        assert_eq!(batch.raw, raw);
    }
    let zero = values(15, Flavour::Stock, &page_image(0xB0, 0x02, 1663, &vec![0; BLCKSZ])).unwrap();
    assert!(zero.raw[12..].iter().all(|b| *b == 0), "a new page keeps LSN 0");
    for (info, bits, bytes, will_init, why) in [
        (0xB1, 0x02, &page[..], true, "a framework bit"),
        (0x20, 0x02, &page[..], true, "not a full page image record"),
        (0xB0, 0x00, &page[..], false, "not to be applied"),
        (0xB0, 0x06, &page[..300], true, "compressed"),
    ] {
        let record = page_image(info, bits, 1663, bytes);
        let batch = values(15, Flavour::Stock, &record).unwrap();
        let mut raw = Vec::new();
        encode_postgres(&mut raw, will_init, &record);
        assert_eq!(batch.raw, raw, "{why}");
        assert_eq!(batch.entries[0].3, will_init, "{why}");
    }
}

#[test]
fn unrepresentable_tablespaces_stop_only_neons_flavour() {
    let record = page_image(0xB0, 0x02, 70_000, &vec![0; BLCKSZ]);
    let error = values(15, Flavour::Neon, &record).err().unwrap().to_string();
    assert_eq!(error, "Unsupported key decoded at LSN 12/34567890: 000001117000000005000040050000000002");
    let batch = values(15, Flavour::Stock, &record).unwrap();
    assert_eq!(batch.entries[0].0.field2, 70_000);
    assert!(values(15, Flavour::Neon, &page_image(0xB0, 0x02, 65_535, &vec![0; BLCKSZ])).is_ok());
}

#[test]
fn each_block_is_stored_with_the_whole_record() {
    let bytes = with_blocks(rmgr::BTREE, 0xA0, 7, &[2, 0, 9], "00");
    let batch = values(15, Flavour::Stock, &bytes).unwrap();
    assert_eq!(batch.entries.iter().map(|e| e.0.field6).collect::<Vec<_>>(), [2, 0, 9]);
    let mut one = Vec::new();
    encode_postgres(&mut one, false, &bytes);
    assert_eq!(batch.raw, [&one[..], &one, &one].concat());
}

#[test]
fn the_example_value_comes_out() {
    let record = unhex(
        "43000000 04040000 f8cc4c0100000000 80 0a 0000 739d5719 | 00 60 1200 7f060000 05000000 0d400000 00000000 ff 03
         0300 0108 04000000 18 030100000000000000 0100 08",
    );
    let batch = values(15, Flavour::Neon, &record).unwrap();
    assert_eq!(batch.raw, [unhex("00000001 00000000 01 0000000000000043"), record].concat());
    assert_eq!(batch.entries[0].0, Key::from_hex("000000067F000000050000400D0000000000").unwrap());
}

#[test]
fn init_forks_go_to_shard_zero() {
    let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 16_389, forknum: crate::key::INIT_FORK };
    for block in 0..64 {
        let shard = ShardIdentity { number: 0, count: 4, stripe_size: 1 };
        assert!(shard.is_local(&Key::rel_block(rel, block)));
    }
}
