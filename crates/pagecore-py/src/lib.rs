//! The thin Python face of the engine: module `pageserver._core`. Converts, decides nothing.
use pyo3::prelude::*;

mod arguments;
mod contract;
mod crc;
mod errors;
mod ingest;
mod ingest_target;
mod layers;
mod python_store;
mod redo;
mod redo_chains;
mod redo_diff;
mod redo_page;
mod serve;
mod store;
mod verify;
mod wal;

#[pymodule]
mod _core {
    #[pymodule_export]
    use crate::contract::compiled_stub_crc32c;
    #[pymodule_export]
    use crate::crc::crc32c;
    #[pymodule_export]
    use crate::ingest::{
        AuxFilePut, BackupEnd, CheckpointTaken, ClogTruncate, DatabaseCreate, DatabaseDrop, EndOfRecovery,
        MultixactTruncate, OriginSet, ParameterChange, RareRecord, RelationCreate, RelationMapUpdate, RelationTruncate,
        SlruZeroPage, TablespaceCreate, TablespaceDrop, TransactionEnd, TransactionPrepare, WalIngest,
    };
    #[pymodule_export]
    use crate::layers::{layer_check, layer_entries, layer_summary, layer_value, LayerInfo};
    #[pymodule_export]
    use crate::python_store::PageBridge;
    #[pymodule_export]
    use crate::redo::{PyRedoMetrics, PyRedoPool};
    #[pymodule_export]
    use crate::redo_chains::RedoChains;
    #[pymodule_export]
    use crate::redo_diff::PyRedoDiff;
    #[pymodule_export]
    use crate::redo_page::{redo_page, stamp_checksums};
    #[pymodule_export]
    use crate::serve::{PageService, PyBackupRequest, PyBackupSink, PyLeaseAnswer, PyStatusAnswer, ServedTimeline};
    #[pymodule_export]
    use crate::store::{Caches, OpenLayerInfo, TimelineStore};
    #[pymodule_export]
    use crate::verify::{compare_blocks, read_blocks_each};
    #[pymodule_export]
    use crate::wal::{decode_wal, DecodedWal};
}
