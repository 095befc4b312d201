//! Offline decoding of WAL for people: `pagectl wal decode`.

use pagecore::wal::{names, Compression, DecodedRecord, Interpreter, StreamChecks, ValueSink, WalError, WalFramer};
use pagecore::{Flavour, Key, Lsn, ShardIdentity, BLCKSZ};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use crate::errors::{bad_argument, raise};

/// See `_core.pyi`.
#[pyclass(frozen, get_all, module = "pageserver._core")]
pub struct DecodedWal {
    records: Py<PyList>,
    lsn_end: u64,
    error: Option<String>,
}

/// Turns bad WAL into an error of ours.
pub fn wal_error(py: Python<'_>, error: &WalError) -> PyErr {
    let text = error.to_string();
    match error {
        WalError::UnsupportedVersion(_) => bad_argument(py, &text),
        WalError::Stream { lsn, .. } | WalError::Record { lsn, .. } => {
            raise(py, "CorruptDataError", &text, &[("lsn", lsn.to_string())])
        }
        WalError::UnsupportedKey { lsn, key } => {
            raise(py, "CorruptDataError", &text, &[("lsn", lsn.to_string()), ("key", key.to_string())])
        }
        WalError::Decode(_) => raise(py, "CorruptDataError", &text, &[]),
    }
}

/// `neon` or `stock`.
fn parse_flavour(py: Python<'_>, flavour: &str) -> PyResult<Flavour> {
    match flavour {
        "neon" => Ok(Flavour::Neon),
        "stock" => Ok(Flavour::Stock),
        other => Err(bad_argument(py, &format!("unknown flavour {other}; HINT: neon or stock"))),
    }
}

/// Notes what interpretation would store.
#[derive(Default)]
struct Values(Vec<(Key, &'static str, bool, usize)>);

impl ValueSink for Values {
    fn put_image(&mut self, key: Key, _lsn: Lsn, page: &[u8; BLCKSZ]) {
        self.0.push((key, "image", true, page.len()));
    }

    fn put_record(&mut self, key: Key, _lsn: Lsn, will_init: bool, record: &[u8]) {
        self.0.push((key, "record", will_init, record.len()));
    }

    fn observe(&mut self, _key: Key, _lsn: Lsn) {}
}

#[pyfunction]
#[pyo3(signature = (data, *, pg_version, flavour, start_lsn, limit = None))]
pub fn decode_wal(
    py: Python<'_>,
    data: &[u8],
    pg_version: u8,
    flavour: &str,
    start_lsn: u64,
    limit: Option<usize>,
) -> PyResult<DecodedWal> {
    let interpreter =
        Interpreter { major: pg_version, flavour: parse_flavour(py, flavour)?, shard: ShardIdentity::UNSHARDED };
    let mut framer =
        WalFramer::new(pg_version, Lsn(start_lsn), StreamChecks::default()).map_err(|e| wal_error(py, &e))?;
    let records = PyList::empty(py);
    let (mut lsn_end, mut error) = (start_lsn, None);
    framer.feed(data);
    while limit.is_none_or(|limit| records.len() < limit) {
        let next = framer.next_record().map(|next| next.map(|(lsn, bytes)| (lsn, bytes.to_vec())));
        let shown = match next {
            Ok(None) => break,
            Ok(Some((lsn, bytes))) => {
                let start = framer.last_record_start().unwrap_or_default();
                show(py, &interpreter, start, lsn, &bytes).map(|record| (lsn, record))
            }
            Err(problem) => Err(Problem::Wal(problem)),
        };
        match shown {
            Ok((lsn, record)) => {
                records.append(record)?;
                lsn_end = lsn.0;
            }
            Err(Problem::Wal(problem)) => {
                error = Some(problem.to_string());
                break;
            }
            Err(Problem::Python(problem)) => return Err(problem),
        }
    }
    Ok(DecodedWal { records: records.unbind(), lsn_end, error })
}

enum Problem {
    Wal(WalError),
    Python(PyErr),
}

impl From<WalError> for Problem {
    fn from(error: WalError) -> Problem {
        Problem::Wal(error)
    }
}

impl From<PyErr> for Problem {
    fn from(error: PyErr) -> Problem {
        Problem::Python(error)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn show<'py>(
    py: Python<'py>,
    interpreter: &Interpreter,
    start: Lsn,
    end: Lsn,
    bytes: &[u8],
) -> Result<Bound<'py, PyDict>, Problem> {
    let record = DecodedRecord::decode(interpreter.major, bytes).map_err(|error| error.at_record_end(end))?;
    let mut values = Values::default();
    let metadata = interpreter.interpret(end, bytes, &record, &mut values)?;
    let out = PyDict::new(py);
    out.set_item("lsn", start.0)?;
    out.set_item("lsn_end", end.0)?;
    out.set_item("rmgr", names::rmgr_name(record.rmid))?;
    out.set_item("rmid", record.rmid)?;
    out.set_item("info", record.info)?;
    out.set_item("type", names::record_name(interpreter.major, record.rmid, record.info))?;
    out.set_item("xid", record.xid)?;
    out.set_item("prev", record.prev)?;
    out.set_item("length", record.total_len)?;
    out.set_item("origin", record.origin)?;
    out.set_item("top_xid", record.top_xid)?;
    out.set_item("main_data", hex(record.main_data))?;
    out.set_item("blocks", show_blocks(py, &record)?)?;
    let stored = PyList::empty(py);
    for (key, kind, will_init, length) in values.0 {
        let value = PyDict::new(py);
        value.set_item("key", key.to_string())?;
        value.set_item("kind", kind)?;
        value.set_item("will_init", will_init)?;
        value.set_item("length", length)?;
        stored.append(value)?;
    }
    out.set_item("values", stored)?;
    out.set_item("metadata", metadata.map(|metadata| format!("{metadata:?}")))?;
    Ok(out)
}

fn show_blocks<'py>(py: Python<'py>, record: &DecodedRecord<'_>) -> PyResult<Bound<'py, PyList>> {
    let blocks = PyList::empty(py);
    for block in &record.blocks {
        let out = PyDict::new(py);
        out.set_item("id", block.id)?;
        out.set_item("rel", block.rel.to_string())?;
        out.set_item("block", block.block)?;
        out.set_item("will_init", block.will_init)?;
        out.set_item("data_length", block.data.len())?;
        let image = match &block.image {
            None => None,
            Some(image) => {
                let shown = PyDict::new(py);
                shown.set_item("apply", block.apply_image)?;
                let compression = match image.compression {
                    Compression::None => "none",
                    Compression::Pglz => "pglz",
                    Compression::Lz4 => "lz4",
                    Compression::Zstd => "zstd",
                };
                shown.set_item("compression", compression)?;
                shown.set_item("length", image.data.len())?;
                shown.set_item("hole_offset", image.hole_offset)?;
                shown.set_item("hole_length", image.hole_length)?;
                Some(shown)
            }
        };
        out.set_item("image", image)?;
        blocks.append(out)?;
    }
    Ok(blocks)
}
