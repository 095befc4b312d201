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

/// Shared by all timelines and connections of one tenant shard.
#[derive(Default)]
pub struct Throttle {
    enabled: AtomicBool,
    bucket: Mutex<Option<Bucket>>,
    pub requests: AtomicU64,
    pub throttled: AtomicU64,
    pub wait_micros: AtomicU64,
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
    /// the order of arrival, so nobody overtakes.
    pub fn reserve(&self, now: Instant) -> Option<Duration> {
        if !self.enabled.load(Relaxed) {
            return None;
        }
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = bucket.as_mut()?;
        self.requests.fetch_add(1, Relaxed);
        bucket.empty_at = bucket.empty_at.max(now) + bucket.cost;
        let wait = bucket.empty_at.checked_sub(bucket.burst)?.checked_duration_since(now)?;
        if wait.is_zero() {
            return None;
        }
        self.throttled.fetch_add(1, Relaxed);
        self.wait_micros.fetch_add(wait.as_micros() as u64, Relaxed);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_holds_after_the_burst_is_used_up() {
        let throttle = Throttle::default();
        let start = Instant::now();
        assert_eq!(throttle.reserve(start), None);
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
            assert_eq!(throttle.reserve(start), None);
        }
        for i in 1..=20u32 {
            assert_eq!(throttle.reserve(start), Some(Duration::from_millis(10) * i));
        }
        assert_eq!(throttle.reserve(start + Duration::from_secs(1)), None);
        throttle.configure(None, start);
        assert_eq!(throttle.reserve(start), None);
    }
}
