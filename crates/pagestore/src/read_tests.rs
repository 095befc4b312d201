use std::collections::BTreeMap as Map;

use pagecore::layer::{Compression, LayerName};
use pagecore::value::{Record, Value};
use pagecore::{RelTag, SlruKind, BLCKSZ};

use super::*;
use crate::image_layer::{ImageLayerPlan, Piece};
use crate::inmemory::WriteBatch;
use crate::layer_file::Caches;
use crate::testing::{store_config, Random, TempDir};
use crate::WrittenLayer;

const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, forknum: 0 };

fn block(n: u32) -> Key {
    Key::rel_block(REL, n)
}

fn page(fill: u8) -> Vec<u8> {
    vec![fill; BLCKSZ]
}

fn new_store(dir: &TempDir) -> Arc<TimelineStore> {
    TimelineStore::new(store_config(dir, 0x10)).unwrap()
}

fn put(store: &TimelineStore, lsn: u64, items: &[(Key, &[u8])]) {
    store.put_images(Lsn(lsn), items.iter().map(|(k, v)| (*k, *v))).unwrap();
}

fn flush(store: &TimelineStore) -> WrittenLayer {
    store.freeze().unwrap();
    store.flush_oldest(Some(1)).unwrap().unwrap()
}

fn image_plan(keys: Range<Key>, lsn: u64) -> ImageLayerPlan {
    ImageLayerPlan { keys, lsn: Lsn(lsn), generation: Some(1), compression: Compression::default() }
}

#[test]
fn a_read_sees_its_own_lsn_and_nothing_later() {
    let dir = TempDir::new();
    let store = new_store(&dir);
    put(&store, 0x18, &[(block(1), &page(1))]);
    put(&store, 0x20, &[(block(1), &page(2))]);
    for _ in 0..2 {
        assert_eq!(store.get(block(1), Lsn(0x20)).unwrap(), page(2));
        assert_eq!(store.get(block(1), Lsn(0x1F)).unwrap(), page(1));
        assert_eq!(store.get(block(1), Lsn(0x18)).unwrap(), page(1));
        let error = store.get(block(1), Lsn(0x17)).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("could not find data for key {} (shard ShardNumber(0)), original HWM LSN 0/17", block(1))
        );
        assert_eq!(store.get(block(1), Lsn(0)).unwrap_err().to_string(), "Invalid LSN");
        if store.open_layer().is_some() {
            let written = flush(&store);
            assert_eq!(written.name.lsns, Lsn(0x11)..Lsn(0x21));
            assert_eq!(store.disk_consistent_lsn(), Lsn(0x20));
        }
    }
}

#[test]
fn a_branch_sees_its_parent_up_to_the_branch_point() {
    let (dir, child_dir) = (TempDir::new(), TempDir::new());
    let parent = new_store(&dir);
    let origin = Key { field1: 0x63, field6: 1, ..Key::MIN };
    let reldir = Key::reldir_v2(REL);
    put(&parent, 0x20, &[(block(1), &page(1)), (block(2), &page(1)), (origin, b"12345678"), (reldir, b"r")]);
    put(&parent, 0x30, &[(block(1), &page(2))]);
    let config = store_config(&child_dir, 0x28);
    let child = TimelineStore::new(crate::TimelineConfig {
        ancestor: Some(Arc::clone(&parent)),
        ancestor_lsn: Lsn(0x28),
        ..config
    })
    .unwrap();
    put(&child, 0x38, &[(block(2), &page(3))]);
    for flushed in [false, true] {
        if flushed {
            flush(&parent);
            flush(&child);
        }
        let got = child.get_vectored(&[(block(1), Lsn(0x40)), (block(2), Lsn(0x40)), (block(2), Lsn(0x30))]);
        let got: Vec<_> = got.into_iter().map(|r| r.unwrap()[0]).collect();
        assert_eq!(got, [1, 3, 1]);
        assert_eq!(parent.get(block(1), Lsn(0x40)).unwrap(), page(2));
        assert!(child.get(origin, Lsn(0x40)).unwrap_err().is_missing_key(), "not inherited");
        assert_eq!(child.get(reldir, Lsn(0x40)).unwrap(), &b"r"[..]);
        let all = child.scan(Key::SPARSE_START..Key::SPARSE_END, Lsn(0x40)).unwrap();
        assert_eq!(all, [(reldir, Bytes::from_static(b"r"))]);
        assert_eq!(parent.scan(Key::SPARSE_START..Key::SPARSE_END, Lsn(0x40)).unwrap().len(), 2);
    }
    let error = child.get(block(9), Lsn(0x40)).unwrap_err();
    assert!(error.to_string().ends_with(", original HWM LSN 0/40, ancestor 0/28"), "{error}");
}

#[test]
fn a_branch_of_a_branch_sees_no_more_than_its_parent_did_then() {
    let dirs = [TempDir::new(), TempDir::new(), TempDir::new()];
    let first = new_store(&dirs[0]);
    put(&first, 0x20, &[(block(1), &page(1))]);
    put(&first, 0x40, &[(block(1), &page(2)), (block(2), &page(2))]);
    let branch = |dir, ancestor: &Arc<TimelineStore>, lsn| {
        let ancestor = Some(Arc::clone(ancestor));
        let config = store_config(dir, lsn);
        TimelineStore::new(crate::TimelineConfig { ancestor, ancestor_lsn: Lsn(lsn), ..config }).unwrap()
    };
    let second = branch(&dirs[1], &first, 0x40);
    let third = branch(&dirs[2], &second, 0x30);
    assert_eq!(second.get(block(1), Lsn(0x50)).unwrap(), page(2));
    assert_eq!(third.get(block(1), Lsn(0x50)).unwrap(), page(1));
    assert!(third.get(block(2), Lsn(0x50)).unwrap_err().is_missing_key());
}

#[test]
fn what_an_image_layer_covers_and_does_not_hold_does_not_exist() {
    let (dir, child_dir) = (TempDir::new(), TempDir::new());
    let store = new_store(&dir);
    let sparse = Key { field1: 0x65, field6: 7, ..Key::MIN };
    put(&store, 0x20, &[(block(1), &page(1)), (block(2), &page(2)), (sparse, b"x")]);
    flush(&store);
    store.advance(Lsn(0x40)).unwrap();
    let value = page(9);
    let pieces = [Piece::Bytes { key: block(1), value: &value }];
    store.write_image_layer(&image_plan(Key::MIN..Key::MAX, 0x30), pieces).unwrap();
    assert_eq!(store.get(block(1), Lsn(0x40)).unwrap(), value);
    assert!(store.get(block(2), Lsn(0x40)).unwrap_err().is_missing_key());
    assert_eq!(store.get(block(2), Lsn(0x2F)).unwrap(), page(2));
    assert_eq!(store.scan(Key::SPARSE_START..Key::SPARSE_END, Lsn(0x40)).unwrap(), []);
    assert_eq!(store.scan(Key::SPARSE_START..Key::SPARSE_END, Lsn(0x2F)).unwrap().len(), 1);
    // Nor does a branch look for it further down.
    let config = store_config(&child_dir, 0x38);
    let ancestor = Some(Arc::clone(&store));
    let child = TimelineStore::new(crate::TimelineConfig { ancestor, ancestor_lsn: Lsn(0x38), ..config }).unwrap();
    assert!(child.get(block(2), Lsn(0x40)).unwrap_err().is_missing_key());
    assert_eq!(child.get(block(1), Lsn(0x40)).unwrap(), value);
}

#[test]
fn a_scan_keeps_to_the_sparse_keyspace() {
    let dir = TempDir::new();
    let store = new_store(&dir);
    let range = |a, b| Key { field1: a, ..Key::MIN }..Key { field1: b, ..Key::MIN };
    for bad in [range(0x5F, 0x61), range(0x70, 0x80), range(0, 1)] {
        assert_eq!(store.scan(bad, Lsn(0x10)).unwrap_err().to_string(), "only metadata keyspace can be scanned");
    }
    assert_eq!(store.scan(range(0x60, 0x7F), Lsn(0x10)).unwrap(), []);
    assert_eq!(store.scan(range(0x60, 0x7F), Lsn(0)), Err(StoreError::InvalidLsn));
}

/// A record of CLOG: sets two bits a transaction, so that the result tells which records were applied.
fn commit_record(xid: u32) -> Value<'static> {
    Value::Record(Record::ClogSetCommitted { xids: vec![xid], timestamp: i64::from(xid) })
}

fn put_value(store: &TimelineStore, lsn: u64, key: Key, value: &Value<'_>) {
    let mut batch = WriteBatch::default();
    batch.push(key, Lsn(lsn), &value.encode(), value.will_init());
    store.commit(&batch, &[Lsn(lsn)]).unwrap();
}

/// The CLOG page after commits of the transactions 0..n.
fn clog_page(n: u32) -> Vec<u8> {
    let mut page = vec![0; BLCKSZ];
    (0..n).for_each(|xid| page[xid as usize / 4] |= 1 << (xid % 4 * 2));
    if n > 0 {
        page.extend_from_slice(&i64::from(n - 1).to_be_bytes());
    }
    page
}

#[test]
fn records_are_replayed_over_the_image_below_them_wherever_they_lie() {
    let dir = TempDir::new();
    let store = new_store(&dir);
    let key = Key::slru_block(SlruKind::Clog, 0, 0);
    put(&store, 0x20, &[(key, &page(0))]);
    for n in 0..100u32 {
        put_value(&store, 0x28 + 8 * u64::from(n), key, &commit_record(n));
        if n % 30 == 29 {
            flush(&store);
        }
    }
    for n in (0..=100u32).rev().chain(0..=100) {
        let lsn = Lsn(0x20 + 8 * u64::from(n));
        assert_eq!(store.get(key, lsn).unwrap(), clog_page(n), "after {n} records");
    }
    let stats = store.caches.pages.stats();
    assert!(stats.entries == 1 && stats.hits > 0, "{stats:?}");
}

#[test]
fn a_page_of_many_records_is_replayed_once() {
    let dir = TempDir::new();
    let store = new_store(&dir);
    let key = Key::slru_block(SlruKind::Clog, 0, 0);
    put(&store, 0x20, &[(key, &page(0))]);
    let mut lsn = 0x20;
    for n in 0..1000u32 {
        lsn += 8;
        put_value(&store, lsn, key, &commit_record(n));
    }
    assert_eq!(store.get_page(key, Lsn(lsn)).unwrap().replayed, 1000);
    assert_eq!(store.get_page(key, Lsn(lsn)).unwrap().replayed, 0);
    flush(&store);
    put_value(&store, lsn + 8, key, &commit_record(1000));
    let page = store.get_page(key, Lsn(lsn + 8)).unwrap();
    assert_eq!((page.replayed, page.bytes), (1, Bytes::from(clog_page(1001))));
    // Below the page that is kept, the whole chain again.
    assert_eq!(store.get_page(key, Lsn(lsn - 8)).unwrap().replayed, 999);
}

#[test]
fn a_chain_without_a_base_is_an_error_of_its_key_only() {
    let dir = TempDir::new();
    let store = new_store(&dir);
    let key = Key::slru_block(SlruKind::Clog, 0, 0);
    put_value(&store, 0x20, key, &commit_record(1));
    put(&store, 0x28, &[(block(1), &page(1))]);
    let mut got = store.get_vectored(&[(key, Lsn(0x28)), (block(1), Lsn(0x28))]);
    assert_eq!(got.pop().unwrap().unwrap(), page(1));
    let error = got.pop().unwrap().unwrap_err().to_string();
    assert!(error.contains(&format!("Base image for {key} at 0/28 not found, but got 1 WAL records")), "{error}");
}

#[test]
fn a_file_that_is_there_is_not_replaced_and_failures_leave_nothing_behind() {
    let dir = TempDir::new();
    let store = new_store(&dir);
    put(&store, 0x20, &[(block(1), &page(1))]);
    store.freeze().unwrap();
    let name = LayerName::l0(Lsn(0x11)..Lsn(0x21)).local_name(Some(1));
    std::fs::write(dir.path().join(&name), b"somebody else's").unwrap();
    assert!(matches!(store.flush_oldest(Some(1)), Err(StoreError::Exists { .. })));
    assert_eq!(store.frozen_layers(), 1);
    assert_eq!(store.get(block(1), Lsn(0x20)).unwrap(), page(1));
    assert_eq!(std::fs::read(dir.path().join(&name)).unwrap(), b"somebody else's");
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(names, [std::ffi::OsString::from(&name)]);
    store.flush_oldest(Some(2)).unwrap().unwrap();
    assert_eq!(store.frozen_layers(), 0);
    assert_eq!(store.flush_oldest(Some(2)), Ok(None));
    // An image out of its range, images out of order.
    let value = page(1);
    let piece = |n| Piece::Bytes { key: block(n), value: &value };
    assert!(store.write_image_layer(&image_plan(block(1)..block(3), 0x20), [piece(3)]).is_err());
    assert!(store.write_image_layer(&image_plan(block(1)..block(3), 0x20), [piece(2), piece(1)]).is_err());
    assert!(store.write_image_layer(&image_plan(block(1)..block(3), 0x20), []).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_removed_layer_serves_those_who_hold_it() {
    let dir = TempDir::new();
    let store = new_store(&dir);
    put(&store, 0x20, &[(block(1), &page(1))]);
    let written = flush(&store);
    let before = store.map();
    store.remove_layers(std::slice::from_ref(&written.name), true).unwrap();
    assert!(!written.path.exists());
    assert!(store.get(block(1), Lsn(0x20)).unwrap_err().is_missing_key());
    let file = before.historic.get(&written.name).unwrap();
    let mut extents = Vec::new();
    assert!(file.find_deltas(&block(1), &(Lsn(0)..Lsn(0x21)), &mut extents).unwrap());
    let value = file.read_blob(&extents[0]).unwrap();
    assert_eq!(value[12..], page(1));
    assert!(store.remove_layers(&[written.name], true).is_err(), "it is gone");
}

#[test]
fn layers_from_pieces_of_files_and_from_own_data_hold_the_same() {
    let dir = TempDir::new();
    let store = new_store(&dir);
    let data = dir.path().join("relation");
    let mut bytes = vec![7; BLCKSZ];
    (0..300u32).for_each(|n| bytes.extend_from_slice(&page(n as u8)));
    std::fs::write(&data, bytes).unwrap();
    let size = 300u32.to_le_bytes();
    let pieces = [
        Piece::File { first_key: block(0), path: data.clone(), offset: BLCKSZ as u64, blocks: 300 },
        Piece::Bytes { key: Key::rel_size(REL), value: &size },
    ];
    store.write_image_layer(&image_plan(Key::MIN..Key::SPARSE_START, 0x10), pieces).unwrap();
    let sparse = Key { field1: 0x65, field6: 1, ..Key::MIN };
    let removed = Key { field1: 0x65, field6: 2, ..Key::MIN };
    put(&store, 0x20, &[(block(3), &page(99)), (sparse, b"r"), (removed, b"")]);
    let scanned = store.scan(Key::SPARSE_START..Key::SPARSE_END, Lsn(0x20)).unwrap();
    assert_eq!(scanned, [(sparse, Bytes::from_static(b"r")), (removed, Bytes::new())]);
    let dense = [block(0)..block(300), Key::rel_size(REL)..Key::rel_size(REL).next()];
    let all_sparse = [Key::SPARSE_START..Key::SPARSE_END];
    let plan = image_plan(Key::MIN..Key::MAX, 0x20);
    let written = store.create_image_layer(&plan, &dense, &all_sparse).unwrap().unwrap();
    let (file, _) = crate::layer_file::inspect(&written.path).unwrap();
    let mut keys = Vec::new();
    file.for_each_entry(&(Key::MIN..Key::MAX), |key, extent| {
        keys.push((key, file.read_blob(&extent)?));
        Ok(true)
    })
    .unwrap();
    assert_eq!(keys.len(), 302, "tombstones are left out");
    assert_eq!(file.check().unwrap(), 302);
    for (key, value) in &keys {
        assert_eq!(store.get(*key, Lsn(0x20)).as_ref(), Ok(value));
        if key.is_rel_block() {
            let want = if key.field6 == 3 { 99 } else { key.field6 as u8 };
            assert_eq!(*value, page(want));
        }
    }
    let nothing = store.create_image_layer(&image_plan(Key::MIN..Key::MAX, 0x18), &[], &[]).unwrap();
    assert_eq!(nothing, None);
}

#[test]
fn sizes_and_existence_come_from_the_directories() {
    let dir = TempDir::new();
    let store = new_store(&dir);
    let databases = hex("0000000000000001 0000067f 00000005 01");
    let relations = hex("0000000000000002 00004000 00 00004000 02");
    let vm = RelTag { forknum: 2, ..REL };
    let fsm = RelTag { forknum: 1, ..REL };
    put(
        &store,
        0x20,
        &[
            (Key::DBDIR, &databases),
            (Key::reldir(1663, 5), &relations),
            (Key::rel_size(REL), &3u32.to_le_bytes()),
            (Key::rel_size(vm), &1u32.to_le_bytes()),
        ],
    );
    put(&store, 0x30, &[(Key::rel_size(REL), &8u32.to_le_bytes())]);
    for _ in 0..2 {
        assert_eq!(store.rel_size(REL, Lsn(0x30)), Ok(Some(8)));
        assert_eq!(store.rel_size(REL, Lsn(0x38)), Ok(Some(8)));
        assert_eq!(store.rel_size(REL, Lsn(0x28)), Ok(Some(3)));
        assert_eq!(store.rel_size(vm, Lsn(0x28)), Ok(Some(1)));
        assert_eq!(store.rel_size(fsm, Lsn(0x30)), Ok(Some(0)), "absent maps have no blocks");
        assert_eq!(store.rel_exists(fsm, Lsn(0x30)), Ok(false));
        assert_eq!(store.rel_exists(REL, Lsn(0x30)), Ok(true));
        assert_eq!(store.db_size(1663, 5, Lsn(0x30)), Ok(Some(9)));
        assert_eq!(store.db_size(1663, 6, Lsn(0x30)), Ok(None));
        let other = RelTag { relnode: 1, ..REL };
        assert_eq!(store.rel_size(other, Lsn(0x30)), Ok(None));
        assert!(store.rel_size(RelTag { relnode: 0, ..REL }, Lsn(0x30)).is_err());
    }
    // After a drop the size key still has a value.
    put(&store, 0x40, &[(Key::reldir(1663, 5), &[0; 8])]);
    store.rel_size_cache().forget(&REL);
    assert_eq!(store.rel_size(REL, Lsn(0x40)), Ok(None));
    assert_eq!(store.rel_exists(REL, Lsn(0x40)), Ok(false));
    assert_eq!(store.rel_size_or_last(REL, Lsn(0x40)), Ok(8));
    assert!(store.rel_size_or_last(RelTag { relnode: 1, ..REL }, Lsn(0x40)).unwrap_err().is_missing_key());
    assert_eq!(store.rel_size(REL, Lsn(0x30)), Ok(Some(8)));
}

#[test]
fn the_second_relation_directory_decides_from_where_it_holds() {
    let dir = TempDir::new();
    let store = new_store(&dir);
    let databases = hex("0000000000000001 0000067f 00000005 01");
    let relations = hex("0000000000000001 00004000 00");
    let newer = RelTag { relnode: 16385, ..REL };
    let sizes = [(Key::rel_size(REL), &3u32.to_le_bytes()[..]), (Key::rel_size(newer), &5u32.to_le_bytes())];
    put(&store, 0x20, &[(Key::DBDIR, &databases), (Key::reldir(1663, 5), &relations), sizes[0], sizes[1]]);
    let of_another = Key::reldir_v2(RelTag { dbnode: 6, ..REL });
    put(&store, 0x30, &[(Key::reldir_v2(newer), b"r"), (Key::reldir_v2(REL), b""), (of_another, b"r")]);
    assert_eq!(store.relations(1663, 5, Lsn(0x30)), Ok(Some(vec![(16384, 0)])));
    store.set_reldir_v2_from(Lsn(0x30));
    assert_eq!(store.relations(1663, 5, Lsn(0x2F)), Ok(Some(vec![(16384, 0)])));
    assert_eq!(store.relations(1663, 5, Lsn(0x30)), Ok(Some(vec![(16385, 0)])));
    assert_eq!(store.relations(1663, 6, Lsn(0x30)), Ok(None), "the database directory is the gate");
    assert_eq!((store.rel_exists(REL, Lsn(0x30)), store.rel_exists(newer, Lsn(0x30))), (Ok(false), Ok(true)));
    assert_eq!((store.rel_size(newer, Lsn(0x30)), store.db_size(1663, 5, Lsn(0x30))), (Ok(Some(5)), Ok(Some(5))));
    put(&store, 0x40, &[(Key::reldir_v2(REL), b"x")]);
    let error = store.relations(1663, 5, Lsn(0x40)).unwrap_err().to_string();
    assert!(error.ends_with("invalid reldir key: decode failed"), "{error}");
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b' ').collect();
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

#[test]
fn a_stopped_store_answers_nobody() {
    let dir = TempDir::new();
    let store = new_store(&dir);
    put(&store, 0x20, &[(block(1), &page(1))]);
    let weak = Arc::downgrade(&store);
    assert!(upgrade(&weak).is_ok());
    store.shutdown();
    assert_eq!(store.get(block(1), Lsn(0x20)), Err(StoreError::Stopped));
    assert!(matches!(upgrade(&weak), Err(StoreError::Stopped)));
}

#[test]
fn a_client_page_is_answered_from_the_cache_up_to_where_it_is_known() {
    let dir = TempDir::new();
    let store = new_store(&dir);
    let serve = |lsn| {
        let mut pages = Vec::new();
        store.serve_pages(&[(block(1), Lsn(lsn)), (block(2), Lsn(lsn))], |page| pages.push(page.map(Vec::from)));
        pages
    };
    put(&store, 0x20, &[(block(1), &page(1)), (block(2), &page(2))]);
    flush(&store);
    for _ in 0..2 {
        assert_eq!(serve(0x20), [Ok(page(1)), Ok(page(2))]);
    }
    let stats = store.caches.pages.stats();
    assert_eq!((stats.entries, stats.hits), (2, 2));
    put(&store, 0x30, &[(block(1), &page(3))]);
    // One is replaced, the other is known to be the newest from now on; the past is still there.
    for lsn in [0x30, 0x28, 0x20, 0x30] {
        let first = if lsn == 0x30 { page(3) } else { page(1) };
        assert_eq!(serve(lsn), [Ok(first), Ok(page(2))], "at {lsn}");
    }
    put(&store, 0x40, &[(block(2), &page(4))]);
    assert_eq!(serve(0x38), [Ok(page(3)), Ok(page(2))]);
    assert_eq!(serve(0x40), [Ok(page(3)), Ok(page(4))]);
    assert!(serve(0x10).iter().all(Result::is_err), "nothing was there yet");
    store.shutdown();
    assert!(serve(0x40).iter().all(|page| *page == Err(StoreError::Stopped)));
}

/// Puts back a file that was moved away, and counts.
struct Shelf {
    from: std::path::PathBuf,
    to: std::path::PathBuf,
    calls: std::sync::atomic::AtomicUsize,
}

impl crate::LayerFetch for Shelf {
    fn fetch(&self, name: &LayerName) -> Result<(), StoreError> {
        self.calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::fs::copy(&self.from, &self.to)
            .map(|_| ())
            .map_err(|e| StoreError::Download { layer: name.to_string(), detail: e.to_string() })
    }
}

#[test]
fn an_evicted_layer_is_fetched_by_the_next_read_and_one_that_is_nowhere_else_stays() {
    let dir = TempDir::new();
    let plain = new_store(&dir);
    put(&plain, 0x20, &[(block(1), &page(1))]);
    let written = flush(&plain);
    assert!(plain.evict_layers(std::slice::from_ref(&written.name)).is_err(), "there is no other copy");
    assert!(written.path.exists());

    let shelf = Arc::new(Shelf {
        from: dir.path().join("shelf"),
        to: written.path.clone(),
        calls: std::sync::atomic::AtomicUsize::new(0),
    });
    std::fs::copy(&written.path, &shelf.from).unwrap();
    let fetch: Arc<dyn crate::LayerFetch> = Arc::clone(&shelf) as _;
    let store = TimelineStore::new(crate::TimelineConfig { fetch: Some(fetch), ..store_config(&dir, 0x20) }).unwrap();
    store.add_layers(std::slice::from_ref(&written)).unwrap();
    assert_eq!(store.get(block(1), Lsn(0x20)).unwrap()[..], page(1));
    let calls = || shelf.calls.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(calls(), 0);
    store.evict_layers(std::slice::from_ref(&written.name)).unwrap();
    assert!(!written.path.exists());
    assert_eq!(store.caches.pages.stats().entries, 0, "nothing hides the eviction");
    assert_eq!(store.get(block(1), Lsn(0x20)).unwrap()[..], page(1));
    assert_eq!(calls(), 1);
    store.evict_layers(std::slice::from_ref(&written.name)).unwrap();
    std::fs::remove_file(&shelf.from).unwrap();
    let error = store.get(block(1), Lsn(0x20)).unwrap_err();
    assert!(matches!(error, StoreError::Download { .. }), "{error}");
}

/// Says that it brought the file, and has it evicted before anybody could open it: a given number of times.
struct Evicted {
    shelf: Shelf,
    times: usize,
}

impl crate::LayerFetch for Evicted {
    fn fetch(&self, name: &LayerName) -> Result<(), StoreError> {
        self.shelf.fetch(name)?;
        if self.shelf.calls.load(std::sync::atomic::Ordering::Relaxed) <= self.times {
            std::fs::remove_file(&self.shelf.to).unwrap();
        }
        Ok(())
    }
}

#[test]
fn a_read_fetches_again_what_an_eviction_took_before_it_was_open() {
    for (times, succeeds) in [(3, true), (usize::MAX, false)] {
        let dir = TempDir::new();
        let plain = new_store(&dir);
        put(&plain, 0x20, &[(block(1), &page(1))]);
        let written = flush(&plain);
        let from = dir.path().join("shelf");
        std::fs::rename(&written.path, &from).unwrap();
        let shelf = Shelf { from, to: written.path.clone(), calls: std::sync::atomic::AtomicUsize::new(0) };
        let fetch = Arc::new(Evicted { shelf, times });
        let config = crate::TimelineConfig { fetch: Some(Arc::clone(&fetch) as _), ..store_config(&dir, 0x20) };
        let store = TimelineStore::new(config).unwrap();
        store.add_layers(std::slice::from_ref(&written)).unwrap();
        let answer = store.get(block(1), Lsn(0x20));
        let calls = fetch.shelf.calls.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!((answer.is_ok(), calls), (succeeds, if succeeds { 4 } else { 8 }), "{answer:?}");
    }
}

#[path = "read_damage_tests.rs"]
mod damage;
#[path = "read_model_tests.rs"]
mod model;
