//! The thin Python face of the engine: module `pageserver._core`. Converts, decides nothing.
use pyo3::prelude::*;

mod crc;
mod redo;
mod verify;

#[pymodule]
mod _core {
    #[pymodule_export]
    use crate::crc::crc32c;
    #[pymodule_export]
    use crate::redo::{PyRedoMetrics, PyRedoPool};
    #[pymodule_export]
    use crate::verify::compare_blocks;
}
