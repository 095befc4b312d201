//! `LayerInfo`, and what the offline tools read from a layer file: `layer_summary`, `layer_entries`, `layer_value`.

use std::path::PathBuf;

use pagecore::layer::LayerName;
use pagecore::{Key, Lsn};
use pagestore::layer_file::{inspect, LayerFile};
use pagestore::WrittenLayer;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::arguments::key_of;
use crate::errors::{raise, IntoPyResult};

/// One layer file.
#[pyclass(frozen, module = "pageserver._core")]
pub struct LayerInfo {
    name: LayerName,
    path: PathBuf,
    size: u64,
}

impl LayerInfo {
    pub fn of_file(file: &LayerFile) -> LayerInfo {
        LayerInfo { name: file.name().clone(), path: file.path().to_path_buf(), size: file.size() }
    }

    pub fn of_written(written: WrittenLayer) -> LayerInfo {
        LayerInfo { name: written.name, path: written.path, size: written.size }
    }
}

#[pymethods]
impl LayerInfo {
    #[getter]
    fn name(&self) -> String {
        self.name.to_string()
    }

    #[getter]
    fn kind(&self) -> &'static str {
        if self.name.is_delta() {
            "delta"
        } else {
            "image"
        }
    }

    #[getter]
    fn path(&self) -> String {
        self.path.display().to_string()
    }

    #[getter]
    fn key_start<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.name.keys.start.to_bytes())
    }

    #[getter]
    fn key_end<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.name.keys.end.to_bytes())
    }

    #[getter]
    fn lsn_start(&self) -> u64 {
        self.name.lsns.start.0
    }

    #[getter]
    fn lsn_end(&self) -> u64 {
        self.name.lsns.end.0
    }

    #[getter]
    fn file_size(&self) -> u64 {
        self.size
    }

    #[getter]
    fn is_resident(&self) -> bool {
        self.path.exists()
    }

    #[getter]
    fn is_l0(&self) -> bool {
        self.name.is_l0()
    }

    fn __repr__(&self) -> String {
        format!("LayerInfo({}, {} bytes)", self.name, self.size)
    }
}

/// What a layer file says about itself.
#[pyfunction]
pub fn layer_summary(py: Python<'_>, path: PathBuf) -> PyResult<Bound<'_, PyDict>> {
    let (file, summary) = py.detach(|| inspect(&path)).or_raise(py)?;
    let out = PyDict::new(py);
    out.set_item("name", summary.name.to_string())?;
    out.set_item("kind", if summary.name.is_delta() { "delta" } else { "image" })?;
    out.set_item("tenant_id", PyBytes::new(py, &summary.tenant_id))?;
    out.set_item("timeline_id", PyBytes::new(py, &summary.timeline_id))?;
    out.set_item("key_start", PyBytes::new(py, &summary.name.keys.start.to_bytes()))?;
    out.set_item("key_end", PyBytes::new(py, &summary.name.keys.end.to_bytes()))?;
    out.set_item("lsn_start", summary.name.lsns.start.0)?;
    out.set_item("lsn_end", summary.name.lsns.end.0)?;
    out.set_item("index_start_block", summary.index_start)?;
    out.set_item("index_root_block", summary.index_root)?;
    out.set_item("file_size", file.size())?;
    Ok(out)
}

/// An entry as Python sees it: key, LSN, will_init, offset, stored length.
type EntryTuple<'py> = (Bound<'py, PyBytes>, u64, bool, u64, u64);

/// Entries of a layer file in order, at most `limit`.
#[pyfunction]
#[pyo3(signature = (path, *, key_start = None, key_end = None, limit = None))]
pub fn layer_entries<'py>(
    py: Python<'py>,
    path: PathBuf,
    key_start: Option<&[u8]>,
    key_end: Option<&[u8]>,
    limit: Option<usize>,
) -> PyResult<Vec<EntryTuple<'py>>> {
    let start = key_start.map_or(Ok(Key::MIN), |k| key_of(py, k))?;
    let end = key_end.map_or(Ok(Key::MAX), |k| key_of(py, k))?;
    let limit = limit.unwrap_or(usize::MAX);
    let entries = py
        .detach(|| {
            let (file, _) = inspect(&path)?;
            let mut out = Vec::new();
            file.for_each_entry(&(start..end), |key, extent| {
                if out.len() < limit {
                    out.push((key, extent));
                }
                Ok(out.len() < limit)
            })?;
            Ok(out)
        })
        .or_raise(py)?;
    let tuple = |(key, e): (Key, pagestore::layer_file::Extent)| {
        (PyBytes::new(py, &key.to_bytes()), e.lsn.0, e.will_init, e.start, e.end - e.start)
    };
    Ok(entries.into_iter().map(tuple).collect())
}

/// The stored value at an offset that `layer_entries` reported: an encoded value in a delta, the page in an image.
#[pyfunction]
pub fn layer_value<'py>(py: Python<'py>, path: PathBuf, key: &[u8], lsn: u64) -> PyResult<Bound<'py, PyBytes>> {
    let key = key_of(py, key)?;
    let value = py
        .detach(|| {
            let (file, _) = inspect(&path)?;
            let mut found = None;
            file.for_each_entry(&(key..key.next()), |_, extent| {
                if extent.lsn == Lsn(lsn) {
                    found = Some(extent);
                }
                Ok(true)
            })?;
            found.map(|extent| file.read_blob(&extent)).transpose()
        })
        .or_raise(py)?;
    match value {
        Some(value) => Ok(PyBytes::new(py, &value)),
        None => Err(raise(py, "NotFoundError", &format!("layer has no value of key {key} at {}", Lsn(lsn)), &[])),
    }
}

/// Reads and decodes everything in a layer file; returns how many values it has.
#[pyfunction]
pub fn layer_check(py: Python<'_>, path: PathBuf) -> PyResult<u64> {
    py.detach(|| inspect(&path)?.0.check()).or_raise(py)
}
