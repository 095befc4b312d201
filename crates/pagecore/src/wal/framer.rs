//! Cuts a stream of WAL bytes into records (spec wal.md 1).
//!
//! The output does not depend on how the input is cut into pieces. A record that lies whole in the fed bytes, on one
//! page, is handed out as a slice of the input buffer; one that crosses a page is put together in a second buffer.
//!
//! ```text
//! Waiting ──record on this page──▶ Skipping padding ──▶ Waiting
//!    └──record continues──▶ Reassembling ──last piece──▶ Skipping …      XLOG_SWITCH: skips to the next segment
//! ```

use super::{le, rmgr, DecodedRecord, StreamProblem, WalError, RECORD_HEADER_LEN};
use crate::lsn::{LONG_HEADER_LEN, SHORT_HEADER_LEN, WAL_SEGMENT_SIZE, XLOG_BLCKSZ};
use crate::Lsn;

/// No record is longer; PostgreSQL itself stops at 1020 MiB from version 16 on.
const RECORD_LEN_MAX: u32 = 1 << 30;
/// A reassembly buffer that one huge record has left behind is given back above this size.
const KEEP_BUFFER_BYTES: usize = 1 << 20;

const FIRST_IS_CONTRECORD: u16 = 0x0001;
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;

const XLOG_SWITCH: u8 = 0x40;
const XLOG_OVERWRITE_CONTRECORD: u8 = 0xD0;

/// Checks that Neon's streams cannot pass but those of a stock primary must (spec wal.md 1.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamChecks {
    /// Expected in each long header, together with the only supported segment and block size.
    pub system_identifier: Option<u64>,
    /// Each record must point back to the one before it.
    pub check_prev: bool,
}

enum State {
    /// The next byte is a page header or the start of a record.
    Waiting,
    /// `left` bytes of the record begun at `start` are still to come; what came is in `WalFramer::partial`.
    Reassembling { start: Lsn, left: u32 },
    /// Bytes up to here are of no interest.
    Skipping { until: Lsn },
}

/// Where the bytes of a complete record are.
enum Place {
    Input { at: usize, len: usize },
    Partial,
}

/// The streaming record cutter.
pub struct WalFramer {
    magic: u16,
    major: u8,
    checks: StreamChecks,
    state: State,
    /// Position of `input[at]`.
    lsn: Lsn,
    input: Vec<u8>,
    at: usize,
    partial: Vec<u8>,
    /// Start of the last complete record.
    prev: Option<Lsn>,
    /// Start of a record that the page header just read declares overwritten; the next record must name it.
    overwritten: Option<Lsn>,
    page_tli: Option<u32>,
}

impl WalFramer {
    /// A framer that expects its first byte to be that at `start_lsn`: a record boundary, or the start of a page.
    ///
    /// Raises: `WalError::UnsupportedVersion`.
    pub fn new(major: u8, start_lsn: Lsn, checks: StreamChecks) -> Result<WalFramer, WalError> {
        let magic = match major {
            14 => 0xD10D,
            15 => 0xD110,
            16 => 0xD113,
            17 => 0xD116,
            18 => 0xD118,
            _ => return Err(WalError::UnsupportedVersion(major)),
        };
        Ok(WalFramer {
            magic,
            major,
            checks,
            state: State::Waiting,
            lsn: start_lsn,
            input: Vec::new(),
            at: 0,
            partial: Vec::new(),
            prev: None,
            overwritten: None,
            page_tli: None,
        })
    }

    /// Appends bytes of the stream.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        if self.at == self.input.len() {
            self.input.clear();
            self.at = 0;
            // After a switch of segment up to 16 MiB of padding arrive: they need not be buffered.
            if let State::Skipping { until } = self.state {
                let n = (until.0 - self.lsn.0).min(bytes.len() as u64);
                self.lsn.0 += n;
                bytes = &bytes[n as usize..];
            }
        } else if self.at >= self.input.len() - self.at {
            // Moves no more bytes than were consumed. A caller that takes all records first leaves under 40 bytes.
            self.input.drain(..self.at);
            self.at = 0;
        }
        self.input.extend_from_slice(bytes);
    }

    /// Position of the next byte that has not been consumed: the unpadded end of the last record, if one was just
    /// returned.
    pub fn position(&self) -> Lsn {
        self.lsn
    }

    /// Position of the next byte that `feed` expects.
    pub fn fed_until(&self) -> Lsn {
        Lsn(self.lsn.0 + (self.input.len() - self.at) as u64)
    }

    /// Start of the last complete record, behind any page header.
    pub fn last_record_start(&self) -> Option<Lsn> {
        self.prev
    }

    /// PostgreSQL's timeline id in the last page header.
    pub fn page_tli(&self) -> Option<u32> {
        self.page_tli
    }

    /// True while the beginning of a record has been consumed, but not its end.
    pub fn is_reassembling(&self) -> bool {
        matches!(self.state, State::Reassembling { .. })
    }

    /// Returns the next record and its end, rounded up to where the next one may begin; none if bytes are missing.
    ///
    /// Raises: `WalError::Stream`; the framer cannot go on after that.
    pub fn next_record(&mut self) -> Result<Option<(Lsn, &[u8])>, WalError> {
        let Some((start, place)) = self.cut()? else { return Ok(None) };
        let record = match place {
            Place::Input { at, len } => &self.input[at..at + len],
            Place::Partial => &self.partial[..],
        };
        let problem = check_record(record, start, self.prev, self.checks.check_prev).err();
        let problem = problem.or_else(|| check_overwritten(self.major, record, self.overwritten).err());
        if let Some(problem) = problem {
            return Err(WalError::Stream { problem, lsn: start });
        }
        self.prev = Some(start);
        self.overwritten = None;
        let next_lsn = if record[17] == rmgr::XLOG && record[16] == XLOG_SWITCH {
            Lsn(self.lsn.0.next_multiple_of(WAL_SEGMENT_SIZE))
        } else {
            self.lsn.align()
        };
        self.state = State::Skipping { until: next_lsn };
        Ok(Some((next_lsn, record)))
    }

    fn available(&self) -> &[u8] {
        &self.input[self.at..]
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
        self.lsn.0 += n as u64;
    }

    fn fail<T>(&self, problem: StreamProblem) -> Result<T, WalError> {
        Err(WalError::Stream { problem, lsn: self.lsn })
    }

    /// Consumes one complete record and says where it starts and where its bytes are.
    fn cut(&mut self) -> Result<Option<(Lsn, Place)>, WalError> {
        loop {
            match self.state {
                State::Skipping { until } => {
                    let n = (until.0 - self.lsn.0).min(self.available().len() as u64) as usize;
                    self.consume(n);
                    if self.lsn < until {
                        return Ok(None);
                    }
                    self.state = State::Waiting;
                }
                State::Waiting => {
                    if !self.pass_page_header(None)? || self.available().len() < 4 {
                        return Ok(None);
                    }
                    let total = le::u32(self.available(), 0)?;
                    if (total as usize) < RECORD_HEADER_LEN || total > RECORD_LEN_MAX {
                        return self.fail(StreamProblem::TotalLength(total));
                    }
                    let start = self.lsn;
                    let len = total as usize;
                    if len <= self.available().len() && u64::from(total) <= self.lsn.bytes_left_in_page() {
                        let at = self.at;
                        self.consume(len);
                        return Ok(Some((start, Place::Input { at, len })));
                    }
                    if self.partial.capacity() > KEEP_BUFFER_BYTES {
                        self.partial = Vec::new();
                    }
                    self.partial.clear();
                    self.state = State::Reassembling { start, left: total };
                }
                State::Reassembling { start, left } => {
                    if !self.pass_page_header(Some(left))? {
                        return Ok(None);
                    }
                    // The header may have said that the record was given up.
                    let State::Reassembling { .. } = self.state else { continue };
                    let n = u64::from(left).min(self.lsn.bytes_left_in_page()).min(self.available().len() as u64);
                    self.partial.extend_from_slice(&self.input[self.at..self.at + n as usize]);
                    self.consume(n as usize);
                    let left = left - n as u32;
                    self.state = State::Reassembling { start, left };
                    if left == 0 {
                        return Ok(Some((start, Place::Partial)));
                    }
                    if n == 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// At the start of a page, checks and consumes its header; `left` is what a record needs from this page on.
    /// False if bytes are missing.
    fn pass_page_header(&mut self, left: Option<u32>) -> Result<bool, WalError> {
        if self.lsn.0 % XLOG_BLCKSZ != 0 {
            return Ok(true);
        }
        let is_long = self.lsn.0 % WAL_SEGMENT_SIZE == 0;
        let header_len = if is_long { LONG_HEADER_LEN } else { SHORT_HEADER_LEN } as usize;
        let Some(header) = self.available().get(..header_len) else { return Ok(false) };
        let (magic, flags, tli) = (le::u16(header, 0)?, le::u16(header, 2)?, le::u32(header, 4)?);
        let (address, rem_len) = (Lsn(le::u64(header, 8)?), le::u32(header, 16)?);
        if magic != self.magic {
            return self.fail(StreamProblem::Magic { got: magic, want: self.magic });
        }
        if address != self.lsn {
            return self.fail(StreamProblem::PageAddress { got: address, want: self.lsn });
        }
        if let (true, Some(want)) = (is_long, self.checks.system_identifier) {
            let (got, segment_size, block_size) = (le::u64(header, 24)?, le::u32(header, 32)?, le::u32(header, 36)?);
            if got != want {
                return self.fail(StreamProblem::SystemIdentifier { got, want });
            }
            if u64::from(segment_size) != WAL_SEGMENT_SIZE {
                return self.fail(StreamProblem::SegmentSize(segment_size));
            }
            if u64::from(block_size) != XLOG_BLCKSZ {
                return self.fail(StreamProblem::BlockSize(block_size));
            }
        }
        let is_contrecord = flags & FIRST_IS_CONTRECORD != 0;
        match (&self.state, left) {
            (State::Reassembling { start, .. }, _) if flags & FIRST_IS_OVERWRITE_CONTRECORD != 0 => {
                // A primary crashed before it wrote the rest, and says so here (spec wal.md 1.7).
                self.overwritten = Some(*start);
                self.state = State::Waiting;
                self.partial.clear();
            }
            (_, Some(_)) if !is_contrecord => return self.fail(StreamProblem::MissingContrecord),
            (_, Some(want)) if rem_len != want => return self.fail(StreamProblem::RemLen { got: rem_len, want }),
            (_, None) if is_contrecord => return self.fail(StreamProblem::UnexpectedContrecord),
            (_, None) if rem_len != 0 => return self.fail(StreamProblem::UnexpectedRemLen(rem_len)),
            _ => {}
        }
        self.page_tli = Some(tli);
        self.consume(header_len);
        Ok(true)
    }
}

/// CRC of a record: payload first, then the header up to the CRC itself (spec wal.md 1.5).
pub fn record_crc(record: &[u8]) -> u32 {
    let (header, payload) = record.split_at(RECORD_HEADER_LEN.min(record.len()));
    crc32c::crc32c_append(crc32c::crc32c(payload), &header[..header.len().min(20)])
}

/// Compares a record, long enough for its header, with its checksum. Raises: `StreamProblem::Crc`.
pub fn check_crc(record: &[u8]) -> Result<(), StreamProblem> {
    match record.get(20..24) == Some(&record_crc(record).to_le_bytes()[..]) {
        true => Ok(()),
        false => Err(StreamProblem::Crc),
    }
}

fn check_record(record: &[u8], start: Lsn, prev: Option<Lsn>, check_prev: bool) -> Result<(), StreamProblem> {
    let [_, _, _, _, p0, p1, p2, p3, p4, p5, p6, p7] = match record.get(4..16).and_then(|b| b.first_chunk::<12>()) {
        Some(bytes) => *bytes,
        None => return Err(StreamProblem::TotalLength(record.len() as u32)),
    };
    check_crc(record)?;
    if check_prev {
        let got = Lsn(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7]));
        match prev {
            Some(want) if got != want => return Err(StreamProblem::Prev { got, want }),
            None if got >= start => return Err(StreamProblem::PrevNotBefore { got }),
            _ => {}
        }
    }
    Ok(())
}

/// After an overwritten record the next one must be XLOG_OVERWRITE_CONTRECORD and name its start.
fn check_overwritten(major: u8, record: &[u8], overwritten: Option<Lsn>) -> Result<(), StreamProblem> {
    let Some(start) = overwritten else { return Ok(()) };
    let named = DecodedRecord::decode(major, record).ok().and_then(|r| {
        let is_overwrite = r.rmid == rmgr::XLOG && r.info & super::RMGR_INFO_MASK == XLOG_OVERWRITE_CONTRECORD;
        if is_overwrite {
            le::u64(r.main_data, 0).ok()
        } else {
            None
        }
    });
    match named {
        None => Err(StreamProblem::NotOverwriteContrecord { start }),
        Some(got) if got != start.0 => Err(StreamProblem::OverwriteContrecord { start, got: Lsn(got) }),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
#[path = "framer_tests.rs"]
mod tests;
