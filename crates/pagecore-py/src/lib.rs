//! The thin Python face of the engine: module `pageserver._core`. Converts, decides nothing.
use pyo3::prelude::*;

#[pymodule]
mod _core {}
