//! The 18-byte key and what its fields mean (spec keyspace.md 2-4).

use std::fmt;

/// Length of a key in layer files, in bytes.
pub const KEY_SIZE: usize = 18;

/// The block number of a relation or SLRU segment under which its size is stored.
pub const SIZE_BLOCK: u32 = u32::MAX;

/// Address of one value. Order is that of the 18 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub field1: u8,
    pub field2: u32,
    pub field3: u32,
    pub field4: u32,
    pub field5: u8,
    pub field6: u32,
}

/// One fork of one relation. Order: tablespace, database, relation, fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelTag {
    pub spcnode: u32,
    pub dbnode: u32,
    pub relnode: u32,
    pub forknum: u8,
}

pub const MAIN_FORK: u8 = 0;
pub const FSM_FORK: u8 = 1;
pub const VM_FORK: u8 = 2;
pub const INIT_FORK: u8 = 3;

/// The directories of simple LRU pages that are kept (spec keyspace.md 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SlruKind {
    Clog = 0,
    MultiXactMembers = 1,
    MultiXactOffsets = 2,
}

impl SlruKind {
    pub fn from_u8(kind: u8) -> Option<SlruKind> {
        match kind {
            0 => Some(SlruKind::Clog),
            1 => Some(SlruKind::MultiXactMembers),
            2 => Some(SlruKind::MultiXactOffsets),
            _ => None,
        }
    }
}

impl Key {
    pub const MIN: Key = Key { field1: 0, field2: 0, field3: 0, field4: 0, field5: 0, field6: 0 };
    /// Only ever an exclusive end of a range.
    pub const MAX: Key = Key {
        field1: u8::MAX,
        field2: u32::MAX,
        field3: u32::MAX,
        field4: u32::MAX,
        field5: u8::MAX,
        field6: u32::MAX,
    };
    pub const DBDIR: Key = Key::MIN;
    pub const TWOPHASE_DIR: Key = Key { field1: 2, ..Key::MIN };
    pub const CONTROL_FILE: Key = Key { field1: 3, ..Key::MIN };
    pub const CHECKPOINT: Key = Key { field1: 3, field6: 1, ..Key::MIN };
    /// Start and end (exclusive) of the sparse keyspace.
    pub const SPARSE_START: Key = Key { field1: 0x60, ..Key::MIN };
    pub const SPARSE_END: Key = Key { field1: 0x7F, ..Key::MIN };

    pub fn to_bytes(&self) -> [u8; KEY_SIZE] {
        let mut out = [0; KEY_SIZE];
        out[0] = self.field1;
        out[1..5].copy_from_slice(&self.field2.to_be_bytes());
        out[5..9].copy_from_slice(&self.field3.to_be_bytes());
        out[9..13].copy_from_slice(&self.field4.to_be_bytes());
        out[13] = self.field5;
        out[14..18].copy_from_slice(&self.field6.to_be_bytes());
        out
    }

    pub fn from_bytes(b: &[u8; KEY_SIZE]) -> Key {
        Key {
            field1: b[0],
            field2: u32::from_be_bytes([b[1], b[2], b[3], b[4]]),
            field3: u32::from_be_bytes([b[5], b[6], b[7], b[8]]),
            field4: u32::from_be_bytes([b[9], b[10], b[11], b[12]]),
            field5: b[13],
            field6: u32::from_be_bytes([b[14], b[15], b[16], b[17]]),
        }
    }

    /// Reads the first 18 bytes of `b`; none if it is shorter.
    pub fn from_slice(b: &[u8]) -> Option<Key> {
        Some(Key::from_bytes(b.get(..KEY_SIZE)?.try_into().ok()?))
    }

    /// 36 hexadecimal digits of either case.
    pub fn from_hex(text: &str) -> Option<Key> {
        if text.len() != 2 * KEY_SIZE || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; KEY_SIZE];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(Key::from_bytes(&bytes))
    }

    /// Adds `n` to the key as an 18-byte number; saturates at `MAX`, which no caller can reach with real keys.
    pub fn add(&self, n: u32) -> Key {
        let (field6, carry) = self.field6.overflowing_add(n);
        let mut key = Key { field6, ..*self };
        if carry {
            let (field5, carry) = self.field5.overflowing_add(1);
            key.field5 = field5;
            if carry {
                let (field4, carry) = self.field4.overflowing_add(1);
                key.field4 = field4;
                if carry {
                    let (field3, carry) = self.field3.overflowing_add(1);
                    key.field3 = field3;
                    if carry {
                        let (field2, carry) = self.field2.overflowing_add(1);
                        key.field2 = field2;
                        if carry {
                            match self.field1.checked_add(1) {
                                Some(field1) => key.field1 = field1,
                                None => return Key::MAX,
                            }
                        }
                    }
                }
            }
        }
        key
    }

    pub fn next(&self) -> Key {
        self.add(1)
    }

    /// True if the 16-byte compact form can hold this key (spec keyspace.md 2.4). Not asked on stock timelines.
    pub fn is_compactable(&self) -> bool {
        self.field2 <= 0xFFFF || self.field2 == 0xFFFF_FFFF || self.field2 == 0x2222_2222
    }

    /// The 16-byte form; lossy in field2 for what `is_compactable` refuses.
    pub fn to_compact(&self) -> u128 {
        u128::from(self.field1 & 0x7F) << 120
            | u128::from(self.field2 & 0xFFFF) << 104
            | u128::from(self.field3) << 72
            | u128::from(self.field4) << 40
            | u128::from(self.field5) << 32
            | u128::from(self.field6)
    }

    pub fn from_compact(v: u128) -> Key {
        Key {
            field1: (v >> 120) as u8 & 0x7F,
            field2: (v >> 104) as u32 & 0xFFFF,
            field3: (v >> 72) as u32,
            field4: (v >> 40) as u32,
            field5: (v >> 32) as u8,
            field6: v as u32,
        }
    }

    pub fn rel_block(rel: RelTag, block: u32) -> Key {
        Key {
            field1: 0,
            field2: rel.spcnode,
            field3: rel.dbnode,
            field4: rel.relnode,
            field5: rel.forknum,
            field6: block,
        }
    }

    pub fn rel_size(rel: RelTag) -> Key {
        Key::rel_block(rel, SIZE_BLOCK)
    }

    pub fn relmap(spcnode: u32, dbnode: u32) -> Key {
        Key { field2: spcnode, field3: dbnode, ..Key::MIN }
    }

    pub fn reldir(spcnode: u32, dbnode: u32) -> Key {
        Key { field2: spcnode, field3: dbnode, field6: 1, ..Key::MIN }
    }

    pub fn reldir_v2(rel: RelTag) -> Key {
        Key { field1: 0x65, ..Key::rel_block(rel, 1) }
    }

    pub fn slru_dir(kind: SlruKind) -> Key {
        Key { field1: 1, field2: kind as u32, ..Key::MIN }
    }

    pub fn slru_block(kind: SlruKind, segno: u32, block: u32) -> Key {
        Key { field1: 1, field2: kind as u32, field3: 1, field4: segno, field5: 0, field6: block }
    }

    pub fn slru_segment_size(kind: SlruKind, segno: u32) -> Key {
        Key::slru_block(kind, segno, SIZE_BLOCK)
    }

    pub fn is_rel_block(&self) -> bool {
        self.field1 == 0 && self.field4 != 0 && self.field6 != SIZE_BLOCK
    }

    pub fn is_rel_size(&self) -> bool {
        self.field1 == 0 && self.field6 == SIZE_BLOCK
    }

    pub fn is_slru_block(&self) -> bool {
        self.field1 == 1 && self.field3 == 1 && self.field6 != SIZE_BLOCK
    }

    /// Relation or SLRU block; every other key holds metadata in the wide sense (spec keyspace.md 4.1).
    pub fn is_data(&self) -> bool {
        self.is_rel_block() || self.is_slru_block()
    }

    pub fn is_sparse(&self) -> bool {
        (0x60..0x7F).contains(&self.field1)
    }

    /// Keys that a branch does not see in its ancestor: aux files, replication origins (spec keyspace.md 4.3).
    pub fn is_inherited(&self) -> bool {
        !(0x62..0x64).contains(&self.field1) && *self != Key { field1: 3, field6: 2, ..Key::MIN }
    }

    /// The relation fork of a relation block or size key.
    pub fn rel_tag(&self) -> RelTag {
        RelTag { spcnode: self.field2, dbnode: self.field3, relnode: self.field4, forknum: self.field5 }
    }

    /// The SLRU kind, segment and block of an SLRU block key.
    pub fn slru(&self) -> Option<(SlruKind, u32, u32)> {
        if !self.is_slru_block() {
            return None;
        }
        Some((SlruKind::from_u8(u8::try_from(self.field2).ok()?)?, self.field4, self.field6))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02X}{:08X}{:08X}{:08X}{:02X}{:08X}",
            self.field1, self.field2, self.field3, self.field4, self.field5, self.field6
        )
    }
}

impl fmt::Display for RelTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fork = match self.forknum {
            0 => "",
            1 => "_fsm",
            2 => "_vm",
            3 => "_init",
            _ => "_UNKNOWN FORKNUM",
        };
        write!(f, "{}/{}/{}{}", self.spcnode, self.dbnode, self.relnode, fork)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16396, forknum: 0 };

    #[test]
    fn text_and_byte_forms_agree() {
        let key = Key::rel_block(REL, 7);
        assert_eq!(key.to_string(), "000000067F000000050000400C0000000007");
        assert_eq!(Key::from_hex("000000067f000000050000400c0000000007"), Some(key));
        assert_eq!(Key::from_bytes(&key.to_bytes()), key);
        assert_eq!(Key::from_hex("00"), None);
        assert_eq!(format!("{:032X}", key.to_compact()), "00067F000000050000400C0000000007");
        assert_eq!(Key::from_compact(key.to_compact()), key);
        assert_eq!(Key::MAX.to_compact(), u128::MAX >> 1);
    }

    #[test]
    fn the_key_after_a_size_is_block_0_of_the_next_fork() {
        assert_eq!(Key::rel_size(REL).next(), Key::rel_block(RelTag { forknum: 1, ..REL }, 0));
    }
}
