//! A recorded segment of WAL, from the archive that it follows to its end.

use super::*;

/// (path, contents) of a tar archive's plain files.
fn files_of(tar: &[u8]) -> Vec<(String, &[u8])> {
    let mut out = Vec::new();
    let mut at = 0;
    while tar[at] != 0 {
        let text = |from: usize, to: usize| {
            let field = &tar[at + from..at + to];
            String::from_utf8_lossy(field.split(|b| *b == 0).next().unwrap()).trim().to_string()
        };
        let size = usize::from_str_radix(&text(124, 136), 8).unwrap();
        if matches!(tar[at + 156], b'0' | 0) {
            out.push((text(0, 100), &tar[at + 512..at + 512 + size]));
        }
        at += 512 + size.next_multiple_of(512);
    }
    out
}

fn relation_of(path: &str) -> Option<RelTag> {
    let parts: Vec<_> = path.trim_start_matches("./").split('/').collect();
    let (spcnode, dbnode, name) = match parts[..] {
        ["global", name] => (1664, 0, name),
        ["base", db, name] => (1663, db.parse().ok()?, name),
        _ => return None,
    };
    let (number, fork) = name.split_once('_').unwrap_or((name, ""));
    let forknum = ["", "fsm", "vm", "init"].iter().position(|f| *f == fork)? as u8;
    Some(RelTag { spcnode, dbnode, relnode: number.parse().ok()?, forknum })
}

#[test]
fn the_recorded_segment_leaves_the_state_of_the_specification() {
    const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors/neon-v15-pgbench/");
    let unpack =
        |name: &str| zstd::stream::decode_all(std::fs::File::open(format!("{VECTORS}{name}")).unwrap()).unwrap();
    let (archive, segment) = (unpack("initdb.tar.zst"), unpack("000000010000000000000001.zst"));
    let target = Arc::new(Dictionary::new(15, Flavour::Neon));
    let mut checkpoint = None;
    let (mut forks, mut blocks) = (0, 0);
    for (path, contents) in files_of(&archive) {
        if path.ends_with("global/pg_control") {
            checkpoint = Some(CheckPoint::decode(&contents[40..128]).unwrap());
        } else if let Some(rel) = relation_of(&path) {
            target.add_rel(rel, (contents.len() / BLCKSZ) as u32);
            forks += 1;
            blocks += contents.len() / BLCKSZ;
        }
    }
    assert_eq!((forks, blocks), (946, 2_720));
    let checkpoint = checkpoint.unwrap();
    assert_eq!((checkpoint.redo(), checkpoint.next_xid(), checkpoint.next_oid()), (0x14A_EB90, 724, 12_928));
    let start = 0x14A_EC08;
    target.state().last = Lsn(start);
    let settings = IngestSettings { checkpoint, ..settings(start) };
    let mut ingest = WalIngest::new(Arc::clone(&target), settings).unwrap();
    let mut rare = Vec::new();
    for chunk in segment[0x4A_EC08..].chunks(100_000) {
        ingest.feed(chunk);
        rare.extend(drain(&mut ingest, &target));
    }
    let created = |implicit: bool| {
        rare.iter()
            .filter(|r| matches!(r.detail, RareDetail::RelationCreate { implicit: i, .. } if i == implicit))
            .count()
    };
    assert_eq!((created(false), created(true), rare.len()), (8, 1, 10), "and one PARAMETER_CHANGE");
    assert_eq!((ingest.checkpoint().next_xid(), ingest.checkpoint().next_oid()), (2048, 24_576));
    assert_eq!(ingest.checkpoint().oldest_xid(), 716);
    let state = target.state();
    assert_eq!(state.rels.len(), 955);
    let written = |f: &dyn Fn(&Key) -> bool| -> usize {
        let keys = state.values.iter().filter(|(key, _)| f(key));
        keys.map(|(_, versions)| versions.range(Lsn(start)..).count()).sum()
    };
    assert_eq!(written(&|key| key.is_rel_size()), 1_203);
    let checkpoints: Vec<_> = state.values[&Key::CHECKPOINT].keys().map(|lsn| lsn.0).collect();
    assert_eq!(checkpoints, [0x14A_EC60, 0x14A_ECD0]);
    let is_clear = |value: &[u8]| value[..8] == [0, 0, 0, 1, 0, 0, 0, 1];
    let vm_values = state.values.iter().filter(|(key, _)| key.is_rel_block() && key.field5 == VM_FORK);
    assert_eq!(vm_values.flat_map(|(_, v)| v.values()).filter(|v| is_clear(v)).count(), 6);
    assert_eq!(state.last, Lsn(0x1FF_FF98));
    assert_eq!(ingest.records(), 72_925);
    drop(state);
    let clog = target.history(apply::slru_page_key(SlruKind::Clog, 0));
    let commit = Record::ClogSetCommitted { xids: vec![1024], timestamp: 754_501_601_749_633 };
    assert_eq!(clog.len(), 4);
    assert_eq!(clog[0], (Lsn(0x14C_58F8), Value::Record(commit)));
    let rel = |relnode, forknum| RelTag { spcnode: 1663, dbnode: 5, relnode, forknum };
    let rels = target.state().rels.clone();
    let total: u32 = rels.iter().map(|rel| target.size(*rel).unwrap()).sum();
    assert_eq!(ingest.growth().bytes, (i64::from(total) - 2_720) * 8192);
    let sizes = [(16_396, 0), (16_396, FSM_FORK), (16_397, 0), (16_399, 0), (1249, 0)];
    assert_eq!(sizes.map(|(relnode, fork)| target.size(rel(relnode, fork)).unwrap()), [1189, 3, 1, 1, 57]);
}
