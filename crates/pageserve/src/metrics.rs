//! Counters of the page service: cheap atomics, read by a snapshot. Names and labels are given elsewhere.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::throttle::{ThrottleCounts, ThrottleSnapshot};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum RequestKind {
    Exists,
    Nblocks,
    GetPage,
    DbSize,
    SlruSegment,
    Test,
}

impl RequestKind {
    pub const NAMES: [&'static str; 6] =
        ["get_rel_exists", "get_rel_size", "get_page_at_lsn", "get_db_size", "get_slru_segment", "test"];
}

/// Why a batch was closed (spec page-service.md 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum BatchBreak {
    BatchFull,
    NonUniformTimeline,
    NonUniformLsn,
    SamePageAtDifferentLsn,
    NonBatchableRequest,
    ExecutorSteal,
}

impl BatchBreak {
    pub const NAMES: [&'static str; 6] = [
        "batch_full",
        "non_uniform_timeline",
        "non_uniform_lsn",
        "same_page_at_different_lsn",
        "non_batchable_request",
        "executor_steal",
    ];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum CommandKind {
    PageStreamV3,
    PageStreamV2,
    BaseBackup,
    FullBackup,
    LeaseLsn,
}

impl CommandKind {
    pub const NAMES: [&'static str; 5] = ["PageStreamV3", "PageStreamV2", "Basebackup", "Fullbackup", "LeaseLsn"];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum HandlerOutcome {
    Success,
    InternalError,
    OtherError,
}

impl HandlerOutcome {
    pub const NAMES: [&'static str; 3] = ["success", "internal_error", "other_error"];
}

/// What the connection loop asks of the program around it (`handler::Handler`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum QuestionKind {
    Backup,
    Lease,
    Activate,
    ReceiverStatus,
    Log,
}

impl QuestionKind {
    pub const NAMES: [&'static str; 5] = ["backup", "lease", "activate", "receiver_status", "log"];
}

/// Upper bounds in microseconds of waits for an LSN.
pub const WAIT_BOUNDS_MICROS: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];
/// Upper bounds in microseconds, over all timelines.
pub const GLOBAL_BOUNDS_MICROS: [u64; 41] = [
    1,
    10,
    20,
    40,
    60,
    80,
    100,
    200,
    300,
    400,
    500,
    600,
    700,
    800,
    900,
    1_000,
    2_000,
    4_000,
    6_000,
    8_000,
    10_000,
    20_000,
    40_000,
    60_000,
    80_000,
    100_000,
    200_000,
    400_000,
    600_000,
    800_000,
    1_000_000,
    2_000_000,
    4_000_000,
    6_000_000,
    8_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    1_000_000_000,
];
/// Upper bounds in microseconds, per timeline: those of the compute, so that both sides can be compared.
pub const TIMELINE_BOUNDS_MICROS: [u64; 9] = [600, 1_000, 3_000, 6_000, 10_000, 30_000, 100_000, 1_000_000, 3_000_000];

/// Batches of more members count in the last place.
pub const BATCH_SIZES: usize = 128;

/// Values above the last bound count in the last bucket.
pub struct Histogram {
    bounds: &'static [u64],
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramSnapshot {
    pub bounds_micros: &'static [u64],
    /// One more than bounds; not cumulative.
    pub counts: Vec<u64>,
    pub sum_micros: u64,
}

impl Histogram {
    pub fn new(bounds: &'static [u64]) -> Histogram {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, buckets, sum: AtomicU64::new(0) }
    }

    /// Counts `n` observations of the same duration.
    #[inline]
    pub fn observe(&self, duration: Duration, n: u64) {
        let micros = duration.as_micros() as u64;
        let bucket = self.bounds.partition_point(|bound| *bound < micros);
        self.buckets[bucket].fetch_add(n, Relaxed);
        self.sum.fetch_add(micros * n, Relaxed);
    }

    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            bounds_micros: self.bounds,
            counts: self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect(),
            sum_micros: self.sum.load(Relaxed),
        }
    }
}

/// Batch sizes and why batches were closed.
pub struct BatchMetrics {
    sizes: Box<[AtomicU64]>,
    breaks: [AtomicU64; BatchBreak::NAMES.len()],
}

impl Default for BatchMetrics {
    fn default() -> Self {
        BatchMetrics { sizes: (0..BATCH_SIZES).map(|_| AtomicU64::new(0)).collect(), breaks: Default::default() }
    }
}

impl BatchMetrics {
    #[inline]
    pub fn observe(&self, size: usize, reason: BatchBreak) {
        self.sizes[size.clamp(1, BATCH_SIZES) - 1].fetch_add(1, Relaxed);
        self.breaks[reason as usize].fetch_add(1, Relaxed);
    }

    /// How many batches had 1, 2, … members.
    pub fn sizes(&self) -> Vec<u64> {
        self.sizes.iter().map(|count| count.load(Relaxed)).collect()
    }

    pub fn breaks(&self) -> Vec<(&'static str, u64)> {
        named(&BatchBreak::NAMES, &self.breaks)
    }
}

fn named(names: &[&'static str], counts: &[AtomicU64]) -> Vec<(&'static str, u64)> {
    names.iter().zip(counts).map(|(name, count)| (*name, count.load(Relaxed))).collect()
}

/// Of one timeline.
pub struct TimelineMetrics {
    pub get_page_started: AtomicU64,
    pub get_page_seconds: Histogram,
    /// From the end of the throttle to the execution of the batch.
    pub batch_wait_seconds: Histogram,
    /// Writing answers to the socket, those of the requests that were executed before it.
    pub flush_micros: AtomicU64,
    pub batches: BatchMetrics,
    pub throttled_requests: AtomicU64,
    pub waits: WaitMetrics,
}

/// Waits for an LSN that is ahead. Started and finished ones differ by those that last.
#[derive(Default)]
pub struct WaitMetrics {
    pub started: AtomicU64,
    pub finished: AtomicU64,
    /// Grows while a wait lasts, so that one which hangs can be seen.
    pub micros: AtomicU64,
}

/// One wait, from here to its drop, whatever ends it.
pub struct WaitTimer<'a> {
    timeline: &'a WaitMetrics,
    global: &'a Metrics,
    started: Instant,
    noted_micros: AtomicU64,
}

impl<'a> WaitTimer<'a> {
    pub fn start(timeline: &'a WaitMetrics, global: &'a Metrics) -> WaitTimer<'a> {
        timeline.started.fetch_add(1, Relaxed);
        WaitTimer { timeline, global, started: Instant::now(), noted_micros: AtomicU64::new(0) }
    }

    /// Counts the time since the last note.
    pub fn note(&self) {
        let micros = self.started.elapsed().as_micros() as u64;
        let more = micros.saturating_sub(self.noted_micros.swap(micros, Relaxed));
        self.timeline.micros.fetch_add(more, Relaxed);
        self.global.wait_lsn_micros.fetch_add(more, Relaxed);
    }
}

impl Drop for WaitTimer<'_> {
    fn drop(&mut self) {
        self.note();
        self.timeline.finished.fetch_add(1, Relaxed);
        self.global.wait_lsn_seconds.observe(self.started.elapsed(), 1);
    }
}

impl Default for TimelineMetrics {
    fn default() -> Self {
        TimelineMetrics {
            get_page_started: AtomicU64::new(0),
            get_page_seconds: Histogram::new(&TIMELINE_BOUNDS_MICROS),
            batch_wait_seconds: Histogram::new(&TIMELINE_BOUNDS_MICROS),
            flush_micros: AtomicU64::new(0),
            batches: BatchMetrics::default(),
            throttled_requests: AtomicU64::new(0),
            waits: WaitMetrics::default(),
        }
    }
}

/// Of the whole service.
pub struct Metrics {
    pub connections_started: AtomicU64,
    pub connections_finished: AtomicU64,
    pub misrouted_requests: AtomicU64,
    pub flush_micros: AtomicU64,
    pub wait_lsn_micros: AtomicU64,
    pub wait_lsn_seconds: Histogram,
    pub batch_wait_seconds: Histogram,
    /// Over all shards, those included that are gone.
    pub throttle: ThrottleCounts,
    pub batches: BatchMetrics,
    commands: [AtomicU64; CommandKind::NAMES.len()],
    requests_started: [AtomicU64; RequestKind::NAMES.len()],
    request_seconds: [Histogram; RequestKind::NAMES.len()],
    outcomes: [AtomicU64; HandlerOutcome::NAMES.len()],
    questions_dropped: [AtomicU64; QuestionKind::NAMES.len()],
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics {
            connections_started: AtomicU64::new(0),
            connections_finished: AtomicU64::new(0),
            misrouted_requests: AtomicU64::new(0),
            flush_micros: AtomicU64::new(0),
            wait_lsn_micros: AtomicU64::new(0),
            wait_lsn_seconds: Histogram::new(&WAIT_BOUNDS_MICROS),
            batch_wait_seconds: Histogram::new(&GLOBAL_BOUNDS_MICROS),
            throttle: ThrottleCounts::default(),
            batches: BatchMetrics::default(),
            commands: Default::default(),
            requests_started: Default::default(),
            request_seconds: std::array::from_fn(|_| Histogram::new(&GLOBAL_BOUNDS_MICROS)),
            outcomes: Default::default(),
            questions_dropped: Default::default(),
        }
    }
}

impl Metrics {
    pub fn command(&self, kind: CommandKind) {
        self.commands[kind as usize].fetch_add(1, Relaxed);
    }

    #[inline]
    pub fn request_started(&self, kind: RequestKind) {
        self.requests_started[kind as usize].fetch_add(1, Relaxed);
    }

    #[inline]
    pub fn requests_executed(&self, kind: RequestKind, duration: Duration, n: u64) {
        self.request_seconds[kind as usize].observe(duration, n);
    }

    #[inline]
    pub fn outcome(&self, outcome: HandlerOutcome, n: u64) {
        self.outcomes[outcome as usize].fetch_add(n, Relaxed);
    }

    /// A question that could not even be queued.
    pub fn question_dropped(&self, kind: QuestionKind) {
        self.questions_dropped[kind as usize].fetch_add(1, Relaxed);
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            connections_started: self.connections_started.load(Relaxed),
            connections_finished: self.connections_finished.load(Relaxed),
            misrouted_requests: self.misrouted_requests.load(Relaxed),
            flush_micros: self.flush_micros.load(Relaxed),
            wait_lsn_micros: self.wait_lsn_micros.load(Relaxed),
            wait_lsn_seconds: self.wait_lsn_seconds.snapshot(),
            batch_wait_seconds: self.batch_wait_seconds.snapshot(),
            throttle: self.throttle.snapshot(),
            questions_dropped: named(&QuestionKind::NAMES, &self.questions_dropped),
            commands: named(&CommandKind::NAMES, &self.commands),
            requests_started: named(&RequestKind::NAMES, &self.requests_started),
            request_seconds: RequestKind::NAMES
                .iter()
                .zip(&self.request_seconds)
                .map(|(name, histogram)| (*name, histogram.snapshot()))
                .collect(),
            outcomes: named(&HandlerOutcome::NAMES, &self.outcomes),
            batch_sizes: self.batches.sizes(),
            batch_breaks: self.batches.breaks(),
        }
    }
}

/// All counters at one moment; not atomic among each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub connections_started: u64,
    pub connections_finished: u64,
    pub misrouted_requests: u64,
    pub flush_micros: u64,
    pub wait_lsn_micros: u64,
    pub wait_lsn_seconds: HistogramSnapshot,
    pub batch_wait_seconds: HistogramSnapshot,
    pub throttle: ThrottleSnapshot,
    pub questions_dropped: Vec<(&'static str, u64)>,
    pub commands: Vec<(&'static str, u64)>,
    pub requests_started: Vec<(&'static str, u64)>,
    pub request_seconds: Vec<(&'static str, HistogramSnapshot)>,
    pub outcomes: Vec<(&'static str, u64)>,
    pub batch_sizes: Vec<u64>,
    pub batch_breaks: Vec<(&'static str, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_counted_once_whatever_ends_it() {
        let (timeline, global) = (WaitMetrics::default(), Metrics::default());
        let timer = WaitTimer::start(&timeline, &global);
        assert_eq!((timeline.started.load(Relaxed), timeline.finished.load(Relaxed)), (1, 0));
        std::thread::sleep(Duration::from_millis(2));
        timer.note();
        let noted = timeline.micros.load(Relaxed);
        assert!(noted >= 2_000, "a wait that lasts is seen");
        drop(timer);
        assert_eq!(timeline.finished.load(Relaxed), 1);
        assert!(timeline.micros.load(Relaxed) >= noted);
        assert_eq!(timeline.micros.load(Relaxed), global.wait_lsn_micros.load(Relaxed));
        assert_eq!(global.snapshot().wait_lsn_seconds.counts.iter().sum::<u64>(), 1);
    }

    #[test]
    fn a_value_on_a_bound_belongs_to_that_bound() {
        let histogram = Histogram::new(&TIMELINE_BOUNDS_MICROS);
        histogram.observe(Duration::from_micros(600), 1);
        histogram.observe(Duration::from_micros(601), 2);
        histogram.observe(Duration::from_secs(100), 1);
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.counts, [1, 2, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(snapshot.sum_micros, 600 + 1202 + 100_000_000);
    }
}
