//! What a timeline's records and pages are like, and where its history has gaps. Both come from its source of WAL, and
//! change when another one is set or a lost one is replaced (docs/decisions/0008).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use pagecore::redo::Context;
use pagecore::{Flavour, Lsn};

use crate::cache::{read, write};
use crate::reconstruct::Contexts;
use crate::redo::RedoProcess;

/// Facts about the WAL of a timeline, and the process that replays what is not known here.
pub struct WalOrigin {
    pub flavour: Flavour,
    /// Records that end at or below are Neon's, whatever `flavour` says: a primary took over there.
    pub neon_until: Lsn,
    pub hint_bits_logged: bool,
    pub data_checksums: bool,
    pub redo: Option<Arc<dyn RedoProcess>>,
}

impl WalOrigin {
    pub(crate) fn contexts(&self, major: u8) -> Contexts {
        let newest = Context { major, flavour: self.flavour, hint_bits_logged: self.hint_bits_logged };
        Contexts { newest, neon_until: self.neon_until }
    }
}

/// A stretch of a history that is not known: between `from` and `to`, both of which can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub from: Lsn,
    pub to: Lsn,
}

impl Gap {
    pub fn contains(&self, lsn: Lsn) -> bool {
        self.from < lsn && lsn < self.to
    }
}

/// The gaps of one timeline. Who has none pays for one look at a flag.
#[derive(Default)]
pub struct GapList {
    any: AtomicBool,
    gaps: RwLock<Vec<Gap>>,
}

impl GapList {
    pub fn set(&self, gaps: Vec<Gap>) {
        let any = !gaps.is_empty();
        *write(&self.gaps) = gaps;
        self.any.store(any, Ordering::SeqCst);
    }

    /// The gap that `lsn` lies in.
    pub fn at(&self, lsn: Lsn) -> Option<Gap> {
        if !self.any.load(Ordering::SeqCst) {
            return None;
        }
        read(&self.gaps).iter().find(|gap| gap.contains(lsn)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_a_gap_can_be_read() {
        let list = GapList::default();
        assert_eq!(list.at(Lsn(15)), None);
        let gap = Gap { from: Lsn(10), to: Lsn(20) };
        list.set(vec![gap]);
        assert_eq!([10, 11, 19, 20].map(|lsn| list.at(Lsn(lsn))), [None, Some(gap), Some(gap), None]);
        list.set(Vec::new());
        assert_eq!(list.at(Lsn(15)), None);
    }

    #[test]
    fn what_records_mean_depends_on_where_they_end() {
        let origin = WalOrigin {
            flavour: Flavour::Stock,
            neon_until: Lsn(10),
            hint_bits_logged: false,
            data_checksums: false,
            redo: None,
        };
        let contexts = origin.contexts(15);
        assert_eq!(
            [9, 10, 11].map(|lsn| contexts.at(Lsn(lsn)).flavour),
            [Flavour::Neon, Flavour::Neon, Flavour::Stock]
        );
    }
}
