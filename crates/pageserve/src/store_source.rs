//! A timeline of the storage engine as a source of pages.

use bytes::Bytes;
use pagecore::{Key, Lsn, RelTag, SlruKind};
use pagestore::{StoreError, TimelineStore};

use crate::source::{PageSource, ReadAt, ReadError};

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Stopped => ReadError::Stopped,
            StoreError::Redo { .. } => ReadError::Redo(error.to_string()),
            other => ReadError::Failed(other.to_string()),
        }
    }
}

/// Refuses what lies in a gap of the history. Only here, where clients ask: who ingests reads what follows a gap before
/// it is fit for anybody.
fn check_gap(store: &TimelineStore, lsn: Lsn) -> Result<(), ReadError> {
    match store.gaps().at(lsn) {
        None => Ok(()),
        Some(gap) => Err(ReadError::Refused(format!(
            "lsn {lsn} lies in a gap of the timeline's history, between {} and {}: the WAL of that time never came; \
             read at one of the two or beyond",
            gap.from, gap.to
        ))),
    }
}

impl PageSource for TimelineStore {
    fn last_record_lsn(&self) -> Lsn {
        TimelineStore::last_record_lsn(self)
    }

    fn disk_consistent_lsn(&self) -> Lsn {
        TimelineStore::disk_consistent_lsn(self)
    }

    fn gc_cutoff(&self) -> Lsn {
        TimelineStore::gc_cutoff(self)
    }

    fn on_lsn(&self, lsn: Lsn, wake: Box<dyn FnOnce() + Send>) {
        TimelineStore::on_lsn(self, lsn, wake);
    }

    fn rel_exists(&self, rel: RelTag, at: ReadAt) -> Result<bool, ReadError> {
        check_gap(self, at.lsn)?;
        Ok(TimelineStore::rel_exists(self, rel, at.lsn)?)
    }

    fn rel_size(&self, rel: RelTag, at: ReadAt) -> Result<Option<u32>, ReadError> {
        check_gap(self, at.lsn)?;
        Ok(Some(self.rel_size_or_last(rel, at.lsn)?))
    }

    fn db_size(&self, spcnode: u32, dbnode: u32, at: ReadAt) -> Result<u64, ReadError> {
        check_gap(self, at.lsn)?;
        let blocks = TimelineStore::db_size(self, spcnode, dbnode, at.lsn)?;
        blocks.ok_or_else(|| ReadError::Failed(format!("database {spcnode}/{dbnode} not found at {}", at.lsn)))
    }

    fn slru_segment(&self, kind: SlruKind, segno: u32, at: ReadAt) -> Result<Vec<Bytes>, ReadError> {
        check_gap(self, at.lsn)?;
        Ok(TimelineStore::slru_segment(self, kind, segno, at.lsn)?)
    }

    fn get_pages(&self, keys: &[(Key, Lsn)], pages: &mut Vec<Result<Bytes, ReadError>>) {
        let mut lsns = keys.iter().map(|(_, lsn)| *lsn);
        self.serve_pages(keys, |page| {
            // After the read: an LSN that was waited for may turn out to lie in a gap.
            let checked = lsns.next().map_or(Ok(()), |lsn| check_gap(self, lsn));
            pages.push(checked.and_then(|()| page.map_err(ReadError::from)));
        });
    }
}
