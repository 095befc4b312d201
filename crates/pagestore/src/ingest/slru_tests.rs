//! Transaction status, multixacts, and what the checkpoint keeps of them.

use super::*;

#[test]
fn transaction_status_goes_to_each_clog_page() {
    let target = stock(15);
    let commit = "c4505832bd030300 02000000 03000000 ff7f0000 00800000 05000000";
    let wal = Wal::new().add(rmgr::XACT, 0x80, 32_766, &[], &unhex(commit)).add(
        rmgr::XACT,
        0x20,
        7,
        &[],
        &unhex("0100000000000000"),
    );
    assert!(run(&target, &wal).is_empty());
    let page = |n| target.history(apply::slru_page_key(SlruKind::Clog, n));
    let committed = |xids: &[u32]| {
        Value::Record(Record::ClogSetCommitted { xids: xids.to_vec(), timestamp: 0x0003_03BD_3258_50C4 })
    };
    // The last one is on page 0 again, which no valid WAL does: still one value for each page.
    assert_eq!(page(1), [(wal.ends[0], committed(&[32_768]))]);
    let aborted = Value::Record(Record::ClogSetAborted { xids: vec![7] });
    assert_eq!(page(0), [(wal.ends[0], committed(&[32_766, 32_767, 5])), (wal.ends[1], aborted)]);
    let checkpoints = target.history(Key::CHECKPOINT);
    assert_eq!(checkpoints.len(), 1, "written when nextXid changed, not again");
}

#[test]
fn ends_with_further_effects_reach_python_with_their_status_written() {
    let target = stock(15);
    target.add_rel(REL, 4);
    target.add_rel(VM, 1);
    let abort = "f05c5832bd030300 04000000 01000000 7f060000 05000000 05400000";
    let prepared = "66535832bd030300 d1000000 05000000 7f060000 e4020000 6769643100";
    let wal = Wal::new()
        .heap(&[4])
        .add(rmgr::XACT, 0xA1, 741, &[], &unhex(abort))
        .add(rmgr::XACT, 0xB0, 0, &[], &unhex(prepared))
        .heap(&[2]);
    let rare = run(&target, &wal);
    assert_eq!(rare.len(), 3);
    match &rare[0].detail {
        RareDetail::TransactionEnd { kind, xid, relations, .. } => {
            assert_eq!((kind.is_commit(), kind.is_prepared(), *xid), (false, false, 741));
            assert_eq!(relations, &[(1663, 5, 16_389)]);
        }
        other => panic!("{other:?}"),
    }
    match &rare[1].detail {
        RareDetail::TransactionEnd { kind, xid, .. } => {
            assert_eq!((kind.is_commit(), kind.is_prepared(), *xid), (true, true, 740))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rare[2].detail, RareDetail::RelationCreate { rel: REL, implicit: true }, "the fork was dropped");
    let clog = target.history(apply::slru_page_key(SlruKind::Clog, 0));
    assert_eq!(clog.len(), 2);
    assert_eq!(target.size(REL), Some(3), "of the new fork");
    // Everything before a rare record is committed when it is handed out, and itself right after it.
    assert_eq!(target.state().commits[0], [wal.ends[0]]);
    assert_eq!(target.state().commits[1], [wal.ends[1]]);
}

fn multixact(multi: u32, offset: u32, members: &[(u32, u32)]) -> Vec<u8> {
    let mut main = Vec::new();
    for n in [multi, offset, members.len() as u32] {
        main.extend(n.to_le_bytes());
    }
    for (xid, status) in members {
        main.extend(xid.to_le_bytes());
        main.extend(status.to_le_bytes());
    }
    main
}

#[test]
fn multixacts_write_offsets_members_and_the_checkpoint() {
    let main = multixact(1, 1, &[(0x2FF, 1), (0x300, 1)]);
    let wal = Wal::new().add(rmgr::MULTIXACT, 0x20, 0, &[], &main);
    let offsets = apply::slru_page_key(SlruKind::MultiXactOffsets, 0);
    for flavour in [Flavour::Neon, Flavour::Stock] {
        let target = Arc::new(Dictionary::new(15, flavour));
        let mut ingest = ingest(&target);
        ingest.feed(&wal.bytes);
        assert!(drain(&mut ingest, &target).is_empty());
        let want = match flavour {
            Flavour::Neon => Value::Record(Record::MultixactOffsetCreate { multi: 1, offset: 1 }),
            // Redo needs the whole record to know where the next multixact's members begin.
            Flavour::Stock => {
                let record = wal.bytes[..29 + main.len()].to_vec();
                Value::Record(Record::Postgres { will_init: false, record: record.into() })
            }
        };
        assert_eq!(target.history(offsets), [(wal.ends[0], want)]);
        let members = Record::MultixactMembersCreate { offset: 1, members: vec![(0x2FF, 1), (0x300, 1)] };
        let page = apply::slru_page_key(SlruKind::MultiXactMembers, 0);
        assert_eq!(target.history(page), [(wal.ends[0], Value::Record(members))]);
        let c = ingest.checkpoint();
        assert_eq!((c.next_multi(), c.next_multi_offset(), c.next_xid()), (2, 3, 1024));
    }
}

#[test]
fn members_that_cross_pages_make_a_record_each_and_offsets_wrap() {
    let target = stock(15);
    let members: Vec<_> = (10..14).map(|xid| (xid, 1)).collect();
    let wal = Wal::new().add(rmgr::MULTIXACT, 0x20, 0, &[], &multixact(2047, 1634, &members)).add(
        rmgr::MULTIXACT,
        0x20,
        0,
        &[],
        &multixact(2048, u32::MAX - 1, &members),
    );
    run(&target, &wal);
    let page = |n| target.history(apply::slru_page_key(SlruKind::MultiXactMembers, n));
    let create = |offset, xids: &[u32]| {
        let members = xids.iter().map(|xid| (*xid, 1)).collect();
        Value::Record(Record::MultixactMembersCreate { offset, members })
    };
    assert_eq!(page(0), [(wal.ends[0], create(1634, &[10, 11])), (wal.ends[1], create(0, &[12, 13]))]);
    assert_eq!(page(1), [(wal.ends[0], create(1636, &[12, 13]))]);
    assert_eq!(page(u32::MAX / 1636), [(wal.ends[1], create(u32::MAX - 1, &[10, 11]))]);
    assert_eq!(target.history(apply::slru_page_key(SlruKind::MultiXactOffsets, 1)).len(), 1);
}

#[test]
fn missing_status_pages_are_asked_for_until_the_copy_is_consistent() {
    let target = stock(15);
    let wal = Wal::new()
        .add(rmgr::XACT, 0x00, 40_000, &[], &[0; 8])
        .add(rmgr::MULTIXACT, 0x20, 0, &[], &multixact(1, 1635, &[(7, 1), (8, 1)]))
        .add(rmgr::XACT, 0x00, 40_001, &[], &[0; 8])
        .add(rmgr::XACT, 0x00, 80_000, &[], &[0; 8]);
    let mut settings = settings(START);
    settings.tolerant_until = wal.ends[2];
    let mut ingest = WalIngest::new(Arc::clone(&target), settings).unwrap();
    ingest.feed(&wal.bytes);
    let rare = drain(&mut ingest, &target);
    let want = [
        (SlruKind::Clog, 1),
        (SlruKind::MultiXactOffsets, 0),
        (SlruKind::MultiXactMembers, 0),
        (SlruKind::MultiXactMembers, 1),
    ];
    let want = want.map(|(kind, page)| RareDetail::SlruZeroPage { kind, page, implicit: true });
    assert_eq!(rare.iter().map(|r| r.detail.clone()).collect::<Vec<_>>(), want);
    let clog = target.history(apply::slru_page_key(SlruKind::Clog, 1));
    assert_eq!(clog.iter().map(|(lsn, _)| *lsn).collect::<Vec<_>>(), [wal.ends[0], wal.ends[2]]);
    let (_, Value::Image(page)) = &clog[0] else { panic!("the zeros and the first commit are one value") };
    // Transaction 40,000 is 7,232nd of its page: committed, 0b01, in the lowest bits of byte 1808.
    assert_eq!((page.len(), page[1808]), (8200, 1));
    let offsets = target.history(apply::slru_page_key(SlruKind::MultiXactOffsets, 0));
    let (_, Value::Image(page)) = &offsets[0] else { panic!() };
    assert_eq!(page[4..12], [0x63, 6, 0, 0, 0x65, 6, 0, 0], "1635, and 1637 for the next");
}

#[test]
fn nextoid_and_running_transactions_change_the_checkpoint() {
    let target = stock(15);
    let running = unhex("00000000 00000000 00dd72ce df020000 df020000 de020000");
    let wal = Wal::new()
        .add(rmgr::XLOG, 0x30, 0, &[], &[0, 0x60, 0, 0])
        .add(rmgr::XLOG, 0x30, 0, &[], &[0, 0x60, 0, 0])
        .add(rmgr::STANDBY, 0x10, 0, &[], &running)
        .add(rmgr::STANDBY, 0x10, 0, &[], &running);
    let mut ingest = ingest(&target);
    ingest.feed(&wal.bytes);
    drain(&mut ingest, &target);
    assert_eq!((ingest.checkpoint().next_oid(), ingest.checkpoint().oldest_active_xid()), (0x6000, 0x2DF));
    let written: Vec<_> = target.history(Key::CHECKPOINT).into_iter().map(|(lsn, _)| lsn).collect();
    assert_eq!(written, [wal.ends[0], wal.ends[2], wal.ends[3]]);
}
