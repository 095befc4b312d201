//! Bounded caches with little locking: many small maps, each with a second-chance eviction (CLOCK).

use std::collections::hash_map::Entry;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks a mutex; our critical sections keep their data whole even if a panic ends one, so poison is ignored.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// A quick hash for keys that nobody chooses to collide: a multiplication and a rotation per word.
#[derive(Clone, Copy, Default)]
pub struct QuickHash;

#[derive(Clone, Copy, Default)]
pub struct QuickHasher(u64);

impl BuildHasher for QuickHash {
    type Hasher = QuickHasher;

    fn build_hasher(&self) -> QuickHasher {
        QuickHasher(0)
    }
}

impl QuickHasher {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Hasher for QuickHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.mix(u64::from(n));
    }

    fn write_u32(&mut self, n: u32) {
        self.mix(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.mix(n);
    }

    fn write_usize(&mut self, n: usize) {
        self.mix(n as u64);
    }

    /// The map takes its bucket from the low bits and its tag from the high ones: fold, so that both are mixed.
    fn finish(&self) -> u64 {
        let h = self.0 ^ (self.0 >> 32);
        h.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ (self.0 >> 29)
    }
}

struct Slot<K, V> {
    key: K,
    value: V,
    weight: usize,
    used: AtomicBool,
}

struct Shard<K, V> {
    places: HashMap<K, usize, QuickHash>,
    slots: Vec<Option<Slot<K, V>>>,
    free: Vec<usize>,
    hand: usize,
    weight: usize,
}

impl<K: Hash + Eq + Clone, V> Shard<K, V> {
    fn remove_slot(&mut self, place: usize) -> Option<Slot<K, V>> {
        let slot = self.slots.get_mut(place)?.take()?;
        self.free.push(place);
        self.weight -= slot.weight;
        Some(slot)
    }

    /// Takes out the next entry that was not used since the hand passed it last.
    fn evict_one(&mut self) -> Option<Slot<K, V>> {
        for _ in 0..2 * self.slots.len() {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let Some(slot) = &self.slots[place] else { continue };
            if slot.used.swap(false, Ordering::Relaxed) {
                continue;
            }
            let slot = self.remove_slot(place)?;
            self.places.remove(&slot.key);
            return Some(slot);
        }
        None
    }
}

/// A cache of at most `capacity` units of weight.
pub struct Cache<K, V> {
    shards: Vec<RwLock<Shard<K, V>>>,
    shard_capacity: usize,
    hits: AtomicU64,
    misses: AtomicU64,
}

const SHARDS: usize = 16;

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    pub fn new(capacity: usize) -> Cache<K, V> {
        // A small cache must not be cut into shards that cannot hold anything.
        let count = if capacity >= 64 { SHARDS } else { 1 };
        let shard = |_| {
            RwLock::new(Shard {
                places: HashMap::with_hasher(QuickHash),
                slots: Vec::new(),
                free: Vec::new(),
                hand: 0,
                weight: 0,
            })
        };
        Cache {
            shards: (0..count).map(shard).collect(),
            shard_capacity: capacity / count,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    fn shard(&self, key: &K) -> &RwLock<Shard<K, V>> {
        let hash = QuickHash.hash_one(key);
        &self.shards[(hash >> 40) as usize % self.shards.len()]
    }

    pub fn get(&self, key: &K) -> Option<V> {
        let shard = read(self.shard(key));
        let slot = shard.places.get(key).and_then(|place| shard.slots[*place].as_ref());
        match slot {
            Some(slot) => {
                if !slot.used.load(Ordering::Relaxed) {
                    slot.used.store(true, Ordering::Relaxed);
                }
                self.hits.fetch_add(1, Ordering::Relaxed);
                Some(slot.value.clone())
            }
            None => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Inserts or replaces, if `replace` agrees with the entry that is there. Values too large for the cache are left.
    pub fn insert_if(&self, key: K, value: V, weight: usize, replace: impl FnOnce(&V) -> bool) {
        if weight > self.shard_capacity {
            return;
        }
        let mut evicted = Vec::new();
        let mut shard = write(self.shard(&key));
        if let Some(place) = shard.places.get(&key).copied() {
            if !shard.slots[place].as_ref().is_some_and(|slot| replace(&slot.value)) {
                return;
            }
            evicted.extend(shard.remove_slot(place));
            shard.places.remove(&key);
        }
        while shard.weight + weight > self.shard_capacity {
            match shard.evict_one() {
                Some(slot) => evicted.push(slot),
                None => break,
            }
        }
        let slot = Some(Slot { key: key.clone(), value, weight, used: AtomicBool::new(false) });
        let place = match shard.free.pop() {
            Some(place) => {
                shard.slots[place] = slot;
                place
            }
            None => {
                shard.slots.push(slot);
                shard.slots.len() - 1
            }
        };
        shard.weight += weight;
        shard.places.insert(key, place);
        drop(shard);
        drop(evicted);
    }

    pub fn insert(&self, key: K, value: V, weight: usize) {
        self.insert_if(key, value, weight, |_| true);
    }

    pub fn remove(&self, key: &K) -> Option<V> {
        let mut shard = write(self.shard(key));
        match shard.places.entry(key.clone()) {
            Entry::Occupied(entry) => {
                let place = entry.remove();
                shard.remove_slot(place).map(|slot| slot.value)
            }
            Entry::Vacant(_) => None,
        }
    }

    pub fn stats(&self) -> CacheStats {
        let mut stats = CacheStats {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            entries: 0,
            weight: 0,
        };
        for shard in &self.shards {
            let shard = read(shard);
            stats.entries += shard.places.len();
            stats.weight += shard.weight;
        }
        stats
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub hits: u64,
    pub misses: u64,
    pub entries: usize,
    pub weight: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_never_outgrows_its_capacity_and_keeps_what_is_used() {
        let cache: Cache<u64, u64> = Cache::new(32);
        for n in 0..1000 {
            cache.insert(n, n, 1);
            cache.get(&7);
            if n > 7 {
                assert_eq!(cache.get(&7), Some(7), "after {n}");
            }
        }
        assert!(cache.stats().weight <= 32);
        cache.insert(5000, 1, 33);
        assert_eq!(cache.get(&5000), None);
        cache.insert_if(7, 8, 1, |old| *old > 7);
        assert_eq!(cache.get(&7), Some(7));
        assert_eq!(cache.remove(&7), Some(7));
        assert_eq!(cache.get(&7), None);
    }

    #[test]
    fn hashes_of_neighbouring_keys_spread() {
        let key = |block| pagecore::Key { field6: block, ..pagecore::Key::MIN };
        let mut buckets = [0u32; 256];
        let mut tags = [0u32; 128];
        for block in 0..25_600 {
            let h = QuickHash.hash_one(key(block));
            buckets[(h & 255) as usize] += 1;
            tags[(h >> 57) as usize] += 1;
        }
        assert!(buckets.iter().all(|n| (50..200).contains(n)), "{buckets:?}");
        assert!(tags.iter().all(|n| (100..400).contains(n)), "{tags:?}");
    }
}
