//! What Python gives, checked: keys of 18 bytes, kinds of SLRUs by their number.

use pagecore::{Key, SlruKind};
use pyo3::prelude::*;

use crate::errors::bad_argument;

pub fn key_of(py: Python<'_>, bytes: &[u8]) -> PyResult<Key> {
    match bytes.try_into() {
        Ok(bytes) => Ok(Key::from_bytes(bytes)),
        Err(_) => Err(bad_argument(py, &format!("a key has 18 bytes, not {}", bytes.len()))),
    }
}

pub fn slru_kind(py: Python<'_>, kind: u8) -> PyResult<SlruKind> {
    SlruKind::from_u8(kind).ok_or_else(|| bad_argument(py, &format!("unknown SLRU kind {kind}")))
}
