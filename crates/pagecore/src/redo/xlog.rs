//! XLOG, rmid 0: only its full page images concern pages (spec walredo.md 15).

use crate::page::Fault;

use super::decode::PageRecord;
use super::{Applied, Change};

const FPI_FOR_HINT: u8 = 0xA0;
const FPI: u8 = 0xB0;

pub fn knows(info: u8) -> bool {
    matches!(info, FPI | FPI_FOR_HINT)
}

/// Called only for a block without an image to apply.
pub fn apply(record: &PageRecord<'_>) -> Applied {
    if record.info == FPI {
        return Err(Fault::Record("a page image is missing"));
    }
    Ok(Change::Keep)
}
