//! From what a search collected to a page (spec walredo.md 1).
//!
//! A chain whose records `pagecore::redo` all knows is replayed here; one with a single record that it does not know
//! goes whole to the redo process. There, records that are not PostgreSQL's own cut the chain into runs, since the
//! process knows only PostgreSQL's.

use bytes::Bytes;
use pagecore::key::VM_FORK;
use pagecore::redo::{apply, can_apply, Context};
use pagecore::value::{Record, Value};
use pagecore::{Flavour, Key, Lsn, BLCKSZ};

use crate::error::StoreError;
use crate::redo::{RedoProcess, RedoProcessError};

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

/// Makes the page of `key` as of `lsn` from values collected newest first, over `base` if they do not reach an image.
pub fn reconstruct(
    context: &Context,
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
    let page = if records.iter().all(|(_, record)| can_apply(context, record)) {
        let mut page = base.map_or_else(Vec::new, |(_, bytes)| bytes.to_vec());
        apply_all(context, key, lsn, &mut page, &records)?;
        page
    } else {
        let process = process.ok_or_else(|| fail(key, lsn, "timeline has no walredo manager".into()))?;
        in_process_runs(context, process, key, lsn, base, &records)?
    };
    Ok(Page { bytes: Bytes::from(page), lsn: last_lsn, replayed })
}

fn fail(key: Key, lsn: Lsn, detail: String) -> StoreError {
    StoreError::Redo { key, lsn, detail }
}

/// The visibility map of a stock primary with `full_page_writes = off` begins with changes to a page of zeros that was
/// never logged (spec stock.md 1).
pub(crate) fn starts_from_zeros(context: &Context, key: &Key) -> bool {
    context.flavour == Flavour::Stock && key.is_rel_block() && key.field5 == VM_FORK
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
    context: &Context,
    key: Key,
    lsn: Lsn,
    page: &mut Vec<u8>,
    records: &[(Lsn, Record<'_>)],
) -> Result<(), StoreError> {
    for (record_lsn, record) in records {
        apply(context, key, page, *record_lsn, record).map_err(|e| fail(key, lsn, e.to_string()))?;
    }
    Ok(())
}

fn in_process_runs(
    context: &Context,
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
            apply_all(context, key, lsn, &mut bytes, run)?;
            bytes
        } else {
            let base = page.as_ref().map(|(lsn, bytes)| (*lsn, &bytes[..]));
            match process.redo(key, base, &wal, context.major) {
                Ok(bytes) => bytes.to_vec(),
                Err(RedoProcessError::Failed(detail)) => return Err(fail(key, lsn, detail)),
                Err(RedoProcessError::Unavailable(detail)) => return Err(StoreError::RedoUnavailable { key, detail }),
            }
        };
        page = Some((run_lsn, after));
    }
    page.map(|(_, bytes)| bytes).ok_or_else(|| fail(key, lsn, "invalid WAL redo request with no records".into()))
}
