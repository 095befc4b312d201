//! The replay's own part: what exists, what is known, what a copy of a database takes along. Redo itself is tested in
//! `pagecore`.

use std::fs::File;

use pagecore::wal::rmgr;
use pagecore::Flavour;

use super::*;
use crate::redo_diff::NoBase;
use crate::testing::TempDir;

const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 700, forknum: 0 };

/// Remembers what became of each version.
#[derive(Default)]
struct Seen(Vec<&'static str>);

impl Watch for Seen {
    fn record(&mut self, _record: &RecordAt<'_>) {}

    fn version(&mut self, version: &Version<'_>) -> Verdict {
        let (name, agrees) = match version.after {
            After::Page(_) => ("page", true),
            After::Failed(_) => ("failed", false),
            After::Unsupported => ("unsupported", false),
            After::WithoutBase => ("without base", false),
        };
        self.0.push(name);
        Verdict { compared: false, agrees }
    }

    fn side_effect(&mut self, _record: &RecordAt<'_>) {
        self.0.push("side effect");
    }
}

/// A base whose blocks 0 and 1 of `REL` and of its map are full of sevens.
struct Sevens;

impl BasePages for Sevens {
    fn read(&self, key: &Key) -> Result<Option<Box<PageBytes>>, RedoDiffError> {
        let is_there = RelTag { forknum: 0, ..key.rel_tag() } == REL && key.field6 < 2;
        Ok(is_there.then(|| Box::new([7; BLCKSZ])))
    }

    fn is_complete(&self) -> bool {
        true
    }
}

struct World {
    replay: Replay,
    seen: Seen,
    lsn: u64,
}

fn world(base: impl BasePages + 'static) -> World {
    let dir = TempDir::new();
    let path = dir.path().join("pages");
    let scratch = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let context = Context { major: 16, flavour: Flavour::Stock, hint_bits_logged: false };
    World { replay: Replay::new(context, Box::new(base), scratch), seen: Seen::default(), lsn: 0x0100_0000 }
}

impl World {
    fn record(&mut self, rmid: u8, info: u8, parts: &[u8]) -> Result<(), RedoDiffError> {
        let mut bytes = vec![0; 24];
        bytes[..4].copy_from_slice(&(24 + parts.len() as u32).to_le_bytes());
        (bytes[16], bytes[17]) = (info, rmid);
        bytes.extend_from_slice(parts);
        self.lsn += 0x1000;
        self.replay.record(Lsn(self.lsn), Lsn(self.lsn + 0x100), &bytes, &mut self.seen)
    }

    /// A full page image of a page full of `byte`.
    fn image(&mut self, rel: RelTag, block: u32, byte: u8) {
        // Block 0 with an image to apply, without a hole.
        let mut parts = vec![0, 0x10 | rel.forknum, 0, 0];
        parts.extend_from_slice(&(BLCKSZ as u16).to_le_bytes());
        parts.extend_from_slice(&[0, 0, 0x02]);
        [rel.spcnode, rel.dbnode, rel.relnode, block].iter().for_each(|word| parts.extend(word.to_le_bytes()));
        parts.extend_from_slice(&[byte; BLCKSZ]);
        self.record(rmgr::XLOG, 0xB0, &parts).unwrap();
    }

    /// A record of 32-bit numbers without a block.
    fn main(&mut self, rmid: u8, info: u8, words: &[u32]) {
        let mut parts = vec![255, 4 * words.len() as u8];
        words.iter().for_each(|word| parts.extend(word.to_le_bytes()));
        self.record(rmid, info, &parts).unwrap();
    }

    /// The last byte of a page: the first are its LSN.
    fn byte(&mut self, rel: RelTag, block: u32) -> Option<u8> {
        self.replay.page(&Key::rel_block(rel, block)).unwrap().map(|page| page[BLCKSZ - 1])
    }
}

/// Heap LOCK of the first item of a block, with the flag that the frozen bit of the map is cleared.
fn lock_parts(rel: RelTag, block: u32) -> Vec<u8> {
    let mut parts = vec![0, 0, 0, 0];
    [rel.spcnode, rel.dbnode, rel.relnode, block].iter().for_each(|word| parts.extend(word.to_le_bytes()));
    parts.extend_from_slice(&[255, 8, 0, 0, 0, 0, 1, 0, 0, 1]);
    parts
}

#[test]
fn a_record_for_a_page_that_is_not_known_is_without_base_until_an_image_makes_it() {
    let mut world = world(NoBase);
    world.record(rmgr::HEAP, 0x60, &lock_parts(REL, 3)).unwrap();
    assert_eq!(world.byte(REL, 3), None);
    world.image(REL, 3, 9);
    assert_eq!(world.byte(REL, 3), Some(9));
    assert_eq!(world.seen.0, ["without base", "page"]);
}

#[test]
fn a_heap_record_changes_the_map_it_does_not_name() {
    let mut world = world(Sevens);
    let map = RelTag { forknum: VM_FORK, ..REL };
    world.image(REL, 0, 9);
    // The heap page is no real one, so the record is refused; what it says of the map holds all the same.
    world.record(rmgr::HEAP, 0x60, &lock_parts(REL, 0)).unwrap();
    assert_eq!(world.seen.0, ["page", "failed", "side effect"]);
    assert_eq!(world.replay.page(&Key::rel_block(map, 0)).unwrap().unwrap()[24], 7 & !2);
    assert_eq!(world.byte(REL, 0), None, "a page that redo left half done is not known");
}

#[test]
fn truncation_takes_blocks_of_the_base_too_and_creation_makes_a_relation_empty() {
    let mut world = world(Sevens);
    world.image(REL, 2, 9);
    assert_eq!(world.byte(REL, 0), Some(7));
    world.main(rmgr::SMGR, 0x20, &[1, 1663, 5, 700, 7]);
    assert_eq!([0, 1, 2].map(|block| world.byte(REL, block)), [Some(7), None, None]);
    let map = RelTag { forknum: VM_FORK, ..REL };
    let page = world.replay.page(&Key::rel_block(map, 0)).unwrap().unwrap();
    assert_eq!((page[24], page[25]), (7 & 3, 0), "the bits of the first block stay");
    assert_eq!(world.byte(map, 1), None);
    world.main(rmgr::SMGR, 0x10, &[1663, 5, 700, 0]);
    assert_eq!(world.byte(REL, 0), None);
}

#[test]
fn a_database_copied_by_files_begins_with_the_pages_of_its_template() {
    let mut world = world(Sevens);
    world.image(REL, 1, 9);
    let copy = RelTag { dbnode: 6, ..REL };
    world.main(rmgr::DBASE, 0x00, &[6, 1663, 5, 1663]);
    world.image(REL, 0, 10);
    assert_eq!([0, 1, 2].map(|block| world.byte(copy, block)), [Some(7), Some(9), None]);
    world.image(copy, 1, 11);
    assert_eq!((world.byte(REL, 1), world.byte(copy, 1)), (Some(9), Some(11)));
    world.main(rmgr::DBASE, 0x20, &[6, 1, 1663]);
    assert_eq!(world.byte(copy, 0), None);
    assert_eq!(world.byte(REL, 1), Some(9));
}

#[test]
fn a_record_that_does_not_decode_is_an_error_that_names_its_end() {
    let mut world = world(NoBase);
    let error = world.record(rmgr::HEAP, 0, &[200, 0, 0]).unwrap_err().to_string();
    assert!(error.starts_with("invalid WAL record ending at 0/1001100: invalid block_id 200"), "{error}");
}
