//! What is counted about redo processes (spec walredo.md 4.2). One object for the whole server; tenants come and go.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use pagecore::Lsn;

/// Why a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// The pool let go of it: after an error, when idle, at shutdown.
    WalRedoProcessDrop,
    /// Somebody dropped the handle of a process without stopping it.
    NoLeakChildDrop,
    /// It could not be started completely.
    Startup,
}

impl StopCause {
    pub const ALL: [StopCause; 3] = [StopCause::WalRedoProcessDrop, StopCause::NoLeakChildDrop, StopCause::Startup];

    /// The value of the label `cause`.
    pub fn label(self) -> &'static str {
        match self {
            StopCause::WalRedoProcessDrop => "WalRedoProcessDrop",
            StopCause::NoLeakChildDrop => "NoLeakChildDrop",
            StopCause::Startup => "Startup",
        }
    }
}

const REDO_SECONDS: &[f64] =
    &[5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];
const RECORDS: &[f64] = &[0.0, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0];
const BYTES: &[f64] = &[
    24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 184.0, 256.0, 368.0, 512.0, 728.0, 1024.0, 1456.0, 2048.0, 2904.0, 4096.0,
    5800.0, 8192.0, 11592.0, 16384.0, 23176.0, 32768.0,
];
const LAUNCH_SECONDS: &[f64] = &[
    0.0002, 0.0004, 0.0006, 0.0008, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4,
    0.6, 0.8, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 10.0,
];

/// Counts per bucket; the sum is kept in billionths, so that seconds and counts both fit an integer.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    counts: Vec<AtomicU64>,
    sum_billionths: AtomicU64,
}

/// A histogram as it was: upper bounds, *cumulative* counts (one more than bounds, the last one is the total), sum.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramSnapshot {
    pub bounds: &'static [f64],
    pub counts: Vec<u64>,
    pub sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Histogram {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, counts, sum_billionths: AtomicU64::new(0) }
    }

    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum_billionths.fetch_add((value * 1e9) as u64, Relaxed);
    }

    pub fn snapshot(&self) -> HistogramSnapshot {
        let mut total = 0;
        let mut counts = Vec::with_capacity(self.counts.len());
        for count in &self.counts {
            total += count.load(Relaxed);
            counts.push(total);
        }
        HistogramSnapshot { bounds: self.bounds, counts, sum: self.sum_billionths.load(Relaxed) as f64 / 1e9 }
    }
}

#[derive(Debug)]
pub struct RedoMetrics {
    /// One run of records of one class, in process or not.
    pub redo_seconds: Histogram,
    pub records: Histogram,
    pub bytes: Histogram,
    pub launch_seconds: Histogram,
    pub replayed_records: AtomicU64,
    pub started: AtomicU64,
    pub stderr_tasks_started: AtomicU64,
    pub stderr_tasks_finished: AtomicU64,
    stopped: [AtomicU64; 3],
    /// Records sent to processes, by resource manager.
    sent: [AtomicU64; 256],
}

impl Default for RedoMetrics {
    fn default() -> RedoMetrics {
        RedoMetrics {
            redo_seconds: Histogram::new(REDO_SECONDS),
            records: Histogram::new(RECORDS),
            bytes: Histogram::new(BYTES),
            launch_seconds: Histogram::new(LAUNCH_SECONDS),
            replayed_records: AtomicU64::new(0),
            started: AtomicU64::new(0),
            stderr_tasks_started: AtomicU64::new(0),
            stderr_tasks_finished: AtomicU64::new(0),
            stopped: Default::default(),
            sent: [const { AtomicU64::new(0) }; 256],
        }
    }
}

impl RedoMetrics {
    pub fn stopped(&self, cause: StopCause) -> u64 {
        self.stopped[cause as usize].load(Relaxed)
    }

    /// Records of a resource manager that were sent to processes.
    pub fn sent(&self, rmid: u8) -> u64 {
        self.sent[usize::from(rmid)].load(Relaxed)
    }

    /// Processes that are alive; tests look for leaks here.
    pub fn live(&self) -> u64 {
        let stopped: u64 = StopCause::ALL.iter().map(|cause| self.stopped(*cause)).sum();
        self.started.load(Relaxed).saturating_sub(stopped)
    }

    pub(super) fn count_stop(&self, cause: StopCause) {
        self.stopped[cause as usize].fetch_add(1, Relaxed);
    }

    /// One attempt to have a process replay `records`.
    pub(super) fn observe_run(&self, records: &[(Lsn, &[u8])], took: Duration) {
        let mut bytes = 0;
        for (_, record) in records {
            bytes += record.len();
            if let Some(rmid) = record.get(17) {
                self.sent[usize::from(*rmid)].fetch_add(1, Relaxed);
            }
        }
        self.redo_seconds.observe(took.as_secs_f64());
        self.records.observe(records.len() as f64);
        self.bytes.observe(bytes as f64);
        self.replayed_records.fetch_add(records.len() as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::new(RECORDS);
        for value in [0.0, 1.0, 3.0, 501.0] {
            histogram.observe(value);
        }
        let got = histogram.snapshot();
        assert_eq!(got.counts, [1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 4]);
        assert_eq!(got.sum, 505.0);
    }
}
