//! Bounded caches with little locking: many small maps, each with a second-chance eviction (CLOCK). An entry that was
//! expensive to make gets more than one chance.

use std::collections::hash_map::Entry;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use smallvec::SmallVec;

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
    /// How often the hand passes before the entry goes; a use brings them back.
    lives: AtomicU8,
    full_lives: u8,
}

/// An entry, its lives, and what was seen of its value.
type Seen<'a, K, V, T> = (&'a Slot<K, V>, u8, T);

struct Shard<K, V> {
    places: HashMap<K, usize, QuickHash>,
    slots: Vec<Option<Slot<K, V>>>,
    free: Vec<usize>,
    hand: usize,
    weight: usize,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl<K: Hash + Eq + Clone, V> Shard<K, V> {
    fn remove_slot(&mut self, place: usize) -> Option<Slot<K, V>> {
        let slot = self.slots.get_mut(place)?.take()?;
        self.free.push(place);
        self.weight -= slot.weight;
        Some(slot)
    }

    /// Takes out the next entry whose lives are used up.
    fn evict_one(&mut self) -> Option<Slot<K, V>> {
        for _ in 0..(usize::from(u8::MAX) + 1) * self.slots.len() {
            let place = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let Some(slot) = &self.slots[place] else { continue };
            let lives = slot.lives.load(Ordering::Relaxed);
            if lives > 0 {
                slot.lives.store(lives - 1, Ordering::Relaxed);
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
                hits: AtomicU64::new(0),
                misses: AtomicU64::new(0),
            })
        };
        Cache { shards: (0..count).map(shard).collect(), shard_capacity: capacity / count }
    }

    fn shard_of(&self, key: &K) -> usize {
        (QuickHash.hash_one(key) >> 40) as usize % self.shards.len()
    }

    fn shard(&self, key: &K) -> &RwLock<Shard<K, V>> {
        &self.shards[self.shard_of(key)]
    }

    pub fn get(&self, key: &K) -> Option<V> {
        self.get_with(key, V::clone)
    }

    /// What `take` makes of the value, which stays where it is.
    pub fn get_with<T>(&self, key: &K, take: impl FnOnce(&V) -> T) -> Option<T> {
        let shard = read(self.shard(key));
        let slot = shard.places.get(key).and_then(|place| shard.slots[*place].as_ref());
        match slot {
            Some(slot) => {
                if slot.lives.load(Ordering::Relaxed) < slot.full_lives {
                    slot.lives.store(slot.full_lives, Ordering::Relaxed);
                }
                shard.hits.fetch_add(1, Ordering::Relaxed);
                Some(take(&slot.value))
            }
            None => {
                shard.misses.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Like `get_with` for many keys, with results in order. `look` is called for all entries before `take` for the
    /// first: without atomic operations between them the waits for memory overlap, which is most of what a lookup in
    /// a large cache costs.
    pub fn get_many<T, U>(
        &self,
        keys: &[K],
        mut look: impl FnMut(usize, &V) -> T,
        mut take: impl FnMut(&V, T) -> U,
        mut each: impl FnMut(Option<U>),
    ) {
        let wanted = keys.iter().fold(0u32, |wanted, key| wanted | 1 << self.shard_of(key));
        // In ascending order: a writer holds one lock only and readers wait in one direction, so nobody waits in a circle.
        let guards: [Option<RwLockReadGuard<'_, Shard<K, V>>>; SHARDS] =
            std::array::from_fn(|i| (wanted >> i & 1 == 1).then(|| read(&self.shards[i])));
        let slot = |(i, key)| {
            let shard = guards[self.shard_of(key)].as_ref()?;
            let slot = shard.places.get(key).and_then(|place| shard.slots[*place].as_ref())?;
            Some((slot, slot.lives.load(Ordering::Relaxed), look(i, &slot.value)))
        };
        let found: SmallVec<[Option<Seen<'_, K, V, T>>; 32]> = keys.iter().enumerate().map(slot).collect();
        let hits = found.iter().flatten().count();
        if let Some(shard) = guards.iter().flatten().next() {
            shard.hits.fetch_add(hits as u64, Ordering::Relaxed);
            shard.misses.fetch_add((keys.len() - hits) as u64, Ordering::Relaxed);
        }
        for entry in found {
            each(entry.map(|(slot, lives, seen)| {
                if lives < slot.full_lives {
                    slot.lives.store(slot.full_lives, Ordering::Relaxed);
                }
                take(&slot.value, seen)
            }));
        }
    }

    /// Inserts or replaces, if `replace` agrees with the entry that is there. Values too large for the cache are left.
    /// The entry survives `lives` rounds of the hand before it was used once.
    pub fn insert_if(&self, key: K, value: V, weight: usize, lives: u8, replace: impl FnOnce(&V) -> bool) {
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
        let full_lives = lives.max(1);
        let slot = Some(Slot { key: key.clone(), value, weight, lives: AtomicU8::new(lives), full_lives });
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
        self.insert_if(key, value, weight, 0, |_| true);
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
        let mut stats = CacheStats::default();
        for shard in &self.shards {
            let shard = read(shard);
            stats.hits += shard.hits.load(Ordering::Relaxed);
            stats.misses += shard.misses.load(Ordering::Relaxed);
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
        let mut found = Vec::new();
        cache.get_many(
            &[7, 5000, 999],
            |i, value| (i, *value),
            |value, (i, seen)| (i, *value == seen),
            |f| found.push(f),
        );
        assert_eq!(found, [Some((0, true)), None, Some((2, true))]);
        cache.insert_if(7, 8, 1, 0, |old| *old > 7);
        assert_eq!(cache.get(&7), Some(7));
        assert_eq!(cache.remove(&7), Some(7));
        assert_eq!(cache.get(&7), None);
    }

    #[test]
    fn what_was_expensive_outlives_a_flood_of_cheap_entries() {
        let cache: Cache<u64, u64> = Cache::new(32);
        cache.insert_if(1_000_000, 1, 1, 3, |_| true);
        for n in 0..3 * 31 {
            cache.insert(n, n, 1);
        }
        assert_eq!(cache.get(&1_000_000), Some(1));
        for n in 0..10 * 32 {
            cache.insert(n, n, 1);
        }
        assert_eq!(cache.get(&1_000_000), None);
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
