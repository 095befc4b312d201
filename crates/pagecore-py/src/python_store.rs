//! Timelines that a Python object stores (the object repository): WAL ingest writes into it, the page service reads it.
//!
//! Every call takes the GIL, so this is for repositories that are slow anyway. What the object raises comes out of the
//! call of Python that led to it; a client of the page service is told its text.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use pagecore::{Flavour, Key, Lsn, RelTag, ShardIdentity, SlruKind, BLCKSZ};
use pageserve::source::{PageSource, ReadAt, ReadError};
use pagestore::ingest::{IngestTarget, OpenLayerExtent};
use pagestore::{StoreError, WriteBatch};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyList, PyTuple};

use crate::errors::bad_argument;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key_bytes<'py>(py: Python<'py>, key: &Key) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &key.to_bytes())
}

fn key_list<'py>(py: Python<'py>, keys: impl Iterator<Item = Key>) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for key in keys {
        list.append(key_bytes(py, &key))?;
    }
    Ok(list)
}

fn owned(value: &PyBackedBytes) -> Bytes {
    Bytes::copy_from_slice(value)
}

// --- ingest -----------------------------------------------------------------------------------------------------------

/// An object like `_core.IngestTarget` as the target of ingest. Only for unsharded timelines.
pub struct PythonTarget {
    object: Py<PyAny>,
    major: u8,
    flavour: Flavour,
    /// Ingest is the only writer, so this needs no question.
    last: AtomicU64,
    /// What the object raised: the engine's own errors have no room for it.
    raised: Mutex<Option<PyErr>>,
}

impl PythonTarget {
    pub fn new(object: &Bound<'_, PyAny>) -> PyResult<PythonTarget> {
        let flavour = match object.getattr("flavour")?.extract::<String>()?.as_str() {
            "neon" => Flavour::Neon,
            "stock" => Flavour::Stock,
            other => return Err(bad_argument(object.py(), &format!("unknown flavour {other:?}"))),
        };
        Ok(PythonTarget {
            object: object.clone().unbind(),
            major: object.getattr("pg_version")?.extract()?,
            flavour,
            last: AtomicU64::new(object.getattr("last_record_lsn")?.extract()?),
            raised: Mutex::new(None),
        })
    }

    /// What the object raised since the last call.
    pub fn take_raised(&self) -> Option<PyErr> {
        lock(&self.raised).take()
    }

    fn call<T>(&self, work: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>) -> Result<T, StoreError> {
        Python::attach(|py| work(self.object.bind(py))).map_err(|error| {
            let text = format!("the timeline's store failed: {error}");
            *lock(&self.raised) = Some(error);
            StoreError::Invalid(text)
        })
    }
}

fn values_of<'py>(py: Python<'py>, batch: &WriteBatch) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for entry in &batch.entries {
        let value = batch.raw.get(entry.offset as usize..(entry.offset + entry.len) as usize).unwrap_or_default();
        let key = key_bytes(py, &entry.key).into_any();
        let lsn = entry.lsn.0.into_pyobject(py)?.into_any();
        list.append(PyTuple::new(py, [key, lsn, PyBytes::new(py, value).into_any()])?)?;
    }
    Ok(list)
}

impl IngestTarget for PythonTarget {
    fn shard(&self) -> ShardIdentity {
        ShardIdentity::UNSHARDED
    }

    fn major(&self) -> u8 {
        self.major
    }

    fn flavour(&self) -> Flavour {
        self.flavour
    }

    fn last_record_lsn(&self) -> Lsn {
        Lsn(self.last.load(Ordering::Acquire))
    }

    fn get(&self, key: Key, lsn: Lsn) -> Result<Option<Bytes>, StoreError> {
        self.call(|object| {
            let key = key_bytes(object.py(), &key);
            let value: Option<PyBackedBytes> = object.call_method1("find", (key, lsn.0))?.extract()?;
            Ok(value.as_ref().map(owned))
        })
    }

    fn get_pages(&self, keys: &[Key], lsn: Lsn) -> Vec<Result<Bytes, StoreError>> {
        let found = self.call(|object| {
            let keys = key_list(object.py(), keys.iter().copied())?;
            object.call_method1("get_many", (keys, lsn.0))?.extract::<Vec<Option<PyBackedBytes>>>()
        });
        match found {
            Ok(values) => keys.iter().zip(values).map(|(key, value)| page_of(*key, lsn, value)).collect(),
            Err(error) => keys.iter().map(|_| Err(error.clone())).collect(),
        }
    }

    fn rel_size(&self, rel: RelTag, lsn: Lsn) -> Result<Option<u32>, StoreError> {
        self.call(|object| {
            let RelTag { spcnode, dbnode, relnode, forknum } = rel;
            object.call_method1("listed_rel_size", (spcnode, dbnode, relnode, forknum, lsn.0))?.extract()
        })
    }

    /// Each value is an object of its own there, and is replaced when its record comes again.
    fn forget_uncommitted(&self) {}

    fn put(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.call(|object| object.call_method1("put_values", (values_of(object.py(), batch)?,)).map(|_| ()))
    }

    fn commit(&self, batch: &WriteBatch, record_lsns: &[Lsn]) -> Result<(), StoreError> {
        let lsns: Vec<u64> = record_lsns.iter().map(|lsn| lsn.0).collect();
        self.call(|object| object.call_method1("commit_values", (values_of(object.py(), batch)?, &lsns)).map(|_| ()))?;
        if let Some(last) = lsns.last() {
            self.last.store(*last, Ordering::Release);
        }
        Ok(())
    }

    fn note_rel_size(&self, _rel: RelTag, _lsn: Lsn, _blocks: u32) {}

    fn note_rel_dropped(&self, _rel: RelTag) {}

    fn note_database_dropped(&self, _spcnode: u32, _dbnode: u32) {}

    /// What cannot be asked now is asked again after the next commit.
    fn open_layer_extent(&self) -> Option<OpenLayerExtent> {
        let found = self.call(|object| {
            let open = object.call_method0("open_layer")?;
            if open.is_none() {
                return Ok(None);
            }
            let lsn_start = Lsn(open.getattr("lsn_start")?.extract()?);
            Ok(Some(OpenLayerExtent { lsn_start, size_bytes: open.getattr("size_bytes")?.extract()? }))
        });
        found.ok().flatten()
    }
}

fn page_of(key: Key, lsn: Lsn, value: Option<PyBackedBytes>) -> Result<Bytes, StoreError> {
    let missing = || StoreError::MissingKey { key, shard: 0, lsn, ancestor_lsn: None, detail: String::new() };
    value.as_ref().map(owned).ok_or_else(missing)
}

// --- page service -----------------------------------------------------------------------------------------------------

type Waker = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Waiters {
    next: u64,
    /// By LSN and number.
    waiting: BTreeMap<(u64, u64), Waker>,
}

/// An object that answers reads, as the page service sees it; see `_core.pyi`.
#[pyclass(frozen, module = "pageserver._core")]
pub struct PageBridge {
    pub(crate) bridge: Arc<Bridge>,
}

pub(crate) struct Bridge {
    object: Py<PyAny>,
    last: AtomicU64,
    disk_consistent: AtomicU64,
    gc_cutoff: AtomicU64,
    stopped: AtomicBool,
    waiters: Mutex<Waiters>,
}

impl Bridge {
    fn wake(&self) {
        let stopped = self.stopped.load(Ordering::SeqCst);
        let ready = {
            let mut waiters = lock(&self.waiters);
            if stopped {
                // Dropped uncalled: that is how the waiters learn of the end.
                drop(std::mem::take(&mut waiters.waiting));
                return;
            }
            let later = waiters.waiting.split_off(&(self.last.load(Ordering::SeqCst).saturating_add(1), 0));
            std::mem::replace(&mut waiters.waiting, later)
        };
        ready.into_values().for_each(|wake| wake());
    }

    fn read<T>(&self, work: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T>) -> Result<T, ReadError> {
        if self.stopped.load(Ordering::SeqCst) {
            return Err(ReadError::Stopped);
        }
        Python::attach(|py| work(self.object.bind(py)).map_err(|error| read_error(py, &error)))
    }
}

fn read_error(py: Python<'_>, error: &PyErr) -> ReadError {
    let stopped = py.import("pageserver.errors").and_then(|errors| errors.getattr("StoppedError"));
    match stopped {
        Ok(class) if error.is_instance(py, &class) => ReadError::Stopped,
        _ => ReadError::Failed(error.value(py).to_string()),
    }
}

#[pymethods]
impl PageBridge {
    #[new]
    #[pyo3(signature = (source, *, last_record_lsn, disk_consistent_lsn, gc_cutoff_lsn))]
    fn new(source: Py<PyAny>, last_record_lsn: u64, disk_consistent_lsn: u64, gc_cutoff_lsn: u64) -> PageBridge {
        let bridge = Bridge {
            object: source,
            last: AtomicU64::new(last_record_lsn),
            disk_consistent: AtomicU64::new(disk_consistent_lsn),
            gc_cutoff: AtomicU64::new(gc_cutoff_lsn),
            stopped: AtomicBool::new(false),
            waiters: Mutex::default(),
        };
        PageBridge { bridge: Arc::new(bridge) }
    }

    fn tell(&self, py: Python<'_>, last_record_lsn: u64, disk_consistent_lsn: u64, gc_cutoff_lsn: u64) {
        py.detach(|| {
            self.bridge.last.store(last_record_lsn, Ordering::SeqCst);
            self.bridge.disk_consistent.store(disk_consistent_lsn, Ordering::SeqCst);
            self.bridge.gc_cutoff.store(gc_cutoff_lsn, Ordering::SeqCst);
            self.bridge.wake();
        });
    }

    fn shutdown(&self, py: Python<'_>) {
        py.detach(|| {
            self.bridge.stopped.store(true, Ordering::SeqCst);
            self.bridge.wake();
        });
    }
}

impl PageSource for Bridge {
    fn last_record_lsn(&self) -> Lsn {
        Lsn(self.last.load(Ordering::SeqCst))
    }

    fn disk_consistent_lsn(&self) -> Lsn {
        Lsn(self.disk_consistent.load(Ordering::SeqCst))
    }

    fn gc_cutoff(&self) -> Lsn {
        Lsn(self.gc_cutoff.load(Ordering::SeqCst))
    }

    fn on_lsn(&self, lsn: Lsn, wake: Waker) {
        {
            let mut waiters = lock(&self.waiters);
            let number = waiters.next;
            waiters.next += 1;
            waiters.waiting.insert((lsn.0, number), wake);
        }
        // The record may be there already, or have come meanwhile.
        self.wake();
    }

    fn rel_exists(&self, rel: RelTag, at: ReadAt) -> Result<bool, ReadError> {
        let RelTag { spcnode, dbnode, relnode, forknum } = rel;
        self.read(|object| object.call_method1("rel_exists", (spcnode, dbnode, relnode, forknum, at.lsn.0))?.extract())
    }

    fn rel_size(&self, rel: RelTag, at: ReadAt) -> Result<Option<u32>, ReadError> {
        let RelTag { spcnode, dbnode, relnode, forknum } = rel;
        self.read(|object| {
            object.call_method1("rel_size_or_last", (spcnode, dbnode, relnode, forknum, at.lsn.0))?.extract()
        })
    }

    fn db_size(&self, spcnode: u32, dbnode: u32, at: ReadAt) -> Result<u64, ReadError> {
        let blocks: Option<u64> =
            self.read(|object| object.call_method1("db_size", (spcnode, dbnode, at.lsn.0))?.extract())?;
        blocks.ok_or_else(|| ReadError::Failed(format!("database {spcnode}/{dbnode} not found at {}", at.lsn)))
    }

    fn slru_segment(&self, kind: SlruKind, segno: u32, at: ReadAt) -> Result<Vec<Bytes>, ReadError> {
        let pages: Vec<PyBackedBytes> =
            self.read(|object| object.call_method1("slru_pages", (kind as u8, segno, at.lsn.0))?.extract())?;
        Ok(pages.iter().map(owned).collect())
    }

    fn get_pages(&self, keys: &[(Key, Lsn)], pages: &mut Vec<Result<Bytes, ReadError>>) {
        for (key, lsn) in keys {
            let page = self.read(|object| {
                let page: PyBackedBytes =
                    object.call_method1("get", (key_bytes(object.py(), key), lsn.0))?.extract()?;
                Ok(owned(&page))
            });
            pages.push(page.and_then(|page| match page.len() {
                BLCKSZ => Ok(page),
                other => Err(ReadError::Failed(format!("page of {key} at {lsn} has {other} bytes"))),
            }));
        }
    }
}
