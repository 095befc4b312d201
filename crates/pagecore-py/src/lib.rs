//! The thin Python face of the engine: module `pageserver._core`. Converts, decides nothing.
use pyo3::prelude::*;

mod crc;

#[pymodule]
mod _core {
    #[pymodule_export]
    use crate::crc::crc32c;
}
