//! Which LSN a request is answered at (spec page-service.md 3.2).

use pagecore::Lsn;

use crate::error::PageError;
use crate::protocol::pagestream::Header;

/// The effective LSN. If it is above `last`, the caller must wait for it.
///
/// An old `not_modified_since` may be below the cutoff although the request is legal, so it is never read at: a hot
/// page that stayed in the compute's cache for long is asked for with a hint that GC has passed.
pub fn effective_lsn(
    header: &Header,
    last: Lsn,
    cutoff: Lsn,
    readable_below_cutoff: impl FnOnce(Lsn) -> bool,
) -> Result<Lsn, PageError> {
    let Header { request_lsn, not_modified_since, .. } = *header;
    if request_lsn < not_modified_since {
        return Err(PageError::BadRequest(format!(
            "invalid request with request LSN {request_lsn} and not_modified_since {not_modified_since}"
        )));
    }
    if request_lsn == Lsn::INVALID {
        return Err(PageError::BadRequest("invalid LSN(0) in request".to_string()));
    }
    if request_lsn < cutoff && !readable_below_cutoff(request_lsn) {
        return Err(PageError::BadRequest(format!(
            "tried to request a page version that was garbage collected. requested at {request_lsn} gc cutoff {cutoff}"
        )));
    }
    if not_modified_since > last {
        return Ok(not_modified_since);
    }
    Ok(last.min(request_lsn))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effective(request: u64, hint: u64, leased: bool) -> Result<u64, String> {
        let header = Header { id: 0, request_lsn: Lsn(request), not_modified_since: Lsn(hint) };
        effective_lsn(&header, Lsn(0x200), Lsn(0x100), |_| leased)
            .map(|lsn| lsn.0)
            .map_err(|error| error.client_text().unwrap())
    }

    #[test]
    fn checks_come_in_the_order_of_the_specification() {
        assert_eq!(
            effective(0, 5, false),
            Err("Bad request: invalid request with request LSN 0/0 and not_modified_since 0/5".to_string())
        );
        assert_eq!(effective(0, 0, false), Err("Bad request: invalid LSN(0) in request".to_string()));
        assert_eq!(
            effective(0x80, 0x50, false),
            Err("Bad request: tried to request a page version that was garbage collected. requested at 0/80 gc cutoff 0/100"
                .to_string())
        );
        assert_eq!(effective(0x80, 0x50, true), Ok(0x80));
    }

    #[test]
    fn the_effective_lsn_waits_only_for_the_hint() {
        assert_eq!(effective(u64::MAX, 0x10, false), Ok(0x200), "an old hint below the cutoff reads the latest");
        assert_eq!(effective(u64::MAX, 0x200, false), Ok(0x200));
        assert_eq!(effective(u64::MAX, 0x201, false), Ok(0x201), "a hint above the last record must be waited for");
        assert_eq!(effective(0x1_0000_0000, 0x150, false), Ok(0x200), "a request far ahead does not wait");
        assert_eq!(effective(0x180, 0x150, false), Ok(0x180));
    }
}
