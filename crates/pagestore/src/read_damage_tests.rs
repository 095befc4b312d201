//! Layer files that are not what was written: no page is ever wrong, and the error names the file.

use super::*;

fn damage(layer: &WrittenLayer, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(&layer.path).unwrap();
    change(&mut bytes);
    std::fs::write(&layer.path, bytes).unwrap();
}

#[test]
fn damage_to_a_layer_is_an_error_that_names_it_and_the_rest_keeps_serving() {
    type Damage = fn(&mut Vec<u8>);
    let cases: [(&str, Damage); 5] = [
        ("a file that is cut", |b| b.truncate(b.len() - BLCKSZ)),
        ("a file cut inside a block", |b| b.truncate(b.len() - 100)),
        ("an index block of noise", |b| {
            let at = b.len() - BLCKSZ;
            b[at..].fill(0x5A);
        }),
        ("a summary of another tenant", |b| b[4] ^= 1),
        ("a blob header with a reserved code", |b| b[BLCKSZ] = 0xF0),
    ];
    for (what, change) in cases {
        let dir = TempDir::new();
        let store = new_store(&dir);
        put(&store, 0x20, &[(block(1), &page(1))]);
        let lower = flush(&store);
        put(&store, 0x30, &[(block(2), &page(2))]);
        flush(&store);
        damage(&lower, change);
        let error = store.get(block(1), Lsn(0x30)).unwrap_err();
        let StoreError::Corrupt { object, .. } = &error else { panic!("{what}: {error}") };
        assert_eq!(*object, lower.path.display().to_string(), "{what}");
        assert_eq!(store.get(block(2), Lsn(0x30)).unwrap(), page(2), "{what}");
        let both = store.get_vectored(&[(block(1), Lsn(0x30)), (block(2), Lsn(0x30))]);
        assert!(both[0].is_err() && both[1].is_ok(), "{what}");
    }
}

/// A heap insert of stock PostgreSQL 16 that makes its page anew.
fn insert_into_new_page(block: u32) -> Vec<u8> {
    let mut record = vec![0; 24];
    record[16] = 0x80;
    record[17] = pagecore::wal::rmgr::HEAP;
    record.extend([0, 0x60, 10, 0]);
    for part in [REL.spcnode, REL.dbnode, REL.relnode, block] {
        record.extend(part.to_le_bytes());
    }
    record.extend([255, 3]);
    record.extend([1, 0, 0, 8, 0x18, 0, 0xDE, 0xAD, 0xBE, 0xEF]);
    record.extend([1, 0, 0]);
    let length = record.len() as u32;
    record[..4].copy_from_slice(&length.to_le_bytes());
    let crc = pagecore::wal::framer::record_crc(&record);
    record[20..24].copy_from_slice(&crc.to_le_bytes());
    record
}

/// Layers have no checksums, but WAL records do. What was lost: a bit that flipped inside a tuple of a stored record
/// was replayed and served.
#[test]
fn a_flipped_bit_in_a_stored_record_is_an_error_that_names_the_layer_and_never_a_page() {
    let dir = TempDir::new();
    let store = new_store(&dir);
    let record = insert_into_new_page(1);
    let mut batch = WriteBatch::default();
    let value = Value::Record(Record::Postgres { will_init: true, record: record[..].into() });
    batch.push(block(1), Lsn(0x20), &value.encode(), true);
    store.commit(&batch, &[Lsn(0x20)]).unwrap();
    let layer = flush(&store);
    let right = store.get(block(1), Lsn(0x20)).unwrap();
    assert!(right.windows(4).any(|w| w == [0xDE, 0xAD, 0xBE, 0xEF]));
    let blob_len = 1 + 17 + record.len();
    for at in 0..blob_len {
        for bit in 0..8 {
            damage(&layer, |b| b[BLCKSZ + at] ^= 1 << bit);
            let result = store.get(block(1), Lsn(0x20));
            damage(&layer, |b| b[BLCKSZ + at] ^= 1 << bit);
            match result {
                Ok(page) => assert_eq!(page, right, "byte {at}, bit {bit}"),
                Err(StoreError::Corrupt { object, .. }) => assert_eq!(object, layer.path.display().to_string()),
                Err(e) => assert!(at < 18, "byte {at}, bit {bit}: {e}"),
            }
        }
    }
    assert_eq!(store.get(block(1), Lsn(0x20)).unwrap(), right);
    let file = store.map().historic.get(&layer.name).cloned().unwrap();
    assert_eq!(file.check(), Ok(1));
    damage(&layer, |b| b[BLCKSZ + blob_len - 1] ^= 1);
    assert!(file.check().unwrap_err().to_string().ends_with("WAL record crc mismatch"));
}
