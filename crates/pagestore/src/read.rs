//! Reads: from keys and LSNs to pages (spec read-path-compaction-gc.md 1, 3, 4).
//!
//! ```text
//! plan      fringe of (layer, LSNs) steps, newest first, over this timeline and its ancestors; only indexes are read
//! fetch     the bytes of all planned values, neighbours joined
//! replay    each key on its own
//! ```
//! An error of one key, or of one layer, fails the keys that need it and no others.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pagecore::value::Value;
use pagecore::{Key, Lsn};
use smallvec::SmallVec;

use crate::error::StoreError;
use crate::inmemory::Found;
use crate::io::plan_reads;
use crate::layer_file::Extent;
use crate::layer_map::{Layer, LayerMap};
use crate::page_cache::{KnownPage, REPLAYED_RECORDS_MIN};
use crate::reconstruct::{reconstruct, starts_from_zeros, Collected, Page};
use crate::source::WalOrigin;
use crate::timeline::TimelineStore;

/// How long a read waits for an ancestor to reach the branch point.
const ANCESTOR_WAIT: Duration = Duration::from_secs(60);

/// One value that the plan asks for.
struct Part {
    lsn: Lsn,
    is_plain_image: bool,
    /// Place in `Plan::sources`.
    source: u32,
    start: u64,
    end: u64,
    bytes: Option<Bytes>,
}

/// The search for one key.
struct Search {
    key: Key,
    /// As asked.
    lsn: Lsn,
    /// Exclusive: what this search may see of the timeline it is in. Falls with every branch point on the way down.
    top: Lsn,
    /// Exclusive: what is at or above is collected already.
    below: Lsn,
    /// A page that an earlier read left; nothing is looked for up to where it is known to be the newest.
    base: Option<KnownPage>,
    /// Newest first.
    parts: Vec<Part>,
    state: State,
}

enum State {
    Open,
    Complete,
    /// An image layer covers the key and does not hold it: it does not exist, here or in an ancestor.
    Covered,
    Failed(StoreError),
}

impl Search {
    fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// The lowest LSN still of interest in a step that starts at `floor`.
    fn floor(&self, floor: Lsn) -> Lsn {
        self.base.as_ref().map_or(floor, |base| floor.max(base.open_from()))
    }
}

/// Which pages stay in the page cache.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// Those that took many records: for readers that pass over everything once.
    Costly,
    /// All: what a client asked for it may ask for again.
    All,
}

/// What a read did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadCost {
    pub layers: usize,
    /// Of these: all but image layers.
    pub delta_layers: usize,
}

/// A step of the fringe: everything with the same layer and LSNs is read at once.
type FringeKey = (Reverse<Lsn>, Lsn, u64);

#[derive(Default)]
struct Plan {
    searches: Vec<Search>,
    sources: Vec<Layer>,
    layers_visited: usize,
}

impl Plan {
    /// Places a search at its next step, or ends it.
    fn place(&mut self, i: usize, map: &LayerMap, fringe: &mut BTreeMap<FringeKey, (Layer, Vec<usize>)>) {
        let search = &mut self.searches[i];
        let open_from = search.base.as_ref().map(KnownPage::open_from);
        let Some(step) = map.search(&search.key, search.below) else {
            // Nothing older here; a base page, from here or from an ancestor, is then the end.
            return;
        };
        if let Some(open_from) = open_from {
            let layer_end = match &step.layer {
                Layer::Memory(layer) => layer.end(),
                Layer::File(file) => file.name().lsns.end,
            };
            if layer_end.min(search.below) <= open_from {
                search.state = State::Complete;
                return;
            }
        }
        let at = (Reverse(search.below), step.floor, step.layer.id());
        fringe.entry(at).or_insert_with(|| (step.layer, Vec::new())).1.push(i);
    }

    /// Searches the layers of one timeline.
    fn visit(&mut self, store: &TimelineStore, open: &[usize]) {
        let map = store.map();
        let mut fringe = BTreeMap::new();
        for i in open {
            let search = &mut self.searches[*i];
            let at = Lsn(search.below.0 - 1);
            if let Some(page) = store.caches.pages.get(store.id, &search.key, at) {
                if search.base.as_ref().is_none_or(|base| base.lsn < page.lsn) {
                    search.base = Some(page);
                }
            }
            self.place(*i, &map, &mut fringe);
        }
        while let Some(((Reverse(below), floor, _), (layer, members))) = fringe.pop_first() {
            self.layers_visited += 1;
            let source = self.sources.len() as u32;
            for i in members {
                let search = &mut self.searches[i];
                if let Err(e) = read_step(search, &layer, source, floor, below) {
                    search.state = State::Failed(e);
                }
                if search.is_open() {
                    search.below = floor;
                    self.place(i, &map, &mut fringe);
                }
            }
            self.sources.push(layer);
        }
    }

    /// Walks over this timeline and its ancestors until nothing is open.
    fn walk(&mut self, store: &TimelineStore) {
        let mut timeline = store;
        loop {
            let open: Vec<usize> = (0..self.searches.len()).filter(|i| self.searches[*i].is_open()).collect();
            if open.is_empty() {
                return;
            }
            self.visit(timeline, &open);
            let Some(ancestor) = &timeline.ancestor else { return };
            let branch_end = Lsn(timeline.ancestor_lsn.0.saturating_add(1));
            let mut any = false;
            for search in self.searches.iter_mut().filter(|s| s.is_open()) {
                search.top = search.top.min(branch_end);
                search.below = search.top;
                let done_by_base = search.base.as_ref().is_some_and(|base| search.below <= base.open_from());
                if done_by_base {
                    search.state = State::Complete;
                } else if search.key.is_inherited() {
                    any = true;
                } else {
                    search.state = State::Covered;
                }
            }
            if !any {
                return;
            }
            if let Err(e) = wait_for_ancestor(ancestor, timeline.ancestor_lsn) {
                for search in self.searches.iter_mut().filter(|s| s.is_open()) {
                    search.state = State::Failed(e.clone());
                }
                return;
            }
            timeline = ancestor;
        }
    }

    /// Reads the bytes of all parts that are not in memory.
    fn fetch(&mut self) {
        let mut wanted: Vec<(u32, u64, u64, usize, usize)> = Vec::new();
        for (i, search) in self.searches.iter().enumerate() {
            if matches!(search.state, State::Failed(_)) {
                continue;
            }
            for (p, part) in search.parts.iter().enumerate() {
                if part.bytes.is_none() {
                    wanted.push((part.source, part.start, part.end, i, p));
                }
            }
        }
        if wanted.len() > 1 {
            wanted.sort_unstable();
        }
        for of_source in wanted.chunk_by(|a, b| a.0 == b.0) {
            let source = &self.sources[of_source[0].0 as usize];
            let blobs: Vec<(u64, u64)> = of_source.iter().map(|w| (w.1, w.2)).collect();
            for read in plan_reads(&blobs) {
                let buffer = read_range(source, read.start, read.end);
                for (_, start, end, i, p) in &of_source[read.blobs.clone()] {
                    let bytes = buffer.clone().and_then(|buffer| {
                        let blob = buffer.slice((start - read.start) as usize..(end - read.start) as usize);
                        match source {
                            Layer::Memory(_) => Ok(blob),
                            Layer::File(file) => file.decode_blob(&blob),
                        }
                    });
                    let search = &mut self.searches[*i];
                    let bytes = bytes.and_then(|bytes| {
                        if let (Layer::File(file), false) = (source, search.parts[*p].is_plain_image) {
                            file.decode_value(&search.key, search.parts[*p].lsn, &bytes)?;
                        }
                        Ok(bytes)
                    });
                    match bytes {
                        Ok(bytes) => search.parts[*p].bytes = Some(bytes),
                        Err(e) => search.state = State::Failed(e),
                    }
                }
            }
        }
    }
}

/// Reads planned bytes; the plan rounds up to whole chunks, which may lie beyond the end of what is there.
fn read_range(source: &Layer, start: u64, end: u64) -> Result<Bytes, StoreError> {
    match source {
        Layer::Memory(layer) => {
            let mut buffer = vec![0; (end.min(layer.size()) - start) as usize];
            layer.read_at(&mut buffer, start)?;
            Ok(Bytes::from(buffer))
        }
        Layer::File(file) => {
            let mut buffer = vec![0; (end.min(file.size()) - start) as usize];
            file.read_exact(&mut buffer, start)?;
            Ok(Bytes::from(buffer))
        }
    }
}

/// Collects what one layer has for one key in `floor..below`.
fn read_step(search: &mut Search, layer: &Layer, source: u32, floor: Lsn, below: Lsn) -> Result<(), StoreError> {
    let lsns = search.floor(floor)..below;
    let part = |extent: Extent, is_plain_image| Part {
        lsn: extent.lsn,
        is_plain_image,
        source,
        start: extent.start,
        end: extent.end,
        bytes: None,
    };
    let complete = match layer {
        Layer::Memory(layer) => {
            let mut found: Vec<Found> = Vec::new();
            let complete = layer.find(&search.key, lsns, &mut found);
            search.parts.extend(found.into_iter().map(|f| Part {
                lsn: f.stored.lsn,
                is_plain_image: false,
                source,
                start: f.stored.position,
                end: f.stored.position + u64::from(f.stored.len),
                bytes: f.bytes,
            }));
            complete
        }
        Layer::File(file) if file.name().is_delta() => {
            let mut extents = Vec::new();
            let complete = file.find_deltas(&search.key, &lsns, &mut extents)?;
            search.parts.extend(extents.into_iter().rev().map(|e| part(e, false)));
            complete
        }
        Layer::File(file) => match file.find_image(&search.key)? {
            Some(extent) => {
                search.parts.push(part(extent, true));
                true
            }
            None => {
                search.state = State::Covered;
                return Ok(());
            }
        },
    };
    if complete {
        search.base = None;
        search.state = State::Complete;
    }
    Ok(())
}

fn wait_for_ancestor(ancestor: &TimelineStore, lsn: Lsn) -> Result<(), StoreError> {
    ancestor.check_running()?;
    match ancestor.wait_lsn(lsn, Instant::now() + ANCESTOR_WAIT)? {
        true => Ok(()),
        false => Err(StoreError::LsnTimeout { lsn, last_record_lsn: ancestor.last_record_lsn() }),
    }
}

impl TimelineStore {
    /// The value of `key` as of `lsn`, inclusive.
    pub fn get(&self, key: Key, lsn: Lsn) -> Result<Bytes, StoreError> {
        self.get_page(key, lsn).map(|page| page.bytes)
    }

    /// Like `get`, with the LSN of the last change.
    pub fn get_page(&self, key: Key, lsn: Lsn) -> Result<Page, StoreError> {
        match self.read_pages(&[(key, lsn)]).pop() {
            Some(result) => result,
            None => Err(StoreError::Invalid("read without a result".into())),
        }
    }

    /// One result for each key, in order.
    pub fn get_vectored(&self, keys: &[(Key, Lsn)]) -> Vec<Result<Bytes, StoreError>> {
        self.read_pages(keys).into_iter().map(|page| page.map(|p| p.bytes)).collect()
    }

    pub fn read_pages(&self, keys: &[(Key, Lsn)]) -> Vec<Result<Page, StoreError>> {
        self.read_and_keep(keys, Keep::Costly).0
    }

    /// Like `get`, with what it cost.
    pub fn get_with_cost(&self, key: Key, lsn: Lsn) -> Result<(Bytes, ReadCost), StoreError> {
        let (mut pages, cost) = self.read_and_keep(&[(key, lsn)], Keep::Costly);
        match pages.pop() {
            Some(page) => page.map(|page| (page.bytes, cost)),
            None => Err(StoreError::Invalid("read without a result".into())),
        }
    }

    /// Like `get_vectored`, for clients: pages are taken from the page cache if they are there, and stay in it. Hands
    /// one result for each key to `each`, in order.
    pub fn serve_pages(&self, keys: &[(Key, Lsn)], mut each: impl FnMut(Result<Bytes, StoreError>)) {
        if self.is_stopped() {
            return keys.iter().for_each(|_| each(Err(StoreError::Stopped)));
        }
        let mut found: SmallVec<[Option<Bytes>; 32]> = SmallVec::new();
        self.caches.pages.get_current(self.id, keys, |page| found.push(page));
        let missing = |((key, lsn), page): (&(Key, Lsn), &Option<Bytes>)| page.is_none().then_some((*key, *lsn));
        let missing: SmallVec<[(Key, Lsn); 32]> = keys.iter().zip(&found).filter_map(missing).collect();
        if missing.is_empty() {
            return found.into_iter().flatten().for_each(|page| each(Ok(page)));
        }
        let mut read = self.read_and_keep(&missing, Keep::All).0.into_iter();
        for page in found {
            let lost = || Err(StoreError::Invalid("read without a result".into()));
            each(page.map_or_else(|| read.next().unwrap_or_else(lost).map(|page| page.bytes), Ok));
        }
    }

    fn read_and_keep(&self, keys: &[(Key, Lsn)], keep: Keep) -> (Vec<Result<Page, StoreError>>, ReadCost) {
        let stopped = self.is_stopped();
        // Before anything is looked for: what comes above it may be found for one key and missed for another.
        let last = self.last_record_lsn();
        let search = |(key, lsn): &(Key, Lsn)| Search {
            key: *key,
            lsn: *lsn,
            top: Lsn(lsn.0.saturating_add(1)),
            below: Lsn(lsn.0.saturating_add(1)),
            base: None,
            parts: Vec::new(),
            state: match (stopped, lsn.0) {
                (true, _) => State::Failed(StoreError::Stopped),
                (false, 0) => State::Failed(StoreError::InvalidLsn),
                (false, _) => State::Open,
            },
        };
        let mut plan = Plan { searches: keys.iter().map(search).collect(), ..Plan::default() };
        plan.walk(self);
        let delta_layers = plan.sources.iter().filter(|layer| !layer.is_image()).count();
        let cost = ReadCost { layers: plan.layers_visited, delta_layers };
        self.caches.reads.batch(&self.layers_per_read, cost.layers as u64, keys.len() as u64);
        plan.fetch();
        let origin = self.origin();
        let finish = |search| self.finish(search, &origin, last, keep);
        (plan.searches.into_iter().map(finish).collect(), cost)
    }

    fn finish(&self, search: Search, origin: &WalOrigin, last: Lsn, keep: Keep) -> Result<Page, StoreError> {
        let context = &origin.contexts(self.pg_version);
        let Search { key, lsn, base, parts, state, .. } = search;
        match state {
            State::Failed(e) => return Err(e),
            State::Covered if parts.is_empty() || !starts_from_zeros(context, &key) => {
                return Err(self.missing(key, lsn));
            }
            // The end of the layers: whatever was found must do, and without anything the key does not exist.
            State::Open if base.is_none() && parts.is_empty() => return Err(self.missing(key, lsn)),
            State::Open | State::Complete | State::Covered => {}
        }
        let mut collected = Vec::with_capacity(parts.len());
        for part in parts {
            let Some(bytes) = part.bytes else {
                return Err(StoreError::Invalid(format!("value of key {key} at {} was not read", part.lsn)));
            };
            collected.push(Collected { lsn: part.lsn, is_plain_image: part.is_plain_image, bytes });
        }
        let is_from_cache = collected.is_empty();
        let base = base.map(|base| (base.lsn, base.bytes));
        let page = reconstruct(context, origin.redo.as_deref(), key, lsn, base, &collected)?;
        self.caches.reads.deltas.observe(page.replayed as u64, 1);
        if lsn > last {
            return Ok(page);
        }
        if is_from_cache {
            self.caches.pages.confirm(self.id, key, page.lsn, lsn);
        } else if page.replayed > REPLAYED_RECORDS_MIN || keep == Keep::All {
            self.caches.pages.insert(self.id, key, &page, lsn);
        }
        Ok(page)
    }

    fn missing(&self, key: Key, lsn: Lsn) -> StoreError {
        StoreError::MissingKey {
            key,
            shard: self.shard.number,
            lsn,
            ancestor_lsn: self.ancestor.as_ref().map(|_| self.ancestor_lsn),
            detail: String::new(),
        }
    }

    /// What exists in a range of the sparse keyspace at `lsn`, in key order. Empty values are tombstones.
    pub fn scan(&self, range: Range<Key>, lsn: Lsn) -> Result<Vec<(Key, Bytes)>, StoreError> {
        self.check_running()?;
        if lsn == Lsn::INVALID {
            return Err(StoreError::InvalidLsn);
        }
        if range.start < Key::SPARSE_START || range.end > Key::SPARSE_END {
            return Err(StoreError::NotSparse);
        }
        let mut found: HashMap<Key, Bytes> = HashMap::new();
        let mut ranges = vec![range];
        let mut timeline = self;
        let mut below = Lsn(lsn.0.saturating_add(1));
        loop {
            ranges = timeline.scan_layers(ranges, below, &mut found)?;
            let Some(ancestor) = &timeline.ancestor else { break };
            ranges = ranges.into_iter().flat_map(inherited).collect();
            if ranges.is_empty() {
                break;
            }
            wait_for_ancestor(ancestor, timeline.ancestor_lsn)?;
            below = below.min(Lsn(timeline.ancestor_lsn.0.saturating_add(1)));
            timeline = ancestor;
        }
        let mut out: Vec<(Key, Bytes)> = found.into_iter().collect();
        out.sort_unstable_by_key(|(key, _)| *key);
        Ok(out)
    }

    /// Follows ranges to the bottom of this timeline. Returns the pieces that no image layer covers.
    fn scan_layers(
        &self,
        ranges: Vec<Range<Key>>,
        below: Lsn,
        found: &mut HashMap<Key, Bytes>,
    ) -> Result<Vec<Range<Key>>, StoreError> {
        let map = self.map();
        let mut uncovered = Vec::new();
        let mut pending: Vec<(Range<Key>, Lsn)> = ranges.into_iter().map(|r| (r, below)).collect();
        // A piece is followed down before its neighbours, so each key meets its newest value first.
        while let Some((range, below)) = pending.pop() {
            let mut from = range.start;
            for (piece, step) in map.search_range(&range, below) {
                if from < piece.start {
                    uncovered.push(from..piece.start);
                }
                from = piece.end;
                scan_layer(&step.layer, &piece, step.floor..below, found)?;
                if !step.layer.is_image() {
                    pending.push((piece, step.floor));
                }
            }
            if from < range.end {
                uncovered.push(from..range.end);
            }
        }
        Ok(uncovered)
    }
}

/// The parts of a sparse range that a branch sees in its ancestor: not aux files, not replication origins.
fn inherited(range: Range<Key>) -> Vec<Range<Key>> {
    let (first, last) = (Key { field1: 0x62, ..Key::MIN }, Key { field1: 0x64, ..Key::MIN });
    let parts = [range.start..range.end.min(first), range.start.max(last)..range.end];
    parts.into_iter().filter(|r| r.start < r.end).collect()
}

fn scan_layer(
    layer: &Layer,
    keys: &Range<Key>,
    lsns: Range<Lsn>,
    found: &mut HashMap<Key, Bytes>,
) -> Result<(), StoreError> {
    match layer {
        Layer::Memory(memory) => {
            for key in memory.sparse_keys(keys) {
                if found.contains_key(&key) {
                    continue;
                }
                let mut values = Vec::new();
                memory.find(&key, lsns.clone(), &mut values);
                if let Some(Found { stored, bytes }) = values.into_iter().next() {
                    let bytes = match bytes {
                        Some(bytes) => bytes,
                        None => {
                            let mut buffer = vec![0; stored.len as usize];
                            memory.read_at(&mut buffer, stored.position)?;
                            Bytes::from(buffer)
                        }
                    };
                    found.insert(key, image_of(key, stored.lsn, &bytes)?);
                }
            }
        }
        Layer::File(file) => {
            let mut newest: Vec<(Key, Extent)> = Vec::new();
            file.for_each_entry(keys, |key, extent| {
                if lsns.contains(&extent.lsn) && !found.contains_key(&key) {
                    match newest.last_mut() {
                        Some((last, e)) if *last == key => *e = extent,
                        _ => newest.push((key, extent)),
                    }
                }
                Ok(true)
            })?;
            for (key, extent) in newest {
                let blob = file.read_blob(&extent)?;
                let image = if file.name().is_delta() { image_of(key, extent.lsn, &blob)? } else { blob };
                found.insert(key, image);
            }
        }
    }
    Ok(())
}

/// Values of the sparse keyspace are always images.
fn image_of(key: Key, lsn: Lsn, value: &Bytes) -> Result<Bytes, StoreError> {
    match Value::decode(value) {
        Ok(Value::Image(image)) => Ok(value.slice(value.len() - image.len()..)),
        Ok(Value::Record(_)) => {
            Err(StoreError::CorruptValue { key, lsn, detail: "a record in the sparse keyspace".into() })
        }
        Err(e) => Err(StoreError::CorruptValue { key, lsn, detail: e.to_string() }),
    }
}

/// Kept for those who hold a store weakly: a strong handle, unless the timeline is gone or stopping.
pub fn upgrade(store: &std::sync::Weak<TimelineStore>) -> Result<Arc<TimelineStore>, StoreError> {
    let store = store.upgrade().ok_or(StoreError::Stopped)?;
    store.check_running()?;
    Ok(store)
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
