//! `WalIngest` and the rare records that Python applies.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pagecore::wal::metadata::XactEndKind;
use pagecore::wal::{CheckPoint, StreamChecks};
use pagecore::{Lsn, RelTag};
use pagestore::ingest::{IngestError, IngestSettings, RareDetail, RareRecord as CoreRecord, Step, WalIngest as Core};
use pagestore::StoreError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::arguments::{key_of, slru_kind};
use crate::errors::{raise, store_error};
use crate::ingest_target::Target;
use crate::wal::wal_error;

/// (tablespace, database, relation, fork)
type Fork = (u32, u32, u32, u8);

fn rel_tag((spcnode, dbnode, relnode, forknum): Fork) -> RelTag {
    RelTag { spcnode, dbnode, relnode, forknum }
}

fn checkpoint_of(py: Python<'_>, bytes: &[u8]) -> PyResult<CheckPoint> {
    CheckPoint::decode(bytes).map_err(|error| raise(py, "CorruptDataError", &error.to_string(), &[]))
}

fn ingest_error(py: Python<'_>, error: &IngestError) -> PyErr {
    match error {
        IngestError::Wal(error) => wal_error(py, error),
        // Our own use of the store broke one of its rules.
        IngestError::Store(StoreError::Invalid(problem)) => raise(py, "InternalError", problem, &[]),
        IngestError::Store(error) => store_error(py, error),
        IngestError::Record { lsn, .. } => {
            raise(py, "CorruptDataError", &error.to_string(), &[("lsn", lsn.to_string())])
        }
        IngestError::Misuse(problem) => raise(py, "InternalError", problem, &[]),
    }
}

/// A frozen class with these attributes.
macro_rules! detail {
    ($name:ident { $($field:ident: $type:ty),+ $(,)? }) => {
        #[pyclass(frozen, get_all, module = "pageserver._core")]
        pub struct $name {
            $($field: $type),+
        }
    };
}

detail!(RelationCreate { spc: u32, db: u32, rel: u32, fork: u8, implicit: bool });
detail!(RelationTruncate { spc: u32, db: u32, rel: u32, blocks: u32, flags: u32 });
detail!(DatabaseCreate { db: u32, tablespace: u32, source_db: u32, source_tablespace: u32 });
detail!(DatabaseDrop { db: u32, tablespaces: Vec<u32> });
detail!(TablespaceCreate { oid: u32, path: Py<PyBytes> });
detail!(TablespaceDrop { oid: u32 });
detail!(SlruZeroPage { slru: u8, page: u32, implicit: bool });
detail!(ClogTruncate { page: u32, oldest_xid: u32, oldest_xid_db: u32 });
detail!(TransactionEnd {
    committed: bool,
    prepared: bool,
    xid: u32,
    time: i64,
    subxacts: Vec<u32>,
    relations: Vec<(u32, u32, u32)>,
    origin: u16,
    origin_lsn: u64,
});
detail!(TransactionPrepare { xid: u32, data: Py<PyBytes> });
detail!(MultixactTruncate {
    oldest_multi_db: u32,
    start_offset: u32,
    end_offset: u32,
    start_member: u32,
    end_member: u32,
});
detail!(RelationMapUpdate { db: u32, tablespace: u32, data: Py<PyBytes> });
detail!(CheckpointTaken { shutdown: bool, checkpoint: Py<PyBytes> });
detail!(ParameterChange {
    max_connections: i32,
    max_worker_processes: i32,
    max_wal_senders: i32,
    max_prepared_xacts: i32,
    max_locks_per_xact: i32,
    wal_level: i32,
    wal_log_hints: bool,
    track_commit_timestamp: bool,
});
detail!(EndOfRecovery { time: i64, tli: u32, prev_tli: u32, wal_level: Option<i32> });
detail!(BackupEnd { start_lsn: u64 });
detail!(AuxFilePut { path: String, content: Py<PyBytes> });
detail!(OriginSet { origin: u16, origin_lsn: u64 });

/// See `_core.pyi`.
#[pyclass(frozen, get_all, module = "pageserver._core")]
pub struct RareRecord {
    kind: &'static str,
    detail: Py<PyAny>,
    lsn: u64,
    xid: u32,
    rmid: u8,
    info: u8,
    origin: u16,
    main_data: Py<PyBytes>,
}

fn bytes(py: Python<'_>, data: &[u8]) -> Py<PyBytes> {
    PyBytes::new(py, data).unbind()
}

fn made<T>(py: Python<'_>, kind: &'static str, detail: T) -> PyResult<(&'static str, Py<PyAny>)>
where
    T: pyo3::PyClass + Into<pyo3::PyClassInitializer<T>>,
{
    Ok((kind, Py::new(py, detail)?.into_any()))
}

/// The Python object for a detail, and the name of its class.
fn detail_of(py: Python<'_>, detail: RareDetail) -> PyResult<(&'static str, Py<PyAny>)> {
    match detail {
        RareDetail::RelationCreate { rel, implicit } => {
            let RelTag { spcnode: spc, dbnode: db, relnode: rel, forknum: fork } = rel;
            made(py, "RelationCreate", RelationCreate { spc, db, rel, fork, implicit })
        }
        RareDetail::RelationTruncate { spcnode: spc, dbnode: db, relnode: rel, blocks, flags } => {
            made(py, "RelationTruncate", RelationTruncate { spc, db, rel, blocks, flags })
        }
        RareDetail::DatabaseCreate { db, tablespace, source_db, source_tablespace } => {
            made(py, "DatabaseCreate", DatabaseCreate { db, tablespace, source_db, source_tablespace })
        }
        RareDetail::DatabaseDrop { db, tablespaces } => made(py, "DatabaseDrop", DatabaseDrop { db, tablespaces }),
        RareDetail::TablespaceCreate { oid, path } => {
            made(py, "TablespaceCreate", TablespaceCreate { oid, path: bytes(py, &path) })
        }
        RareDetail::TablespaceDrop { oid } => made(py, "TablespaceDrop", TablespaceDrop { oid }),
        RareDetail::SlruZeroPage { kind, page, implicit } => {
            made(py, "SlruZeroPage", SlruZeroPage { slru: kind as u8, page, implicit })
        }
        RareDetail::ClogTruncate { page, oldest_xid, oldest_xid_db } => {
            made(py, "ClogTruncate", ClogTruncate { page, oldest_xid, oldest_xid_db })
        }
        RareDetail::TransactionEnd { kind, xid, time, subxacts, relations, origin, origin_lsn } => {
            let committed = matches!(kind, XactEndKind::Commit | XactEndKind::CommitPrepared);
            let prepared = kind.is_prepared();
            let end = TransactionEnd { committed, prepared, xid, time, subxacts, relations, origin, origin_lsn };
            made(py, "TransactionEnd", end)
        }
        RareDetail::TransactionPrepare { xid, data } => {
            made(py, "TransactionPrepare", TransactionPrepare { xid, data: bytes(py, &data) })
        }
        RareDetail::MultixactTruncate { oldest_multi_db, start_offset, end_offset, start_member, end_member } => {
            let truncate = MultixactTruncate { oldest_multi_db, start_offset, end_offset, start_member, end_member };
            made(py, "MultixactTruncate", truncate)
        }
        RareDetail::RelationMapUpdate { db, tablespace, data } => {
            made(py, "RelationMapUpdate", RelationMapUpdate { db, tablespace, data: bytes(py, &data) })
        }
        RareDetail::CheckpointTaken { shutdown, checkpoint } => {
            made(py, "CheckpointTaken", CheckpointTaken { shutdown, checkpoint: bytes(py, &checkpoint.0) })
        }
        RareDetail::ParameterChange { numbers, wal_log_hints, track_commit_timestamp } => {
            let [max_connections, max_worker_processes, max_wal_senders, max_prepared_xacts, max_locks_per_xact, wal_level] =
                numbers;
            let change = ParameterChange {
                max_connections,
                max_worker_processes,
                max_wal_senders,
                max_prepared_xacts,
                max_locks_per_xact,
                wal_level,
                wal_log_hints,
                track_commit_timestamp,
            };
            made(py, "ParameterChange", change)
        }
        RareDetail::EndOfRecovery { time, tli, prev_tli, wal_level } => {
            made(py, "EndOfRecovery", EndOfRecovery { time, tli, prev_tli, wal_level })
        }
        RareDetail::BackupEnd { start_lsn } => made(py, "BackupEnd", BackupEnd { start_lsn }),
        RareDetail::AuxFilePut { path, content } => {
            made(py, "AuxFilePut", AuxFilePut { path, content: bytes(py, &content) })
        }
        RareDetail::OriginSet { origin, origin_lsn } => made(py, "OriginSet", OriginSet { origin, origin_lsn }),
    }
}

fn rare_record(py: Python<'_>, record: CoreRecord) -> PyResult<RareRecord> {
    let (kind, detail) = detail_of(py, record.detail)?;
    Ok(RareRecord {
        kind,
        detail,
        lsn: record.lsn.0,
        xid: record.xid,
        rmid: record.rmid,
        info: record.info,
        origin: record.origin,
        main_data: bytes(py, &record.main_data),
    })
}

/// See `_core.pyi`.
#[pyclass(frozen, module = "pageserver._core")]
pub struct WalIngest {
    core: Mutex<Core<Target>>,
    target: Arc<Target>,
}

impl WalIngest {
    /// Works on the ingest without the GIL: the lock may be held by `run`, whose wake-ups of waiters need the GIL.
    fn with<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut Core<Target>) -> T + Send) -> T {
        py.detach(|| {
            let mut core: MutexGuard<'_, _> = self.core.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut core)
        })
    }

    fn try_with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut Core<Target>) -> Result<T, IngestError> + Send,
    ) -> PyResult<T> {
        self.with(py, work).map_err(|error| self.target.take_raised().unwrap_or_else(|| ingest_error(py, &error)))
    }
}

#[pymethods]
impl WalIngest {
    #[new]
    #[pyo3(signature = (store, *, start_lsn, checkpoint, system_identifier, check_prev, tolerant_until,
        checkpoint_distance))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only: everything that is fixed when ingest begins")]
    fn new(
        py: Python<'_>,
        store: &Bound<'_, PyAny>,
        start_lsn: u64,
        checkpoint: &[u8],
        system_identifier: Option<u64>,
        check_prev: bool,
        tolerant_until: u64,
        checkpoint_distance: u64,
    ) -> PyResult<WalIngest> {
        let settings = IngestSettings {
            start_lsn: Lsn(start_lsn),
            checkpoint: checkpoint_of(py, checkpoint)?,
            checks: StreamChecks { system_identifier, check_prev },
            tolerant_until: Lsn(tolerant_until),
            checkpoint_distance,
        };
        let target = Arc::new(Target::of(store)?);
        let core = Core::new(Arc::clone(&target), settings).map_err(|error| ingest_error(py, &error))?;
        Ok(WalIngest { core: Mutex::new(core), target })
    }

    fn feed(&self, py: Python<'_>, chunk: &[u8]) {
        self.with(py, |core| core.feed(chunk));
    }

    fn run<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.try_with(py, |core| core.run())? {
            Step::NeedInput => Ok("need-input".into_pyobject(py)?.into_any()),
            Step::Roll => Ok("roll".into_pyobject(py)?.into_any()),
            Step::Rare(record) => Ok(Bound::new(py, rare_record(py, *record)?)?.into_any()),
        }
    }

    fn abandon(&self, py: Python<'_>) {
        self.with(py, |core| core.abandon());
    }

    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        self.try_with(py, |core| core.commit())
    }

    #[getter]
    fn lsn(&self, py: Python<'_>) -> u64 {
        self.with(py, |core| core.lsn().0)
    }

    #[getter]
    fn fed_until(&self, py: Python<'_>) -> u64 {
        self.with(py, |core| core.fed_until().0)
    }

    #[getter]
    fn page_tli(&self, py: Python<'_>) -> Option<u32> {
        self.with(py, |core| core.page_tli())
    }

    #[getter]
    fn records(&self, py: Python<'_>) -> u64 {
        self.with(py, |core| core.records())
    }

    #[getter]
    fn growth(&self, py: Python<'_>) -> (u64, i64) {
        let growth = self.with(py, |core| core.growth());
        (growth.lsn.0, growth.bytes)
    }

    #[getter]
    fn ignored_vm_clears(&self, py: Python<'_>) -> u64 {
        self.with(py, |core| core.ignored_vm_clears())
    }

    #[getter]
    fn tolerant_until(&self, py: Python<'_>) -> u64 {
        self.with(py, |core| core.tolerant_until().0)
    }

    #[setter]
    fn set_tolerant_until(&self, py: Python<'_>, lsn: u64) {
        self.with(py, |core| core.set_tolerant_until(Lsn(lsn)));
    }

    #[getter]
    fn checkpoint(&self, py: Python<'_>) -> Py<PyBytes> {
        let value = self.with(py, |core| core.checkpoint().0);
        bytes(py, &value)
    }

    #[setter]
    fn set_checkpoint(&self, py: Python<'_>, checkpoint: &[u8]) -> PyResult<()> {
        let checkpoint = checkpoint_of(py, checkpoint)?;
        self.try_with(py, |core| core.set_checkpoint(checkpoint))
    }

    fn get(&self, py: Python<'_>, key: &[u8]) -> PyResult<Option<Py<PyBytes>>> {
        let key = key_of(py, key)?;
        let value = self.try_with(py, |core| core.get(key))?;
        Ok(value.map(|value| bytes(py, &value)))
    }

    fn put(&self, py: Python<'_>, key: &[u8], image: &[u8]) -> PyResult<()> {
        let key = key_of(py, key)?;
        self.try_with(py, |core| core.put(key, image))
    }

    fn put_value(&self, py: Python<'_>, key: &[u8], encoded_value: &[u8]) -> PyResult<()> {
        let key = key_of(py, key)?;
        self.try_with(py, |core| core.put_value(key, encoded_value))
    }

    fn rel_size(&self, py: Python<'_>, spc: u32, db: u32, rel: u32, fork: u8) -> PyResult<Option<u32>> {
        self.try_with(py, |core| core.rel_size(rel_tag((spc, db, rel, fork))))
    }

    fn set_rel_size(&self, py: Python<'_>, spc: u32, db: u32, rel: u32, fork: u8, blocks: u32) -> PyResult<()> {
        self.try_with(py, |core| core.set_rel_size(rel_tag((spc, db, rel, fork)), blocks))
    }

    fn remember_rel_size(&self, py: Python<'_>, spc: u32, db: u32, rel: u32, fork: u8, blocks: u32) {
        self.with(py, |core| core.remember_rel_size(rel_tag((spc, db, rel, fork)), blocks));
    }

    fn forget_rel(&self, py: Python<'_>, spc: u32, db: u32, rel: u32, fork: u8) -> PyResult<()> {
        self.try_with(py, |core| core.forget_rel(rel_tag((spc, db, rel, fork))))
    }

    fn forget_database(&self, py: Python<'_>, spc: u32, db: u32) -> PyResult<()> {
        self.try_with(py, |core| core.forget_database(spc, db))
    }

    fn copy_relation(&self, py: Python<'_>, source: Fork, target: Fork, blocks: u32) -> PyResult<()> {
        self.try_with(py, |core| core.copy_relation(rel_tag(source), rel_tag(target), blocks))
    }

    fn set_slru_size(&self, py: Python<'_>, kind: u8, segno: u32, blocks: u32) -> PyResult<()> {
        let kind = slru_kind(py, kind)?;
        self.try_with(py, |core| core.set_slru_size(kind, segno, blocks))
    }

    fn forget_slru(&self, py: Python<'_>, kind: u8, segno: u32) -> PyResult<()> {
        let kind = slru_kind(py, kind)?;
        self.with(py, |core| core.forget_slru(kind, segno));
        Ok(())
    }
}
