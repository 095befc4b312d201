//! One timeline's storage: its layers, its LSNs, the writer's side. Reads are in `read.rs`, flushing in `flush.rs`.
//!
//! What is where: values come in through `commit` (or `put_batch` and `advance`) into the open layer; `freeze` ends
//! it; `flush_oldest` writes the oldest frozen layer to a file and swaps it in the map. When any of this happens is
//! decided elsewhere. A store is shared as an `Arc`; whoever serves slow clients holds a `Weak`.
//!
//! Invariants: `disk_consistent_lsn <= last_record_lsn`, both only grow; values above `last_record_lsn` are invisible to
//! clients, who never ask above it; the open layer starts where the last frozen one ended.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use pagecore::layer::LayerName;
use pagecore::{Flavour, Key, Lsn, ShardIdentity};

use crate::cache::{lock, read, write};
use crate::error::StoreError;
use crate::inmemory::{InMemoryLayer, WriteBatch};
use crate::layer_file::{Caches, LayerFetch, LayerFile};
use crate::layer_map::LayerMap;
use crate::layer_writer::{LayerHome, WrittenLayer};
use crate::read_stats::{Counted, TIMELINE_LAYERS_BOUNDS};
use crate::redo::RedoProcess;
use crate::rel_size::RelSizeCache;
use crate::source::{GapList, WalOrigin};

/// Everything a store is made from. Lifecycle and policy stay with the caller.
pub struct TimelineConfig {
    /// Where layer files and ephemeral files are.
    pub directory: PathBuf,
    pub tenant_id: [u8; 16],
    pub timeline_id: [u8; 16],
    pub shard: ShardIdentity,
    /// PostgreSQL's major version, 14 to 18.
    pub pg_version: u8,
    pub flavour: Flavour,
    pub hint_bits_logged: bool,
    pub data_checksums: bool,
    pub last_record_lsn: Lsn,
    pub prev_record_lsn: Lsn,
    pub disk_consistent_lsn: Lsn,
    pub gc_cutoff: Lsn,
    /// Start of the first open layer: disk_consistent_lsn + 1 after a load, the timeline's start when it is new.
    pub next_open_layer_at: Lsn,
    pub ancestor: Option<Arc<TimelineStore>>,
    pub ancestor_lsn: Lsn,
    pub redo: Option<Arc<dyn RedoProcess>>,
    pub caches: Arc<Caches>,
    /// Where layers come from that are not on this disk; none if all are.
    pub fetch: Option<Arc<dyn LayerFetch>>,
}

/// How long a freeze waits for the end of a record that is being written, and how often it looks.
const COMMIT_WAIT: Duration = Duration::from_secs(10);
const COMMIT_POLL: Duration = Duration::from_millis(2);

#[derive(Clone, Copy)]
struct RecordLsns {
    last: Lsn,
    prev: Lsn,
}

type Waker = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Waiters {
    next: u64,
    by_lsn: BTreeMap<(Lsn, u64), Waker>,
}

/// What the holder of the writer lock may change.
struct WriterState {
    next_open_layer_at: Lsn,
}

/// The open layer, as `pageserver` wants to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenLayerInfo {
    pub size_bytes: u64,
    pub lsn_start: Lsn,
    pub age: Duration,
}

pub struct TimelineStore {
    /// Unique in the process; key of the page cache.
    pub(crate) id: u64,
    pub(crate) home: LayerHome,
    pub(crate) shard: ShardIdentity,
    pub(crate) pg_version: u8,
    /// What its records and pages are like; changes when another source is set.
    origin: RwLock<Arc<WalOrigin>>,
    gaps: GapList,
    map: RwLock<Arc<LayerMap>>,
    /// Held while a new map is made from the old one.
    map_change: Mutex<()>,
    record_lsns: Mutex<RecordLsns>,
    last: AtomicU64,
    disk_consistent: AtomicU64,
    gc_cutoff: AtomicU64,
    /// From here on the second form of relation directory decides; `u64::MAX`: nowhere.
    reldir_v2_from: AtomicU64,
    waiters: Mutex<Waiters>,
    /// Lowest LSN somebody waits for, so that `advance` need not look into `waiters`.
    lowest_waited: AtomicU64,
    writer: Mutex<WriterState>,
    pub(crate) flush_lock: Mutex<()>,
    pub(crate) ancestor: Option<Arc<TimelineStore>>,
    pub(crate) ancestor_lsn: Lsn,
    pub(crate) caches: Arc<Caches>,
    fetch: Option<Arc<dyn LayerFetch>>,
    pub(crate) rel_sizes: RelSizeCache,
    /// Layers visited per read.
    pub layers_per_read: Counted,
    stopped: AtomicBool,
}

/// The right to write: nothing is frozen between the calls of one holder.
pub struct Writer<'a> {
    store: &'a TimelineStore,
    state: MutexGuard<'a, WriterState>,
}

impl TimelineStore {
    pub fn new(config: TimelineConfig) -> Result<Arc<TimelineStore>, StoreError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        if !(14..=18).contains(&config.pg_version) {
            return Err(StoreError::Invalid(format!("PostgreSQL {} is not supported", config.pg_version)));
        }
        Ok(Arc::new(TimelineStore {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            home: LayerHome {
                directory: config.directory,
                tenant_id: config.tenant_id,
                timeline_id: config.timeline_id,
            },
            shard: config.shard,
            pg_version: config.pg_version,
            origin: RwLock::new(Arc::new(WalOrigin {
                flavour: config.flavour,
                neon_until: Lsn::INVALID,
                hint_bits_logged: config.hint_bits_logged,
                data_checksums: config.data_checksums,
                redo: config.redo,
            })),
            gaps: GapList::default(),
            map: RwLock::new(Arc::new(LayerMap::default())),
            map_change: Mutex::new(()),
            record_lsns: Mutex::new(RecordLsns { last: config.last_record_lsn, prev: config.prev_record_lsn }),
            last: AtomicU64::new(config.last_record_lsn.0),
            disk_consistent: AtomicU64::new(config.disk_consistent_lsn.0),
            gc_cutoff: AtomicU64::new(config.gc_cutoff.0),
            reldir_v2_from: AtomicU64::new(u64::MAX),
            waiters: Mutex::default(),
            lowest_waited: AtomicU64::new(u64::MAX),
            writer: Mutex::new(WriterState { next_open_layer_at: config.next_open_layer_at }),
            flush_lock: Mutex::new(()),
            ancestor: config.ancestor,
            ancestor_lsn: config.ancestor_lsn,
            caches: config.caches,
            fetch: config.fetch,
            rel_sizes: RelSizeCache::new(),
            layers_per_read: Counted::new(&TIMELINE_LAYERS_BOUNDS),
            stopped: AtomicBool::new(false),
        }))
    }

    // LSNs

    /// End of the last record whose values are readable.
    pub fn last_record_lsn(&self) -> Lsn {
        Lsn(self.last.load(Ordering::Acquire))
    }

    /// The one before `last_record_lsn`.
    pub fn prev_record_lsn(&self) -> Lsn {
        lock(&self.record_lsns).prev
    }

    /// Last and previous record LSN of one moment.
    pub fn record_lsns(&self) -> (Lsn, Lsn) {
        let lsns = *lock(&self.record_lsns);
        (lsns.last, lsns.prev)
    }

    /// Everything up to here is in layer files.
    pub fn disk_consistent_lsn(&self) -> Lsn {
        Lsn(self.disk_consistent.load(Ordering::Acquire))
    }

    /// Moves it forward; it never goes back.
    pub fn set_disk_consistent_lsn(&self, lsn: Lsn) {
        self.disk_consistent.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// The applied cutoff: whoever serves clients refuses reads below it.
    pub fn gc_cutoff(&self) -> Lsn {
        Lsn(self.gc_cutoff.load(Ordering::Acquire))
    }

    /// Refuses all reads until `release_reads`: a base copy is not consistent yet, and only WAL will tell from where.
    pub fn hold_reads(&self) {
        self.gc_cutoff.store(u64::MAX, Ordering::Release);
    }

    /// Ends `hold_reads`: reads from `cutoff` on are legal.
    pub fn release_reads(&self, cutoff: Lsn) {
        self.gc_cutoff.store(cutoff.0, Ordering::Release);
    }

    pub fn set_gc_cutoff(&self, lsn: Lsn) {
        self.gc_cutoff.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// Has the second form of relation directory decide what exists, for reads from `lsn` on (spec keyspace.md 5.12).
    pub fn set_reldir_v2_from(&self, lsn: Lsn) {
        self.reldir_v2_from.store(lsn.0, Ordering::Release);
    }

    pub(crate) fn reads_reldir_v2(&self, lsn: Lsn) -> bool {
        let from = self.reldir_v2_from.load(Ordering::Acquire);
        from != u64::MAX && lsn.0 >= from
    }

    pub fn flavour(&self) -> Flavour {
        self.origin().flavour
    }

    /// What its records and pages are like.
    pub fn origin(&self) -> Arc<WalOrigin> {
        Arc::clone(&read(&self.origin))
    }

    /// Another source feeds the timeline from now on. Ingest must not be running.
    pub fn set_origin(&self, origin: WalOrigin) {
        *write(&self.origin) = Arc::new(origin);
    }

    /// Where nothing can be read, since the WAL of that time never came.
    pub fn gaps(&self) -> &GapList {
        &self.gaps
    }

    pub fn pg_version(&self) -> u8 {
        self.pg_version
    }

    pub fn data_checksums(&self) -> bool {
        self.origin().data_checksums
    }

    pub fn shard(&self) -> ShardIdentity {
        self.shard
    }

    pub fn ancestor_lsn(&self) -> Lsn {
        self.ancestor_lsn
    }

    // Waiting

    /// Calls `wake` once `last_record_lsn >= lsn`, at once if that holds. Drops it uncalled at shutdown.
    pub fn on_lsn(&self, lsn: Lsn, wake: Waker) {
        if self.last_record_lsn() >= lsn {
            return wake();
        }
        if self.is_stopped() {
            return;
        }
        {
            let mut waiters = lock(&self.waiters);
            let number = waiters.next;
            waiters.next += 1;
            waiters.by_lsn.insert((lsn, number), wake);
            self.lowest_waited.fetch_min(lsn.0, Ordering::SeqCst);
        }
        // The record may have come, or the end, between the look above and the entry into the list.
        self.wake_waiters();
    }

    fn wake_waiters(&self) {
        let stopped = self.is_stopped();
        let last = self.last.load(Ordering::SeqCst);
        if !stopped && last < self.lowest_waited.load(Ordering::SeqCst) {
            return;
        }
        let mut ready = Vec::new();
        let dropped;
        {
            let mut waiters = lock(&self.waiters);
            let later = waiters.by_lsn.split_off(&(Lsn(last.saturating_add(1)), 0));
            ready.extend(std::mem::replace(&mut waiters.by_lsn, later).into_values());
            dropped = if stopped { std::mem::take(&mut waiters.by_lsn) } else { BTreeMap::new() };
            let lowest = waiters.by_lsn.keys().next().map_or(u64::MAX, |(lsn, _)| lsn.0);
            self.lowest_waited.store(lowest, Ordering::SeqCst);
        }
        drop(dropped);
        ready.into_iter().for_each(|wake| wake());
    }

    /// Blocks until `last_record_lsn >= lsn`; false at the deadline, an error at shutdown.
    pub fn wait_lsn(&self, lsn: Lsn, deadline: Instant) -> Result<bool, StoreError> {
        if self.last_record_lsn() >= lsn {
            return Ok(true);
        }
        /// Tells the waiter that its waker was dropped, called or not.
        struct Signal(Arc<(Mutex<bool>, Condvar)>);
        impl Drop for Signal {
            fn drop(&mut self) {
                *lock(&self.0 .0) = true;
                self.0 .1.notify_all();
            }
        }
        let shared = Arc::new((Mutex::new(false), Condvar::new()));
        let signal = Signal(Arc::clone(&shared));
        self.on_lsn(lsn, Box::new(move || drop(signal)));
        let mut done = lock(&shared.0);
        while !*done {
            let Some(rest) = deadline.checked_duration_since(Instant::now()) else { return Ok(false) };
            done = shared.1.wait_timeout(done, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
        match self.last_record_lsn() >= lsn {
            true => Ok(true),
            false => Err(StoreError::Stopped),
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Ends all waits; later writes and reads fail with `Stopped`.
    pub fn shutdown(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.wake_waiters();
    }

    pub(crate) fn check_running(&self) -> Result<(), StoreError> {
        match self.is_stopped() {
            true => Err(StoreError::Stopped),
            false => Ok(()),
        }
    }

    // Writing

    /// Takes the writer lock. WAL ingest holds it from the first value of a commit to the last `advance`.
    pub fn writer(&self) -> Writer<'_> {
        Writer { store: self, state: lock(&self.writer) }
    }

    /// Puts a batch and advances through the record LSNs, in order, as one step: it is never cut by a freeze.
    pub fn commit(&self, batch: &WriteBatch, record_lsns: &[Lsn]) -> Result<(), StoreError> {
        let mut writer = self.writer();
        writer.put_batch(batch)?;
        writer.advance_through(record_lsns)
    }

    /// Appends values to the open layer. They are for nobody's eyes before `advance`; prefer `commit`.
    pub fn put_batch(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.writer().put_batch(batch)
    }

    /// Makes everything up to `lsn` readable.
    pub fn advance(&self, lsn: Lsn) -> Result<(), StoreError> {
        self.writer().advance(lsn)
    }

    /// Puts images that do not come from WAL, all at one LSN, and advances to it if it is new.
    pub fn put_images<'a>(&self, lsn: Lsn, items: impl IntoIterator<Item = (Key, &'a [u8])>) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for (key, image) in items {
            batch.push_image(key, lsn, image);
        }
        let mut writer = self.writer();
        writer.put_batch(&batch)?;
        if lsn > self.last_record_lsn() {
            writer.advance(lsn)?;
        }
        Ok(())
    }

    /// Ends the open layer behind the last record. Returns its exclusive end; none if nothing is open. While the values
    /// of a record are half written, which lasts as long as one rare record, it waits; in vain, it is a time-out.
    pub fn freeze(&self) -> Result<Option<Lsn>, StoreError> {
        let deadline = Instant::now() + COMMIT_WAIT;
        loop {
            match self.writer().freeze() {
                Err(StoreError::LsnTimeout { .. }) if Instant::now() < deadline && !self.is_stopped() => {}
                result => return result,
            }
            std::thread::sleep(COMMIT_POLL);
        }
    }

    // Layers

    pub fn map(&self) -> Arc<LayerMap> {
        Arc::clone(&read(&self.map))
    }

    /// Replaces the map by what `change` makes of it.
    pub(crate) fn change_map<T>(
        &self,
        change: impl FnOnce(&LayerMap) -> Result<(LayerMap, T), StoreError>,
    ) -> Result<T, StoreError> {
        let _one_at_a_time = lock(&self.map_change);
        let old = self.map();
        let (new, out) = change(&old)?;
        *write(&self.map) = Arc::new(new);
        drop(old);
        Ok(out)
    }

    pub(crate) fn layer_file(&self, written: &WrittenLayer) -> Arc<LayerFile> {
        let tenant_id = self.home.tenant_id;
        let (caches, fetch) = (Arc::clone(&self.caches), self.fetch.clone());
        Arc::new(LayerFile::new(written.name.clone(), written.path.clone(), written.size, tenant_id, caches, fetch))
    }

    /// Adds complete files to the map. One that is there already with the same path and size stays as it is.
    pub fn add_layers(&self, layers: &[WrittenLayer]) -> Result<(), StoreError> {
        self.change_map(|map| {
            let is_new =
                |w: &&WrittenLayer| map.historic.get(&w.name).is_none_or(|l| l.path() != w.path || l.size() != w.size);
            let files: Vec<_> = layers.iter().filter(is_new).map(|w| self.layer_file(w)).collect();
            Ok((map.with_files(files, &[])?, ()))
        })
    }

    /// Takes files out of the map and, if asked, from the disk; searches that hold them go on.
    pub fn remove_layers(&self, names: &[LayerName], delete_files: bool) -> Result<(), StoreError> {
        let removed = self.change_map(|map| {
            let removed: Vec<_> = names.iter().filter_map(|n| map.historic.get(n).cloned()).collect();
            Ok((map.with_files([], names)?, removed))
        })?;
        if delete_files {
            removed.iter().try_for_each(|layer| layer.remove_file())?;
        }
        Ok(())
    }

    /// Removes the files of layers that can be fetched again; the layers stay in the map.
    pub fn evict_layers(&self, names: &[LayerName]) -> Result<(), StoreError> {
        let map = self.map();
        names.iter().try_for_each(|name| match map.historic.get(name) {
            Some(layer) => layer.evict(),
            None => Err(StoreError::NotFound(format!("layer {name} is not in the layer map"))),
        })
    }

    /// Takes out and puts in as one step: what compaction does at its end.
    pub fn replace_layers(&self, add: &[WrittenLayer], remove: &[LayerName]) -> Result<(), StoreError> {
        let files: Vec<_> = add.iter().map(|w| self.layer_file(w)).collect();
        self.change_map(|map| Ok((map.with_files(files, remove)?, ())))
    }

    pub fn open_layer(&self) -> Option<OpenLayerInfo> {
        self.map().open.as_ref().map(|layer| OpenLayerInfo {
            size_bytes: layer.size(),
            lsn_start: layer.start(),
            age: layer.opened_at().elapsed(),
        })
    }

    pub fn frozen_layers(&self) -> usize {
        self.map().frozen.len()
    }

    /// Sizes of relations as of the newest record, kept up by ingest.
    pub fn rel_size_cache(&self) -> &RelSizeCache {
        &self.rel_sizes
    }
}

fn next_ephemeral_number() -> u32 {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    COUNT.fetch_add(1, Ordering::Relaxed) as u32
}

impl Writer<'_> {
    fn open_layer(&mut self) -> Result<Arc<InMemoryLayer>, StoreError> {
        if let Some(open) = &self.store.map().open {
            return Ok(Arc::clone(open));
        }
        let path = self.store.home.directory.join(format!("ephemeral-{}", next_ephemeral_number()));
        let memory = Arc::clone(&self.store.caches.values);
        let open = Arc::new(InMemoryLayer::new(self.state.next_open_layer_at, path, Instant::now(), memory));
        self.store.change_map(|map| Ok((LayerMap { open: Some(Arc::clone(&open)), ..map.clone() }, ())))?;
        Ok(open)
    }

    /// Bytes of values in the open layer.
    pub fn open_layer_size(&self) -> u64 {
        self.store.map().open.as_ref().map_or(0, |l| l.size())
    }

    /// Goes on at `lsn`, where image layers of everything are in the map: what lies between here and the last record
    /// is a gap. Nothing may be open or frozen, and nobody may be in the middle of a record.
    pub fn resume_at(&mut self, lsn: Lsn) -> Result<(), StoreError> {
        let store = self.store;
        let map = store.map();
        if map.open.is_some() || !map.frozen.is_empty() {
            return Err(StoreError::Invalid(format!("cannot resume at {lsn}: what came before is not flushed")));
        }
        {
            let mut lsns = lock(&store.record_lsns);
            if lsn <= lsns.last {
                return Err(StoreError::Invalid(format!(
                    "cannot resume at {lsn}: the last record is at {}",
                    lsns.last
                )));
            }
            *lsns = RecordLsns { last: lsn, prev: Lsn::INVALID };
        }
        // Sizes that were the newest until now hold no longer.
        store.rel_sizes.clear();
        self.state.next_open_layer_at = Lsn(lsn.0 + 1);
        store.set_disk_consistent_lsn(lsn);
        store.last.store(lsn.0, Ordering::SeqCst);
        store.wake_waiters();
        Ok(())
    }

    pub fn put_batch(&mut self, batch: &WriteBatch) -> Result<(), StoreError> {
        self.store.check_running()?;
        if batch.is_empty() {
            return Ok(());
        }
        let last = self.store.last_record_lsn();
        if let Some(early) = batch.entries.iter().find(|e| e.lsn < last) {
            return Err(StoreError::Invalid(format!("write at lsn {} below the last record at {last}", early.lsn)));
        }
        self.open_layer()?.put(batch)
    }

    pub fn advance(&mut self, lsn: Lsn) -> Result<(), StoreError> {
        self.advance_through(&[lsn])
    }

    /// Passes the ends of records in order. One that is reached already is no step, one below it an error.
    pub fn advance_through(&mut self, record_lsns: &[Lsn]) -> Result<(), StoreError> {
        let store = self.store;
        let last = {
            let mut lsns = lock(&store.record_lsns);
            let mut new = *lsns;
            for lsn in record_lsns {
                match lsn.cmp(&new.last) {
                    std::cmp::Ordering::Less => {
                        return Err(StoreError::Invalid(format!("record at {lsn} after record at {}", new.last)))
                    }
                    std::cmp::Ordering::Equal => {}
                    std::cmp::Ordering::Greater => new = RecordLsns { last: *lsn, prev: new.last },
                }
            }
            *lsns = new;
            new.last
        };
        store.last.store(last.0, Ordering::SeqCst);
        if last.0 >= store.lowest_waited.load(Ordering::SeqCst) {
            store.wake_waiters();
        }
        Ok(())
    }

    /// Like the store's, without waiting: values above the last record are a time-out, since a layer that ended among
    /// the values of one record would leave no place for the rest of them.
    pub fn freeze(&mut self) -> Result<Option<Lsn>, StoreError> {
        let last = self.store.last_record_lsn();
        let end = self.store.change_map(|map| {
            let Some(open) = &map.open else { return Ok((map.clone(), None)) };
            if open.max_lsn() > last {
                return Err(StoreError::LsnTimeout { lsn: open.max_lsn(), last_record_lsn: last });
            }
            let end = Lsn(last.0 + 1);
            open.freeze(end)?;
            let mut frozen = map.frozen.clone();
            frozen.push(Arc::clone(open));
            Ok((LayerMap { open: None, frozen, historic: Arc::clone(&map.historic) }, Some(end)))
        })?;
        if let Some(end) = end {
            self.state.next_open_layer_at = end;
        }
        Ok(end)
    }
}

#[cfg(test)]
#[path = "timeline_tests.rs"]
mod tests;
