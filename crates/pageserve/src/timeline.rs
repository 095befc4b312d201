//! Attached timelines and the handles through which connections use them (spec page-service.md 4.4).
//!
//! ```text
//! connection: HandleCache ──▶ Slot ◀── Timeline.slots          Slot: open (Arc<Open>) or closed
//!                              │                               Open: Arc<Timeline> + one entry of its gate
//!             Handle = Arc<Open>, held for one batch only
//! ```
//! Invariant: a connection holds only slots while it reads or writes its socket. Closing a timeline empties all slots,
//! so it waits at most for reads that are running, never for a client. Slot and timeline locks are never held together.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pagecore::shard::key_to_shard;
use pagecore::{Key, Lsn, ShardIdentity};
use tokio::sync::{oneshot, watch};

use crate::handler::Handler;
use crate::ids::{ShardIndex, TenantShardId, TimelineId};
use crate::metrics::{Metrics, TimelineMetrics, WaitTimer};
use crate::source::PageSource;
use crate::throttle::Throttle;

/// How long an error waits for the words about the receiver that end it.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a timeline no longer serves: decides what its clients are told (spec 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// 57P01 `shutdown`.
    Shutdown,
    /// Broken, or loading again: 08006 `reconnect`.
    Reconnect,
}

/// LSNs below the cutoff that may still be read (spec 3.4). Decided elsewhere, looked up here.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    /// LSN to expiry in milliseconds since 1970.
    pub valid_until_millis: HashMap<u64, u64>,
    /// Until then every LSN may be read: leases were lost with the last process.
    pub grace_until_millis: u64,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    entered: usize,
}

pub struct Timeline {
    pub tenant_shard: TenantShardId,
    pub id: TimelineId,
    pub identity: ShardIdentity,
    pub throttle: Arc<Throttle>,
    pub metrics: Arc<TimelineMetrics>,
    source: Arc<dyn PageSource>,
    leases: Mutex<Leases>,
    /// By cache id; none once closed.
    slots: Mutex<Option<HashMap<u64, Arc<Slot>>>>,
    closed: watch::Sender<Option<Closed>>,
    gate: Mutex<Gate>,
    left: Condvar,
}

/// One connection's share of a timeline.
#[derive(Default)]
struct Slot {
    open: Mutex<Option<Arc<Open>>>,
}

/// A timeline with its gate entered.
pub struct Open {
    timeline: Arc<Timeline>,
}

/// A strong handle: keeps the timeline from closing. Hold it only while the timeline's own cancellation ends the wait.
pub type Handle = Arc<Open>;

impl Deref for Open {
    type Target = Timeline;

    fn deref(&self) -> &Timeline {
        &self.timeline
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        lock(&self.timeline.gate).entered -= 1;
        self.timeline.left.notify_all();
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// The text without prefix.
    Timeout(String),
    Closed(Closed),
}

impl Timeline {
    pub fn new(
        tenant_shard: TenantShardId,
        id: TimelineId,
        identity: ShardIdentity,
        throttle: Arc<Throttle>,
        source: Arc<dyn PageSource>,
    ) -> Arc<Timeline> {
        Arc::new(Timeline {
            tenant_shard,
            id,
            identity,
            throttle,
            metrics: Arc::default(),
            source,
            leases: Mutex::default(),
            slots: Mutex::new(Some(HashMap::new())),
            closed: watch::Sender::new(None),
            gate: Mutex::default(),
            left: Condvar::new(),
        })
    }

    pub fn source(&self) -> &dyn PageSource {
        &*self.source
    }

    pub fn set_leases(&self, leases: Leases) {
        *lock(&self.leases) = leases;
    }

    /// Asked only for an LSN below the cutoff. The LSN is compared as it came, without normalising.
    pub fn is_readable_below_cutoff(&self, lsn: Lsn) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let leases = lock(&self.leases);
        now < leases.grace_until_millis || leases.valid_until_millis.get(&lsn.0).is_some_and(|until| now < *until)
    }

    /// The shard number of `key` among the shards this timeline belongs to.
    pub fn shard_of(&self, key: &Key) -> u8 {
        key_to_shard(self.identity.count, self.identity.stripe_size, key)
    }

    pub fn shard_index(&self) -> ShardIndex {
        self.tenant_shard.shard
    }

    /// Resolves to why, when the timeline closes. Holds no reference to the timeline.
    pub fn watch_closed(&self) -> watch::Receiver<Option<Closed>> {
        self.closed.subscribe()
    }

    /// Forbids new use, ends waits, empties the slots of all connections. Running reads go on; see [`Self::wait_left`].
    pub fn close(&self, why: Closed) {
        lock(&self.gate).closed = true;
        self.closed.send_if_modified(|closed| match closed {
            Some(_) => false,
            None => {
                *closed = Some(why);
                true
            }
        });
        let slots = lock(&self.slots).take();
        for slot in slots.into_iter().flat_map(HashMap::into_values) {
            let open = lock(&slot.open).take();
            drop(open);
        }
    }

    /// Blocks until nobody uses the timeline any more; false on time-out.
    pub fn wait_left(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut gate = lock(&self.gate);
        while gate.entered > 0 {
            let Some(rest) = deadline.checked_duration_since(Instant::now()) else { return false };
            gate = self.left.wait_timeout(gate, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn enter(self: &Arc<Timeline>) -> Option<Handle> {
        let mut gate = lock(&self.gate);
        if gate.closed {
            return None;
        }
        gate.entered += 1;
        Some(Arc::new(Open { timeline: Arc::clone(self) }))
    }

    /// Enters the gate without a cache, for one rare command.
    pub fn open_once(self: &Arc<Timeline>) -> Option<Handle> {
        self.enter()
    }

    /// Waits until `last_record_lsn >= lsn` (spec 3.3). Ends promptly when the timeline closes.
    pub async fn wait_for_lsn(
        &self,
        lsn: Lsn,
        timeout: Duration,
        metrics: &Metrics,
        handler: &dyn Handler,
    ) -> Result<(), WaitError> {
        if lsn <= self.source.last_record_lsn() {
            return Ok(());
        }
        let timer = WaitTimer::start(&self.metrics.waits, metrics);
        let mut closed = self.watch_closed();
        let (reached, wait) = oneshot::channel();
        self.source.on_lsn(
            lsn,
            Box::new(move || {
                let _ = reached.send(()); // the waiter may have given up
            }),
        );
        // None: the time is over.
        let ended = tokio::select! {
            biased;
            why = closed.wait_for(Option::is_some) => {
                Some(Err(WaitError::Closed(why.ok().and_then(|why| *why).unwrap_or(Closed::Shutdown))))
            }
            reached = wait => Some(reached.map_err(|_| WaitError::Closed(Closed::Shutdown))),
            never = note_while_waiting(&timer) => match never {},
            () = tokio::time::sleep(timeout) => None,
        };
        if let Some(ended) = ended {
            return ended;
        }
        let receiver_status = self.ask_receiver_status(handler).await;
        Err(WaitError::Timeout(format!(
            "Timed out while waiting for WAL record at LSN {lsn} to arrive, last_record_lsn {} \
             disk consistent LSN={}, WalReceiver status: {receiver_status}",
            self.source.last_record_lsn(),
            self.source.disk_consistent_lsn(),
        )))
    }

    async fn ask_receiver_status(&self, handler: &dyn Handler) -> String {
        let (answer, status) = oneshot::channel();
        handler.receiver_status(self.tenant_shard, self.id, answer);
        match tokio::time::timeout(STATUS_TIMEOUT, status).await {
            Ok(Ok(status)) => status,
            _ => "Not active".to_string(),
        }
    }
}

/// Notes the time of a long wait after 1 s, 11 s, 21 s, …
async fn note_while_waiting(timer: &WaitTimer<'_>) -> Infallible {
    let mut pause = Duration::from_secs(1);
    loop {
        tokio::time::sleep(pause).await;
        timer.note();
        pause = Duration::from_secs(10);
    }
}

static NEXT_CACHE_ID: AtomicU64 = AtomicU64::new(0);

struct CacheEntry {
    timeline: TimelineId,
    shard: ShardIndex,
    slot: Arc<Slot>,
}

/// Which shard of a timeline a request needs (spec 3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardSelector {
    Zero,
    Page(Key),
    Known(ShardIndex),
}

/// The timelines one connection has used.
pub struct HandleCache {
    id: u64,
    entries: Vec<CacheEntry>,
}

impl Default for HandleCache {
    fn default() -> Self {
        HandleCache { id: NEXT_CACHE_ID.fetch_add(1, Relaxed), entries: Vec::new() }
    }
}

impl HandleCache {
    /// The handle of the shard that the request needs, if it is cached and open. Closed entries met are removed.
    pub fn get(&mut self, timeline: TimelineId, selector: ShardSelector) -> Option<Handle> {
        let first = self.find(|entry| entry.timeline == timeline)?;
        let wanted = match selector {
            ShardSelector::Zero => ShardIndex { number: 0, count: first.identity.count },
            ShardSelector::Page(key) => ShardIndex { number: first.shard_of(&key), count: first.identity.count },
            ShardSelector::Known(shard) => shard,
        };
        if first.shard_index() == wanted {
            return Some(first);
        }
        drop(first);
        self.find(|entry| entry.timeline == timeline && entry.shard == wanted)
    }

    fn find(&mut self, is_wanted: impl Fn(&CacheEntry) -> bool) -> Option<Handle> {
        let mut i = 0;
        while let Some(entry) = self.entries.get(i) {
            if !is_wanted(entry) {
                i += 1;
                continue;
            }
            let open = lock(&entry.slot.open).clone();
            if open.is_some() {
                return open;
            }
            self.entries.swap_remove(i);
        }
        None
    }

    /// Enters the timeline's gate and remembers it; none if it is closed.
    pub fn insert(&mut self, timeline: &Arc<Timeline>) -> Option<Handle> {
        let handle = timeline.enter()?;
        let slot = Arc::new(Slot { open: Mutex::new(Some(Arc::clone(&handle))) });
        match lock(&timeline.slots).as_mut() {
            None => return None,
            Some(slots) => slots.insert(self.id, Arc::clone(&slot)),
        };
        self.entries.push(CacheEntry { timeline: timeline.id, shard: timeline.shard_index(), slot });
        Some(handle)
    }
}

impl Drop for HandleCache {
    fn drop(&mut self) {
        for entry in self.entries.drain(..) {
            let open = lock(&entry.slot.open).take();
            if let Some(open) = open {
                if let Some(slots) = lock(&open.timeline.slots).as_mut() {
                    slots.remove(&self.id);
                }
            }
        }
    }
}
