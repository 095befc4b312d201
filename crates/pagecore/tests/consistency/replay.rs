//! Applies the WAL of a run to the pages it began with, one record after the other.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pagecore::checksum::has_valid_checksum;
use pagecore::key::{Key, RelTag, FSM_FORK, INIT_FORK, VM_FORK};
use pagecore::mask::{mask, PageKind};
use pagecore::page::{Page, PageBytes};
use pagecore::redo::{self, Context};
use pagecore::value::Record;
use pagecore::wal::image::restore;
use pagecore::wal::record::DecodedRecord;
use pagecore::wal::rmgr;
use pagecore::{Lsn, BLCKSZ};

use crate::damage::Samples;

const SEGMENT_BLOCKS: u32 = 131_072;
const EXAMPLES_MAX: usize = 60;

/// What happened to the blocks of one record type.
#[derive(Default)]
pub struct Tally {
    blocks: u64,
    compared: u64,
    different: u64,
    errors: u64,
    unsupported: u64,
}

#[derive(Default)]
pub struct Report {
    records: u64,
    /// By resource manager and info.
    kinds: BTreeMap<(u8, u8), Tally>,
    /// Pages of the stopped server's files: equal, different.
    files: BTreeMap<String, (u64, u64)>,
    checksums: u64,
    examples: Vec<String>,
}

impl Report {
    pub fn differences(&self) -> u64 {
        let records: u64 = self.kinds.values().map(|t| t.different + t.errors).sum();
        records + self.files.values().map(|f| f.1).sum::<u64>()
    }

    fn note(&mut self, text: String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(text);
        }
    }

    pub fn print(&self, run: &str) {
        println!("== {run}: {} records", self.records);
        println!("   rmgr       info    blocks  compared different errors unsupported");
        for ((rmid, info), t) in &self.kinds {
            let name = rmgr::name(*rmid);
            println!(
                "   {name:<10} 0x{info:02x} {:>9} {:>9} {:>9} {:>6} {:>11}",
                t.blocks, t.compared, t.different, t.errors, t.unsupported
            );
        }
        for (kind, (equal, different)) in &self.files {
            println!("   files: {kind:<10} equal {equal} different {different}");
        }
        println!("   checksums verified: {}", self.checksums);
        self.examples.iter().for_each(|text| println!("   {text}"));
    }
}

/// Gives the pages of the data directory before the run.
pub type BasePages = Box<dyn Fn(Key) -> Option<Vec<u8>>>;

pub struct Replay {
    ctx: Context,
    base: BasePages,
    /// None once a record that is not supported has touched the page; empty if there is no page yet.
    pages: HashMap<Key, Option<Vec<u8>>>,
    /// The last record that changed each page, for messages.
    last: HashMap<Key, (u8, u8, Lsn)>,
    pub report: Report,
    /// Filled if there is one.
    pub samples: Option<Samples>,
}

impl Replay {
    /// Nothing has been applied yet; `base` gives the pages there are before.
    pub fn new(ctx: Context, base: BasePages) -> Replay {
        Replay { ctx, base, pages: HashMap::new(), last: HashMap::new(), report: Report::default(), samples: None }
    }

    /// The page as it is now; none if nothing is known of it.
    pub fn page(&self, key: Key) -> Option<Vec<u8>> {
        match self.pages.get(&key) {
            Some(page) => page.clone(),
            None => (self.base)(key),
        }
    }

    pub fn record(&mut self, lsn: Lsn, bytes: &[u8]) {
        self.report.records += 1;
        let decoded = DecodedRecord::decode(self.ctx.major, bytes).expect("the record decodes");
        let kind = (decoded.rmid, decoded.info & 0xF0);
        for block in &decoded.blocks {
            if block.rel.forknum == FSM_FORK {
                continue;
            }
            let key = Key::rel_block(block.rel, block.block);
            let tally = self.report.kinds.entry(kind).or_default();
            tally.blocks += 1;
            self.last.insert(key, (kind.0, kind.1, lsn));
            let base = &self.base;
            let state = self.pages.entry(key).or_insert_with(|| Some(base(key).unwrap_or_default()));
            let record = Record::Postgres { will_init: block.initialises(), record: bytes.into() };
            let shown = block.image.filter(|_| !block.apply_image).map(|image| restore(&image).expect("an image"));
            let shown_state = || shown.as_ref().map(|page| with_lsn(&page[..], lsn));
            let has_base = block.initialises() || state.as_ref().is_some_and(|page| !page.is_empty());
            if !redo::can_apply(&self.ctx, &record) {
                tally.unsupported += 1;
                *state = match block.image.filter(|_| block.apply_image) {
                    Some(image) => Some(with_lsn(&restore(&image).expect("an image")[..], lsn)),
                    None => shown_state(),
                };
                continue;
            }
            if !has_base {
                // A page that came to be without WAL, or that an unsupported record touched.
                *state = shown_state();
                continue;
            }
            let page = state.get_or_insert_default();
            if let Some(samples) = &mut self.samples {
                samples.take(block.id, key, lsn, page, bytes);
            }
            if let Err(error) = redo::apply(&self.ctx, key, page, lsn, &record) {
                tally.errors += 1;
                *state = shown_state();
                self.report.note(error.to_string());
                continue;
            }
            let Some(shown) = &shown else { continue };
            tally.compared += 1;
            if let Some(difference) = compare(&key, page, &shown[..]) {
                tally.different += 1;
                *state = shown_state();
                let name = rmgr::name(kind.0);
                let place = format!("block id {} {}/{}", block.id, block.rel, block.block);
                self.report.note(format!("{name} {:#04x} at {lsn} {place}: {difference}", kind.1));
            }
        }
        self.clear_visibility_map(&decoded, lsn);
        if (decoded.rmid, decoded.info & 0xF0) == (rmgr::SMGR, 0x20) {
            self.truncate(decoded.main_data, lsn);
        }
    }

    /// Storage TRUNCATE: pages behind the new end are gone, the map forgets about them (spec wal.md 5).
    fn truncate(&mut self, main: &[u8], lsn: Lsn) {
        let u32_at = |at: usize| u32::from_le_bytes(main[at..at + 4].try_into().expect("4 bytes"));
        let (block, flags) = (u32_at(0), u32_at(16));
        let heap = RelTag { spcnode: u32_at(4), dbnode: u32_at(8), relnode: u32_at(12), forknum: 0 };
        let map = RelTag { forknum: VM_FORK, ..heap };
        for (key, page) in &mut self.pages {
            let gone = key.rel_tag() == heap && key.field6 >= block && flags & 1 != 0
                || key.rel_tag() == map && key.field6 > block / 32672 && flags & 2 != 0;
            if gone {
                *page = Some(Vec::new());
            }
        }
        let key = Key::rel_block(map, block / 32672);
        if let Some(Some(page)) = self.pages.get_mut(&key).filter(|_| flags & 2 != 0) {
            let on_page = u64::from(block % 32672);
            let cut = Record::TruncateVisibilityMap { byte: on_page / 4, bit_offset: on_page % 4 * 2 };
            if !page.is_empty() {
                redo::apply(&self.ctx, key, page, lsn, &cut).expect("the map is cut");
            }
        }
    }

    /// What ingest makes of the "all visible cleared" flags of heap records (spec wal.md 5).
    fn clear_visibility_map(&mut self, record: &DecodedRecord<'_>, lsn: Lsn) {
        let main = record.main_data;
        let (ids, bits): (Vec<u8>, u8) = match (record.rmid, record.info & 0x70) {
            (rmgr::HEAP, 0x00) if main[2] & 1 != 0 => (vec![0], 3),
            (rmgr::HEAP, 0x10) if main[7] & 1 != 0 => (vec![0], 3),
            (rmgr::HEAP, 0x20 | 0x40) => {
                let old = u8::from(record.blocks.iter().any(|b| b.id == 1));
                ([(1, old), (2, 0)].iter().filter(|(bit, _)| main[7] & bit != 0).map(|&(_, id)| id).collect(), 3)
            }
            (rmgr::HEAP | rmgr::HEAP2, 0x60) if main[7] & 1 != 0 => (vec![0], 2),
            (rmgr::HEAP2, 0x50) if main[0] & 1 != 0 => (vec![0], 3),
            _ => return,
        };
        for block in record.blocks.iter().filter(|b| ids.contains(&b.id)) {
            let map = RelTag { forknum: VM_FORK, ..block.rel };
            let key = Key::rel_block(map, block.block / 32672);
            let base = &self.base;
            let state = self.pages.entry(key).or_insert_with(|| base(key));
            if let Some(page) = state.as_mut().filter(|page| !page.is_empty()) {
                let new_heap_block = Some(block.block);
                let clear = Record::ClearVisibilityMapFlags { new_heap_block, old_heap_block: None, flags: bits };
                redo::apply(&self.ctx, key, page, lsn, &clear).expect("the map's bits are cleared");
            }
        }
    }

    /// Compares what redo made with the files of the stopped server (spec stock.md 4).
    pub fn compare_files(&mut self, after: &Path) {
        let mut keys: Vec<Key> = self.pages.keys().copied().collect();
        keys.sort();
        for key in keys {
            let Some(ours) = self.pages[&key].as_ref().filter(|page| !page.is_empty()) else { continue };
            let Some(theirs) = read_block(after, key) else { continue };
            let kind = PageKind::of(&key, &as_page(&theirs)).expect("a page of a known kind");
            let difference = match kind {
                PageKind::New => None,
                _ => compare(&key, ours, &theirs).or_else(|| compare_lsn(&key, kind, ours, &theirs)),
            };
            let counts = self.report.files.entry(format!("{kind:?}")).or_default();
            if theirs[8..10] != [0, 0] {
                assert!(has_valid_checksum(&as_page(&theirs), key.field6), "checksum of {key}");
                self.report.checksums += 1;
            }
            match difference {
                None => counts.0 += 1,
                Some(difference) => {
                    counts.1 += 1;
                    let (rmid, info, lsn) = self.last.get(&key).copied().unwrap_or_default();
                    let last = format!("last record {} {info:#04x} at {lsn}", rmgr::name(rmid));
                    self.report.note(format!("file {}/{} {kind:?}, {last}: {difference}", key.rel_tag(), key.field6));
                }
            }
        }
    }
}

/// Where a block is: a file's path below the data directory, and the offset in it.
pub fn place_of(key: Key) -> (PathBuf, u64) {
    let rel = key.rel_tag();
    let fork = ["", "_fsm", "_vm", "_init"][usize::from(rel.forknum)];
    let segment = key.field6 / SEGMENT_BLOCKS;
    let suffix = if segment == 0 { String::new() } else { format!(".{segment}") };
    let folder = match rel.spcnode {
        1664 => PathBuf::from("global"),
        _ => Path::new("base").join(rel.dbnode.to_string()),
    };
    let offset = u64::from(key.field6 % SEGMENT_BLOCKS) * BLCKSZ as u64;
    (folder.join(format!("{}{fork}{suffix}", rel.relnode)), offset)
}

pub fn read_block(data_dir: &Path, key: Key) -> Option<Vec<u8>> {
    let (path, offset) = place_of(key);
    let file = fs::File::open(data_dir.join(path)).ok()?;
    let mut page = vec![0; BLCKSZ];
    file.read_exact_at(&mut page, offset).ok()?;
    Some(page)
}

fn as_page(bytes: &[u8]) -> PageBytes {
    bytes.try_into().expect("a page has 8192 bytes")
}

fn with_lsn(page: &[u8], lsn: Lsn) -> Vec<u8> {
    let mut page = as_page(page);
    if page[14..16] != [0, 0] {
        Page::new(&mut page).set_lsn(lsn);
    }
    page.to_vec()
}

/// Masks both pages and says where they differ; also what the mask itself found wrong.
fn compare(key: &Key, ours: &[u8], theirs: &[u8]) -> Option<String> {
    let kind = PageKind::of(key, &as_page(theirs))?;
    let masked = |bytes: &[u8]| {
        let mut page = as_page(bytes);
        mask(kind, key.field6, &mut page).map_err(|fault| format!("{kind:?}: {fault}"))?;
        match kind {
            PageKind::Sequence => forget_unlogged_calls(&mut page),
            // The metapage's cache of last used pages is never logged.
            PageKind::SpGist if key.field6 == 0 => page[24..].fill(0),
            _ => {}
        }
        Ok(page)
    };
    match (masked(ours), masked(theirs)) {
        (Ok(ours), Ok(theirs)) => first_difference(&ours, &theirs).map(|text| format!("{kind:?}: {text}")),
        (Err(error), _) | (_, Err(error)) => Some(error),
    }
}

/// The page's LSN shows whether each record was applied or skipped as the server did.
///
/// A server does not stamp a map when it clears bits, writes some init forks before it logs them, and gives pages of
/// GiST indexes that were built by sorting LSN 1.
fn compare_lsn(key: &Key, kind: PageKind, ours: &[u8], theirs: &[u8]) -> Option<String> {
    let unlogged = Page::new(&mut as_page(theirs)).lsn() <= Lsn(1);
    if kind == PageKind::Map || key.field5 == INIT_FORK || unlogged || ours[..8] == theirs[..8] {
        return None;
    }
    Some(format!("{kind:?}: LSN ours {:02x?} theirs {:02x?}", &ours[..8], &theirs[..8]))
}

fn first_difference(ours: &PageBytes, theirs: &PageBytes) -> Option<String> {
    let count = ours.iter().zip(theirs).filter(|(a, b)| a != b).count();
    let at = ours.iter().zip(theirs).position(|(a, b)| a != b)?;
    let end = (at + 24).min(BLCKSZ);
    Some(format!("{count} bytes, first at {at}: ours {:02x?} theirs {:02x?}", &ours[at..end], &theirs[at..end]))
}

/// last_value, log_cnt, is_called: calls that were not logged leave them ahead of the WAL.
fn forget_unlogged_calls(page: &mut PageBytes) {
    let start = usize::from(u16::from_le_bytes([page[24], page[25]]) & 0x7FFF);
    if let Some(data) = page.get_mut(start + 24..start + 41) {
        data.fill(0);
    }
}
