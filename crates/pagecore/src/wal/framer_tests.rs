//! Streams made by hand, for what the recorded segment does not show (spec wal.md 13, items 1, 3-10, 48).

use super::*;

const SYSTEM: u64 = 0x6566_0b62_8267_e367;
const SEGMENT: u64 = WAL_SEGMENT_SIZE;

/// Writes WAL as a server would: pages, headers, contrecords, padding.
struct Writer {
    start: u64,
    out: Vec<u8>,
    prev: u64,
    /// Start and rounded end of each record.
    records: Vec<(u64, u64, Vec<u8>)>,
}

impl Writer {
    fn new(start: u64) -> Writer {
        Writer { start, out: Vec::new(), prev: start - 8, records: Vec::new() }
    }

    fn lsn(&self) -> u64 {
        self.start + self.out.len() as u64
    }

    fn header(&mut self, flags: u16, rem_len: u32) {
        let lsn = self.lsn();
        let is_long = lsn % SEGMENT == 0;
        self.out.extend(0xD110u16.to_le_bytes());
        self.out.extend((flags | if is_long { 2 } else { 0 }).to_le_bytes());
        self.out.extend(1u32.to_le_bytes());
        self.out.extend(lsn.to_le_bytes());
        self.out.extend(rem_len.to_le_bytes());
        self.out.extend([0; 4]);
        if is_long {
            self.out.extend(SYSTEM.to_le_bytes());
            self.out.extend((SEGMENT as u32).to_le_bytes());
            self.out.extend(8192u32.to_le_bytes());
        }
    }

    fn make(&self, rmid: u8, info: u8, payload: &[u8]) -> Vec<u8> {
        let mut record = vec![0; 24];
        record[..4].copy_from_slice(&((24 + payload.len()) as u32).to_le_bytes());
        record[4..8].copy_from_slice(&7u32.to_le_bytes());
        record[8..16].copy_from_slice(&self.prev.to_le_bytes());
        record[16] = info;
        record[17] = rmid;
        record.extend(payload);
        let crc = record_crc(&record);
        record[20..24].copy_from_slice(&crc.to_le_bytes());
        record
    }

    /// Writes `bytes` over page borders; stops after `limit` bytes of it.
    fn spread(&mut self, bytes: &[u8], limit: usize) {
        for (i, byte) in bytes.iter().take(limit).enumerate() {
            if self.lsn() % XLOG_BLCKSZ == 0 {
                let left = if i == 0 { 0 } else { (bytes.len() - i) as u32 };
                self.header(if i == 0 { 0 } else { 1 }, left);
            }
            self.out.push(*byte);
        }
    }

    fn record(&mut self, rmid: u8, info: u8, payload: &[u8]) {
        if self.lsn() % XLOG_BLCKSZ == 0 {
            self.header(0, 0);
        }
        let start = self.lsn();
        let record = self.make(rmid, info, payload);
        self.spread(&record, usize::MAX);
        while self.lsn() % 8 != 0 {
            self.out.push(0);
        }
        self.prev = start;
        self.records.push((start, self.lsn(), record));
    }

    /// A record that ends `before` bytes before the end of the page.
    fn fill_page(&mut self, before: u64) {
        if self.lsn() % XLOG_BLCKSZ == 0 {
            self.header(0, 0);
        }
        let left = Lsn(self.lsn()).bytes_left_in_page() - before;
        self.record(10, 0, &vec![0x5A; left as usize - 24]);
    }
}

fn framer(start: u64) -> WalFramer {
    let checks = StreamChecks { system_identifier: Some(SYSTEM), check_prev: true };
    WalFramer::new(15, Lsn(start), checks).unwrap()
}

type Output = Vec<(u64, Vec<u8>)>;

/// Feeds `bytes` in pieces of `piece` bytes.
fn run(start: u64, bytes: &[u8], piece: usize) -> Result<Output, WalError> {
    let mut framer = framer(start);
    let mut out = Vec::new();
    for chunk in bytes.chunks(piece) {
        framer.feed(chunk);
        while let Some((lsn, record)) = framer.next_record()? {
            out.push((lsn.0, record.to_vec()));
        }
    }
    assert_eq!(framer.fed_until().0, start + bytes.len() as u64);
    Ok(out)
}

fn expect(writer: &Writer) -> Output {
    writer.records.iter().map(|(_, end, record)| (*end, record.clone())).collect()
}

fn problem(result: Result<Output, WalError>) -> String {
    match result {
        Err(error) => error.to_string(),
        Ok(records) => format!("{} records", records.len()),
    }
}

fn mixed() -> Writer {
    let mut w = Writer::new(SEGMENT);
    w.record(10, 0, b"first");
    w.record(10, 0, &[1; 20000]);
    w.fill_page(0);
    w.record(10, 0, b"after a page that ended with a record");
    // A header split over two pages.
    w.fill_page(8);
    w.record(10, 0, b"split");
    w.record(10, 0, &[]);
    w
}

#[test]
fn any_cutting_gives_the_same_records() {
    let w = mixed();
    let want = expect(&w);
    for piece in [1, 2, 3, 7, 8, 23, 24, 25, 40, 4096, 8191, 8192, 8193, 131072, usize::MAX] {
        assert_eq!(run(SEGMENT, &w.out, piece.min(w.out.len())).unwrap(), want, "pieces of {piece}");
    }
}

#[test]
fn a_record_that_ends_with_its_page_reports_the_border() {
    let mut w = Writer::new(SEGMENT + 8192);
    w.fill_page(0);
    w.record(10, 0, b"x");
    let got = run(SEGMENT + 8192, &w.out, 100).unwrap();
    assert_eq!(got[0].0, SEGMENT + 16384);
    assert_eq!(got[1].0, SEGMENT + 16384 + 24 + 32);
}

#[test]
fn position_is_the_unpadded_end() {
    let mut w = Writer::new(SEGMENT);
    w.record(10, 0, b"12345");
    let mut f = framer(SEGMENT);
    f.feed(&w.out);
    assert_eq!(f.next_record().unwrap().unwrap().0, Lsn(SEGMENT + 40 + 32));
    assert_eq!(f.position(), Lsn(SEGMENT + 40 + 29));
    assert_eq!(f.page_tli(), Some(1));
    assert!(f.next_record().unwrap().is_none());
    assert_eq!(f.position(), Lsn(SEGMENT + 40 + 32));
}

#[test]
fn a_switch_skips_to_the_next_segment_without_reading_headers() {
    let mut w = Writer::new(SEGMENT);
    w.record(10, 0, b"before");
    w.record(0, 0x40, b"");
    let skipped = 2 * SEGMENT - w.lsn();
    w.out.extend(std::iter::repeat_n(0xEE, skipped as usize));
    w.records[1].1 = 2 * SEGMENT;
    w.record(10, 0, b"after");
    for piece in [100_000, 16_777_215, usize::MAX] {
        assert_eq!(run(SEGMENT, &w.out, piece.min(w.out.len())).unwrap(), expect(&w));
    }
    let mut f = framer(SEGMENT);
    f.feed(&w.out[..200]);
    while f.next_record().unwrap().is_some() {}
    for chunk in w.out[200..SEGMENT as usize].chunks(1 << 20) {
        f.feed(chunk);
    }
    assert!(f.input.capacity() < 1 << 20, "padding is dropped, not buffered");
}

#[test]
fn a_switch_that_fills_the_segment_skips_nothing() {
    let mut w = Writer::new(2 * SEGMENT - 8192);
    w.fill_page(24);
    w.record(0, 0x40, b"");
    assert_eq!(w.lsn(), 2 * SEGMENT);
    w.record(10, 0, b"after");
    assert_eq!(run(2 * SEGMENT - 8192, &w.out, 1000).unwrap(), expect(&w));
    // With a framework bit set it is not the exact info of a switch.
    let mut w = Writer::new(SEGMENT);
    w.record(0, 0x41, b"");
    w.record(10, 0, b"after");
    assert_eq!(run(SEGMENT, &w.out, 1000).unwrap(), expect(&w));
}

#[test]
fn a_record_longer_than_a_segment_is_put_together() {
    let mut w = Writer::new(SEGMENT + 8192);
    w.record(10, 0, &vec![0x77; 17 << 20]);
    w.record(10, 0, b"after");
    for piece in [131_072, 999_983] {
        assert_eq!(run(SEGMENT + 8192, &w.out, piece).unwrap(), expect(&w));
    }
}

#[test]
fn flipped_bits_are_found() {
    let w = mixed();
    // In the first record: length is another check, so flips start behind it.
    for at in 40 + 4..40 + 29 {
        let mut bad = w.out.clone();
        bad[at] ^= 0x10;
        assert_eq!(problem(run(SEGMENT, &bad, 8192)), "WAL record crc mismatch at 0/1000028", "byte {at}");
    }
}

#[test]
fn wrong_page_headers_are_refused() {
    let mut w = Writer::new(SEGMENT);
    w.fill_page(0);
    w.record(10, 0, &[3; 9000]);
    let patch = |at: usize, bytes: &[u8]| {
        let mut bad = w.out.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        problem(run(SEGMENT, &bad, 1234))
    };
    let header = "invalid xlog page header: ";
    assert_eq!(patch(0, &[0x13]), format!("{header}xlp_magic=0xD113, expected 0xD110 at 0/1000000"));
    assert_eq!(patch(8, &[1]), format!("{header}xlp_pageaddr=0/1000001, expected 0/1000000 at 0/1000000"));
    assert_eq!(patch(8192 + 2, &[1]), format!("{header}unexpected XLP_FIRST_IS_CONTRECORD at 0/1002000"));
    assert_eq!(patch(8192 + 16, &[9]), format!("{header}xlp_rem_len=9, but it's not a contrecord at 0/1002000"));
    let missing = format!("{header}XLP_FIRST_IS_CONTRECORD expected, not found at 0/1004000");
    assert_eq!(patch(16384 + 2, &[0]), missing);
    let rem_len = 9024 - (8192 - 24);
    let other = format!("{header}xlp_rem_len={}, expected {rem_len} at 0/1004000", rem_len & !0xFF);
    assert_eq!(patch(16384 + 16, &[0]), other);
    let sysid = patch(24, &[0]);
    assert!(sysid.contains("xlp_sysid=") && sysid.contains("another cluster"), "{sysid}");
    assert!(patch(32, &[1]).contains("xlp_seg_size=16777217"));
    assert!(patch(36, &[1]).contains("xlp_xlog_blcksz=8193"));
}

#[test]
fn impossible_lengths_are_refused() {
    for (length, text) in [(0u32, "0"), (23, "23"), (0x4000_0001, "1073741825")] {
        let mut w = Writer::new(SEGMENT);
        w.record(10, 0, b"x");
        w.out[40..44].copy_from_slice(&length.to_le_bytes());
        assert_eq!(problem(run(SEGMENT, &w.out, 8192)), format!("invalid xl_tot_len {text} at 0/1000028"));
    }
}

#[test]
fn the_previous_record_pointer_is_checked() {
    let mut w = Writer::new(SEGMENT);
    w.record(10, 0, b"one");
    w.prev -= 8;
    w.record(10, 0, b"two");
    assert_eq!(problem(run(SEGMENT, &w.out, 8192)), "invalid xl_prev 0/1000020, expected 0/1000028 at 0/1000048");
    let mut w = Writer::new(SEGMENT);
    w.prev = SEGMENT + 40;
    w.record(10, 0, b"one");
    assert!(problem(run(SEGMENT, &w.out, 8192)).contains("expected a position before the record"));
    let mut lenient = WalFramer::new(15, Lsn(SEGMENT), StreamChecks::default()).unwrap();
    lenient.feed(&w.out);
    assert!(lenient.next_record().unwrap().is_some());
}

/// A record cut off by a crash at a page border, then the page that says so, then a record.
fn overwritten(rmid: u8, info: u8, named: impl Fn(u64) -> u64) -> Writer {
    let mut w = Writer::new(SEGMENT);
    w.record(10, 0, b"before");
    let start = w.lsn();
    let lost = w.make(10, 0, &[9; 9000]);
    w.spread(&lost, (8192 - start % 8192) as usize);
    w.header(8, 0);
    let mut payload = vec![0xFF, 16];
    payload.extend(named(start).to_le_bytes());
    payload.extend([0; 8]);
    w.record(rmid, info, &payload);
    w.record(10, 0, b"after");
    w
}

#[test]
fn an_overwritten_contrecord_is_dropped_and_verified() {
    let good = overwritten(0, 0xD0, |start| start);
    for piece in [1, 100, 100_000] {
        assert_eq!(run(SEGMENT, &good.out, piece).unwrap(), expect(&good));
    }
    let other = overwritten(0, 0xD0, |start| start + 8);
    assert!(problem(run(SEGMENT, &other.out, 100)).contains("what follows names 0/1000050"));
    let none = overwritten(10, 0, |start| start);
    assert!(problem(run(SEGMENT, &none.out, 100)).contains("does not say so"));
}

#[test]
fn unknown_versions_are_refused() {
    assert!(WalFramer::new(13, Lsn(0), StreamChecks::default()).is_err());
    assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
    let real = hex::decode("1e0000000000000008ec4a01000000003000000094f949f8ff0400600000").unwrap();
    assert_eq!(record_crc(&real), 0xF849_F994);
}
