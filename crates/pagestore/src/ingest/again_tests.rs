//! A record that failed in its middle comes again, and finds the state before it.

use super::*;

#[test]
fn a_large_record_that_failed_half_way_finds_nothing_of_its_first_try() {
    let target = stock(15);
    target.add_rel(REL, 1_101);
    for block in 0..1_100u32 {
        let page = Value::Image(vec![block as u8; BLCKSZ].into()).encode();
        target.state().values.entry(Key::rel_block(REL, block)).or_default().insert(Lsn(8), page);
    }
    let main = unhex("10400000 7f060000 05000000 7f060000");
    let wal = Wal::new().heap(&[1_100]).add(rmgr::DBASE, 0x00, 0, &[], &main).heap(&[1_100]);
    let copy = RelTag { dbnode: 0x4010, ..REL };
    let make_copy = |ingest: &mut WalIngest<Dictionary>| -> Result<(), IngestError> {
        assert_eq!(ingest.get(Key::DBDIR)?, None, "the record finds no such database yet");
        ingest.put(Key::DBDIR, b"with the copy")?;
        ingest.copy_relation(REL, copy, 1_100)?;
        assert_eq!(ingest.get(Key::DBDIR)?.as_deref(), Some(&b"with the copy"[..]), "but what it wrote itself");
        ingest.set_rel_size(copy, 1_100)
    };
    let mut first = ingest(&target);
    first.feed(&wal.bytes);
    assert!(matches!(first.run().unwrap(), Step::Rare(_)));
    make_copy(&mut first).unwrap();
    assert!(target.history(Key::DBDIR).len() == 1, "stored early: it is more than a commit takes");
    target.state().failing = Some(0);
    assert!(first.run().is_err());
    assert_eq!(target.state().last, wal.ends[0]);
    first.abandon();
    assert!(target.history(Key::DBDIR).is_empty(), "nothing stays above the last record");

    target.state().failing = None;
    let mut second = WalIngest::new(Arc::clone(&target), settings(wal.ends[0].0)).unwrap();
    second.feed(&wal.bytes[(wal.ends[0].0 - START) as usize..]);
    assert!(matches!(second.run().unwrap(), Step::Rare(_)));
    make_copy(&mut second).unwrap();
    assert_eq!(second.run().unwrap(), Step::NeedInput);
    assert_eq!(second.growth(), Growth { lsn: wal.ends[2], bytes: 1_100 * 8192 });
    assert_eq!(target.history(Key::DBDIR), [(wal.ends[1], Value::Image(b"with the copy"[..].into()))]);
}

#[test]
fn records_before_a_gap_that_could_not_be_stored_come_again_in_their_order() {
    let target = stock(15);
    target.add_rel(REL, 1);
    let wal = Wal::new().heap(&[0]).heap(&[0]).heap(&[9_000]);
    let mut first = ingest(&target);
    first.feed(&wal.bytes);
    target.state().failing = Some(1);
    assert!(first.run().is_err(), "the first part of the gap was stored, and the records before it");
    assert_eq!(target.history(Key::rel_block(REL, 0)).len(), 2);
    target.state().failing = None;
    run(&target, &wal);
    assert_eq!(target.history(Key::rel_block(REL, 0)).len(), 2);
    assert_eq!(target.size(REL), Some(9_001));
    assert_eq!(target.state().last, wal.ends[2]);
}
