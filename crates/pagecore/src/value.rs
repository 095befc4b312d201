//! What is stored under a key at an LSN: a page image or a WAL record (spec layer-files.md 10).
//!
//! Big-endian, fixed-width integers; lengths are u64; no trailing bytes. `Value` borrows the bytes it was decoded from,
//! so that a record passes from a layer file to redo without a copy.

use std::borrow::Cow;

/// A stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Image(Cow<'a, [u8]>),
    Record(Record<'a>),
}

/// A change to the previous version of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A complete PostgreSQL WAL record, beginning with its header.
    Postgres {
        will_init: bool,
        record: Cow<'a, [u8]>,
    },
    ClearVisibilityMapFlags {
        new_heap_block: Option<u32>,
        old_heap_block: Option<u32>,
        flags: u8,
    },
    ClogSetCommitted {
        xids: Vec<u32>,
        timestamp: i64,
    },
    ClogSetAborted {
        xids: Vec<u32>,
    },
    MultixactOffsetCreate {
        multi: u32,
        offset: u32,
    },
    /// Members are (xid, status), the first one at `offset`.
    MultixactMembersCreate {
        offset: u32,
        members: Vec<(u32, u32)>,
    },
    /// Legacy; decodes, has no effect.
    AuxFile {
        path: String,
        content: Option<Vec<u8>>,
    },
    TruncateVisibilityMap {
        byte: u64,
        bit_offset: u64,
    },
}

/// The bytes are not one of the encodings of a value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ValueError {
    #[error("value ends after {got} bytes where {want} more are needed")]
    Short { got: usize, want: usize },
    #[error("{0} bytes follow the value")]
    Trailing(usize),
    #[error("unknown value variant {0}")]
    UnknownValue(u32),
    #[error("unknown record variant {0}")]
    UnknownRecord(u32),
    #[error("invalid boolean {0:#04x}")]
    Bool(u8),
    #[error("path is not UTF-8")]
    Utf8,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: u64) -> Result<&'a [u8], ValueError> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(n) {
            Ok(n) if n <= left => {
                let out = &self.bytes[self.at..self.at + n];
                self.at += n;
                Ok(out)
            }
            _ => Err(ValueError::Short { got: left, want: usize::try_from(n).unwrap_or(usize::MAX) }),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ValueError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<u8, ValueError> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32, ValueError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, ValueError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn bool(&mut self) -> Result<bool, ValueError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(ValueError::Bool(other)),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], ValueError> {
        let n = self.u64()?;
        self.take(n)
    }

    fn option_u32(&mut self) -> Result<Option<u32>, ValueError> {
        Ok(if self.bool()? { Some(self.u32()?) } else { None })
    }

    fn xids(&mut self) -> Result<Vec<u32>, ValueError> {
        let n = self.u64()?;
        let raw = self.take(n.saturating_mul(4))?;
        Ok(raw.chunks_exact(4).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]])).collect())
    }
}

impl<'a> Value<'a> {
    pub fn decode(bytes: &'a [u8]) -> Result<Value<'a>, ValueError> {
        let mut r = Reader { bytes, at: 0 };
        let value = match r.u32()? {
            0 => Value::Image(Cow::Borrowed(r.bytes()?)),
            1 => Value::Record(Self::decode_record(&mut r)?),
            other => return Err(ValueError::UnknownValue(other)),
        };
        match bytes.len() - r.at {
            0 => Ok(value),
            left => Err(ValueError::Trailing(left)),
        }
    }

    fn decode_record(r: &mut Reader<'a>) -> Result<Record<'a>, ValueError> {
        Ok(match r.u32()? {
            0 => Record::Postgres { will_init: r.bool()?, record: Cow::Borrowed(r.bytes()?) },
            1 => Record::ClearVisibilityMapFlags {
                new_heap_block: r.option_u32()?,
                old_heap_block: r.option_u32()?,
                flags: r.u8()?,
            },
            2 => Record::ClogSetCommitted { xids: r.xids()?, timestamp: r.u64()? as i64 },
            3 => Record::ClogSetAborted { xids: r.xids()? },
            4 => Record::MultixactOffsetCreate { multi: r.u32()?, offset: r.u32()? },
            5 => {
                let offset = r.u32()?;
                let n = r.u64()?;
                let raw = r.take(n.saturating_mul(8))?;
                let word = |c: &[u8]| u32::from_be_bytes([c[0], c[1], c[2], c[3]]);
                let members = raw.chunks_exact(8).map(|c| (word(c), word(&c[4..]))).collect();
                Record::MultixactMembersCreate { offset, members }
            }
            6 => Record::AuxFile {
                path: String::from_utf8(r.bytes()?.to_vec()).map_err(|_| ValueError::Utf8)?,
                content: if r.bool()? { Some(r.bytes()?.to_vec()) } else { None },
            },
            7 => Record::TruncateVisibilityMap { byte: r.u64()?, bit_offset: r.u64()? },
            other => return Err(ValueError::UnknownRecord(other)),
        })
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_into(&mut out);
        out
    }

    pub fn encode_into(&self, out: &mut Vec<u8>) {
        match self {
            Value::Image(image) => encode_image(out, image),
            Value::Record(record) => {
                if let Record::Postgres { will_init, record } = record {
                    return encode_postgres(out, *will_init, record);
                }
                out.extend_from_slice(&1u32.to_be_bytes());
                record.encode_body(out);
            }
        }
    }

    /// True if this value alone is enough to produce the page.
    pub fn will_init(&self) -> bool {
        match self {
            Value::Image(_) => true,
            Value::Record(Record::Postgres { will_init, .. }) => *will_init,
            Value::Record(_) => false,
        }
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Appends the encoding of an image.
pub fn encode_image(out: &mut Vec<u8>, image: &[u8]) {
    out.extend_from_slice(&[0; 4]);
    put_bytes(out, image);
}

/// Appends the encoding of a PostgreSQL record.
pub fn encode_postgres(out: &mut Vec<u8>, will_init: bool, record: &[u8]) {
    out.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, u8::from(will_init)]);
    put_bytes(out, record);
}

/// The `will_init` flag of an encoded value, without decoding it (spec layer-files.md 10.4).
pub fn encoded_will_init(bytes: &[u8]) -> bool {
    if bytes.len() < 12 {
        return false;
    }
    bytes[..4] == [0; 4] || (bytes.len() >= 17 && bytes[..8] == [0, 0, 0, 1, 0, 0, 0, 0] && bytes[8] == 1)
}

impl Record<'_> {
    fn encode_body(&self, out: &mut Vec<u8>) {
        let variant = |out: &mut Vec<u8>, n: u32| out.extend_from_slice(&n.to_be_bytes());
        let option = |out: &mut Vec<u8>, v: &Option<u32>| match v {
            None => out.push(0),
            Some(v) => {
                out.push(1);
                out.extend_from_slice(&v.to_be_bytes());
            }
        };
        let xid_list = |out: &mut Vec<u8>, xids: &[u32]| {
            out.extend_from_slice(&(xids.len() as u64).to_be_bytes());
            xids.iter().for_each(|x| out.extend_from_slice(&x.to_be_bytes()));
        };
        match self {
            Record::Postgres { will_init, record } => {
                variant(out, 0);
                out.push(u8::from(*will_init));
                put_bytes(out, record);
            }
            Record::ClearVisibilityMapFlags { new_heap_block, old_heap_block, flags } => {
                variant(out, 1);
                option(out, new_heap_block);
                option(out, old_heap_block);
                out.push(*flags);
            }
            Record::ClogSetCommitted { xids, timestamp } => {
                variant(out, 2);
                xid_list(out, xids);
                out.extend_from_slice(&timestamp.to_be_bytes());
            }
            Record::ClogSetAborted { xids } => {
                variant(out, 3);
                xid_list(out, xids);
            }
            Record::MultixactOffsetCreate { multi, offset } => {
                variant(out, 4);
                out.extend_from_slice(&multi.to_be_bytes());
                out.extend_from_slice(&offset.to_be_bytes());
            }
            Record::MultixactMembersCreate { offset, members } => {
                variant(out, 5);
                out.extend_from_slice(&offset.to_be_bytes());
                out.extend_from_slice(&(members.len() as u64).to_be_bytes());
                for (xid, status) in members {
                    out.extend_from_slice(&xid.to_be_bytes());
                    out.extend_from_slice(&status.to_be_bytes());
                }
            }
            Record::AuxFile { path, content } => {
                variant(out, 6);
                put_bytes(out, path.as_bytes());
                match content {
                    None => out.push(0),
                    Some(content) => {
                        out.push(1);
                        put_bytes(out, content);
                    }
                }
            }
            Record::TruncateVisibilityMap { byte, bit_offset } => {
                variant(out, 7);
                out.extend_from_slice(&byte.to_be_bytes());
                out.extend_from_slice(&bit_offset.to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors() -> Vec<(Value<'static>, &'static str)> {
        let record = Value::Record;
        let postgres = |will_init, bytes: &'static [u8]| record(Record::Postgres { will_init, record: bytes.into() });
        vec![
            (Value::Image(b"foobar"[..].into()), "000000000000000000000006666f6f626172"),
            (postgres(true, b"foobar"), "0000000100000000010000000000000006666f6f626172"),
            (postgres(false, b""), "0000000100000000000000000000000000"),
            (
                record(Record::ClearVisibilityMapFlags { new_heap_block: Some(0x11), old_heap_block: None, flags: 3 }),
                "000000010000000101000000110003",
            ),
            (
                record(Record::ClogSetCommitted { xids: vec![0x2E5, 0x2E6], timestamp: 0x0002_A1B2_C3D4_E5F6 }),
                "00000001000000020000000000000002000002e5000002e60002a1b2c3d4e5f6",
            ),
            (record(Record::ClogSetAborted { xids: vec![0x2E5] }), "00000001000000030000000000000001000002e5"),
            (record(Record::MultixactOffsetCreate { multi: 5, offset: 9 }), "00000001000000040000000500000009"),
            (
                record(Record::MultixactMembersCreate { offset: 9, members: vec![(0x2E5, 1), (0x2E6, 4)] }),
                "0000000100000005000000090000000000000002000002e500000001000002e600000004",
            ),
            (
                record(Record::AuxFile { path: "a/b".into(), content: None }),
                "0000000100000006000000000000000361 2f62 00",
            ),
            (
                record(Record::AuxFile { path: "a/b".into(), content: Some(b"x".to_vec()) }),
                "00000001000000060000000000000003612f6201000000000000000178",
            ),
            (
                record(Record::TruncateVisibilityMap { byte: 3, bit_offset: 4 }),
                "000000010000000700000000000000030000000000000004",
            ),
        ]
    }

    #[test]
    fn vectors_round_trip() {
        for (value, text) in vectors() {
            let bytes = hex::decode(text.replace(' ', "")).unwrap();
            assert_eq!(value.encode(), bytes, "{value:?}");
            assert_eq!(Value::decode(&bytes).unwrap(), value);
            assert_eq!(encoded_will_init(&bytes), value.will_init(), "{value:?}");
        }
    }

    #[test]
    fn damaged_values_are_refused() {
        for (_, text) in vectors() {
            let bytes = hex::decode(text.replace(' ', "")).unwrap();
            for n in 0..bytes.len() {
                assert!(Value::decode(&bytes[..n]).is_err(), "{text} cut to {n}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(Value::decode(&longer), Err(ValueError::Trailing(1)));
        }
        let unknown = [0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0];
        assert_eq!(Value::decode(&unknown), Err(ValueError::UnknownRecord(8)));
        let bad_bool = hex::decode("0000000100000000020000000000000000").unwrap();
        assert_eq!(Value::decode(&bad_bool), Err(ValueError::Bool(2)));
    }
}
