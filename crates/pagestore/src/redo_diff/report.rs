//! What a run found: counts by kind of record and by witness, and the first difference of each page.

use std::collections::btree_map::Entry;
use std::collections::BTreeMap;

use pagecore::page::PageBytes;
use pagecore::{Key, Lsn};

/// Who contradicts the in-process engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Witness {
    /// The engine itself: it refused a record.
    Engine,
    /// The WAL redo process.
    Process,
    /// The after-image that the record carries.
    Image,
    /// The page in the data directory of the stopped server.
    File,
}

impl Witness {
    pub const ALL: [Witness; 4] = [Witness::Engine, Witness::Process, Witness::Image, Witness::File];

    pub fn name(self) -> &'static str {
        match self {
            Witness::Engine => "engine",
            Witness::Process => "process",
            Witness::Image => "image",
            Witness::File => "file",
        }
    }
}

/// What happened to the records of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub records: u64,
    /// Page versions that these records describe: one for each block of each record, and for each page of a visibility
    /// map that it changes without naming it.
    pub versions: u64,
    /// Versions that at least one witness has seen.
    pub compared: u64,
    /// Contradictions, counted for each witness.
    pub different: u64,
    /// Versions that the in-process engine cannot make.
    pub unsupported: u64,
    /// Versions of pages that were not known before.
    pub without_base: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.records += other.records;
        self.versions += other.versions;
        self.compared += other.compared;
        self.different += other.different;
        self.unsupported += other.unsupported;
        self.without_base += other.without_base;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WitnessTally {
    pub compared: u64,
    pub different: u64,
}

/// Pages that were compared with data files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileTally {
    pub equal: u64,
    /// By the reason why a difference is legitimate.
    pub masked: BTreeMap<&'static str, u64>,
    /// Pages that are not known in the end.
    pub unknown: u64,
}

/// A contradiction, with the record after which it showed.
#[derive(Clone, Debug)]
pub struct Difference {
    pub witness: Witness,
    pub key: Key,
    pub rmid: u8,
    pub info: u8,
    /// Where the record begins and ends.
    pub start: Lsn,
    pub end: Lsn,
    pub detail: String,
    pub ours: Option<Box<PageBytes>>,
    pub theirs: Option<Box<PageBytes>>,
    /// Offsets of the 16-byte lines that differ after masking.
    pub lines: Vec<u16>,
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By resource manager and info (high four bits).
    pub kinds: BTreeMap<(u8, u8), Tally>,
    pub witnesses: BTreeMap<Witness, WitnessTally>,
    pub files: FileTally,
    /// Why the redo process was not asked any more, if so.
    pub process_given_up: Option<String>,
    differences: BTreeMap<Key, Difference>,
    differences_max: usize,
}

impl Report {
    pub fn new(differences_max: usize) -> Report {
        Report { differences_max, ..Report::default() }
    }

    pub fn differences_max(&self) -> usize {
        self.differences_max
    }

    pub fn kind(&mut self, rmid: u8, info: u8) -> &mut Tally {
        self.kinds.entry((rmid, info & 0xF0)).or_default()
    }

    pub fn witness(&mut self, witness: Witness) -> &mut WitnessTally {
        self.witnesses.entry(witness).or_default()
    }

    /// Counts a difference; keeps it if it is the page's earliest and there is room.
    pub fn note(&mut self, difference: Difference) {
        self.kind(difference.rmid, difference.info).different += 1;
        self.witness(difference.witness).different += 1;
        self.keep(difference);
    }

    /// Adds what another report found.
    pub fn merge(&mut self, other: Report) {
        for ((rmid, info), tally) in &other.kinds {
            self.kind(*rmid, *info).add(tally);
        }
        for (witness, tally) in &other.witnesses {
            let sum = self.witness(*witness);
            sum.compared += tally.compared;
            sum.different += tally.different;
        }
        self.files.equal += other.files.equal;
        self.files.unknown += other.files.unknown;
        for (reason, count) in other.files.masked {
            *self.files.masked.entry(reason).or_default() += count;
        }
        self.process_given_up = self.process_given_up.take().or(other.process_given_up);
        other.differences.into_values().for_each(|difference| self.keep(difference));
    }

    fn keep(&mut self, difference: Difference) {
        let has_room = self.differences.len() < self.differences_max;
        match self.differences.entry(difference.key) {
            Entry::Occupied(mut kept) if difference.start < kept.get().start => drop(kept.insert(difference)),
            Entry::Vacant(place) if has_room => drop(place.insert(difference)),
            _ => {}
        }
    }

    /// The first difference of each page, as many as were kept, in the order of the WAL.
    pub fn differences(&self) -> Vec<&Difference> {
        let mut kept: Vec<&Difference> = self.differences.values().collect();
        kept.sort_by_key(|difference| (difference.start, difference.key));
        kept
    }

    pub fn total(&self) -> Tally {
        let mut total = Tally::default();
        self.kinds.values().for_each(|tally| total.add(tally));
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagecore::RelTag;

    fn difference(block: u32, start: u64) -> Difference {
        let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 7, forknum: 0 };
        Difference {
            witness: Witness::Process,
            key: Key::rel_block(rel, block),
            rmid: 10,
            info: 0x80,
            start: Lsn(start),
            end: Lsn(start + 8),
            detail: String::new(),
            ours: None,
            theirs: None,
            lines: vec![],
        }
    }

    #[test]
    fn all_differences_count_and_the_first_of_each_page_is_kept() {
        let (mut report, mut other) = (Report::new(2), Report::new(2));
        for (block, start) in [(1, 80), (1, 64), (2, 8)] {
            report.note(difference(block, start));
        }
        for (block, start) in [(1, 40), (3, 16)] {
            other.note(difference(block, start));
        }
        report.merge(other);
        assert_eq!(report.total().different, 5);
        assert_eq!(report.witnesses[&Witness::Process].different, 5);
        let kept: Vec<_> = report.differences().iter().map(|d| (d.key.field6, d.start.0)).collect();
        assert_eq!(kept, [(2, 8), (1, 40)]);
    }
}
