//! Blobs: a header of one or four bytes, then the data, perhaps compressed (spec layer-files.md 5).

use std::fmt;
use std::io::Read;
use std::str::FromStr;

/// Longest blob, in stored bytes.
pub const BLOB_LEN_MAX: usize = 0x0FFF_FFFF;
/// Longest header.
pub const HEADER_LEN_MAX: usize = 4;
/// From this length on a blob has the long header and may be compressed.
const LONG_FROM: usize = 128;
const CODE_PLAIN: u8 = 0x80;
const CODE_ZSTD: u8 = 0x90;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BlobError {
    #[error("blob too large ({0} bytes)")]
    TooLarge(usize),
    #[error("invalid compression byte {0:x}")]
    Compression(u8),
    #[error("blob is cut short: {got} bytes where {want} are needed")]
    Short { got: usize, want: usize },
    #[error("zstd frame does not decompress: {0}")]
    Zstd(String),
    #[error("unknown image compression {0:?}; expected disabled, zstd or zstd(level)")]
    Setting(String),
}

/// What a blob's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub header_len: usize,
    /// Stored bytes that follow the header.
    pub data_len: usize,
    pub compressed: bool,
}

impl Header {
    /// Reads the header at the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Header, BlobError> {
        let first = *bytes.first().ok_or(BlobError::Short { got: 0, want: 1 })?;
        if first < 0x80 {
            return Ok(Header { header_len: 1, data_len: usize::from(first), compressed: false });
        }
        let compressed = match first & 0xF0 {
            CODE_PLAIN => false,
            CODE_ZSTD => true,
            other => return Err(BlobError::Compression(other)),
        };
        let Some(&[a, b, c, d]) = bytes.get(..4).and_then(|b| <&[u8; 4]>::try_from(b).ok()) else {
            return Err(BlobError::Short { got: bytes.len(), want: 4 });
        };
        let data_len = u32::from_be_bytes([a & 0x0F, b, c, d]) as usize;
        Ok(Header { header_len: 4, data_len, compressed })
    }

    pub fn total_len(&self) -> usize {
        self.header_len + self.data_len
    }
}

/// Appends `data` as an uncompressed blob.
pub fn append(out: &mut Vec<u8>, data: &[u8]) -> Result<(), BlobError> {
    append_with(out, data, CODE_PLAIN)
}

/// Appends `data` as a blob, as a zstd frame if `compressor` makes it strictly shorter.
pub fn append_compressed(
    out: &mut Vec<u8>,
    data: &[u8],
    compressor: &mut zstd::bulk::Compressor<'static>,
) -> Result<(), BlobError> {
    if data.len() >= LONG_FROM {
        let frame = compressor.compress(data).map_err(|e| BlobError::Zstd(e.to_string()))?;
        if frame.len() < data.len() {
            return append_frame(out, &frame);
        }
    }
    append(out, data)
}

/// Appends a zstd frame as a blob: the long header even where the frame is short.
pub fn append_frame(out: &mut Vec<u8>, frame: &[u8]) -> Result<(), BlobError> {
    append_with(out, frame, CODE_ZSTD)
}

fn append_with(out: &mut Vec<u8>, data: &[u8], code: u8) -> Result<(), BlobError> {
    if data.len() < LONG_FROM && code == CODE_PLAIN {
        out.push(data.len() as u8);
    } else {
        if data.len() > BLOB_LEN_MAX {
            return Err(BlobError::TooLarge(data.len()));
        }
        let mut header = (data.len() as u32).to_be_bytes();
        header[0] |= code;
        out.extend_from_slice(&header);
    }
    out.extend_from_slice(data);
    Ok(())
}

/// Decompresses any zstd frame, also one that does not say its size; fails beyond the longest blob.
pub fn decompress(frame: &[u8]) -> Result<Vec<u8>, BlobError> {
    let fail = |e: std::io::Error| BlobError::Zstd(e.to_string());
    let decoder = zstd::stream::read::Decoder::new(frame).map_err(fail)?;
    let mut out = Vec::new();
    decoder.take(BLOB_LEN_MAX as u64 + 1).read_to_end(&mut out).map_err(fail)?;
    if out.len() > BLOB_LEN_MAX {
        return Err(BlobError::TooLarge(out.len()));
    }
    Ok(out)
}

/// The setting `image_compression`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Disabled,
    /// None: zstd's own default level.
    Zstd(Option<i8>),
}

impl Default for Compression {
    fn default() -> Self {
        Compression::Zstd(Some(1))
    }
}

impl Compression {
    /// A compressor to be used for many blobs; none if compression is disabled. Its frames end with a checksum, which
    /// every reader of zstd compares (Neon's frames have none): a layer file has no other, and most flipped bits leave
    /// a frame that decompresses to another page.
    pub fn compressor(self) -> Result<Option<zstd::bulk::Compressor<'static>>, BlobError> {
        match self {
            Compression::Disabled => Ok(None),
            Compression::Zstd(level) => {
                let level = level.map_or(zstd::DEFAULT_COMPRESSION_LEVEL, i32::from);
                let fail = |e: std::io::Error| BlobError::Zstd(e.to_string());
                let mut compressor = zstd::bulk::Compressor::new(level).map_err(fail)?;
                compressor.include_checksum(true).map_err(fail)?;
                Ok(Some(compressor))
            }
        }
    }
}

impl FromStr for Compression {
    type Err = BlobError;

    fn from_str(text: &str) -> Result<Self, BlobError> {
        let fail = || BlobError::Setting(text.to_string());
        match text {
            "disabled" => Ok(Compression::Disabled),
            "zstd" => Ok(Compression::Zstd(None)),
            _ => {
                let level = text.strip_prefix("zstd(").and_then(|t| t.strip_suffix(')')).ok_or_else(fail)?;
                Ok(Compression::Zstd(Some(level.parse().map_err(|_| fail())?)))
            }
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::Disabled => write!(f, "disabled"),
            Compression::Zstd(None) => write!(f, "zstd"),
            Compression::Zstd(Some(level)) => write!(f, "zstd({level})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        append(&mut out, data).unwrap();
        out
    }

    #[test]
    fn headers_follow_the_vectors() {
        assert_eq!(blob(b"foobar")[0], 6);
        assert_eq!(blob(b""), [0]);
        assert_eq!(blob(&[1; 127])[0], 127);
        assert_eq!(blob(&[1; 128])[..4], [0x80, 0, 0, 0x80]);
        assert_eq!(blob(&[1; 8204])[..4], [0x80, 0, 0x20, 0x0C]);
        for n in [0, 1, 127, 128, 8204] {
            let bytes = blob(&vec![3; n]);
            let header = Header::decode(&bytes).unwrap();
            assert_eq!((header.data_len, header.total_len(), header.compressed), (n, bytes.len(), false));
        }
        assert_eq!(Header::decode(&[0x90, 0, 0, 0x12]), Ok(Header { header_len: 4, data_len: 18, compressed: true }));
        for code in 0xA0..=0xFF {
            assert_eq!(Header::decode(&[code, 0, 0, 0]), Err(BlobError::Compression(code & 0xF0)));
        }
        assert_eq!(Header::decode(&[0xA0]).unwrap_err().to_string(), "invalid compression byte a0");
        assert!(Header::decode(&[0x80, 0, 0]).is_err());
        assert!(Header::decode(&[]).is_err());
    }

    #[test]
    fn only_what_gets_strictly_shorter_is_compressed() {
        let mut compressor = Compression::default().compressor().unwrap().unwrap();
        let mut store = |data: &[u8]| {
            let mut out = Vec::new();
            append_compressed(&mut out, data, &mut compressor).unwrap();
            out
        };
        let zeros = store(&[0; 8192]);
        let header = Header::decode(&zeros).unwrap();
        assert!(header.compressed && header.header_len == 4 && header.data_len < 128);
        assert_eq!(decompress(&zeros[4..]).unwrap(), [0; 8192]);
        assert_eq!(store(&[0; 127])[0], 127);
        let mut state = 1u32;
        let noise: Vec<u8> = (0..8192)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            })
            .collect();
        assert_eq!(store(&noise)[..4], [0x80, 0, 0x20, 0]);
    }

    #[test]
    fn a_flipped_bit_in_a_frame_of_ours_is_an_error_and_never_other_data() {
        let page: Vec<u8> = (0..8192u32).map(|i| if i % 7 == 0 { (i / 256) as u8 } else { 3 }).collect();
        let mut compressor = Compression::default().compressor().unwrap().unwrap();
        let mut stored = Vec::new();
        append_compressed(&mut stored, &page, &mut compressor).unwrap();
        let frame = &stored[4..];
        assert_eq!(decompress(frame).unwrap(), page);
        for at in 0..frame.len() {
            for bit in 0..8 {
                let mut damaged = frame.to_vec();
                damaged[at] ^= 1 << bit;
                if let Ok(data) = decompress(&damaged) {
                    assert_eq!(data, page, "byte {at}, bit {bit}");
                }
            }
        }
    }

    #[test]
    fn frames_without_a_size_are_decompressed() {
        let frame = hex::decode("28b52ffd00484d00001000000100fbdf032c").unwrap();
        assert_eq!(decompress(&frame).unwrap(), [0; 8192]);
        assert!(decompress(&frame[..10]).is_err());
        assert!(decompress(b"not zstd").is_err());
    }

    #[test]
    fn settings_parse_and_print_unchanged() {
        for text in ["disabled", "zstd", "zstd(18)", "zstd(-3)", "zstd(1)"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        assert_eq!(Compression::default().to_string(), "zstd(1)");
        for bad in ["lz4", "zstd(128)", "zstd()", "zstd(1", ""] {
            assert!(bad.parse::<Compression>().is_err(), "{bad}");
        }
    }
}
