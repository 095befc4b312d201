//! Generic, rmid 20: byte ranges that are copied onto pages (spec walredo.md 15).

use crate::page::Page;

use super::decode::PageRecord;
use super::fields::Fields;
use super::{Applied, Change};

/// The only resource manager that clears the hole of the pages it changes.
pub fn apply(record: &PageRecord<'_>, page: &mut Page<'_>) -> Applied {
    let mut data = Fields::new(record.target.data);
    while !data.is_empty() {
        let offset = usize::from(data.u16()?);
        let length = usize::from(data.u16()?);
        page.put(offset, data.take(length)?)?;
    }
    let limits = page.limits()?;
    page.slice_mut(limits.lower, limits.upper - limits.lower)?.fill(0);
    Ok(Change::Stamp)
}
