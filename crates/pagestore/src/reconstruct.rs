//! From what a search collected to a page (spec walredo.md 1).
//!
//! A chain whose records `pagecore::redo` all knows is replayed here; one with a single record that it does not know
//! goes whole to the redo process. There, records that are not PostgreSQL's own cut the chain into runs, since the
//! process knows only PostgreSQL's. With [`RedoMode::ProcessOnly`] every chain of a relation block that has a PostgreSQL record
//! goes there.

use std::time::Instant;

use bytes::Bytes;
use pagecore::key::VM_FORK;
use pagecore::redo::{apply, can_apply, Context};
use pagecore::value::{Record, Value};
use pagecore::{Flavour, Key, Lsn, BLCKSZ};

use crate::error::StoreError;
use crate::redo::{RedoMode, RedoProcess, RedoProcessError};

/// One collected value.
#[derive(Clone, Debug)]
pub struct Collected {
    pub lsn: Lsn,
    /// From an image layer: the bytes of the page itself, not an encoded value.
    pub is_plain_image: bool,
    pub bytes: Bytes,
}

/// A page, the LSN of the last value in it, and how many records were replayed for it.
#[derive(Clone, Debug)]
pub struct Page {
    pub bytes: Bytes,
    pub lsn: Lsn,
    pub replayed: usize,
}

/// What records mean, which a change of their source changes: those that end at or below `neon_until` are Neon's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contexts {
    pub newest: Context,
    pub neon_until: Lsn,
}

impl Contexts {
    pub fn at(&self, lsn: Lsn) -> Context {
        match lsn <= self.neon_until {
            true => Context { flavour: Flavour::Neon, ..self.newest },
            false => self.newest,
        }
    }
}

impl From<Context> for Contexts {
    fn from(newest: Context) -> Contexts {
        Contexts { newest, neon_until: Lsn::INVALID }
    }
}

/// Makes the page of `key` as of `lsn` from values collected newest first, over `base` if they do not reach an image.
pub fn reconstruct(
    context: &Contexts,
    process: Option<&dyn RedoProcess>,
    key: Key,
    lsn: Lsn,
    base: Option<(Lsn, Bytes)>,
    newest_first: &[Collected],
) -> Result<Page, StoreError> {
    let mut base = base;
    let mut records: Vec<(Lsn, Record<'_>)> = Vec::with_capacity(newest_first.len());
    for part in newest_first {
        if part.is_plain_image {
            base = Some((part.lsn, part.bytes.clone()));
            break;
        }
        match Value::decode(&part.bytes) {
            Ok(Value::Image(image)) => {
                // The image is the value's tail.
                base = Some((part.lsn, part.bytes.slice(part.bytes.len() - image.len()..)));
                break;
            }
            Ok(Value::Record(record)) => {
                let will_init = matches!(record, Record::Postgres { will_init: true, .. });
                records.push((part.lsn, record));
                if will_init {
                    base = None;
                    break;
                }
            }
            Err(e) => return Err(StoreError::CorruptValue { key, lsn: part.lsn, detail: e.to_string() }),
        }
    }
    records.reverse();
    let Some((first_lsn, first)) = records.first() else {
        return match base {
            Some((lsn, bytes)) => Ok(Page { bytes, lsn, replayed: 0 }),
            None => Err(fail(key, lsn, format!("base image for {key} at {lsn} not found"))),
        };
    };
    if base.is_none() && !matches!(first, Record::Postgres { will_init: true, .. }) {
        if !starts_from_zeros(context, &key) {
            let n = records.len();
            let text = format!("Base image for {key} at {lsn} not found, but got {n} WAL records");
            return Err(fail(key, lsn, text));
        }
        base = Some((Lsn(first_lsn.0 - 1), Bytes::from_static(&[0; BLCKSZ])));
    }
    check_size(&key, base.as_ref())?;
    let replayed = records.len();
    let last_lsn = records.last().map_or(lsn, |(lsn, _)| *lsn);
    let page = if is_native(context, process, &key, &records) {
        let mut page = base.map_or_else(Vec::new, |(_, bytes)| bytes.to_vec());
        apply_all(context, process, key, lsn, &mut page, &records)?;
        page
    } else {
        let process = process.ok_or_else(|| fail(key, lsn, "timeline has no walredo manager".into()))?;
        in_process_runs(context, process, key, lsn, base, &records)?
    };
    Ok(Page { bytes: Bytes::from(page), lsn: last_lsn, replayed })
}

/// True if no record of the chain needs the process, or is to be sent there.
fn is_native(context: &Contexts, process: Option<&dyn RedoProcess>, key: &Key, records: &[(Lsn, Record<'_>)]) -> bool {
    let process_only = process.is_some_and(|process| process.mode() == RedoMode::ProcessOnly);
    let needs_process = |(lsn, record): &(Lsn, Record<'_>)| match record {
        Record::Postgres { .. } if process_only && key.is_rel_block() => true,
        record => !can_apply(&context.at(*lsn), record),
    };
    !records.iter().any(needs_process)
}

fn fail(key: Key, lsn: Lsn, detail: String) -> StoreError {
    StoreError::Redo { key, lsn, detail }
}

/// The visibility map of a stock primary with `full_page_writes = off` begins with changes to a page of zeros that was
/// never logged (spec stock.md 1).
pub(crate) fn starts_from_zeros(context: &Contexts, key: &Key) -> bool {
    context.newest.flavour == Flavour::Stock && key.is_rel_block() && key.field5 == VM_FORK
}

/// A base page has 8192 bytes; one of the CLOG may carry the 8 bytes of its timestamp.
fn check_size(key: &Key, base: Option<&(Lsn, Bytes)>) -> Result<(), StoreError> {
    match base {
        Some((lsn, page)) if page.len() != BLCKSZ && !(key.field1 == 1 && page.len() == BLCKSZ + 8) => {
            let detail = format!("base page has {} bytes", page.len());
            Err(StoreError::CorruptValue { key: *key, lsn: *lsn, detail })
        }
        _ => Ok(()),
    }
}

fn apply_all(
    context: &Contexts,
    process: Option<&dyn RedoProcess>,
    key: Key,
    lsn: Lsn,
    page: &mut Vec<u8>,
    records: &[(Lsn, Record<'_>)],
) -> Result<(), StoreError> {
    let begun = Instant::now();
    for (record_lsn, record) in records {
        let context = context.at(*record_lsn);
        apply(&context, key, page, *record_lsn, record).map_err(|e| fail(key, lsn, e.to_string()))?;
    }
    if let Some(process) = process {
        process.note_native(begun.elapsed());
    }
    Ok(())
}

fn in_process_runs(
    context: &Contexts,
    process: &dyn RedoProcess,
    key: Key,
    lsn: Lsn,
    base: Option<(Lsn, Bytes)>,
    records: &[(Lsn, Record<'_>)],
) -> Result<Vec<u8>, StoreError> {
    let mut page: Option<(Lsn, Vec<u8>)> = base.map(|(lsn, bytes)| (lsn, bytes.to_vec()));
    let is_postgres = |record: &Record<'_>| matches!(record, Record::Postgres { .. });
    for run in records.chunk_by(|a, b| is_postgres(&a.1) == is_postgres(&b.1)) {
        let run_lsn = run.last().map_or(lsn, |(lsn, _)| *lsn);
        let mut wal: Vec<(Lsn, &[u8])> = Vec::with_capacity(run.len());
        for (record_lsn, record) in run {
            if let Record::Postgres { record, .. } = record {
                wal.push((*record_lsn, record));
            }
        }
        let after = if wal.is_empty() {
            let mut bytes = page.map_or_else(Vec::new, |(_, bytes)| bytes);
            apply_all(context, Some(process), key, lsn, &mut bytes, run)?;
            bytes
        } else {
            let base = page.as_ref().map(|(lsn, bytes)| (*lsn, &bytes[..]));
            match process.redo(key, base, &wal, context.newest.major) {
                Ok(bytes) => bytes.to_vec(),
                Err(RedoProcessError::Failed(detail)) => return Err(fail(key, lsn, detail)),
                Err(RedoProcessError::Unavailable(detail)) => return Err(StoreError::RedoUnavailable { key, detail }),
            }
        };
        page = Some((run_lsn, after));
    }
    page.map(|(_, bytes)| bytes).ok_or_else(|| fail(key, lsn, "invalid WAL redo request with no records".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagecore::key::SlruKind;
    use pagecore::RelTag;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    use std::time::Duration;

    const STOCK_16: Contexts = Contexts {
        newest: Context { major: 16, flavour: Flavour::Stock, hint_bits_logged: false },
        neon_until: Lsn::INVALID,
    };

    /// Answers with a page of sevens, and counts.
    struct Fake {
        mode: RedoMode,
        asked: AtomicU64,
        native: AtomicU64,
    }

    impl RedoProcess for Fake {
        fn redo(
            &self,
            _: Key,
            _: Option<(Lsn, &[u8])>,
            records: &[(Lsn, &[u8])],
            _: u8,
        ) -> Result<[u8; BLCKSZ], RedoProcessError> {
            self.asked.fetch_add(records.len() as u64, Relaxed);
            Ok([7; BLCKSZ])
        }

        fn mode(&self) -> RedoMode {
            self.mode
        }

        fn note_native(&self, _: Duration) {
            self.native.fetch_add(1, Relaxed);
        }
    }

    /// A full page image of a page without content; rmid 0, info 0xB0 (FPI), image with a hole behind 24 bytes.
    fn full_page_image(rel: RelTag) -> Vec<u8> {
        let mut out = vec![0; 24];
        out[16] = 0xB0;
        out.extend([0, 0x50, 0, 0, 24, 0, 24, 0, 0x03]);
        [rel.spcnode, rel.dbnode, rel.relnode, 0].iter().for_each(|field| out.extend(field.to_le_bytes()));
        out.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 32, 0, 32, 4, 32, 0, 0, 0, 0]);
        let total = (out.len() as u32).to_le_bytes();
        out[..4].copy_from_slice(&total);
        out
    }

    fn collected(record: Record<'_>) -> Collected {
        Collected { lsn: Lsn(0x20), is_plain_image: false, bytes: Value::Record(record).encode().into() }
    }

    #[test]
    fn with_process_only_every_postgres_record_of_a_relation_goes_to_the_process_and_nothing_else() {
        let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 16397, forknum: 0 };
        let image = full_page_image(rel);
        let wal = [collected(Record::Postgres { will_init: true, record: (&image[..]).into() })];
        let map = RelTag { forknum: VM_FORK, ..rel };
        let clear = Record::ClearVisibilityMapFlags { new_heap_block: Some(0), old_heap_block: None, flags: 3 };
        let clear = [collected(clear)];
        let commit = [collected(Record::ClogSetCommitted { xids: vec![1], timestamp: 0 })];
        let zeros = Some((Lsn(0x10), Bytes::from_static(&[0; BLCKSZ])));
        for (mode, asked) in [(RedoMode::NativeFirst, 0), (RedoMode::ProcessOnly, 1)] {
            let fake = Fake { mode, asked: AtomicU64::new(0), native: AtomicU64::new(0) };
            let make = |key, base, values: &[Collected]| {
                reconstruct(&STOCK_16, Some(&fake), key, Lsn(0x20), base, values).unwrap()
            };
            let page = make(Key::rel_block(rel, 0), None, &wal);
            assert_eq!((page.bytes[100], page.replayed), (if asked == 1 { 7 } else { 0 }, 1));
            assert_eq!(make(Key::rel_block(map, 0), zeros.clone(), &clear).bytes[100], 0);
            assert_eq!(make(Key::slru_block(SlruKind::Clog, 0, 0), zeros.clone(), &commit).bytes[0], 4);
            assert_eq!((fake.asked.load(Relaxed), fake.native.load(Relaxed)), (asked, 3 - asked));
        }
    }
}
