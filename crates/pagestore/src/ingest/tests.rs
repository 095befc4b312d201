//! Ingest into a dictionary, with the smallest stand-in for what Python does about rare records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use pagecore::key::{FSM_FORK, VM_FORK};
use pagecore::value::{Record, Value};
use pagecore::wal::framer::record_crc;
use pagecore::wal::rmgr;
use pagecore::{Flavour, ShardIdentity, BLCKSZ};

use super::*;
use crate::WriteBatch;

#[derive(Default)]
struct State {
    values: BTreeMap<Key, BTreeMap<Lsn, Vec<u8>>>,
    rels: BTreeSet<RelTag>,
    commits: Vec<Vec<Lsn>>,
    last: Lsn,
    prev: Lsn,
    noted: BTreeMap<RelTag, (Lsn, u32)>,
    /// Number of the `put`, or `commit`, that fails, counted down.
    failing: Option<u32>,
}

struct Dictionary {
    major: u8,
    flavour: Flavour,
    shard: ShardIdentity,
    state: Mutex<State>,
}

impl Dictionary {
    fn new(major: u8, flavour: Flavour) -> Dictionary {
        let state = State { last: Lsn(16), ..State::default() };
        Dictionary { major, flavour, shard: ShardIdentity::UNSHARDED, state: Mutex::new(state) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn add_rel(&self, rel: RelTag, blocks: u32) {
        let mut state = self.state();
        state.rels.insert(rel);
        let value = Value::Image(blocks.to_le_bytes().to_vec().into()).encode();
        state.values.entry(Key::rel_size(rel)).or_default().insert(Lsn(8), value);
    }

    /// All values of a key, decoded.
    fn history(&self, key: Key) -> Vec<(Lsn, Value<'static>)> {
        let state = self.state();
        let Some(versions) = state.values.get(&key) else { return Vec::new() };
        versions.iter().map(|(lsn, bytes)| (*lsn, owned(Value::decode(bytes).unwrap()))).collect()
    }

    fn size(&self, rel: RelTag) -> Option<u32> {
        self.rel_size(rel, Lsn::MAX).unwrap()
    }
}

fn owned(value: Value<'_>) -> Value<'static> {
    match value {
        Value::Image(image) => Value::Image(image.into_owned().into()),
        Value::Record(Record::Postgres { will_init, record }) => {
            Value::Record(Record::Postgres { will_init, record: record.into_owned().into() })
        }
        Value::Record(Record::ClearVisibilityMapFlags { new_heap_block, old_heap_block, flags }) => {
            Value::Record(Record::ClearVisibilityMapFlags { new_heap_block, old_heap_block, flags })
        }
        Value::Record(Record::ClogSetCommitted { xids, timestamp }) => {
            Value::Record(Record::ClogSetCommitted { xids, timestamp })
        }
        Value::Record(Record::ClogSetAborted { xids }) => Value::Record(Record::ClogSetAborted { xids }),
        Value::Record(Record::MultixactOffsetCreate { multi, offset }) => {
            Value::Record(Record::MultixactOffsetCreate { multi, offset })
        }
        Value::Record(Record::MultixactMembersCreate { offset, members }) => {
            Value::Record(Record::MultixactMembersCreate { offset, members })
        }
        other => panic!("{other:?}"),
    }
}

impl IngestTarget for Dictionary {
    fn shard(&self) -> ShardIdentity {
        self.shard
    }

    fn major(&self) -> u8 {
        self.major
    }

    fn flavour(&self) -> Flavour {
        self.flavour
    }

    fn last_record_lsn(&self) -> Lsn {
        self.state().last
    }

    fn get(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, StoreError> {
        let state = self.state();
        let newest = state.values.get(&key).and_then(|versions| versions.range(..=lsn).next_back());
        Ok(newest.map(|(_, value)| match Value::decode(value).unwrap() {
            Value::Image(image) => Bytes::copy_from_slice(&image),
            other => panic!("no redo here: {other:?}"),
        }))
    }

    fn get_pages(&self, keys: &[Key], lsn: Lsn) -> Vec<Result<Bytes, StoreError>> {
        keys.iter().map(|key| Ok(self.get(*key, lsn)?.unwrap())).collect()
    }

    fn rel_size(&self, rel: RelTag, lsn: Lsn) -> Result<Option<u32>, StoreError> {
        if !self.state().rels.contains(&rel) {
            return Ok(None);
        }
        Ok(self.get(Key::rel_size(rel), lsn)?.map(|b| u32::from_le_bytes(b[..4].try_into().unwrap())))
    }

    fn forget_uncommitted(&self) {
        let mut state = self.state();
        let last = state.last;
        state.values.values_mut().for_each(|versions| versions.retain(|lsn, _| *lsn <= last));
    }

    fn put(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        let mut state = self.state();
        match state.failing {
            Some(0) => return Err(StoreError::Invalid("no room".to_string())),
            Some(n) => state.failing = Some(n - 1),
            None => {}
        }
        for entry in &batch.entries {
            let value = batch.raw[entry.offset as usize..(entry.offset + entry.len) as usize].to_vec();
            assert_eq!(pagecore::value::encoded_will_init(&value), entry.will_init, "{}", entry.key);
            assert!(entry.lsn > state.last);
            let versions = state.values.entry(entry.key).or_default();
            assert!(versions.last_key_value().is_none_or(|(last, _)| *last <= entry.lsn), "LSN order of {}", entry.key);
            assert!(versions.insert(entry.lsn, value).is_none(), "{} twice at {}", entry.key, entry.lsn);
        }
        Ok(())
    }

    fn commit(&self, batch: &WriteBatch, record_lsns: &[Lsn]) -> Result<(), StoreError> {
        self.put(batch)?;
        let mut state = self.state();
        for lsn in record_lsns {
            assert!(*lsn > state.last);
            state.prev = std::mem::replace(&mut state.last, *lsn);
        }
        state.commits.push(record_lsns.to_vec());
        Ok(())
    }

    fn note_rel_size(&self, rel: RelTag, lsn: Lsn, blocks: u32) {
        self.state().noted.insert(rel, (lsn, blocks));
    }

    fn note_rel_dropped(&self, rel: RelTag) {
        self.state().noted.remove(&rel);
    }

    fn note_database_dropped(&self, spcnode: u32, dbnode: u32) {
        self.state().noted.retain(|rel, _| (rel.spcnode, rel.dbnode) != (spcnode, dbnode));
    }

    fn open_layer_extent(&self) -> Option<OpenLayerExtent> {
        None
    }
}

/// Applies a rare record as Python would, as far as these tests need it.
fn apply(ingest: &mut WalIngest<Dictionary>, target: &Dictionary, rare: &RareRecord) {
    match &rare.detail {
        RareDetail::RelationCreate { rel, .. } => {
            assert!(target.state().rels.insert(*rel), "{rel} exists");
            ingest.set_rel_size(*rel, 0).unwrap();
        }
        RareDetail::SlruZeroPage { kind, page, .. } => {
            ingest.put(apply::slru_page_key(*kind, *page), &[0; BLCKSZ]).unwrap();
            ingest.set_slru_size(*kind, page / 32, page % 32 + 1).unwrap();
        }
        RareDetail::TransactionEnd { relations, .. } => {
            for (spcnode, dbnode, relnode) in relations {
                for forknum in 0..4 {
                    let rel = RelTag { spcnode: *spcnode, dbnode: *dbnode, relnode: *relnode, forknum };
                    if target.state().rels.remove(&rel) {
                        ingest.forget_rel(rel).unwrap();
                    }
                }
            }
        }
        RareDetail::ParameterChange { .. } => {}
        other => panic!("{other:?}"),
    }
}

/// Runs to the end of the input; gives the rare records.
fn drain(ingest: &mut WalIngest<Dictionary>, target: &Dictionary) -> Vec<RareRecord> {
    let mut seen = Vec::new();
    loop {
        match ingest.run().unwrap() {
            Step::NeedInput => return seen,
            Step::Roll => {}
            Step::Rare(rare) => {
                apply(ingest, target, &rare);
                seen.push(*rare);
            }
        }
    }
}

const START: u64 = (1 << 24) + 40;
const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16_389, forknum: 0 };
const VM: RelTag = RelTag { forknum: VM_FORK, ..REL };

fn settings(start_lsn: u64) -> IngestSettings {
    IngestSettings {
        start_lsn: Lsn(start_lsn),
        checkpoint: CheckPoint::decode(&[0; 88]).unwrap(),
        checks: StreamChecks::default(),
        tolerant_until: Lsn(0),
        checkpoint_distance: u64::MAX,
    }
}

fn ingest(target: &Arc<Dictionary>) -> WalIngest<Dictionary> {
    WalIngest::new(Arc::clone(target), settings(START)).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.replace([' ', '\n'], "").len() / 2)
        .map(|i| u8::from_str_radix(&text.replace([' ', '\n'], "")[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

/// Short records from `START` on, on one page; `ends` are their rounded ends.
struct Wal {
    bytes: Vec<u8>,
    ends: Vec<Lsn>,
}

impl Wal {
    fn new() -> Wal {
        Wal { bytes: Vec::new(), ends: Vec::new() }
    }

    fn add(mut self, rmid: u8, info: u8, xid: u32, blocks: &[(RelTag, u32)], main: &[u8]) -> Wal {
        let mut r = vec![0; 24];
        for (id, (rel, block)) in blocks.iter().enumerate() {
            r.extend([id as u8, rel.forknum, 0, 0]);
            for number in [rel.spcnode, rel.dbnode, rel.relnode, *block] {
                r.extend(number.to_le_bytes());
            }
        }
        r.extend([0xFE]);
        r.extend((main.len() as u32).to_le_bytes());
        r.extend(main);
        let len = r.len() as u32;
        r[..4].copy_from_slice(&len.to_le_bytes());
        r[4..8].copy_from_slice(&xid.to_le_bytes());
        (r[16], r[17]) = (info, rmid);
        let crc = record_crc(&r);
        r[20..24].copy_from_slice(&crc.to_le_bytes());
        r.resize(r.len().next_multiple_of(8), 0);
        self.bytes.extend(r);
        self.ends.push(Lsn(START + self.bytes.len() as u64));
        assert!(self.bytes.len() < 8000, "one page");
        self
    }

    fn heap(self, blocks: &[u32]) -> Wal {
        let blocks: Vec<_> = blocks.iter().map(|block| (REL, *block)).collect();
        self.add(rmgr::BTREE, 0, 0, &blocks, &[])
    }
}

fn run(target: &Arc<Dictionary>, wal: &Wal) -> Vec<RareRecord> {
    let mut ingest = ingest(target);
    ingest.feed(&wal.bytes);
    drain(&mut ingest, target)
}

fn stock(major: u8) -> Arc<Dictionary> {
    Arc::new(Dictionary::new(major, Flavour::Stock))
}

fn blocks_at(target: &Dictionary, rel: RelTag, lsn: Lsn) -> Vec<(u32, bool)> {
    let state = target.state();
    let blocks = state.values.iter().filter(|(key, _)| key.is_rel_block() && key.rel_tag() == rel);
    blocks.filter_map(|(key, v)| Some((key.field6, v.get(&lsn)?[..4] == [0; 4]))).collect()
}

#[test]
fn relations_appear_implicitly_and_gaps_are_filled_with_zeros() {
    let target = stock(15);
    let wal = Wal::new().heap(&[1]).heap(&[0]).heap(&[10]).heap(&[20]);
    let rare = run(&target, &wal);
    let details: Vec<_> = rare.iter().map(|r| (r.lsn, r.detail.clone())).collect();
    assert_eq!(details, [(wal.ends[0], RareDetail::RelationCreate { rel: REL, implicit: true })]);
    assert_eq!(blocks_at(&target, REL, wal.ends[0]), [(0, true), (1, false)], "block 0 is the gap");
    assert_eq!(blocks_at(&target, REL, wal.ends[1]), [(0, false)]);
    let gap: Vec<_> = (11..20).map(|b| (b, true)).chain([(20, false)]).collect();
    assert_eq!(blocks_at(&target, REL, wal.ends[3]), gap);
    assert_eq!(target.size(REL), Some(21));
    let sizes: Vec<_> = target.history(Key::rel_size(REL)).into_iter().map(|(lsn, _)| lsn).collect();
    assert_eq!(sizes, [wal.ends[0], wal.ends[2], wal.ends[3]], "one value for a record, none without growth");
    assert_eq!(target.state().noted[&REL], (wal.ends[3], 21));
}

#[test]
fn a_value_of_the_same_record_wins_over_the_zeros() {
    let target = stock(15);
    target.add_rel(REL, 0);
    let wal = Wal::new().heap(&[5, 3, 7]);
    assert!(run(&target, &wal).is_empty());
    let want = (0..8).map(|b| (b, ![3, 5, 7].contains(&b))).collect::<Vec<_>>();
    assert_eq!(blocks_at(&target, REL, wal.ends[0]), want);
    assert_eq!(target.size(REL), Some(8));
}

#[test]
fn each_shard_fills_its_own_gaps_and_only_shard_zero_knows_the_size() {
    let wal = Wal::new().heap(&[63]);
    let mut zeros = BTreeSet::new();
    for number in 0..2 {
        let mut target = Dictionary::new(15, Flavour::Neon);
        target.shard = ShardIdentity { number, count: 2, stripe_size: 4 };
        let (shard, target) = (target.shard, Arc::new(target));
        target.add_rel(REL, 0);
        run(&target, &wal);
        let is_owner = shard.is_local(&Key::rel_block(REL, 63));
        assert_eq!(target.size(REL), Some(if number == 0 || is_owner { 64 } else { 0 }));
        for (block, is_image) in blocks_at(&target, REL, wal.ends[0]) {
            assert!(shard.is_local(&Key::rel_block(REL, block)));
            assert_eq!(is_image, block != 63);
            assert!(zeros.insert(block));
        }
        assert_eq!(target.state().last, wal.ends[0], "all shards advance");
    }
    let zero_and_owner_hold_all = zeros.len() == 64 || zeros.iter().all(|b| *b < 64);
    assert!(zero_and_owner_hold_all);
}

#[test]
fn commits_come_every_100_records_and_pass_through_each() {
    let target = stock(15);
    target.add_rel(REL, 1);
    let mut wal = Wal::new();
    for _ in 0..130 {
        wal = wal.heap(&[0]);
    }
    let mut ingest = ingest(&target);
    for byte in wal.bytes.chunks(1) {
        ingest.feed(byte);
    }
    drain(&mut ingest, &target);
    let state = target.state();
    assert_eq!(state.commits.iter().map(Vec::len).collect::<Vec<_>>(), [100, 30]);
    assert_eq!(state.commits.concat(), wal.ends);
    assert_eq!((state.last, state.prev), (wal.ends[129], wal.ends[128]));
    drop(state);
    assert_eq!((ingest.lsn(), ingest.records(), ingest.fed_until()), (wal.ends[129], 130, wal.ends[129]));
}

#[test]
fn large_values_are_committed_early_and_blocks_of_a_record_share_its_bytes() {
    let target = stock(15);
    target.add_rel(REL, 9);
    let mut modification = Modification::new();
    use pagecore::wal::ValueSink;
    modification.put_record(Key::rel_block(REL, 0), Lsn(8), false, b"abc");
    modification.put_record(Key::rel_block(REL, 1), Lsn(8), true, b"abc");
    modification.put_record(Key::rel_block(REL, 2), Lsn(8), false, b"abc");
    modification.put_record(Key::rel_block(REL, 3), Lsn(16), false, b"abd");
    let places: Vec<_> = modification.batch.entries.iter().map(|e| (e.offset, e.will_init)).collect();
    assert_eq!(places, [(0, false), (20, true), (0, false), (40, false)]);
}

#[test]
fn visibility_bits_are_cleared_where_the_map_has_pages() {
    let target = stock(15);
    target.add_rel(REL, 40_000);
    target.add_rel(VM, 2);
    let update = |flags: u8| [&[0xEA, 2, 0, 0, 1, 0, 0, flags][..], &[0; 6]].concat();
    let heap = |wal: Wal, blocks: &[u32], flags| {
        let blocks: Vec<_> = blocks.iter().map(|b| (REL, *b)).collect();
        wal.add(rmgr::HEAP, 0x20, 0, &blocks, &update(flags))
    };
    let mut wal = Wal::new();
    for (blocks, flags) in [(&[14, 2][..], 3), (&[32_672, 2], 3), (&[2, 0], 1), (&[14], 2)] {
        wal = heap(wal, blocks, flags);
    }
    let lock = unhex("ea020000 0100 06 01");
    wal = wal.add(rmgr::HEAP, 0x60, 0, &[(REL, 5)], &lock);
    run(&target, &wal);
    let clear = |lsn: usize, new_heap_block, old_heap_block, flags| {
        (wal.ends[lsn], Value::Record(Record::ClearVisibilityMapFlags { new_heap_block, old_heap_block, flags }))
    };
    assert_eq!(
        target.history(Key::rel_block(VM, 0)),
        [
            clear(0, Some(14), Some(2), 3),
            clear(1, None, Some(2), 3),
            clear(2, None, Some(0), 3),
            clear(3, Some(14), None, 3),
            clear(4, None, Some(5), 2)
        ]
    );
    assert_eq!(target.history(Key::rel_block(VM, 1)), [clear(1, Some(32_672), None, 3)]);
}

#[test]
fn clears_beyond_the_map_are_counted_and_ignored() {
    let target = stock(15);
    target.add_rel(REL, 40_000);
    let insert = |wal: Wal, block| wal.add(rmgr::HEAP, 0x00, 0, &[(REL, block)], &[1, 0, 1]);
    let wal = insert(insert(Wal::new(), 3), 32_672);
    let mut without = ingest(&target);
    without.feed(&wal.bytes);
    drain(&mut without, &target);
    assert_eq!(without.ignored_vm_clears(), 2, "no map at all");
    let target = stock(15);
    target.add_rel(REL, 40_000);
    target.add_rel(VM, 1);
    let mut short = ingest(&target);
    short.feed(&wal.bytes);
    drain(&mut short, &target);
    assert_eq!(short.ignored_vm_clears(), 1);
    assert_eq!(target.history(Key::rel_block(VM, 0)).len(), 1);
    assert!(target.history(Key::rel_block(VM, 1)).is_empty());
}

#[test]
fn while_a_rare_record_is_applied_its_writes_can_be_read() {
    let target = stock(15);
    target.add_rel(REL, 2);
    let wal = Wal::new().add(rmgr::SMGR, 0x10, 0, &[], &unhex("7f060000 05000000 09400000 00000000")).heap(&[1]);
    let mut ingest = ingest(&target);
    assert!(matches!(ingest.put(Key::DBDIR, b"x"), Err(IngestError::Misuse(_))));
    ingest.feed(&wal.bytes);
    let Step::Rare(rare) = ingest.run().unwrap() else { panic!() };
    let rel = RelTag { relnode: 0x4009, ..REL };
    assert_eq!(rare.detail, RareDetail::RelationCreate { rel, implicit: false });
    assert!(matches!(ingest.commit(), Err(IngestError::Misuse(_))));
    assert_eq!(ingest.get(Key::DBDIR).unwrap(), None);
    ingest.put(Key::DBDIR, b"one").unwrap();
    ingest.put(Key::DBDIR, b"two").unwrap();
    assert_eq!(ingest.get(Key::DBDIR).unwrap().unwrap(), &b"two"[..]);
    assert_eq!(ingest.rel_size(rel).unwrap(), None);
    ingest.set_rel_size(rel, 0).unwrap();
    assert_eq!(ingest.rel_size(rel).unwrap(), Some(0));
    let encoded = Value::Record(Record::TruncateVisibilityMap { byte: 3, bit_offset: 4 }).encode();
    ingest.put_value(Key::rel_block(VM, 0), &encoded).unwrap();
    assert!(ingest.put_value(Key::DBDIR, &encoded).is_err(), "a directory takes only images");
    assert!(ingest.put_value(Key::rel_block(VM, 0), b"junk").is_err());
    let mut checkpoint = ingest.checkpoint().clone();
    checkpoint.set_redo(7);
    ingest.set_checkpoint(checkpoint.clone()).unwrap();
    assert_eq!(ingest.get(Key::CHECKPOINT).unwrap().unwrap(), &checkpoint.0[..]);
    ingest.copy_relation(REL, rel, 0).unwrap();
    assert!(matches!(ingest.run().unwrap(), Step::NeedInput));
    assert_eq!(target.history(Key::DBDIR), [(wal.ends[0], Value::Image(b"two"[..].into()))]);
    assert_eq!(target.history(Key::CHECKPOINT).len(), 1);
    assert_eq!(target.state().last, wal.ends[1]);
}

#[test]
fn growth_counts_each_fork_from_its_size_before_to_its_size_now() {
    let target = stock(15);
    target.add_rel(REL, 5);
    target.add_rel(VM, 2);
    let main = unhex("10400000 7f060000 05000000 7f060000");
    let wal = Wal::new().heap(&[7]).heap(&[9, 3]).add(rmgr::DBASE, 0x00, 0, &[], &main).heap(&[1]);
    let mut ingest = ingest(&target);
    ingest.feed(&wal.bytes);
    assert!(matches!(ingest.run().unwrap(), Step::Rare(_)));
    assert_eq!(ingest.growth(), Growth { lsn: wal.ends[1], bytes: 5 * 8192 }, "from 5 to 8, from 8 to 10");
    ingest.forget_rel(VM).unwrap();
    ingest.set_rel_size(REL, 4).unwrap();
    assert_eq!(ingest.run().unwrap(), Step::NeedInput);
    let bytes = (5 - 6 - 2) * 8192;
    assert_eq!(ingest.growth(), Growth { lsn: wal.ends[3], bytes }, "a fork that nobody asked for has its stored size");
}

#[test]
fn a_relation_is_copied_block_by_block() {
    let target = stock(15);
    target.add_rel(REL, 600);
    for block in 0..600u32 {
        let page = Value::Image(vec![block as u8; BLCKSZ].into()).encode();
        target.state().values.entry(Key::rel_block(REL, block)).or_default().insert(Lsn(8), page);
    }
    let main = unhex("10400000 7f060000 05000000 7f060000");
    let wal = Wal::new().add(rmgr::DBASE, 0x00, 0, &[], &main);
    let mut ingest = ingest(&target);
    ingest.feed(&wal.bytes);
    assert!(matches!(ingest.run().unwrap(), Step::Rare(_)));
    let copy = RelTag { dbnode: 0x4010, ..REL };
    ingest.copy_relation(REL, copy, 600).unwrap();
    ingest.set_rel_size(copy, 600).unwrap();
    assert_eq!(ingest.growth(), Growth { lsn: Lsn(16), bytes: 0 }, "not committed yet");
    ingest.run().unwrap();
    assert_eq!(ingest.growth(), Growth { lsn: wal.ends[0], bytes: 600 * 8192 });
    for block in 0..600 {
        let want = (wal.ends[0], Value::Image(vec![block as u8; BLCKSZ].into()));
        assert_eq!(target.history(Key::rel_block(copy, block)), [want]);
    }
}

#[test]
fn bad_wal_stops_ingest_for_good() {
    let target = stock(15);
    target.add_rel(REL, 1);
    let mut wal = Wal::new().heap(&[0]).heap(&[0]);
    let at = wal.bytes.len() - 8;
    wal.bytes[at] ^= 1;
    let mut ingest = ingest(&target);
    ingest.feed(&wal.bytes);
    let error = ingest.run().unwrap_err();
    assert!(error.to_string().contains("WAL record crc mismatch at 0/10000"), "{error}");
    assert!(matches!(ingest.run(), Err(IngestError::Misuse(_))));
    assert_eq!(target.state().last, Lsn(16), "nothing of the batch became readable");
}

#[path = "again_tests.rs"]
mod again;
#[path = "recorded_tests.rs"]
mod recorded;
#[path = "slru_tests.rs"]
mod slru;
