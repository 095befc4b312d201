//! The request throttle of a tenant shard: a generic cell rate algorithm (spec page-service.md 4.5).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One token per request; `max` may be saved up, `initial` of them are there at the start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThrottleConfig {
    pub initial: u32,
    pub max: u32,
    pub refill_interval: Duration,
    pub refill_amount: u32,
}

struct Bucket {
    cost: Duration,
    burst: Duration,
    /// When the bucket, drained at the steady rate, would be empty.
    empty_at: Instant,
}

/// Requests that met a throttle, of one shard or of all that were ever here.
#[derive(Default)]
pub struct ThrottleCounts {
    started: AtomicU64,
    finished: AtomicU64,
    throttled: AtomicU64,
    wait_micros: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThrottleSnapshot {
    pub started: u64,
    /// Those that are through: started less those that wait.
    pub finished: u64,
    /// Those that had to wait.
    pub throttled: u64,
    pub wait_micros: u64,
}

impl ThrottleCounts {
    pub fn snapshot(&self) -> ThrottleSnapshot {
        ThrottleSnapshot {
            started: self.started.load(Relaxed),
            finished: self.finished.load(Relaxed),
            throttled: self.throttled.load(Relaxed),
            wait_micros: self.wait_micros.load(Relaxed),
        }
    }

    fn met(&self, wait: Option<Duration>) {
        self.started.fetch_add(1, Relaxed);
        match wait {
            None => drop(self.finished.fetch_add(1, Relaxed)),
            Some(wait) => {
                self.throttled.fetch_add(1, Relaxed);
                self.wait_micros.fetch_add(wait.as_micros() as u64, Relaxed);
            }
        }
    }
}

/// Shared by all timelines and connections of one tenant shard.
#[derive(Default)]
pub struct Throttle {
    enabled: AtomicBool,
    bucket: Mutex<Option<Bucket>>,
    pub counts: ThrottleCounts,
}

impl Throttle {
    /// Replaces the bucket; none disables the throttle.
    pub fn configure(&self, config: Option<ThrottleConfig>, now: Instant) {
        let bucket = config.map(|config| {
            let cost = config.refill_interval / config.refill_amount.max(1);
            let missing = cost * config.max.saturating_sub(config.initial);
            Bucket { cost, burst: cost * config.max, empty_at: now + missing }
        });
        self.enabled.store(bucket.is_some(), Relaxed);
        *self.bucket.lock().unwrap_or_else(PoisonError::into_inner) = bucket;
    }

    /// Takes one token. Returns how long the caller must sleep before going on: places in the queue are given out in
    /// the order of arrival, so nobody overtakes. Who slept says so with `passed`, however it ended.
    pub fn reserve(&self, now: Instant, totals: &ThrottleCounts) -> Option<Duration> {
        if !self.enabled.load(Relaxed) {
            return None;
        }
        let wait = {
            let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
            let bucket = bucket.as_mut()?;
            bucket.empty_at = bucket.empty_at.max(now) + bucket.cost;
            let full_at = bucket.empty_at.checked_sub(bucket.burst);
            full_at.and_then(|full_at| full_at.checked_duration_since(now)).filter(|wait| !wait.is_zero())
        };
        self.counts.met(wait);
        totals.met(wait);
        wait
    }

    pub fn passed(&self, totals: &ThrottleCounts) {
        self.counts.finished.fetch_add(1, Relaxed);
        totals.finished.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_after_the_burst_is_used_up() {
        let (throttle, totals) = (Throttle::default(), ThrottleCounts::default());
        let start = Instant::now();
        assert_eq!(throttle.reserve(start, &totals), None);
        throttle.configure(
            Some(ThrottleConfig {
                initial: 5,
                max: 10,
                refill_interval: Duration::from_millis(100),
                refill_amount: 10,
            }),
            start,
        );
        for _ in 0..5 {
            assert_eq!(throttle.reserve(start, &totals), None);
        }
        for i in 1..=20u32 {
            assert_eq!(throttle.reserve(start, &totals), Some(Duration::from_millis(10) * i));
        }
        assert_eq!(throttle.reserve(start + Duration::from_secs(1), &totals), None);
        throttle.passed(&totals);
        let wait_micros = (1..=20).sum::<u64>() * 10_000;
        let counted = ThrottleSnapshot { started: 26, finished: 7, throttled: 20, wait_micros };
        assert_eq!((throttle.counts.snapshot(), totals.snapshot()), (counted, counted));
        throttle.configure(None, start);
        assert_eq!(throttle.reserve(start, &totals), None);
    }
}
