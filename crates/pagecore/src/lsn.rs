//! Log sequence numbers (spec keyspace.md 10.1, wal.md 1.1, 1.6).

use std::fmt;
use std::str::FromStr;

/// Size of a WAL segment file in bytes; other sizes are not supported.
pub const WAL_SEGMENT_SIZE: u64 = 16 * 1024 * 1024;
/// Size of a WAL page in bytes.
pub const XLOG_BLCKSZ: u64 = 8192;
/// Length of the header of a WAL page.
pub const SHORT_HEADER_LEN: u64 = 24;
/// Length of the header of the first page of a WAL segment.
pub const LONG_HEADER_LEN: u64 = 40;

/// A position in the write-ahead log. 0 is invalid, `u64::MAX` means "latest".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    pub const INVALID: Lsn = Lsn(0);
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// Rounds up to the alignment of WAL records, 8 bytes.
    pub fn align(self) -> Lsn {
        Lsn(self.0.wrapping_add(7) & !7)
    }

    pub fn is_aligned(self) -> bool {
        self.0 % 8 == 0
    }

    /// The position where the next record's bytes would start: skips a page header at a page boundary (spec wal.md 1.6).
    pub fn normalise(self) -> Lsn {
        if self.0 % XLOG_BLCKSZ == 0 {
            if self.0 % WAL_SEGMENT_SIZE == 0 {
                Lsn(self.0 + LONG_HEADER_LEN)
            } else {
                Lsn(self.0 + SHORT_HEADER_LEN)
            }
        } else {
            self.align()
        }
    }

    pub fn segment_offset(self) -> u64 {
        self.0 % WAL_SEGMENT_SIZE
    }

    pub fn page_offset(self) -> u64 {
        self.0 % XLOG_BLCKSZ
    }

    /// Bytes left on this WAL page, 8192 at its boundary.
    pub fn bytes_left_in_page(self) -> u64 {
        XLOG_BLCKSZ - self.page_offset()
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text is not two hexadecimal 32-bit numbers separated by one slash.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("LsnParseError: invalid lsn {0:?}")]
pub struct LsnParseError(pub String);

impl FromStr for Lsn {
    type Err = LsnParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || LsnParseError(text.to_string());
        let (high, low) = text.trim().split_once('/').ok_or_else(fail)?;
        let half = |part: &str| {
            if part.is_empty() || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(fail());
            }
            u32::from_str_radix(part, 16).map_err(|_| fail())
        };
        Ok(Lsn(u64::from(half(high)?) << 32 | u64::from(half(low)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_follows_the_vectors() {
        assert_eq!(Lsn(0x16B3748).to_string(), "0/16B3748");
        assert_eq!(Lsn(0x1_0000_000A).to_string(), "1/A");
        assert_eq!("aaaa/bbbb".parse(), Ok(Lsn(0x0000_AAAA_0000_BBBB)));
        assert_eq!(" 0/3C490F8 ".parse(), Ok(Lsn(0x3C490F8)));
        for bad in ["ABCDEFG/12345678", "123456789/AAAA5555", "12345678/AAAA55550", "-1/0", "1/-1", "1", "1/2/3", "/1"]
        {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn normalise_skips_page_headers() {
        assert_eq!(Lsn(0x1000000).normalise(), Lsn(0x1000028));
        assert_eq!(Lsn(0x1002000).normalise(), Lsn(0x1002018));
        assert_eq!(Lsn(0x1002019).normalise(), Lsn(0x1002020));
    }
}
