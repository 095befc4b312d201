//! What an answer must look like. The protocol frames answers by nothing but their length, so a process that writes anything
//! else to its standard output shifts them all: without a look at the page, garbage would be served.

use pagecore::key::VM_FORK;
use pagecore::redo::PageRecord;
use pagecore::wal::image::restore_into;
use pagecore::wal::rmgr;
use pagecore::{Lsn, BLCKSZ};

use super::RedoRequest;

/// Page size and layout version of every initialised page (spec walredo.md 7.3).
const SIZE_AND_VERSION: [u8; 2] = [0x04, 0x20];

/// Resource manager and info of HEAP2_VISIBLE, which makes a page of the visibility map without saying so (spec 8.3).
const VISIBLE: (u8, u8) = (rmgr::HEAP2, 0x40);

/// Checks a page against its request; the error says what is wrong.
///
/// A page that redo made has the LSN of one of its records, or that of its base if none of them stamped it; a page that was
/// never initialised stays without a header, and no other becomes one: zeros are what garbage looks like most of the time.
pub(super) fn check(request: &RedoRequest<'_>, page: &[u8]) -> Result<(), String> {
    if page.len() != BLCKSZ {
        return Err(format!("it answered with {} bytes", page.len()));
    }
    let base = request.base.map(|(_, base)| base);
    if is_new(page) {
        if !may_be_new(request) {
            return Err(not_asked_for(page));
        }
        // Its LSN stays what it was, normally zero.
        let lsn_before = base.map_or([0; 8].as_slice(), |base| &base[..8]);
        let known = page[..8] == [0; 8] || page[..8] == *lsn_before || is_of_a_record(request, lsn_of(page));
        return if known { Ok(()) } else { Err(not_asked_for(page)) };
    }
    let base_lsn = base.map(lsn_of);
    if page[18..20] == SIZE_AND_VERSION && (base_lsn == Some(lsn_of(page)) || is_of_a_record(request, lsn_of(page))) {
        Ok(())
    } else {
        Err(not_asked_for(page))
    }
}

/// True of a page without a header.
fn is_new(page: &[u8]) -> bool {
    page[14..16] == [0, 0]
}

/// True if the records may leave the page without a header: it has none before them, and none of them makes one. Only asked
/// about pages without a header, which are rare.
fn may_be_new(request: &RedoRequest<'_>) -> bool {
    let mut new = request.base.is_none_or(|(_, base)| is_new(base));
    for (end, record) in request.records {
        // The process has understood it, so this is no place to complain about it.
        let Ok(record) = PageRecord::decode(request.major, &request.key, *end, record) else { continue };
        if let Some(image) = record.target.image.filter(|image| image.apply) {
            let mut restored = [0; BLCKSZ];
            new = restore_into(&image.image, &mut restored).is_err() || is_new(&restored);
        } else if record.target.will_init || (record.rmid, record.info) == VISIBLE && request.key.field5 == VM_FORK {
            new = false;
        }
    }
    new
}

fn is_of_a_record(request: &RedoRequest<'_>, lsn: Lsn) -> bool {
    // Mostly the last one.
    request.records.iter().rev().any(|(end, _)| *end == lsn)
}

/// The page's LSN: high half first, each half little-endian.
fn lsn_of(page: &[u8]) -> Lsn {
    let half = |at: usize| u64::from(u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]));
    Lsn(half(0) << 32 | half(4))
}

fn not_asked_for(page: &[u8]) -> String {
    format!(
        "it answered with something that is not the page asked for: LSN {}, header {:02x?}",
        lsn_of(page),
        &page[8..20]
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagecore::{Key, RelTag};

    fn page(lsn: u64) -> Vec<u8> {
        let mut page = vec![0; BLCKSZ];
        page[..4].copy_from_slice(&((lsn >> 32) as u32).to_le_bytes());
        page[4..8].copy_from_slice(&(lsn as u32).to_le_bytes());
        page[12..20].copy_from_slice(&[24, 0, 0, 0x20, 0, 0x20, 4, 0x20]);
        page
    }

    #[test]
    fn a_page_carries_the_lsn_of_a_record_or_of_its_base() {
        let base = page(0x1_0000_0010);
        let records: [(Lsn, &[u8]); 2] = [(Lsn(0x1_0000_0020), &[0; 24]), (Lsn(0x1_0000_0030), &[0; 24])];
        let key = Key::rel_block(RelTag { spcnode: 1663, dbnode: 5, relnode: 16397, forknum: 0 }, 0);
        let request = RedoRequest {
            key,
            lsn: Lsn(0x1_0000_0030),
            major: 16,
            hint_bits_logged: false,
            base: Some((Lsn(0x1_0000_0010), &base)),
            records: &records,
        };
        for lsn in [0x1_0000_0010, 0x1_0000_0020, 0x1_0000_0030] {
            assert_eq!(check(&request, &page(lsn)), Ok(()));
        }
        assert!(check(&request, &[0; BLCKSZ]).is_err(), "a page does not lose its header");
        let never_initialised = [0; BLCKSZ];
        let over_zeros = RedoRequest { base: Some((Lsn(0x1_0000_0010), &never_initialised)), ..request };
        assert_eq!(check(&over_zeros, &[0; BLCKSZ]), Ok(()), "a page that was never initialised");
        assert!(check(&request, &page(0x1_0000_0028)).is_err());
        assert!(check(&request, &[0x41; BLCKSZ]).unwrap_err().contains("not the page asked for"));
        assert!(check(&request, &[0; 100]).is_err());
        let mut other_version = page(0x1_0000_0030);
        other_version[18] = 3;
        assert!(check(&request, &other_version).is_err());
        // Shifted by one byte: what a stray character on standard output does.
        let mut shifted = page(0x1_0000_0030);
        shifted.rotate_right(1);
        assert!(check(&request, &shifted).is_err());
        let from_nothing = RedoRequest { base: None, ..request };
        assert!(check(&from_nothing, &page(0x1_0000_0010)).is_err());
        assert_eq!(check(&from_nothing, &page(0x1_0000_0020)), Ok(()));
    }

    /// A record with one block reference to the page, and this image of it or none.
    fn record(fork_flags: u8, image: Option<&[u8; BLCKSZ]>) -> Vec<u8> {
        let mut out = vec![0; 24];
        out.extend([0, fork_flags, 0, 0]);
        if image.is_some() {
            out.extend([0x00, 0x20, 0, 0, 0x02]);
        }
        [1663u32, 5, 16397, 0].iter().for_each(|field| out.extend(field.to_le_bytes()));
        out.extend(image.into_iter().flatten());
        let total = (out.len() as u32).to_le_bytes();
        out[..4].copy_from_slice(&total);
        out
    }

    #[test]
    fn zeros_are_no_answer_where_a_record_makes_a_page() {
        const WILL_INIT: u8 = 0x40;
        const HAS_IMAGE: u8 = 0x10;
        let initialised: [u8; BLCKSZ] = page(0).try_into().unwrap();
        let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 16397, forknum: 0 };
        let cases = [
            (record(WILL_INIT, None), false),
            (record(HAS_IMAGE, Some(&initialised)), false),
            (record(HAS_IMAGE, Some(&[0; BLCKSZ])), true),
        ];
        for (record, may_be_zeros) in cases {
            let request = RedoRequest {
                key: Key::rel_block(rel, 0),
                lsn: Lsn(0x20),
                major: 16,
                hint_bits_logged: false,
                base: None,
                records: &[(Lsn(0x20), &record[..])],
            };
            assert_eq!(check(&request, &[0; BLCKSZ]).is_ok(), may_be_zeros);
        }
    }
}
