//! Pagestream v2 and v3 messages (spec page-service.md 2): the payload of one CopyData each, big-endian.
//!
//! ```text
//! request   tag u8 | v3: id u64 | request_lsn u64 | not_modified_since u64 | body
//! response  tag u8 | v3: the 24-byte header and the body of the request, unchanged | result
//! ```
//! The compute panics when a response does not match its request, so what is echoed is copied, never recomputed.

use pagecore::{Lsn, RelTag, BLCKSZ};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V2,
    V3,
}

impl Version {
    /// Length of what comes before the body of a request, its tag included.
    pub fn header_len(self) -> usize {
        match self {
            Version::V2 => 17,
            Version::V3 => 25,
        }
    }
}

pub const TAG_EXISTS: u8 = 0;
pub const TAG_NBLOCKS: u8 = 1;
pub const TAG_GET_PAGE: u8 = 2;
pub const TAG_DB_SIZE: u8 = 3;
pub const TAG_SLRU_SEGMENT: u8 = 4;
pub const TAG_TEST: u8 = 99;
pub const TAG_ERROR: u8 = 103;

/// The request that a response answers. The Error tag stands in the middle, so there is no one offset.
fn request_tag(response_tag: u8) -> Option<u8> {
    match response_tag {
        100..=102 => Some(response_tag - 100),
        104 | 105 => Some(response_tag - 101),
        199 => Some(TAG_TEST),
        _ => None,
    }
}

const REL_LEN: usize = 13;
const COPY_DATA_FRAME_LEN: usize = 5;
/// The client's buffer for an SLRU segment has room for this many blocks.
pub const MAX_SLRU_BLOCKS: usize = 32;

/// Of one request. The id is 0 in v2, where it is never sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub id: u64,
    pub request_lsn: Lsn,
    pub not_modified_since: Lsn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    Exists { rel: RelTag },
    Nblocks { rel: RelTag },
    GetPage { rel: RelTag, block: u32 },
    DbSize { dbnode: u32 },
    SlruSegment { kind: u8, segno: u32 },
    Test { batch_key: u64, message: &'a [u8] },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub header: Header,
    pub body: Body<'a>,
}

/// What a client reads; `echo` is none in v2 and for errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    pub header: Option<Header>,
    pub echo: Option<Body<'a>>,
    pub answer: Answer<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    Exists(bool),
    Nblocks(u32),
    Page(&'a [u8]),
    DbSize(i64),
    SlruSegment(&'a [u8]),
    Error(&'a str),
    Test(&'a [u8]),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("invalid tag {0}")]
    Tag(u8),
    #[error("pagestream message is too short")]
    Short,
    #[error("pagestream test message is not valid UTF-8")]
    Utf8,
    #[error("pagestream response is malformed")]
    Response,
}

/// Reads fields from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    #[inline]
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(DecodeError::Short)?;
        self.0 = tail;
        Ok(head)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Short)?;
        self.0 = tail;
        Ok(*head)
    }

    #[inline]
    fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    #[inline]
    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    #[inline]
    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    #[inline]
    fn rel(&mut self) -> Result<RelTag, DecodeError> {
        Ok(RelTag { spcnode: self.u32()?, dbnode: self.u32()?, relnode: self.u32()?, forknum: self.u8()? })
    }

    #[inline]
    fn header(&mut self, version: Version) -> Result<Header, DecodeError> {
        Ok(Header {
            id: match version {
                Version::V2 => 0,
                Version::V3 => self.u64()?,
            },
            request_lsn: Lsn(self.u64()?),
            not_modified_since: Lsn(self.u64()?),
        })
    }

    #[inline]
    fn body(&mut self, tag: u8) -> Result<Body<'a>, DecodeError> {
        Ok(match tag {
            TAG_EXISTS => Body::Exists { rel: self.rel()? },
            TAG_NBLOCKS => Body::Nblocks { rel: self.rel()? },
            TAG_GET_PAGE => Body::GetPage { rel: self.rel()?, block: self.u32()? },
            TAG_DB_SIZE => Body::DbSize { dbnode: self.u32()? },
            TAG_SLRU_SEGMENT => Body::SlruSegment { kind: self.u8()?, segno: self.u32()? },
            TAG_TEST => {
                let batch_key = self.u64()?;
                let length = usize::try_from(self.u64()?).map_err(|_| DecodeError::Short)?;
                let message = self.bytes(length)?;
                std::str::from_utf8(message).map_err(|_| DecodeError::Utf8)?;
                Body::Test { batch_key, message }
            }
            other => return Err(DecodeError::Tag(other)),
        })
    }
}

impl Body<'_> {
    pub fn tag(&self) -> u8 {
        match self {
            Body::Exists { .. } => TAG_EXISTS,
            Body::Nblocks { .. } => TAG_NBLOCKS,
            Body::GetPage { .. } => TAG_GET_PAGE,
            Body::DbSize { .. } => TAG_DB_SIZE,
            Body::SlruSegment { .. } => TAG_SLRU_SEGMENT,
            Body::Test { .. } => TAG_TEST,
        }
    }

    fn response_tag(&self) -> u8 {
        match self {
            Body::Exists { .. } => 100,
            Body::Nblocks { .. } => 101,
            Body::GetPage { .. } => 102,
            Body::DbSize { .. } => 104,
            Body::SlruSegment { .. } => 105,
            Body::Test { .. } => 199,
        }
    }

    fn len(&self) -> usize {
        match self {
            Body::Exists { .. } | Body::Nblocks { .. } => REL_LEN,
            Body::GetPage { .. } => REL_LEN + 4,
            Body::DbSize { .. } => 4,
            Body::SlruSegment { .. } => 5,
            Body::Test { message, .. } => 16 + message.len(),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let rel_bytes = |out: &mut Vec<u8>, rel: &RelTag| {
            out.extend_from_slice(&rel.spcnode.to_be_bytes());
            out.extend_from_slice(&rel.dbnode.to_be_bytes());
            out.extend_from_slice(&rel.relnode.to_be_bytes());
            out.push(rel.forknum);
        };
        match self {
            Body::Exists { rel } | Body::Nblocks { rel } => rel_bytes(out, rel),
            Body::GetPage { rel, block } => {
                rel_bytes(out, rel);
                out.extend_from_slice(&block.to_be_bytes());
            }
            Body::DbSize { dbnode } => out.extend_from_slice(&dbnode.to_be_bytes()),
            Body::SlruSegment { kind, segno } => {
                out.push(*kind);
                out.extend_from_slice(&segno.to_be_bytes());
            }
            Body::Test { batch_key, message } => {
                out.extend_from_slice(&batch_key.to_be_bytes());
                out.extend_from_slice(&(message.len() as u64).to_be_bytes());
                out.extend_from_slice(message);
            }
        }
    }
}

fn encode_header(version: Version, header: &Header, out: &mut Vec<u8>) {
    if version == Version::V3 {
        out.extend_from_slice(&header.id.to_be_bytes());
    }
    out.extend_from_slice(&header.request_lsn.0.to_be_bytes());
    out.extend_from_slice(&header.not_modified_since.0.to_be_bytes());
}

fn frame(out: &mut Vec<u8>, payload_len: usize) {
    out.reserve(COPY_DATA_FRAME_LEN + payload_len);
    out.push(b'd');
    // Payloads are at most 34 + 262144 bytes, or a test message below the frame limit.
    out.extend_from_slice(&(payload_len as u32 + 4).to_be_bytes());
}

impl<'a> Request<'a> {
    /// Bytes after the last field are ignored.
    #[inline]
    pub fn decode(version: Version, payload: &'a [u8]) -> Result<Request<'a>, DecodeError> {
        let mut fields = Fields(payload);
        let tag = fields.u8()?;
        if !matches!(tag, TAG_EXISTS..=TAG_SLRU_SEGMENT | TAG_TEST) {
            return Err(DecodeError::Tag(tag));
        }
        Ok(Request { header: fields.header(version)?, body: fields.body(tag)? })
    }

    /// Appends the request as one CopyData message.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        frame(out, version.header_len() + self.body.len());
        out.push(self.body.tag());
        encode_header(version, &self.header, out);
        self.body.encode(out);
    }

    /// Appends the CopyData frame and all that is echoed, ready for a result of `result_len` bytes.
    #[inline]
    pub(crate) fn begin_response(&self, version: Version, out: &mut Vec<u8>, result_len: usize) {
        let tag = self.body.response_tag();
        match version {
            Version::V2 => {
                frame(out, 1 + result_len);
                out.push(tag);
            }
            Version::V3 => {
                frame(out, 25 + self.body.len() + result_len);
                out.push(tag);
                encode_header(version, &self.header, out);
                self.body.encode(out);
            }
        }
    }

    /// Appends the response as one CopyData message. The answer must be of the request's kind.
    #[inline]
    pub fn respond(&self, version: Version, answer: &Answer<'_>, out: &mut Vec<u8>) {
        match answer {
            Answer::Exists(exists) => {
                self.begin_response(version, out, 1);
                out.push(u8::from(*exists));
            }
            Answer::Nblocks(blocks) => {
                self.begin_response(version, out, 4);
                out.extend_from_slice(&blocks.to_be_bytes());
            }
            Answer::Page(page) => {
                self.begin_response(version, out, page.len());
                out.extend_from_slice(page);
            }
            Answer::DbSize(bytes) => {
                self.begin_response(version, out, 8);
                out.extend_from_slice(&bytes.to_be_bytes());
            }
            Answer::SlruSegment(blocks) => {
                self.begin_response(version, out, 4 + blocks.len());
                out.extend_from_slice(&((blocks.len() / BLCKSZ) as u32).to_be_bytes());
                out.extend_from_slice(blocks);
            }
            Answer::Test(_) => match version {
                // Header first, the content once: in v3 the echoed body is the answer.
                Version::V3 => self.begin_response(version, out, 0),
                Version::V2 => {
                    self.begin_response(version, out, self.body.len());
                    self.body.encode(out);
                }
            },
            Answer::Error(text) => {
                let text = text.as_bytes();
                let echoed = if version == Version::V3 { 24 } else { 0 };
                frame(out, 1 + echoed + text.len() + 1);
                out.push(TAG_ERROR);
                if version == Version::V3 {
                    encode_header(version, &self.header, out);
                }
                out.extend(text.iter().map(|b| if *b == 0 { b' ' } else { *b }));
                out.push(0);
            }
        }
    }
}

impl<'a> Response<'a> {
    /// The client's side, for the load generator and tests. A response of another length than stated is an error.
    pub fn decode(version: Version, payload: &'a [u8]) -> Result<Response<'a>, DecodeError> {
        let mut fields = Fields(payload);
        let tag = fields.u8()?;
        let header = match version {
            Version::V2 => None,
            Version::V3 => Some(fields.header(version)?),
        };
        if tag == TAG_ERROR {
            let text = fields.0.strip_suffix(b"\0").ok_or(DecodeError::Response)?;
            let text = std::str::from_utf8(text).map_err(|_| DecodeError::Utf8)?;
            return Ok(Response { header, echo: None, answer: Answer::Error(text) });
        }
        let request_tag = request_tag(tag).ok_or(DecodeError::Tag(tag))?;
        let echo = match version {
            Version::V2 => None,
            Version::V3 => Some(fields.body(request_tag)?),
        };
        let answer = match request_tag {
            TAG_EXISTS => Answer::Exists(fields.u8()? != 0),
            TAG_NBLOCKS => Answer::Nblocks(fields.u32()?),
            TAG_GET_PAGE => Answer::Page(fields.bytes(BLCKSZ)?),
            TAG_DB_SIZE => Answer::DbSize(i64::from_be_bytes(fields.array()?)),
            TAG_SLRU_SEGMENT => {
                let blocks = fields.u32()? as usize;
                Answer::SlruSegment(fields.bytes(blocks.saturating_mul(BLCKSZ))?)
            }
            TAG_TEST => match echo {
                Some(Body::Test { message, .. }) => Answer::Test(message),
                _ => match fields.body(TAG_TEST)? {
                    Body::Test { message, .. } => Answer::Test(message),
                    _ => return Err(DecodeError::Response),
                },
            },
            _ => return Err(DecodeError::Tag(tag)),
        };
        if !fields.0.is_empty() {
            return Err(DecodeError::Response);
        }
        Ok(Response { header, echo, answer })
    }
}

#[cfg(test)]
#[path = "pagestream_examples.rs"]
mod examples;
