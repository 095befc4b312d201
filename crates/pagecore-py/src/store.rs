//! `TimelineStore` and `Caches`: the storage engine for Python.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pagecore::checksum::stamp_checksum;
use pagecore::layer::{Compression, LayerName};
use pagecore::{Flavour, Key, Lsn, RelTag, ShardIdentity, BLCKSZ};
use pagestore::image_layer::{ImageLayerPlan, Piece};
use pagestore::{Gap, LayerFetch, StoreError, TimelineConfig, WalOrigin, WrittenLayer};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::arguments::{key_of, slru_kind};
use crate::errors::{bad_argument, IntoPyResult};
use crate::layers::LayerInfo;
use crate::redo::PyRedoPool;

/// Keys handed to the engine at once.
const BATCH_KEYS: usize = 256;

fn id_of(py: Python<'_>, bytes: &[u8]) -> PyResult<[u8; 16]> {
    bytes.try_into().map_err(|_| bad_argument(py, &format!("an id has 16 bytes, not {}", bytes.len())))
}

fn name_of(py: Python<'_>, name: &str) -> PyResult<LayerName> {
    LayerName::parse(name).map_err(|e| bad_argument(py, &e.to_string()))
}

fn compression_of(py: Python<'_>, text: &str) -> PyResult<Compression> {
    text.parse().map_err(|e: pagecore::layer::blob::BlobError| bad_argument(py, &e.to_string()))
}

/// What the whole process shares.
#[pyclass(frozen, module = "pageserver._core")]
pub struct Caches {
    caches: Arc<pagestore::Caches>,
}

#[pymethods]
impl Caches {
    #[new]
    #[pyo3(signature = (*, block_cache_bytes, page_cache_bytes, value_memory_bytes))]
    fn new(block_cache_bytes: usize, page_cache_bytes: usize, value_memory_bytes: usize) -> Caches {
        let caches = pagestore::Caches::new(block_cache_bytes, page_cache_bytes, value_memory_bytes);
        Caches { caches: Arc::new(caches) }
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let out = PyDict::new(py);
        for (name, stats) in [("blocks", self.caches.node_stats()), ("pages", self.caches.pages.stats())] {
            out.set_item(name, (stats.hits, stats.misses, stats.entries, stats.weight))?;
        }
        Ok(out)
    }

    fn reads<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let out = PyDict::new(py);
        let reads = &self.caches.reads;
        for (name, counted) in [
            ("layers", &reads.layers),
            ("layers_of_batch", &reads.layers_of_batch),
            ("layers_amortized", &reads.layers_amortized),
            ("deltas", &reads.deltas),
        ] {
            out.set_item(name, counted.snapshot())?;
        }
        Ok(out)
    }
}

/// The layer that takes writes now.
#[pyclass(frozen, get_all, module = "pageserver._core")]
pub struct OpenLayerInfo {
    size_bytes: u64,
    lsn_start: u64,
    age_seconds: f64,
}

#[pyclass(frozen, weakref, module = "pageserver._core")]
pub struct TimelineStore {
    pub(crate) store: Arc<pagestore::TimelineStore>,
    redo: Option<PyRedoPool>,
}

impl TimelineStore {
    fn origin(&self, flavour: Flavour, neon_until: Lsn, hint_bits_logged: bool, data_checksums: bool) -> WalOrigin {
        let redo = self.redo.as_ref().map(|pool| pool.for_timeline(hint_bits_logged, flavour, neon_until));
        WalOrigin { flavour, neon_until, hint_bits_logged, data_checksums, redo }
    }
}

/// Pieces of an image layer, with the Python objects that own their bytes.
enum OwnedPiece {
    Bytes(Key, pyo3::pybacked::PyBackedBytes),
    File(Key, PathBuf, u64, u32),
}

fn piece_of(py: Python<'_>, piece: &Bound<'_, PyTuple>) -> PyResult<OwnedPiece> {
    let kind: String = piece.get_item(0)?.extract()?;
    let key: pyo3::pybacked::PyBackedBytes = piece.get_item(1)?.extract()?;
    let key = key_of(py, &key)?;
    match kind.as_str() {
        "bytes" => Ok(OwnedPiece::Bytes(key, piece.get_item(2)?.extract()?)),
        "file" => {
            let (path, offset, blocks) =
                (piece.get_item(2)?.extract()?, piece.get_item(3)?.extract()?, piece.get_item(4)?.extract()?);
            Ok(OwnedPiece::File(key, path, offset, blocks))
        }
        other => Err(bad_argument(py, &format!("unknown kind of piece {other:?}"))),
    }
}

type KeyRange = (Vec<u8>, Vec<u8>);

fn ranges_of(py: Python<'_>, ranges: &[KeyRange]) -> PyResult<Vec<std::ops::Range<Key>>> {
    ranges.iter().map(|(start, end)| Ok(key_of(py, start)?..key_of(py, end)?)).collect()
}

fn flavour_of(py: Python<'_>, flavour: &str) -> PyResult<Flavour> {
    match flavour {
        "neon" => Ok(Flavour::Neon),
        "stock" => Ok(Flavour::Stock),
        other => Err(bad_argument(py, &format!("unknown flavour {other:?}"))),
    }
}

/// Asks Python for a layer that is not on this disk.
struct Download(Py<PyAny>);

impl LayerFetch for Download {
    fn fetch(&self, name: &LayerName) -> Result<(), StoreError> {
        let layer = name.to_string();
        Python::attach(|py| {
            let Err(error) = self.0.bind(py).call1((layer.as_str(),)) else { return Ok(()) };
            let stopped = py.import("pageserver.errors").and_then(|errors| errors.getattr("StoppedError"));
            Err(match stopped.is_ok_and(|stopped| error.is_instance(py, &stopped)) {
                true => StoreError::Stopped,
                false => StoreError::Download { layer, detail: error.value(py).to_string() },
            })
        })
    }
}

#[pymethods]
impl TimelineStore {
    #[new]
    #[pyo3(signature = (*, directory, tenant_id, timeline_id, shard, pg_version, flavour, hint_bits_logged,
        data_checksums, last_record_lsn, prev_record_lsn, disk_consistent_lsn, gc_cutoff_lsn, next_open_layer_at,
        ancestor, ancestor_lsn, redo, caches, download = None, neon_until_lsn = 0))]
    #[expect(clippy::too_many_arguments, reason = "keyword-only: everything a timeline is made from")]
    fn new(
        py: Python<'_>,
        directory: PathBuf,
        tenant_id: &[u8],
        timeline_id: &[u8],
        shard: (u8, u8, u32),
        pg_version: u8,
        flavour: &str,
        hint_bits_logged: bool,
        data_checksums: bool,
        last_record_lsn: u64,
        prev_record_lsn: u64,
        disk_consistent_lsn: u64,
        gc_cutoff_lsn: u64,
        next_open_layer_at: u64,
        ancestor: Option<&TimelineStore>,
        ancestor_lsn: u64,
        redo: Option<&PyRedoPool>,
        caches: &Caches,
        download: Option<Py<PyAny>>,
        neon_until_lsn: u64,
    ) -> PyResult<TimelineStore> {
        let (flavour, neon_until) = (flavour_of(py, flavour)?, Lsn(neon_until_lsn));
        let (number, count, stripe_size) = shard;
        if count != 0 && number >= count || stripe_size == 0 {
            return Err(bad_argument(py, &format!("shard {number} of {count} with stripes of {stripe_size}")));
        }
        let config = TimelineConfig {
            directory,
            tenant_id: id_of(py, tenant_id)?,
            timeline_id: id_of(py, timeline_id)?,
            shard: ShardIdentity { number, count, stripe_size },
            pg_version,
            flavour,
            hint_bits_logged,
            data_checksums,
            last_record_lsn: Lsn(last_record_lsn),
            prev_record_lsn: Lsn(prev_record_lsn),
            disk_consistent_lsn: Lsn(disk_consistent_lsn),
            gc_cutoff: Lsn(gc_cutoff_lsn),
            next_open_layer_at: Lsn(next_open_layer_at),
            ancestor: ancestor.map(|a| Arc::clone(&a.store)),
            ancestor_lsn: Lsn(ancestor_lsn),
            redo: None,
            caches: Arc::clone(&caches.caches),
            fetch: download.map(|download| Arc::new(Download(download)) as Arc<dyn LayerFetch>),
        };
        let store = pagestore::TimelineStore::new(config).or_raise(py)?;
        let store = TimelineStore { store, redo: redo.cloned() };
        store.store.set_origin(store.origin(flavour, neon_until, hint_bits_logged, data_checksums));
        Ok(store)
    }

    #[pyo3(signature = (*, flavour, neon_until_lsn, hint_bits_logged, data_checksums))]
    fn set_origin(
        &self,
        py: Python<'_>,
        flavour: &str,
        neon_until_lsn: u64,
        hint_bits_logged: bool,
        data_checksums: bool,
    ) -> PyResult<()> {
        let (flavour, neon_until) = (flavour_of(py, flavour)?, Lsn(neon_until_lsn));
        self.store.set_origin(self.origin(flavour, neon_until, hint_bits_logged, data_checksums));
        Ok(())
    }

    fn set_gaps(&self, gaps: Vec<(u64, u64)>) {
        self.store.gaps().set(gaps.into_iter().map(|(from, to)| Gap { from: Lsn(from), to: Lsn(to) }).collect());
    }

    fn set_relation_directory_v2_from(&self, lsn: u64) {
        self.store.set_reldir_v2_from(Lsn(lsn));
    }

    fn resume_at(&self, py: Python<'_>, lsn: u64) -> PyResult<()> {
        py.detach(|| self.store.writer().resume_at(Lsn(lsn))).or_raise(py)
    }

    #[getter]
    fn last_record_lsn(&self) -> u64 {
        self.store.last_record_lsn().0
    }

    #[getter]
    fn prev_record_lsn(&self) -> u64 {
        self.store.prev_record_lsn().0
    }

    #[getter]
    fn disk_consistent_lsn(&self) -> u64 {
        self.store.disk_consistent_lsn().0
    }

    #[getter]
    fn gc_cutoff_lsn(&self) -> u64 {
        self.store.gc_cutoff().0
    }

    fn record_lsns(&self) -> (u64, u64) {
        let (last, prev) = self.store.record_lsns();
        (last.0, prev.0)
    }

    fn hold_reads(&self) {
        self.store.hold_reads();
    }

    fn release_reads(&self, cutoff: u64) {
        self.store.release_reads(Lsn(cutoff));
    }

    fn set_gc_cutoff(&self, lsn: u64) {
        self.store.set_gc_cutoff(Lsn(lsn));
    }

    fn set_disk_consistent_lsn(&self, lsn: u64) {
        self.store.set_disk_consistent_lsn(Lsn(lsn));
    }

    fn advance(&self, py: Python<'_>, lsn: u64) -> PyResult<()> {
        py.detach(|| self.store.advance(Lsn(lsn))).or_raise(py)
    }

    fn wait_lsn(&self, py: Python<'_>, lsn: u64, timeout_seconds: f64) -> PyResult<bool> {
        let timeout = Duration::try_from_secs_f64(timeout_seconds.max(0.0))
            .map_err(|_| bad_argument(py, "the time-out is not a number of seconds"))?;
        py.detach(|| self.store.wait_lsn(Lsn(lsn), Instant::now() + timeout)).or_raise(py)
    }

    fn add_layers(&self, py: Python<'_>, layers: Vec<(String, PathBuf, u64)>) -> PyResult<()> {
        let layers = layers
            .into_iter()
            .map(|(name, path, size)| Ok(WrittenLayer { name: name_of(py, &name)?, path, size }))
            .collect::<PyResult<Vec<_>>>()?;
        py.detach(|| self.store.add_layers(&layers)).or_raise(py)
    }

    #[pyo3(signature = (names, *, delete_files = false))]
    fn remove_layers(&self, py: Python<'_>, names: Vec<String>, delete_files: bool) -> PyResult<()> {
        let names = names.iter().map(|n| name_of(py, n)).collect::<PyResult<Vec<_>>>()?;
        py.detach(|| self.store.remove_layers(&names, delete_files)).or_raise(py)
    }

    fn evict_layers(&self, py: Python<'_>, names: Vec<String>) -> PyResult<()> {
        let names = names.iter().map(|n| name_of(py, n)).collect::<PyResult<Vec<_>>>()?;
        py.detach(|| self.store.evict_layers(&names)).or_raise(py)
    }

    fn layers(&self) -> Vec<LayerInfo> {
        self.store.map().historic.layers().map(|l| LayerInfo::of_file(l)).collect()
    }

    fn get<'py>(&self, py: Python<'py>, key: &[u8], lsn: u64) -> PyResult<Bound<'py, PyBytes>> {
        let key = key_of(py, key)?;
        let value = py.detach(|| self.store.get(key, Lsn(lsn))).or_raise(py)?;
        Ok(PyBytes::new(py, &value))
    }

    fn get_with_cost<'py>(
        &self,
        py: Python<'py>,
        key: &[u8],
        lsn: u64,
    ) -> PyResult<(Bound<'py, PyBytes>, usize, usize)> {
        let key = key_of(py, key)?;
        let (value, cost) = py.detach(|| self.store.get_with_cost(key, Lsn(lsn))).or_raise(py)?;
        Ok((PyBytes::new(py, &value), cost.layers, cost.delta_layers))
    }

    fn layers_per_read(&self) -> (&'static [u64], Vec<u64>, u64) {
        self.store.layers_per_read.snapshot()
    }

    fn get_many<'py>(
        &self,
        py: Python<'py>,
        keys: Vec<pyo3::pybacked::PyBackedBytes>,
        lsn: u64,
    ) -> PyResult<Vec<Option<Bound<'py, PyBytes>>>> {
        let keys = keys.iter().map(|k| Ok((key_of(py, k)?, Lsn(lsn)))).collect::<PyResult<Vec<_>>>()?;
        let mut out = Vec::with_capacity(keys.len());
        for batch in keys.chunks(BATCH_KEYS) {
            for value in py.detach(|| self.store.get_vectored(batch)) {
                out.push(match value {
                    Ok(value) => Some(PyBytes::new(py, &value)),
                    Err(StoreError::MissingKey { .. }) => None,
                    Err(e) => return Err(e).or_raise(py),
                });
            }
        }
        Ok(out)
    }

    fn scan<'py>(
        &self,
        py: Python<'py>,
        start: &[u8],
        end: &[u8],
        lsn: u64,
    ) -> PyResult<Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)>> {
        let range = key_of(py, start)?..key_of(py, end)?;
        let found = py.detach(|| self.store.scan(range, Lsn(lsn))).or_raise(py)?;
        // An empty value says that the key was removed.
        let exists = found.iter().filter(|(_, value)| !value.is_empty());
        Ok(exists.map(|(key, value)| (PyBytes::new(py, &key.to_bytes()), PyBytes::new(py, value))).collect())
    }

    #[pyo3(signature = (spc, db, rel, fork, first, count, lsn, *, stamp_checksums))]
    #[expect(clippy::too_many_arguments, reason = "a relation, a range of blocks and an LSN")]
    fn read_blocks<'py>(
        &self,
        py: Python<'py>,
        spc: u32,
        db: u32,
        rel: u32,
        fork: u8,
        first: u32,
        count: u32,
        lsn: u64,
        stamp_checksums: bool,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let rel = RelTag { spcnode: spc, dbnode: db, relnode: rel, forknum: fork };
        let pages =
            py.detach(|| read_blocks(&self.store, rel, first, count, Lsn(lsn), stamp_checksums)).or_raise(py)?;
        Ok(PyBytes::new(py, &pages))
    }

    fn rel_exists(&self, py: Python<'_>, spc: u32, db: u32, rel: u32, fork: u8, lsn: u64) -> PyResult<bool> {
        let rel = RelTag { spcnode: spc, dbnode: db, relnode: rel, forknum: fork };
        py.detach(|| self.store.rel_exists(rel, Lsn(lsn))).or_raise(py)
    }

    fn rel_size(&self, py: Python<'_>, spc: u32, db: u32, rel: u32, fork: u8, lsn: u64) -> PyResult<Option<u32>> {
        let rel = RelTag { spcnode: spc, dbnode: db, relnode: rel, forknum: fork };
        py.detach(|| self.store.rel_size(rel, Lsn(lsn))).or_raise(py)
    }

    fn db_size(&self, py: Python<'_>, spc: u32, db: u32, lsn: u64) -> PyResult<Option<u64>> {
        py.detach(|| self.store.db_size(spc, db, Lsn(lsn))).or_raise(py)
    }

    fn slru_segment<'py>(&self, py: Python<'py>, kind: u8, segno: u32, lsn: u64) -> PyResult<Bound<'py, PyBytes>> {
        let kind = slru_kind(py, kind)?;
        let pages = py.detach(|| self.store.slru_segment(kind, segno, Lsn(lsn))).or_raise(py)?;
        let mut out = Vec::with_capacity(pages.len() * BLCKSZ);
        pages.iter().for_each(|page| out.extend_from_slice(&page[..page.len().min(BLCKSZ)]));
        Ok(PyBytes::new(py, &out))
    }

    fn open_layer(&self) -> Option<OpenLayerInfo> {
        self.store.open_layer().map(|open| OpenLayerInfo {
            size_bytes: open.size_bytes,
            lsn_start: open.lsn_start.0,
            age_seconds: open.age.as_secs_f64(),
        })
    }

    fn frozen_layers(&self) -> usize {
        self.store.frozen_layers()
    }

    fn freeze(&self, py: Python<'_>) -> PyResult<Option<u64>> {
        py.detach(|| self.store.freeze()).map(|end| end.map(|lsn| lsn.0)).or_raise(py)
    }

    fn flush_oldest(&self, py: Python<'_>, generation: Option<u32>) -> PyResult<Option<LayerInfo>> {
        let written = py.detach(|| self.store.flush_oldest(generation)).or_raise(py)?;
        Ok(written.map(LayerInfo::of_written))
    }

    fn put_images(
        &self,
        py: Python<'_>,
        lsn: u64,
        items: Vec<(pyo3::pybacked::PyBackedBytes, pyo3::pybacked::PyBackedBytes)>,
    ) -> PyResult<()> {
        let images = items.iter().map(|(k, v)| Ok((key_of(py, k)?, &v[..]))).collect::<PyResult<Vec<_>>>()?;
        py.detach(|| self.store.put_images(Lsn(lsn), images)).or_raise(py)
    }

    #[pyo3(signature = (key_start, key_end, lsn, pieces, generation, compression))]
    #[expect(clippy::too_many_arguments, reason = "range, LSN and storage of a layer")]
    fn write_image_layer(
        &self,
        py: Python<'_>,
        key_start: &[u8],
        key_end: &[u8],
        lsn: u64,
        pieces: Vec<Bound<'_, PyTuple>>,
        generation: Option<u32>,
        compression: &str,
    ) -> PyResult<LayerInfo> {
        let plan = ImageLayerPlan {
            keys: key_of(py, key_start)?..key_of(py, key_end)?,
            lsn: Lsn(lsn),
            generation,
            compression: compression_of(py, compression)?,
        };
        let pieces = pieces.iter().map(|p| piece_of(py, p)).collect::<PyResult<Vec<_>>>()?;
        let written = py.detach(|| {
            let pieces = pieces.iter().map(|piece| match piece {
                OwnedPiece::Bytes(key, value) => Piece::Bytes { key: *key, value },
                OwnedPiece::File(first_key, path, offset, blocks) => {
                    Piece::File { first_key: *first_key, path: path.clone(), offset: *offset, blocks: *blocks }
                }
            });
            self.store.write_image_layer(&plan, pieces)
        });
        written.map(LayerInfo::of_written).or_raise(py)
    }

    #[pyo3(signature = (key_start, key_end, lsn, *, dense, sparse, generation, compression))]
    #[expect(clippy::too_many_arguments, reason = "range, LSN and storage of a layer")]
    fn create_image_layer(
        &self,
        py: Python<'_>,
        key_start: &[u8],
        key_end: &[u8],
        lsn: u64,
        dense: Vec<KeyRange>,
        sparse: Vec<KeyRange>,
        generation: Option<u32>,
        compression: &str,
    ) -> PyResult<Option<LayerInfo>> {
        let plan = ImageLayerPlan {
            keys: key_of(py, key_start)?..key_of(py, key_end)?,
            lsn: Lsn(lsn),
            generation,
            compression: compression_of(py, compression)?,
        };
        let (dense, sparse) = (ranges_of(py, &dense)?, ranges_of(py, &sparse)?);
        let written = py.detach(|| self.store.create_image_layer(&plan, &dense, &sparse)).or_raise(py)?;
        Ok(written.map(LayerInfo::of_written))
    }

    fn shutdown(&self, py: Python<'_>) {
        py.detach(|| self.store.shutdown());
    }
}

/// Blocks of a relation, one after the other; zeros from its end on.
fn read_blocks(
    store: &pagestore::TimelineStore,
    rel: RelTag,
    first: u32,
    count: u32,
    lsn: Lsn,
    stamp: bool,
) -> Result<Vec<u8>, StoreError> {
    let size = store.rel_size(rel, lsn)?.ok_or_else(|| StoreError::NotFound(format!("relation {rel} at lsn {lsn}")))?;
    let mut out = vec![0; count as usize * BLCKSZ];
    let end = first.saturating_add(count).min(size);
    let keys: Vec<(Key, Lsn)> = (first..end).map(|block| (Key::rel_block(rel, block), lsn)).collect();
    let mut block = first;
    for batch in keys.chunks(BATCH_KEYS) {
        for page in store.get_vectored(batch) {
            let page = page?;
            let at = (block - first) as usize * BLCKSZ;
            let place = out[at..].first_chunk_mut::<BLCKSZ>();
            let (Some(place), Some(page)) = (place, page.first_chunk::<BLCKSZ>()) else {
                let detail = format!("page has {} bytes", page.len());
                return Err(StoreError::CorruptValue { key: Key::rel_block(rel, block), lsn, detail });
            };
            *place = *page;
            if stamp {
                stamp_checksum(place, block);
            }
            block += 1;
        }
    }
    Ok(out)
}
