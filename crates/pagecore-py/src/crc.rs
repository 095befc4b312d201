//! Checksums that Python needs for small structures: control file, made-up WAL records, two-phase files.
use pyo3::prelude::*;

/// CRC-32C of `data`, continuing from `start`, which is the CRC of what came before (0 at the beginning).
#[pyfunction]
#[pyo3(signature = (data, start = 0))]
pub fn crc32c(py: Python<'_>, data: &[u8], start: u32) -> u32 {
    py.detach(|| ::crc32c::crc32c_append(start, data))
}
