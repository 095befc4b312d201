//! Which shard stores which key (spec keyspace.md 9).

use crate::key::{Key, INIT_FORK};

pub const DEFAULT_STRIPE_SIZE: u32 = 2048;

/// Enough of a tenant shard to map keys. Count 0 means unsharded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardIdentity {
    pub number: u8,
    pub count: u8,
    /// In pages of 8 KiB.
    pub stripe_size: u32,
}

fn murmur32(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

fn combine(a: u32, b: u32) -> u32 {
    a ^ b.wrapping_add(0x9e37_79b9).wrapping_add(a << 6).wrapping_add(a >> 2)
}

/// The number of the shard that owns `key`.
pub fn key_to_shard(count: u8, stripe_size: u32, key: &Key) -> u8 {
    if count < 2 || !key.is_rel_block() || key.field5 == INIT_FORK {
        return 0;
    }
    let hash = combine(murmur32(key.field4), murmur32(key.field6 / stripe_size.max(1)));
    (hash % u32::from(count)) as u8
}

impl ShardIdentity {
    pub const UNSHARDED: ShardIdentity = ShardIdentity { number: 0, count: 0, stripe_size: DEFAULT_STRIPE_SIZE };

    pub fn is_shard_zero(&self) -> bool {
        self.number == 0
    }

    /// Kept by every shard.
    pub fn is_global(key: &Key) -> bool {
        !(key.is_rel_block() || key.field1 == 1 || key.field1 == 0x62)
    }

    pub fn is_local(&self, key: &Key) -> bool {
        self.count < 2 || key_to_shard(self.count, self.stripe_size, key) == self.number
    }

    /// May be dropped whenever it is met.
    pub fn is_disposable(&self, key: &Key) -> bool {
        self.count >= 2 && !Self::is_global(key) && !self.is_local(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(field4: u32, field6: u32, stripe: u32, count: u8) -> u8 {
        key_to_shard(count, stripe, &Key { field1: 0, field2: 1663, field3: 5, field4, field5: 0, field6 })
    }

    #[test]
    fn hash_follows_the_vectors() {
        assert_eq!(murmur32(0), 0);
        assert_eq!(combine(0xb1ff_3b40, 0), 0xfb79_23c9);
        assert_eq!(shard(0x400C, 0x7D06, 32768, 10), 8);
        assert_eq!(shard(0x400C, 0x7D06, 2048, 10), 1);
        for (block, want) in [(0, 0), (2047, 0), (2048, 3), (4096, 2), (6144, 3), (8192, 1)] {
            assert_eq!(shard(0xAE, block, 2048, 4), want);
        }
        for (block, want) in [(0, 4), (2048, 7), (131071, 4)] {
            assert_eq!(shard(16384, block, 2048, 8), want);
        }
        assert_eq!((shard(1259, 0, 2048, 2), shard(1259, 1, 1, 2)), (0, 0x6c04_22bd_u32 as u8 % 2));
        assert_eq!((0..4).map(|b| shard(2620, b, 1, 2)).collect::<Vec<_>>(), [0, 1, 0, 1]);
        assert_eq!(shard(u32::MAX, u32::MAX - 1, 2048, 255), 117);
    }

    #[test]
    fn slru_and_aux_keys_are_disposable_off_shard_zero() {
        let one = ShardIdentity { number: 1, count: 2, stripe_size: 2048 };
        assert!(one.is_disposable(&Key::slru_dir(crate::SlruKind::Clog)));
        assert!(one.is_disposable(&Key { field1: 0x62, ..Key::MIN }));
        assert!(!one.is_disposable(&Key::DBDIR));
        assert!(!one.is_disposable(&Key::CHECKPOINT));
    }
}
