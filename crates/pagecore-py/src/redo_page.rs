//! Pages for a repository in Python: made from values that it has collected, and given their checksums.

use bytes::Bytes;
use pagecore::checksum::stamp_checksum;
use pagecore::redo::Context;
use pagecore::{Flavour, Key, Lsn, BLCKSZ};
use pagestore::reconstruct::{reconstruct, Collected};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::errors::{bad_argument, IntoPyResult};
use crate::redo::PyRedoPool;

/// See `_core.pyi`.
#[pyfunction]
#[pyo3(signature = (*, key, lsn, pg_version, flavour, hint_bits_logged, values, redo = None))]
#[expect(clippy::too_many_arguments, reason = "keyword-only: what a timeline knows, and the values")]
pub fn redo_page<'py>(
    py: Python<'py>,
    key: &[u8],
    lsn: u64,
    pg_version: u8,
    flavour: &str,
    hint_bits_logged: bool,
    values: Vec<(u64, PyBackedBytes)>,
    redo: Option<&PyRedoPool>,
) -> PyResult<Bound<'py, PyBytes>> {
    let key = match key.try_into() {
        Ok(bytes) => Key::from_bytes(bytes),
        Err(_) => return Err(bad_argument(py, &format!("a key has 18 bytes, not {}", key.len()))),
    };
    let flavour = match flavour {
        "neon" => Flavour::Neon,
        "stock" => Flavour::Stock,
        other => return Err(bad_argument(py, &format!("unknown flavour {other:?}"))),
    };
    let context = Context { major: pg_version, flavour, hint_bits_logged };
    let process = redo.map(|pool| pool.for_timeline(hint_bits_logged, flavour, Lsn::INVALID));
    let page = py
        .detach(|| {
            let collect = |(lsn, value): &(u64, PyBackedBytes)| Collected {
                lsn: Lsn(*lsn),
                is_plain_image: false,
                bytes: Bytes::copy_from_slice(value),
            };
            let newest_first: Vec<Collected> = values.iter().map(collect).collect();
            reconstruct(&context.into(), process.as_deref(), key, Lsn(lsn), None, &newest_first)
        })
        .or_raise(py)?;
    Ok(PyBytes::new(py, &page.bytes))
}

/// See `_core.pyi`.
#[pyfunction]
pub fn stamp_checksums<'py>(py: Python<'py>, pages: &[u8], first_block: u32) -> PyResult<Bound<'py, PyBytes>> {
    if pages.len() % BLCKSZ != 0 {
        return Err(bad_argument(py, &format!("{} bytes are not whole pages", pages.len())));
    }
    let mut out = pages.to_vec();
    for (page, block) in out.chunks_exact_mut(BLCKSZ).zip(first_block..) {
        if let Some(page) = page.first_chunk_mut() {
            stamp_checksum(page, block);
        }
    }
    Ok(PyBytes::new(py, &out))
}
