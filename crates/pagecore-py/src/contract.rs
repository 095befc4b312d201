//! Which contract this module was compiled with, so that Python notices when it has another one.
use pyo3::prelude::*;

const STUB: &[u8] = include_bytes!("../../../src/pageserver/_core.pyi");

/// CRC-32C of the stub file at the time of compilation.
#[pyfunction]
pub fn compiled_stub_crc32c() -> u32 {
    crc32c::crc32c(STUB)
}
