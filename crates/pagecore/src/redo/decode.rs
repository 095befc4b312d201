//! The part of a WAL record that matters for one page: a decoder that looks at each header once and allocates nothing
//! (spec walredo.md 7.1; the full decoder is `wal::record`).

use crate::key::Key;
use crate::page::Fault;
use crate::wal::{Compression, ImageRef};
use crate::{Lsn, BLCKSZ};

use super::fields::{bytes_at, u16_at, u32_at, u8_at, Fields};

const RECORD_HEADER_SIZE: usize = 24;
/// Block ids are 0..=32.
const BLOCK_IDS: usize = 33;

/// Bits of a block's image flags; 14 numbered them differently.
struct ImageBits {
    apply: u8,
    pglz: u8,
    lz4: u8,
    zstd: u8,
}

const IMAGE_BITS_14: ImageBits = ImageBits { apply: 4, pglz: 2, lz4: 0, zstd: 0 };
const IMAGE_BITS_15: ImageBits = ImageBits { apply: 2, pglz: 4, lz4: 8, zstd: 0x10 };
const HAS_HOLE: u8 = 1;

/// A page image as the record carries it.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    pub image: ImageRef<'a>,
    /// Without it the image only serves wal_consistency_checking.
    pub apply: bool,
}

/// The reference of a record to the page that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub id: u8,
    pub will_init: bool,
    pub image: Option<Image<'a>>,
    pub data: &'a [u8],
}

/// The header of the wanted page's block reference; where its bytes are, relative to the end of all headers.
struct Found {
    id: u8,
    will_init: bool,
    image: Option<Image<'static>>,
    image_start: usize,
    data_start: usize,
    data_len: usize,
}

/// A record, seen from one page.
#[derive(Clone, Debug)]
pub struct PageRecord<'a> {
    pub major: u8,
    /// End of the record: becomes the page's LSN.
    pub lsn: Lsn,
    pub xid: u32,
    pub rmid: u8,
    /// Without the low four bits, which are not the resource manager's.
    pub info: u8,
    pub main: &'a [u8],
    /// Block number of the wanted page.
    pub block: u32,
    pub target: Target<'a>,
    present: u64,
    blocks: [u32; BLOCK_IDS],
}

impl<'a> PageRecord<'a> {
    /// The block number behind block id `id`, if the record has it.
    pub fn block_of(&self, id: u8) -> Option<u32> {
        if id < BLOCK_IDS as u8 && self.present & 1 << id != 0 {
            self.blocks.get(usize::from(id)).copied()
        } else {
            None
        }
    }

    /// Decodes `record` as far as the page `key` needs it. A record that does not refer to the page is an error.
    pub fn decode(major: u8, key: &Key, lsn: Lsn, record: &'a [u8]) -> Result<PageRecord<'a>, Fault> {
        let total = u32_at(record, 0)? as usize;
        if total != record.len() || total < RECORD_HEADER_SIZE {
            return Err(Fault::Record("its length differs from the length it states"));
        }
        let bits = if major == 14 { &IMAGE_BITS_14 } else { &IMAGE_BITS_15 };
        let mut at = RECORD_HEADER_SIZE;
        let mut payload = 0;
        let mut main_len = 0;
        let mut same = false;
        let mut have_rel = false;
        let mut found: Option<Found> = None;
        let mut present = 0u64;
        let mut blocks = [0; BLOCK_IDS];
        while total - at > payload {
            let id = u8_at(record, at)?;
            at += 1;
            match id {
                0xFF => {
                    main_len = usize::from(u8_at(record, at)?);
                    at += 1;
                    payload += main_len;
                }
                0xFE => {
                    main_len = u32_at(record, at)? as usize;
                    at += 4;
                    payload += main_len;
                }
                0xFD => at += 2,
                0xFC => at += 4,
                0..=32 => {
                    let fork_flags = u8_at(record, at)?;
                    let data_len = usize::from(u16_at(record, at + 1)?);
                    at += 3;
                    let image_start = payload;
                    let mut image = None;
                    if fork_flags & 0x10 != 0 {
                        let (described, header_len) = image_header(bits, record, at)?;
                        at += header_len;
                        payload += described.0;
                        image = Some(described);
                    }
                    let data_start = payload;
                    payload += data_len;
                    if fork_flags & 0x80 == 0 {
                        let rel = bytes_at(record, at, 12)?;
                        same = key.field2 == u32_at(rel, 0)?
                            && key.field3 == u32_at(rel, 4)?
                            && key.field4 == u32_at(rel, 8)?;
                        have_rel = true;
                        at += 12;
                    } else if !have_rel {
                        return Err(Fault::Record(
                            "a block refers to the relation of a block before it, but is the first",
                        ));
                    }
                    let block = u32_at(record, at)?;
                    at += 4;
                    present |= 1 << id;
                    if let Some(slot) = blocks.get_mut(usize::from(id)) {
                        *slot = block;
                    }
                    if found.is_none() && same && block == key.field6 && fork_flags & 0x0F == key.field5 {
                        let image = image.map(|(_, image)| image);
                        let will_init = fork_flags & 0x40 != 0;
                        found = Some(Found { id, will_init, image, image_start, data_start, data_len });
                    }
                }
                _ => return Err(Fault::Record("unknown block id")),
            }
            if at > total {
                return Err(Fault::Record("data ends early"));
            }
        }
        if total - at != payload {
            return Err(Fault::Record("headers and data do not add up"));
        }
        let found = found.ok_or(Fault::Record("it does not refer to the wanted page"))?;
        let mut image = found.image;
        if let Some(image) = &mut image {
            image.image.data = bytes_at(record, at + found.image_start, found.data_start - found.image_start)?;
        }
        let data = bytes_at(record, at + found.data_start, found.data_len)?;
        let target = Target { id: found.id, will_init: found.will_init, image, data };
        Ok(PageRecord {
            major,
            lsn,
            xid: u32_at(record, 4)?,
            rmid: u8_at(record, 17)?,
            info: u8_at(record, 16)? & 0xF0,
            main: bytes_at(record, total - main_len, main_len)?,
            block: key.field6,
            target,
            present,
            blocks,
        })
    }
}

/// The main data of a record without block references, such as a multixact's.
pub fn main_data(record: &[u8]) -> Result<&[u8], Fault> {
    let mut fields = Fields::new(record);
    if fields.take(RECORD_HEADER_SIZE).and_then(|header| u32_at(header, 0))? as usize != record.len() {
        return Err(Fault::Record("its length differs from the length it states"));
    }
    loop {
        let len = match fields.u8()? {
            0xFF => usize::from(fields.u8()?),
            0xFE => fields.u32()? as usize,
            0xFD => {
                fields.take(2)?;
                continue;
            }
            0xFC => {
                fields.take(4)?;
                continue;
            }
            _ => return Err(Fault::Record("a block reference where none is expected")),
        };
        return if len == fields.rest().len() {
            Ok(fields.rest())
        } else {
            Err(Fault::Record("headers and data do not add up"))
        };
    }
}

/// Reads an image's header at `at`: its length in the payload, what it says, and the header's own length.
fn image_header(bits: &ImageBits, record: &[u8], at: usize) -> Result<((usize, Image<'static>), usize), Fault> {
    let length = u16_at(record, at)?;
    let hole_offset = u16_at(record, at + 2)?;
    let info = u8_at(record, at + 4)?;
    let compression = match info {
        i if i & bits.pglz != 0 => Compression::Pglz,
        i if i & bits.lz4 != 0 => Compression::Lz4,
        i if i & bits.zstd != 0 => Compression::Zstd,
        _ => Compression::None,
    };
    let mut header_len = 5;
    let hole_length = if info & HAS_HOLE == 0 {
        0
    } else if compression == Compression::None {
        (BLCKSZ as u16).checked_sub(length).ok_or(Fault::Record("a page image is longer than a page"))?
    } else {
        header_len = 7;
        u16_at(record, at + 5)?
    };
    let image = ImageRef { data: &[], hole_offset, hole_length, compression };
    Ok(((usize::from(length), Image { image, apply: info & bits.apply != 0 }), header_len))
}
