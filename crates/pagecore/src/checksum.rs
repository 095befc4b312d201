//! The checksum of a data page (format facts: PostgreSQL 14-18 `storage/checksum_impl.h`; spec stock.md 2).
//!
//! The page is 64 rows of 32 words. Every column has its own hash, a variant of FNV-1a; the 32 hashes are folded with
//! exclusive or, mixed with the block number and reduced to 1..=65535. The field `pd_checksum` counts as zero.

use crate::BLCKSZ;

const COLUMNS: usize = 32;
const FNV_PRIME: u32 = 16_777_619;
const COLUMN_SEEDS: [u32; COLUMNS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

fn mix(hash: u32, word: u32) -> u32 {
    let x = hash ^ word;
    x.wrapping_mul(FNV_PRIME) ^ (x >> 17)
}

/// The checksum that block `block` with these contents should carry.
pub fn page_checksum(page: &[u8; BLCKSZ], block: u32) -> u16 {
    let mut hashes = COLUMN_SEEDS;
    for (row, bytes) in page.chunks_exact(4 * COLUMNS).enumerate() {
        for (column, (hash, word)) in hashes.iter_mut().zip(bytes.chunks_exact(4)).enumerate() {
            let mut word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            if row == 0 && column == 2 {
                word &= 0xFFFF_0000;
            }
            *hash = mix(*hash, word);
        }
    }
    for _ in 0..2 {
        hashes.iter_mut().for_each(|hash| *hash = mix(*hash, 0));
    }
    let folded = hashes.iter().fold(0, |a, b| a ^ b) ^ block;
    (folded % 65535 + 1) as u16
}

/// Stores the checksum, unless the page is new: such pages carry none.
pub fn stamp_checksum(page: &mut [u8; BLCKSZ], block: u32) {
    if page[14] == 0 && page[15] == 0 {
        return;
    }
    let sum = page_checksum(page, block).to_le_bytes();
    page[8..10].copy_from_slice(&sum);
}

/// True if the stored checksum fits the contents; always for new pages.
pub fn has_valid_checksum(page: &[u8; BLCKSZ], block: u32) -> bool {
    (page[14] == 0 && page[15] == 0) || page[8..10] == page_checksum(page, block).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_depends_on_contents_and_block_but_not_on_itself() {
        let mut page = [0; BLCKSZ];
        assert!(has_valid_checksum(&page, 7), "new pages carry none");
        stamp_checksum(&mut page, 7);
        assert_eq!(page, [0; BLCKSZ]);
        page[12..20].copy_from_slice(&[24, 0, 0, 32, 0, 32, 4, 32]);
        page[5000] = 9;
        stamp_checksum(&mut page, 7);
        assert!(has_valid_checksum(&page, 7));
        assert!(!has_valid_checksum(&page, 8));
        let sum = page_checksum(&page, 7);
        page[8] ^= 1;
        assert_eq!(page_checksum(&page, 7), sum);
        assert!(!has_valid_checksum(&page, 7));
        page[8] ^= 1;
        page[5001] ^= 1;
        assert!(!has_valid_checksum(&page, 7));
    }
}
