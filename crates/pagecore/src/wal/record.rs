//! One record: fixed header, block references, main data (spec wal.md 2).
//!
//! ```text
//! | header 24 | sub-headers: blocks 0..32, 253 origin, 252 top xid, 255/254 main | block payloads | main data |
//! ```
//!
//! Decoding borrows everything from the record's bytes. What PostgreSQL's own reader refuses is an error here too.

use smallvec::SmallVec;

use super::{le, WalError, RECORD_HEADER_LEN};
use crate::{RelTag, BLCKSZ};

const MAX_BLOCK_ID: u8 = 32;
const ID_TOPLEVEL_XID: u8 = 252;
const ID_ORIGIN: u8 = 253;
const ID_DATA_LONG: u8 = 254;
const ID_DATA_SHORT: u8 = 255;

const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_REL: u8 = 0x80;

/// How the bytes of a page image are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Pglz,
    Lz4,
    Zstd,
}

/// A page image inside a record, without its hole (spec wal.md 2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageRef<'a> {
    pub data: &'a [u8],
    pub hole_offset: u16,
    pub hole_length: u16,
    pub compression: Compression,
}

/// One block that a record changes, or needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRef<'a> {
    pub id: u8,
    pub rel: RelTag,
    pub block: u32,
    pub has_image: bool,
    /// The image replaces the page in redo. False for images that only serve `wal_consistency_checking`.
    pub apply_image: bool,
    pub will_init: bool,
    pub image: Option<ImageRef<'a>>,
    pub data: &'a [u8],
}

impl BlockRef<'_> {
    /// True if redo of this block needs no earlier version of the page.
    pub fn initialises(&self) -> bool {
        self.will_init || self.apply_image
    }
}

/// A record, cut into its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedRecord<'a> {
    pub total_len: u32,
    pub xid: u32,
    pub prev: u64,
    /// All eight bits; mask with `RMGR_INFO_MASK` before comparing.
    pub info: u8,
    pub rmid: u8,
    /// In order of ascending ids.
    pub blocks: SmallVec<[BlockRef<'a>; 4]>,
    pub main_data: &'a [u8],
    /// Replication origin, 0 if none.
    pub origin: u16,
    /// Top-level transaction, for the first record of a subtransaction under `wal_level = logical`; 0 if none.
    pub top_xid: u32,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], WalError> {
        match self.bytes.get(self.at..self.at.saturating_add(n)) {
            Some(out) => {
                self.at += n;
                Ok(out)
            }
            None => Err(WalError::Decode(format!("{} bytes end inside a sub-header or payload", self.bytes.len()))),
        }
    }

    fn u8(&mut self) -> Result<u8, WalError> {
        let v = le::u8(self.bytes, self.at)?;
        self.at += 1;
        Ok(v)
    }

    fn u16(&mut self) -> Result<u16, WalError> {
        let v = le::u16(self.bytes, self.at)?;
        self.at += 2;
        Ok(v)
    }

    fn u32(&mut self) -> Result<u32, WalError> {
        let v = le::u32(self.bytes, self.at)?;
        self.at += 4;
        Ok(v)
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }
}

fn bad<T>(text: String) -> Result<T, WalError> {
    Err(WalError::Decode(text))
}

/// The image bits of one major version (spec wal.md 2.4): PostgreSQL 15 moved APPLY and added compressions.
fn image_bits(major: u8, info: u8) -> Result<(bool, bool, Compression), WalError> {
    let has_hole = info & 0x01 != 0;
    if major <= 14 {
        let compression = if info & 0x02 != 0 { Compression::Pglz } else { Compression::None };
        return Ok((has_hole, info & 0x04 != 0, compression));
    }
    let compression = match info & 0x1C {
        0 => Compression::None,
        0x04 => Compression::Pglz,
        0x08 => Compression::Lz4,
        0x10 => Compression::Zstd,
        _ => return bad(format!("image with more than one compression method, bits {info:#04x}")),
    };
    Ok((has_hole, info & 0x02 != 0, compression))
}

/// An image header as read, its payload still ahead.
struct ImageHeader {
    length: u16,
    hole_offset: u16,
    hole_length: u16,
    compression: Compression,
    apply: bool,
}

fn read_image_header(r: &mut Reader<'_>, major: u8) -> Result<ImageHeader, WalError> {
    let length = r.u16()?;
    let hole_offset = r.u16()?;
    let info = r.u8()?;
    let (has_hole, apply, compression) = image_bits(major, info)?;
    let compressed = compression != Compression::None;
    if usize::from(length) > BLCKSZ {
        return bad(format!("image of {length} bytes"));
    }
    let hole_length = match (compressed, has_hole) {
        (true, true) => r.u16()?,
        (true, false) => 0,
        (false, _) => BLCKSZ as u16 - length,
    };
    if has_hole {
        let end = usize::from(hole_offset) + usize::from(hole_length);
        if hole_offset == 0 || hole_length == 0 || usize::from(length) == BLCKSZ || end > BLCKSZ {
            return bad(format!("image of {length} bytes with a hole of {hole_length} at {hole_offset}"));
        }
    } else if hole_offset != 0 || hole_length != 0 {
        return bad(format!("image of {length} bytes without hole, but offset {hole_offset}, length {hole_length}"));
    }
    if compressed && usize::from(length) == BLCKSZ {
        return bad("compressed image of a whole block".to_string());
    }
    Ok(ImageHeader { length, hole_offset, hole_length, compression, apply })
}

impl<'a> DecodedRecord<'a> {
    /// Cuts a complete record, beginning with its fixed header, into its parts.
    ///
    /// Raises: `WalError::Decode` if lengths, ids or flags contradict each other. The checksum is the framer's matter.
    pub fn decode(major: u8, bytes: &'a [u8]) -> Result<DecodedRecord<'a>, WalError> {
        if bytes.len() < RECORD_HEADER_LEN {
            return bad(format!("{} bytes are less than a record header", bytes.len()));
        }
        let total_len = le::u32(bytes, 0)?;
        if total_len as usize != bytes.len() {
            return bad(format!("xl_tot_len is {total_len}, but there are {} bytes", bytes.len()));
        }
        let mut record = DecodedRecord {
            total_len,
            xid: le::u32(bytes, 4)?,
            prev: le::u64(bytes, 8)?,
            info: bytes[16],
            rmid: bytes[17],
            blocks: SmallVec::new(),
            main_data: &[],
            origin: 0,
            top_xid: 0,
        };
        record.decode_parts(major, &mut Reader { bytes, at: RECORD_HEADER_LEN })?;
        Ok(record)
    }

    fn decode_parts(&mut self, major: u8, r: &mut Reader<'a>) -> Result<(), WalError> {
        let mut payload_total = 0usize;
        let mut main_len = None;
        // Lengths of image and data of each block: the payloads follow only after all sub-headers.
        let mut lengths: SmallVec<[(Option<ImageHeader>, u16); 4]> = SmallVec::new();
        while r.left() > payload_total {
            let id = r.u8()?;
            match id {
                ID_DATA_SHORT | ID_DATA_LONG => {
                    if main_len.is_some() {
                        return bad("two main data headers".to_string());
                    }
                    let len = if id == ID_DATA_SHORT { u32::from(r.u8()?) } else { r.u32()? } as usize;
                    main_len = Some(len);
                    payload_total = payload_total.saturating_add(len);
                }
                ID_ORIGIN => self.origin = r.u16()?,
                ID_TOPLEVEL_XID => self.top_xid = r.u32()?,
                0..=MAX_BLOCK_ID => {
                    let (image, data_len) = self.decode_block(major, id, r)?;
                    payload_total += usize::from(data_len) + image.as_ref().map_or(0, |i| usize::from(i.length));
                    lengths.push((image, data_len));
                }
                _ => return bad(format!("invalid block_id {id}")),
            }
        }
        if r.left() != payload_total {
            return bad(format!("{} bytes of payload where the headers announce {payload_total}", r.left()));
        }
        for (block, (image, data_len)) in self.blocks.iter_mut().zip(lengths) {
            if let Some(h) = image {
                block.image = Some(ImageRef {
                    data: r.take(usize::from(h.length))?,
                    hole_offset: h.hole_offset,
                    hole_length: h.hole_length,
                    compression: h.compression,
                });
            }
            block.data = r.take(usize::from(data_len))?;
        }
        self.main_data = r.take(main_len.unwrap_or(0))?;
        Ok(())
    }

    /// Reads one block's sub-header and appends the block, its payload still empty.
    fn decode_block(&mut self, major: u8, id: u8, r: &mut Reader<'a>) -> Result<(Option<ImageHeader>, u16), WalError> {
        let previous = self.blocks.last();
        if previous.is_some_and(|p| p.id >= id) {
            return bad(format!("out-of-order block_id {id}"));
        }
        let flags = r.u8()?;
        let data_len = r.u16()?;
        if (flags & HAS_DATA != 0) != (data_len != 0) {
            return bad(format!("block {id} with flags {flags:#04x} has {data_len} bytes of data"));
        }
        let forknum = flags & FORK_MASK;
        if forknum > crate::key::INIT_FORK {
            return bad(format!("block {id} of fork {forknum}"));
        }
        let image = if flags & HAS_IMAGE != 0 { Some(read_image_header(r, major)?) } else { None };
        let rel = if flags & SAME_REL == 0 {
            RelTag { spcnode: r.u32()?, dbnode: r.u32()?, relnode: r.u32()?, forknum }
        } else {
            match previous {
                Some(p) => RelTag { forknum, ..p.rel },
                None => return bad(format!("block {id} has SAME_REL, but there is no previous relation")),
            }
        };
        self.blocks.push(BlockRef {
            id,
            rel,
            block: r.u32()?,
            has_image: image.is_some(),
            apply_image: image.as_ref().is_some_and(|i| i.apply),
            will_init: flags & WILL_INIT != 0,
            image: None,
            data: &[],
        });
        Ok((image, data_len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn unhex(text: &str) -> Vec<u8> {
        hex::decode(text.replace([' ', '|', '\n'], "")).unwrap()
    }

    const REL: &str = "7f060000 05000000 05400000 02000000";

    /// A record around sub-headers and payload.
    fn record(rest: &str) -> Vec<u8> {
        let rest = unhex(rest);
        let mut out = vec![0; RECORD_HEADER_LEN];
        out[..4].copy_from_slice(&((RECORD_HEADER_LEN + rest.len()) as u32).to_le_bytes());
        out.extend_from_slice(&rest);
        out
    }

    fn refused(major: u8, rest: &str) -> String {
        DecodedRecord::decode(major, &record(rest)).unwrap_err().to_string()
    }

    #[test]
    fn a_record_with_top_level_xid_decodes() {
        let bytes = unhex(
            "42000000 e2020000 50017e0100000000 00 0a 0000 654e713f | 00 20 0c00 7f060000 05000000 05400000 02000000
             | fc e1020000 | ff 03 | 0200 0208 18 00 ea030000 0573 | 7200 08",
        );
        let r = DecodedRecord::decode(15, &bytes).unwrap();
        assert_eq!((r.xid, r.prev, r.info, r.rmid, r.top_xid, r.origin), (0x2E2, 0x17E0150, 0, 10, 0x2E1, 0));
        assert_eq!(r.main_data, [114, 0, 8]);
        let b = r.blocks[0];
        assert_eq!((b.id, b.block, b.has_image, b.will_init, b.data.len()), (0, 2, false, false, 12));
        assert_eq!(b.rel, RelTag { spcnode: 1663, dbnode: 5, relnode: 0x4005, forknum: 0 });
    }

    #[test]
    fn origin_sub_header_is_accepted() {
        let rest = format!("fd 0100 ff 24 {}", "00".repeat(36));
        let bytes = record(&rest);
        let r = DecodedRecord::decode(15, &bytes).unwrap();
        assert_eq!((r.origin, r.main_data.len(), r.blocks.len()), (1, 36, 0));
    }

    #[test]
    fn same_rel_inherits_the_triple_but_not_the_fork() {
        let bytes = record(&format!("00 60 0100 {REL} 01 82 0000 07000000 02 e0 0100 08000000 ff 01 aa bb cc"));
        let r = DecodedRecord::decode(15, &bytes).unwrap();
        let what: Vec<_> = r.blocks.iter().map(|b| (b.id, b.rel.relnode, b.rel.forknum, b.block, b.data)).collect();
        assert_eq!(what, [(0, 0x4005, 0, 2, &[0xaa][..]), (1, 0x4005, 2, 7, &[][..]), (2, 0x4005, 0, 8, &[0xbb][..])]);
        assert_eq!(r.blocks.iter().map(|b| b.will_init).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(r.main_data, [0xcc]);
    }

    #[test]
    fn version_14_reads_other_image_bits() {
        // 8192 bytes without hole; bit 0x04 applies in 14, bit 0x02 from 15 on.
        let page = "00".repeat(8192);
        let bytes = record(&format!("00 10 0000 0020 0000 04 {REL} {page}"));
        assert!(DecodedRecord::decode(14, &bytes).unwrap().blocks[0].apply_image);
        assert!(DecodedRecord::decode(15, &bytes).is_err(), "a compressed image of 8192 bytes");
        let bytes = record(&format!("00 10 0000 0020 0000 02 {REL} {page}"));
        assert!(DecodedRecord::decode(14, &bytes).is_err());
        let r = DecodedRecord::decode(15, &bytes).unwrap();
        assert!(r.blocks[0].apply_image && r.blocks[0].initialises());
        // Without APPLY the image is there, but does not initialise the page.
        let bytes = record(&format!("00 10 0000 0020 0000 00 {REL} {page}"));
        let r = DecodedRecord::decode(16, &bytes).unwrap();
        assert!(r.blocks[0].has_image && !r.blocks[0].initialises());
    }

    #[test]
    fn hole_length_is_stored_only_for_compressed_images_with_hole() {
        let payload = "11".repeat(1904);
        let bytes = record(&format!("00 10 0000 7007 4000 03 {REL} {payload}"));
        let image = DecodedRecord::decode(15, &bytes).unwrap().blocks[0].image.unwrap();
        assert_eq!((image.hole_offset, image.hole_length, image.compression), (64, 6288, Compression::None));
        let payload = "11".repeat(2930);
        for (bits, compression) in [("07", Compression::Pglz), ("0b", Compression::Lz4), ("13", Compression::Zstd)] {
            let bytes = record(&format!("00 10 0000 720b 4403 {bits} 1400 {REL} {payload}"));
            let image = DecodedRecord::decode(15, &bytes).unwrap().blocks[0].image.unwrap();
            assert_eq!((image.hole_offset, image.hole_length, image.compression), (836, 20, compression));
        }
        let bytes = record(&format!("00 10 0000 720b 4403 07 1400 {REL} {payload}"));
        let image = DecodedRecord::decode(14, &bytes).unwrap().blocks[0].image.unwrap();
        assert_eq!((image.hole_length, image.compression), (20, Compression::Pglz));
        let bytes = record(&format!("00 10 0000 720b 0000 06 {REL} {payload}"));
        assert_eq!(DecodedRecord::decode(15, &bytes).unwrap().blocks[0].image.unwrap().hole_length, 0);
    }

    #[test]
    fn contradictions_are_refused() {
        for (rest, what) in [
            ("21", "invalid block_id 33"),
            ("fb", "invalid block_id 251"),
            (&format!("01 00 0000 {REL} 01 80 0000 00000000")[..], "out-of-order block_id 1"),
            ("00 80 0000 00000000", "no previous relation"),
            (&format!("00 20 0000 {REL}")[..], "bytes of data"),
            (&format!("00 00 0100 {REL} aa")[..], "bytes of data"),
            (&format!("00 04 0000 {REL}")[..], "fork 4"),
            ("ff 02 aa", "bytes"),
            ("fe ffffffff aa", "payload"),
            ("ff 00 ff 00", "two main data"),
            (&format!("00 10 0000 0030 0000 02 {REL}")[..], "image of 12288 bytes"),
            (&format!("00 10 0000 7007 0000 03 {REL}")[..], "with a hole"),
            (&format!("00 10 0000 7007 ff1f 03 {REL}")[..], "with a hole"),
            (&format!("00 10 0000 7007 0000 02 {REL}")[..], "without hole"),
            (&format!("00 10 0000 7007 4000 0e 1400 {REL}")[..], "more than one compression"),
        ] {
            let got = refused(15, rest);
            assert!(got.contains(what), "{rest}: {got}");
        }
        assert!(DecodedRecord::decode(15, &[0; 23]).is_err());
        let mut wrong_length = record("ff 01 aa");
        wrong_length.push(0);
        assert!(DecodedRecord::decode(15, &wrong_length).is_err());
    }
}
