use super::*;

fn key(block: u32) -> Key {
    Key { field1: 0, field2: 1663, field3: 5, field4: 16384, field5: 0, field6: block }
}

fn layer(dir: &Path) -> InMemoryLayer {
    InMemoryLayer::new(Lsn(0x10), dir.join("ephemeral-1"), Instant::now(), Arc::new(ValueMemory::new(1 << 21)))
}

fn bytes_of(layer: &InMemoryLayer, found: &Found) -> Vec<u8> {
    let mut out = vec![0; found.stored.len as usize];
    layer.read_at(&mut out, found.stored.position).unwrap();
    if let Some(bytes) = &found.bytes {
        assert_eq!(out, *bytes);
    }
    out
}

#[test]
fn values_are_found_newest_first_down_to_an_image() {
    let dir = crate::testing::TempDir::new();
    let layer = layer(dir.path());
    let mut batch = WriteBatch::default();
    batch.push_image(key(1), Lsn(0x10), b"base");
    batch.push(key(1), Lsn(0x18), b"one", false);
    batch.push(key(2), Lsn(0x18), b"other", false);
    batch.push(key(1), Lsn(0x20), b"two", false);
    layer.put(&batch).unwrap();
    let find = |from: u64, to: u64| {
        let mut out = Vec::new();
        let done = layer.find(&key(1), Lsn(from)..Lsn(to), &mut out);
        (out.iter().map(|f| bytes_of(&layer, f)).collect::<Vec<_>>(), done)
    };
    let image = pagecore::value::Value::Image(b"base"[..].into()).encode();
    assert_eq!(find(0, 0x21), (vec![b"two".to_vec(), b"one".to_vec(), image.clone()], true));
    assert_eq!(find(0, 0x20), (vec![b"one".to_vec(), image], true));
    assert_eq!(find(0x18, 0x20), (vec![b"one".to_vec()], false));
    assert_eq!(find(0x21, 0x30), (vec![], false));
}

#[test]
fn the_later_of_two_values_at_one_lsn_wins() {
    let dir = crate::testing::TempDir::new();
    let layer = layer(dir.path());
    let mut batch = WriteBatch::default();
    batch.push(key(1), Lsn(0x10), b"older", false);
    batch.push(key(1), Lsn(0x18), b"first", false);
    batch.push(key(1), Lsn(0x18), b"second", false);
    layer.put(&batch).unwrap();
    let mut out = Vec::new();
    layer.find(&key(1), Lsn(0)..Lsn(0x100), &mut out);
    let all: Vec<_> = out.iter().map(|f| bytes_of(&layer, f)).collect();
    assert_eq!(all, [b"second".to_vec(), b"older".to_vec()]);
    assert_eq!(layer.duplicates(), 1);
    batch.clear();
    batch.push(key(1), Lsn(0x10), b"late", false);
    assert!(layer.put(&batch).is_err());
}

#[test]
fn what_was_not_completed_is_forgotten_and_comes_again() {
    let dir = crate::testing::TempDir::new();
    let layer = layer(dir.path());
    let sparse = Key { field1: 0x62, ..key(1) };
    let mut batch = WriteBatch::default();
    batch.push_image(key(1), Lsn(0x10), b"base");
    batch.push(key(1), Lsn(0x18), b"one", false);
    batch.push(key(1), Lsn(0x20), b"two", false);
    batch.push_image(key(2), Lsn(0x20), b"new");
    batch.push_image(sparse, Lsn(0x20), b"file");
    layer.put(&batch).unwrap();
    assert_eq!(layer.sparse_keys(&(Key::MIN..Key::MAX)), [sparse]);
    layer.forget_above(Lsn(0x10));
    let find = |key: Key| {
        let mut out = Vec::new();
        layer.find(&key, Lsn(0)..Lsn(0x100), &mut out);
        out.iter().map(|found| found.stored.lsn).collect::<Vec<_>>()
    };
    assert_eq!((find(key(1)), find(key(2)), find(sparse)), (vec![Lsn(0x10)], vec![], vec![]));
    assert!(layer.sparse_keys(&(Key::MIN..Key::MAX)).is_empty());
    assert_eq!((layer.max_lsn(), layer.is_empty()), (Lsn(0x10), false));
    batch.clear();
    batch.push(key(1), Lsn(0x18), b"one", false);
    batch.push_image(key(2), Lsn(0x20), b"new");
    layer.put(&batch).unwrap();
    assert_eq!((find(key(1)), find(key(2))), (vec![Lsn(0x18), Lsn(0x10)], vec![Lsn(0x20)]));
    layer.forget_above(Lsn(0));
    assert!(layer.is_empty());
}

#[test]
fn bad_writes_are_refused() {
    let dir = crate::testing::TempDir::new();
    let layer = layer(dir.path());
    let put = |lsn: u64, offset: u32, len: u32| {
        let entry = Entry { key: key(1), lsn: Lsn(lsn), offset, len, will_init: true };
        layer.put(&WriteBatch { raw: vec![0; 8], entries: vec![entry] })
    };
    assert!(put(0x11, 0, 8).is_err(), "unaligned");
    assert!(put(0x8, 0, 8).is_err(), "below the start");
    assert!(put(0x10, 4, 8).is_err(), "beyond the batch");
    assert!(put(0x10, 0, 1 << 28).is_err(), "too long");
    assert!(layer.is_empty());
    put(0x10, 0, 8).unwrap();
    layer.freeze(Lsn(0x18)).unwrap();
    assert!(put(0x10, 0, 8).is_err(), "frozen");
    assert_eq!(layer.end(), Lsn(0x18));
}

/// Goal: a full disk stops writers between two batches, and later they go on. Method: the file's directory is not
/// there for a while.
#[test]
fn a_batch_is_taken_whole_or_not_at_all_when_the_file_cannot_be_written() {
    let dir = crate::testing::TempDir::new();
    let away = dir.path().join("away");
    let memory = Arc::new(ValueMemory::new(0));
    let layer = InMemoryLayer::new(Lsn(0x10), away.join("ephemeral-1"), Instant::now(), memory);
    let batch_at = |lsn: u64| {
        let mut batch = WriteBatch::default();
        let value = vec![lsn as u8; 1 << 20];
        batch.push(key(1), Lsn(lsn), &value, false);
        batch.push(key(1), Lsn(lsn + 8), &value, false);
        batch
    };
    layer.put(&batch_at(0x10)).unwrap();
    for _ in 0..2 {
        assert!(matches!(layer.put(&batch_at(0x20)), Err(StoreError::Io { .. })));
        assert_eq!((layer.max_lsn(), layer.size()), (Lsn(0x18), 2 << 20));
    }
    std::fs::create_dir(&away).unwrap();
    layer.put(&batch_at(0x20)).unwrap();
    assert_eq!((layer.max_lsn(), layer.file_len()), (Lsn(0x28), 4 << 20));
    let mut out = Vec::new();
    layer.find(&key(1), Lsn(0)..Lsn(0x100), &mut out);
    let first: Vec<_> = out.iter().map(|found| bytes_of(&layer, found)[0]).collect();
    assert_eq!(first, [0x20, 0x20, 0x10, 0x10]);
}

#[test]
fn large_layers_spill_to_a_file_that_goes_with_them() {
    let dir = crate::testing::TempDir::new();
    let layer = layer(dir.path());
    for n in 0..2000u32 {
        let mut batch = WriteBatch::default();
        for i in 0..10 {
            let fill = [(n + i) as u8; 300];
            batch.push(key(i), Lsn(0x10 + 8 * u64::from(n)), &fill, false);
        }
        layer.put(&batch).unwrap();
    }
    assert_eq!(layer.size(), 6_000_000);
    assert!(layer.file_len() >= 3 << 20 && layer.file_len() < layer.size() - (1 << 20));
    let mut whole = vec![0; layer.size() as usize];
    layer.read_at(&mut whole, 0).unwrap();
    let mut seen = 0;
    layer
        .values()
        .for_each_sorted(|key, chain| {
            assert_eq!(chain.len(), 2000);
            for (n, stored) in chain.iter().enumerate() {
                assert_eq!(stored.lsn, Lsn(0x10 + 8 * n as u64));
                let at = stored.position as usize;
                let want = (n as u32 + key.field6) as u8;
                assert!(whole[at..at + 300].iter().all(|b| *b == want));
            }
            seen += 1;
            Ok::<(), StoreError>(())
        })
        .unwrap();
    assert_eq!(seen, 10);
    let path = layer.path().to_path_buf();
    assert!(path.exists());
    drop(layer);
    assert!(!path.exists());
}
