//! One border for errors: the core's enums become the classes of `pageserver.errors`, fields included.

use pagestore::StoreError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

/// A new error of `pageserver.errors`, with a message and facts.
pub fn raise(py: Python<'_>, class: &str, message: &str, facts: &[(&str, String)]) -> PyErr {
    let kwargs = PyDict::new(py);
    for (name, value) in facts {
        if let Err(e) = kwargs.set_item(*name, value) {
            return e;
        }
    }
    make(py, class, Some(message), &kwargs)
}

fn make(py: Python<'_>, class: &str, message: Option<&str>, kwargs: &Bound<'_, PyDict>) -> PyErr {
    let build = || -> PyResult<PyErr> {
        let class = py.import("pageserver.errors")?.getattr(class)?;
        let error = match message {
            Some(message) => class.call((message,), Some(kwargs))?,
            None => class.call((), Some(kwargs))?,
        };
        Ok(PyErr::from_value(error))
    };
    build().unwrap_or_else(|e| e)
}

/// Changes for the caller: the argument is not what it must be.
pub fn bad_argument(py: Python<'_>, message: &str) -> PyErr {
    raise(py, "RequestError", message, &[])
}

fn missing_key(py: Python<'_>, key: &pagecore::Key, lsn: u64, detail: &str) -> PyResult<PyErr> {
    let kwargs = PyDict::new(py);
    kwargs.set_item("key", PyBytes::new(py, &key.to_bytes()))?;
    kwargs.set_item("lsn", lsn)?;
    kwargs.set_item("detail", detail)?;
    Ok(make(py, "MissingKeyError", None, &kwargs))
}

fn lsn_timeout(py: Python<'_>, lsn: u64, last_record_lsn: u64) -> PyResult<PyErr> {
    let kwargs = PyDict::new(py);
    kwargs.set_item("lsn", lsn)?;
    kwargs.set_item("last_record_lsn", last_record_lsn)?;
    Ok(make(py, "LsnTimeoutError", None, &kwargs))
}

fn io_error(py: Python<'_>, text: &str, path: &str, errno: Option<i32>) -> PyResult<PyErr> {
    let kwargs = PyDict::new(py);
    kwargs.set_item("path", path)?;
    kwargs.set_item("errno", errno)?;
    Ok(make(py, "UnavailableError", Some(text), &kwargs))
}

/// Turns an error of the storage engine into ours.
pub fn store_error(py: Python<'_>, error: &StoreError) -> PyErr {
    let text = error.to_string();
    let facts = |facts: &[(&str, String)], class: &str| raise(py, class, &text, facts);
    match error {
        StoreError::MissingKey { key, lsn, .. } => missing_key(py, key, lsn.0, &text).unwrap_or_else(|e| e),
        StoreError::LsnTimeout { lsn, last_record_lsn } => {
            lsn_timeout(py, lsn.0, last_record_lsn.0).unwrap_or_else(|e| e)
        }
        StoreError::InvalidLsn | StoreError::NotSparse | StoreError::Invalid(_) => facts(&[], "RequestError"),
        StoreError::NotFound(_) => facts(&[], "NotFoundError"),
        StoreError::Download { layer, .. } => facts(&[("layer", layer.clone())], "UnavailableError"),
        StoreError::Exists { path } => facts(&[("path", path.clone())], "ConflictError"),
        StoreError::Corrupt { object, .. } => facts(&[("path", object.clone())], "CorruptDataError"),
        StoreError::CorruptValue { key, lsn, .. } | StoreError::Redo { key, lsn, .. } => {
            facts(&[("key", key.to_string()), ("lsn", lsn.to_string())], "CorruptDataError")
        }
        StoreError::RedoUnavailable { key, .. } => facts(&[("key", key.to_string())], "UnavailableError"),
        StoreError::Io { path, errno, .. } => io_error(py, &text, path, *errno).unwrap_or_else(|e| e),
        StoreError::Stopped => facts(&[], "StoppedError"),
    }
}

/// What a call of the engine returns, ready for Python.
pub trait IntoPyResult<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> IntoPyResult<T> for Result<T, StoreError> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|e| store_error(py, &e))
    }
}
