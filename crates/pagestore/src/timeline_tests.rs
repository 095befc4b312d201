use std::sync::mpsc;

use pagecore::layer::Compression;
use pagecore::RelTag;

use super::*;
use crate::image_layer::{ImageLayerPlan, Piece};
use crate::testing::{store_config, TempDir};

fn batch(lsn: u64) -> WriteBatch {
    let mut batch = WriteBatch::default();
    batch.push_image(Key::CHECKPOINT, Lsn(lsn), &[1; 88]);
    batch
}

#[test]
fn advancing_tracks_the_previous_record_and_never_goes_back() {
    let dir = TempDir::new();
    let store = TimelineStore::new(store_config(&dir, 0x10)).unwrap();
    store.commit(&batch(0x18), &[Lsn(0x18), Lsn(0x20)]).unwrap();
    assert_eq!(store.record_lsns(), (Lsn(0x20), Lsn(0x18)));
    store.advance(Lsn(0x20)).unwrap();
    assert_eq!(store.record_lsns(), (Lsn(0x20), Lsn(0x18)));
    assert!(store.advance(Lsn(0x18)).is_err());
    assert!(store.put_batch(&batch(0x18)).is_err(), "below the last record");
}

#[test]
fn layers_follow_one_another_without_a_gap() {
    let dir = TempDir::new();
    let store = TimelineStore::new(store_config(&dir, 0x10)).unwrap();
    assert_eq!(store.freeze().unwrap(), None);
    store.commit(&batch(0x18), &[Lsn(0x18)]).unwrap();
    assert_eq!(store.open_layer().unwrap().lsn_start, Lsn(0x11));
    assert_eq!(store.freeze().unwrap(), Some(Lsn(0x19)));
    assert!(store.open_layer().is_none());
    store.advance(Lsn(0x40)).unwrap();
    assert_eq!(store.freeze().unwrap(), None);
    store.commit(&batch(0x48), &[Lsn(0x48)]).unwrap();
    assert_eq!(store.open_layer().unwrap().lsn_start, Lsn(0x19));
    store.put_batch(&batch(0x50)).unwrap();
    assert!(store.writer().freeze().is_err(), "a commit is half done");
    std::thread::scope(|scope| {
        let freeze = scope.spawn(|| store.freeze());
        store.advance(Lsn(0x50)).unwrap();
        assert_eq!(freeze.join().unwrap(), Ok(Some(Lsn(0x51))));
    });
    assert_eq!(store.frozen_layers(), 2);
}

#[test]
fn waiters_are_woken_by_their_lsn() {
    let dir = TempDir::new();
    let store = TimelineStore::new(store_config(&dir, 0x10)).unwrap();
    let (sender, woken) = mpsc::channel();
    for lsn in [0x10, 0x20, 0x30] {
        let sender = sender.clone();
        store.on_lsn(Lsn(lsn), Box::new(move || sender.send(lsn).unwrap()));
    }
    assert_eq!(woken.try_iter().collect::<Vec<_>>(), [0x10]);
    store.advance(Lsn(0x18)).unwrap();
    assert_eq!(woken.try_iter().count(), 0);
    store.advance(Lsn(0x20)).unwrap();
    assert_eq!(woken.try_iter().collect::<Vec<_>>(), [0x20]);
    store.shutdown();
    drop(sender);
    assert!(woken.recv().is_err(), "the last waker is dropped uncalled");
}

#[test]
fn blocking_waits_end_by_record_deadline_or_shutdown() {
    let dir = TempDir::new();
    let store = TimelineStore::new(store_config(&dir, 0x10)).unwrap();
    let soon = || Instant::now() + Duration::from_millis(20);
    let later = || Instant::now() + Duration::from_secs(60);
    assert_eq!(store.wait_lsn(Lsn(0x10), soon()), Ok(true));
    assert_eq!(store.wait_lsn(Lsn(0x20), soon()), Ok(false));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.wait_lsn(Lsn(0x20), later()));
        store.advance(Lsn(0x28)).unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(true));
        let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| store.wait_lsn(Lsn(0x30), later()))).collect();
        store.shutdown();
        for waiting in waiting {
            assert_eq!(waiting.join().unwrap(), Err(StoreError::Stopped));
        }
    });
    assert_eq!(store.put_batch(&batch(0x30)), Err(StoreError::Stopped));
}

#[test]
fn nothing_below_a_gap_is_seen_from_above_it() {
    let dir = TempDir::new();
    let store = TimelineStore::new(store_config(&dir, 0x10)).unwrap();
    let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, forknum: 0 };
    let (gone, aux) = (Key::rel_block(rel, 0), Key { field1: 0x62, field6: 7, ..Key::MIN });
    let mut old = batch(0x18);
    old.push_image(gone, Lsn(0x18), &[7; 8192]);
    old.push_image(aux, Lsn(0x18), b"file");
    store.commit(&old, &[Lsn(0x18)]).unwrap();
    store.rel_size_cache().set(rel, Lsn(0x18), 1);
    assert!(store.writer().resume_at(Lsn(0x100)).is_err(), "not flushed");
    store.freeze().unwrap();
    store.flush_oldest(None).unwrap();
    let everything = Key::MIN..Key::MAX;
    let plan =
        ImageLayerPlan { keys: everything, lsn: Lsn(0x100), generation: None, compression: Compression::Disabled };
    store.write_image_layer(&plan, [Piece::Bytes { key: Key::CHECKPOINT, value: &[2; 88] }]).unwrap();
    assert!(store.writer().resume_at(Lsn(0x18)).is_err(), "not forward");
    store.writer().resume_at(Lsn(0x100)).unwrap();
    assert_eq!(store.record_lsns(), (Lsn(0x100), Lsn::INVALID));
    assert_eq!(store.disk_consistent_lsn(), Lsn(0x100));
    assert_eq!(store.rel_size_cache().get(&rel, Lsn(0x100)), None);
    store.commit(&batch(0x108), &[Lsn(0x108)]).unwrap();
    assert_eq!(store.get(Key::CHECKPOINT, Lsn(0x108)).unwrap()[..], [1; 88]);
    for above in [0x100, 0x108] {
        assert!(matches!(store.get(gone, Lsn(above)), Err(StoreError::MissingKey { .. })));
        assert_eq!(store.scan(aux..aux.next(), Lsn(above)).unwrap(), []);
    }
    for below in [0x18, 0xFF] {
        assert_eq!(store.get(gone, Lsn(below)).unwrap()[..], [7; 8192]);
        assert_eq!(store.scan(aux..aux.next(), Lsn(below)).unwrap().len(), 1);
    }
}
