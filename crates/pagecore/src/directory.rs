//! Directory values: which databases, relations and SLRU segments exist (spec keyspace.md 5).
//!
//! Big-endian, a u64 count first. Elements may come in any order; of two entries for one key the later wins; bytes
//! behind the last element are an error.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DirectoryError {
    #[error("directory of {elements} elements has {got} bytes")]
    Length { elements: u64, got: usize },
    #[error("directory ends inside its count, after {0} bytes")]
    Count(usize),
    #[error("invalid boolean {0:#04x} in a directory")]
    Bool(u8),
}

/// The elements, each of `N` bytes.
fn elements<const N: usize>(value: &[u8]) -> Result<impl Iterator<Item = &[u8; N]>, DirectoryError> {
    let (count, rest) = value.split_first_chunk::<8>().ok_or(DirectoryError::Count(value.len()))?;
    let count = u64::from_be_bytes(*count);
    if count.checked_mul(N as u64) != Some(rest.len() as u64) {
        return Err(DirectoryError::Length { elements: count, got: value.len() });
    }
    Ok(rest.chunks_exact(N).filter_map(|chunk| chunk.try_into().ok()))
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |v, b| v << 8 | u32::from(*b))
}

/// (tablespace, database) to whether there is a relation map file.
pub fn decode_database_directory(value: &[u8]) -> Result<BTreeMap<(u32, u32), bool>, DirectoryError> {
    let mut out = BTreeMap::new();
    for e in elements::<9>(value)? {
        let has_relmap = match e[8] {
            0 => false,
            1 => true,
            other => return Err(DirectoryError::Bool(other)),
        };
        out.insert((word(&e[..4]), word(&e[4..8])), has_relmap);
    }
    Ok(out)
}

/// (relation, fork) of all relations of a database.
pub fn decode_relation_directory(value: &[u8]) -> Result<BTreeSet<(u32, u8)>, DirectoryError> {
    Ok(elements::<5>(value)?.map(|e| (word(e), e[4])).collect())
}

/// Segment numbers of one kind of SLRU.
pub fn decode_slru_directory(value: &[u8]) -> Result<BTreeSet<u32>, DirectoryError> {
    Ok(elements::<4>(value)?.map(|e| word(e)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        hex::decode(text.replace(' ', "")).unwrap()
    }

    #[test]
    fn the_examples_decode() {
        let databases = bytes("0000000000000002 0000067f 00000005 01 00000680 00000000 01");
        let want = BTreeMap::from([((1663, 5), true), ((1664, 0), true)]);
        assert_eq!(decode_database_directory(&databases), Ok(want));
        let relations = bytes("0000000000000002 0000400c 01 0000400c 00");
        assert_eq!(decode_relation_directory(&relations), Ok(BTreeSet::from([(16396, 0), (16396, 1)])));
        let segments = bytes("0000000000000002 00000000 00000001");
        assert_eq!(decode_slru_directory(&segments), Ok(BTreeSet::from([0, 1])));
        assert_eq!(decode_slru_directory(&[0; 8]), Ok(BTreeSet::new()));
    }

    #[test]
    fn damaged_directories_are_refused() {
        let good = bytes("0000000000000001 0000067f 00000005 01");
        assert_eq!(
            decode_database_directory(&[&good[..], &[0]].concat()),
            Err(DirectoryError::Length { elements: 1, got: 18 })
        );
        assert!(decode_database_directory(&good[..16]).is_err());
        assert_eq!(decode_database_directory(&good[..7]), Err(DirectoryError::Count(7)));
        assert_eq!(
            decode_database_directory(&bytes("0000000000000001 0000067f 00000005 02")),
            Err(DirectoryError::Bool(2))
        );
        assert!(decode_slru_directory(&[0xFF; 12]).is_err());
    }
}
