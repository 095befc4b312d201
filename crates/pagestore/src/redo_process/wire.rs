//! Requests on the wire (spec walredo.md 3): a tag byte, a big-endian length that counts itself, a payload.

use pagecore::{Key, BLCKSZ};

use super::{PoolError, RedoRequest};

const TAG_LEN: u32 = 17;

/// Records are below 1 GiB in PostgreSQL; this also keeps the length field from overflowing.
const RECORD_LEN_MAX: usize = 1 << 30;

/// Returns the messages of one request as one buffer: B, P if there is a base image, A for each record, G.
pub(super) fn encode(request: &RedoRequest<'_>) -> Result<Vec<u8>, PoolError> {
    if request.records.is_empty() {
        return Err(PoolError::NoRecords);
    }
    if !request.key.is_rel_block() {
        return Err(PoolError::NotARelationBlock(request.key));
    }
    let tag = encode_tag(&request.key);
    let records_len: usize = request.records.iter().map(|(_, record)| record.len() + 13).sum();
    let mut out = Vec::with_capacity(2 * 22 + 22 + BLCKSZ + records_len);
    put_head(&mut out, b'B', TAG_LEN);
    out.extend_from_slice(&tag);
    if let Some((_, page)) = request.base {
        if page.len() != BLCKSZ {
            return Err(PoolError::BaseLength(page.len()));
        }
        put_head(&mut out, b'P', TAG_LEN + BLCKSZ as u32);
        out.extend_from_slice(&tag);
        out.extend_from_slice(page);
    }
    for (end_lsn, record) in request.records {
        if record.len() > RECORD_LEN_MAX {
            return Err(PoolError::RecordLength(record.len()));
        }
        put_head(&mut out, b'A', 8 + record.len() as u32);
        out.extend_from_slice(&end_lsn.0.to_be_bytes());
        out.extend_from_slice(record);
    }
    put_head(&mut out, b'G', TAG_LEN);
    out.extend_from_slice(&tag);
    Ok(out)
}

fn put_head(out: &mut Vec<u8>, kind: u8, payload_len: u32) {
    out.push(kind);
    out.extend_from_slice(&(payload_len + 4).to_be_bytes());
}

fn encode_tag(key: &Key) -> [u8; TAG_LEN as usize] {
    let mut tag = [0; TAG_LEN as usize];
    tag[0] = key.field5;
    tag[1..5].copy_from_slice(&key.field2.to_be_bytes());
    tag[5..9].copy_from_slice(&key.field3.to_be_bytes());
    tag[9..13].copy_from_slice(&key.field4.to_be_bytes());
    tag[13..17].copy_from_slice(&key.field6.to_be_bytes());
    tag
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagecore::{Lsn, RelTag};

    fn request<'a>(base: Option<(Lsn, &'a [u8])>, records: &'a [(Lsn, &'a [u8])]) -> RedoRequest<'a> {
        let rel = RelTag { spcnode: 1663, dbnode: 5, relnode: 16397, forknum: 0 };
        RedoRequest {
            key: Key::rel_block(rel, 0),
            lsn: Lsn(0x14CCD78),
            major: 15,
            hint_bits_logged: false,
            base,
            records,
        }
    }

    /// Spec walredo.md 3.1.
    #[test]
    fn the_example_of_the_spec_comes_out_byte_for_byte() {
        let record = hex::decode(
            "4300000004040000f8cc4c0100000000800a0000739d5719006012007f060000050000000d40000000000000ff03\
             0300010804000000180301000000000000000100 08"
                .replace(' ', ""),
        )
        .unwrap();
        assert_eq!(record.len(), 0x43);
        let records = [(Lsn(0x14CCD78), &record[..])];
        let bytes = encode(&request(None, &records)).unwrap();
        let expected = [
            hex::decode("42000000150000 00067f000000050000400d00000000".replace(' ', "")).unwrap(),
            hex::decode("410000004f00000000014ccd78").unwrap(),
            record.clone(),
            hex::decode("4700000015000000067f000000050000400d00000000").unwrap(),
        ]
        .concat();
        assert_eq!(hex::encode(bytes), hex::encode(expected));
    }

    #[test]
    fn a_base_image_travels_between_begin_and_the_first_record() {
        let records = [(Lsn(1), &[7u8; 24][..])];
        let page = [1u8; BLCKSZ];
        let bytes = encode(&request(Some((Lsn(0), &page)), &records)).unwrap();
        assert_eq!(bytes[22], b'P');
        assert_eq!(bytes[23..27], 8213u32.to_be_bytes());
        assert_eq!(bytes.len(), 22 + 22 + 8192 + 13 + 24 + 22);
    }

    #[test]
    fn requests_that_cannot_be_are_refused_before_anything_is_sent() {
        assert_eq!(encode(&request(None, &[])).unwrap_err().to_string(), "invalid WAL redo request with no records");
        let records = [(Lsn(1), &[7u8; 24][..])];
        assert_eq!(encode(&request(Some((Lsn(0), &[0; 8200])), &records)), Err(PoolError::BaseLength(8200)));
        let no_block = RedoRequest { key: Key::CHECKPOINT, ..request(None, &records) };
        assert!(encode(&no_block).unwrap_err().to_string().starts_with("invalid record"));
    }
}
