//! Which layer to read next for a key (spec read-path-compaction-gc.md 2).
//!
//! A `LayerMap` is an immutable snapshot: the open layer, the frozen ones, and an index over all layer files. A change
//! makes a new snapshot, so searches never wait for one another.
//!
//! The index answers: of the layers that contain a key and start at or below an LSN, which ends last? All borders of
//! layers cut the key space into pieces; a segment tree over the pieces holds each layer at O(log n) nodes, and each
//! node its layers by start LSN with the running winner. One search looks at the nodes from a leaf to the root.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use pagecore::layer::LayerName;
use pagecore::{Key, Lsn};

use crate::error::StoreError;
use crate::inmemory::InMemoryLayer;
use crate::layer_file::LayerFile;

/// A layer that was chosen to be read.
#[derive(Clone)]
pub enum Layer {
    Memory(Arc<InMemoryLayer>),
    File(Arc<LayerFile>),
}

impl Layer {
    /// Equal for the same layer only.
    pub fn id(&self) -> u64 {
        match self {
            // Addresses are even; ids of files are made odd.
            Layer::Memory(layer) => Arc::as_ptr(layer) as u64,
            Layer::File(file) => file.id() << 1 | 1,
        }
    }

    pub fn is_image(&self) -> bool {
        matches!(self, Layer::File(file) if !file.name().is_delta())
    }
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Layer::Memory(layer) => write!(f, "inmem-{:016X}-{:016X}", layer.start().0, layer.end().0),
            Layer::File(file) => write!(f, "{}", file.name()),
        }
    }
}

/// The next step of a search: read `layer` in the LSNs `floor..below`, then go on below `floor`.
pub struct Step {
    pub layer: Layer,
    pub floor: Lsn,
}

/// The layers at one node of the segment tree, by start.
#[derive(Default)]
struct Bucket {
    starts: Vec<Lsn>,
    /// At i: the layer with the largest end among those at 0..=i; of equal ends the first.
    winners: Vec<u32>,
}

/// Layers of one kind.
struct Coverage {
    layers: Vec<Arc<LayerFile>>,
    borders: Vec<Key>,
    /// Leaves are at `leaves..`, the children of i at 2i and 2i + 1.
    nodes: Vec<Bucket>,
    leaves: usize,
}

impl Coverage {
    /// `layers` must be in the order of insertion that breaks ties.
    fn build(layers: Vec<Arc<LayerFile>>) -> Coverage {
        let mut borders: Vec<Key> = layers.iter().flat_map(|l| [l.name().keys.start, l.name().keys.end]).collect();
        borders.sort_unstable();
        borders.dedup();
        let leaves = borders.len().next_power_of_two().max(1);
        let mut nodes = Vec::new();
        nodes.resize_with(2 * leaves, Bucket::default);
        let mut coverage = Coverage { layers, borders, nodes, leaves };
        for i in 0..coverage.layers.len() {
            coverage.insert(i as u32);
        }
        coverage
    }

    fn end_of(&self, i: u32) -> Lsn {
        self.layers[i as usize].name().lsns.end
    }

    fn insert(&mut self, i: u32) {
        let name = self.layers[i as usize].name();
        let start = name.lsns.start;
        let mut low = self.leaves + self.borders.partition_point(|b| *b < name.keys.start);
        let mut high = self.leaves + self.borders.partition_point(|b| *b < name.keys.end);
        while low < high {
            if low % 2 == 1 {
                self.add_to(low, i, start);
                low += 1;
            }
            if high % 2 == 1 {
                high -= 1;
                self.add_to(high, i, start);
            }
            low /= 2;
            high /= 2;
        }
    }

    fn add_to(&mut self, node: usize, i: u32, start: Lsn) {
        let winner = match self.nodes[node].winners.last() {
            Some(&old) if self.end_of(old) >= self.end_of(i) => old,
            _ => i,
        };
        let bucket = &mut self.nodes[node];
        if bucket.starts.last() == Some(&start) {
            if let Some(last) = bucket.winners.last_mut() {
                *last = winner;
            }
        } else {
            bucket.starts.push(start);
            bucket.winners.push(winner);
        }
    }

    /// The number of the piece that holds `key`; none before the first border.
    fn piece(&self, key: &Key) -> Option<usize> {
        self.borders.partition_point(|b| b <= key).checked_sub(1)
    }

    /// The layer over a piece that starts at or below `at` and ends last.
    fn latest_in(&self, piece: usize, at: Lsn) -> Option<u32> {
        let mut best: Option<u32> = None;
        let mut node = self.leaves + piece;
        while node > 0 {
            let bucket = &self.nodes[node];
            let n = bucket.starts.partition_point(|s| *s <= at);
            if n > 0 {
                let candidate = bucket.winners[n - 1];
                let better = match best {
                    None => true,
                    Some(best) => {
                        (self.end_of(candidate), std::cmp::Reverse(candidate))
                            > (self.end_of(best), std::cmp::Reverse(best))
                    }
                };
                if better {
                    best = Some(candidate);
                }
            }
            node /= 2;
        }
        best
    }

    fn latest(&self, key: &Key, at: Lsn) -> Option<&Arc<LayerFile>> {
        self.latest_in(self.piece(key)?, at).map(|i| &self.layers[i as usize])
    }
}

/// All layer files of a timeline.
pub struct Historic {
    /// In the order (LSN start, LSN end, key start, key end, images last).
    by_name: BTreeMap<LayerName, Arc<LayerFile>>,
    /// Built by the first search, so that changes without searches between them cost little.
    index: OnceLock<Index>,
    l0_count: usize,
}

struct Index {
    deltas: Coverage,
    images: Coverage,
}

impl Historic {
    fn new(by_name: BTreeMap<LayerName, Arc<LayerFile>>) -> Historic {
        let l0_count = by_name.keys().filter(|name| name.is_l0()).count();
        Historic { by_name, index: OnceLock::new(), l0_count }
    }

    fn index(&self) -> &Index {
        self.index.get_or_init(|| {
            let mut layers: Vec<Arc<LayerFile>> = self.by_name.values().cloned().collect();
            layers.sort_by_key(|l| {
                let name = l.name();
                (name.lsns.start, name.lsns.end, name.keys.start, name.keys.end)
            });
            let (deltas, images) = layers.into_iter().partition(|l| l.name().is_delta());
            Index { deltas: Coverage::build(deltas), images: Coverage::build(images) }
        })
    }

    pub fn layers(&self) -> impl Iterator<Item = &Arc<LayerFile>> {
        self.by_name.values()
    }

    pub fn get(&self, name: &LayerName) -> Option<&Arc<LayerFile>> {
        self.by_name.get(name)
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub fn l0_count(&self) -> usize {
        self.l0_count
    }

    /// The latest delta and the latest image that contain `key` and start at or below `at`.
    pub fn latest(&self, key: &Key, at: Lsn) -> (Option<&Arc<LayerFile>>, Option<&Arc<LayerFile>>) {
        let index = self.index();
        (index.deltas.latest(key, at), index.images.latest(key, at))
    }

    /// The first key above `key` at which the answer of `latest` may change.
    fn next_border(&self, key: &Key) -> Option<Key> {
        let next = |c: &Coverage| c.borders.get(c.borders.partition_point(|b| b <= key)).copied();
        let index = self.index();
        match (next(&index.deltas), next(&index.images)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The pieces of a range with the latest image at or below `at`, or none (2.4).
    pub fn image_coverage(&self, range: &Range<Key>, at: Lsn) -> Vec<(Range<Key>, Option<Arc<LayerFile>>)> {
        let mut out: Vec<(Range<Key>, Option<Arc<LayerFile>>)> = Vec::new();
        let mut from = range.start;
        while from < range.end {
            let to = self.next_border(&from).map_or(range.end, |b| b.min(range.end));
            let image = self.index().images.latest(&from, at).cloned();
            match out.last_mut() {
                Some((keys, last)) if last.as_ref().map(|l| l.id()) == image.as_ref().map(|l| l.id()) => keys.end = to,
                _ => out.push((from..to, image)),
            }
            from = to;
        }
        out
    }
}

/// A snapshot of all layers of one timeline.
#[derive(Clone)]
pub struct LayerMap {
    pub open: Option<Arc<InMemoryLayer>>,
    /// Oldest first.
    pub frozen: Vec<Arc<InMemoryLayer>>,
    pub historic: Arc<Historic>,
}

/// What is known of a candidate for the choice of 2.2: where it starts and ends.
type Span = (Lsn, Lsn);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Winner {
    Delta,
    Image,
    Memory,
}

/// The table of 2.2. Spans are start and exclusive end; for an image `lsn` and `lsn + 1`. Returns the floor as well.
/// What a layer holds at or above `below` does not count, so spans are cut there: every floor is below `below`.
fn choose(delta: Option<Span>, image: Option<Span>, memory: Option<Span>, below: Lsn) -> Option<(Winner, Lsn)> {
    let cut = |span: Option<Span>| span.map(|(start, end)| (start, end.min(below)));
    let (delta, memory) = (cut(delta), cut(memory));
    let file = match (delta, image) {
        (None, None) => None,
        (None, Some(i)) => Some((Winner::Image, i, i.0)),
        (Some(d), None) => Some((Winner::Delta, d, d.0)),
        (Some(d), Some(i)) if i.1 >= d.1 => Some((Winner::Image, i, i.0)),
        (Some(d), Some(i)) => Some((Winner::Delta, d, d.0.max(i.1))),
    };
    let Some(m) = memory else { return file.map(|(winner, _, floor)| (winner, floor)) };
    Some(match file {
        None => (Winner::Memory, m.0),
        Some((winner, span, floor)) if span.1 >= m.1 => (winner, floor),
        Some((_, span, _)) => (Winner::Memory, m.0.max(span.1)),
    })
}

impl Default for LayerMap {
    fn default() -> Self {
        LayerMap { open: None, frozen: Vec::new(), historic: Arc::new(Historic::new(BTreeMap::new())) }
    }
}

impl LayerMap {
    /// The next layer to read for `key`, whose values are wanted below `below`; none if there is nothing older.
    pub fn search(&self, key: &Key, below: Lsn) -> Option<Step> {
        let at = Lsn(below.0.checked_sub(1)?);
        let memory = self.memory_below(below);
        let (delta, image) = self.historic.latest(key, at);
        let span = |l: &Arc<LayerFile>| (l.name().lsns.start, l.name().lsns.end);
        let memory_span = memory.map(|m| (m.start(), m.end()));
        let (winner, floor) = choose(delta.map(span), image.map(span), memory_span, below)?;
        let layer = match winner {
            Winner::Memory => Layer::Memory(Arc::clone(memory?)),
            Winner::Delta => Layer::File(Arc::clone(delta?)),
            Winner::Image => Layer::File(Arc::clone(image?)),
        };
        Some(Step { layer, floor })
    }

    fn memory_below(&self, below: Lsn) -> Option<&Arc<InMemoryLayer>> {
        self.open
            .as_ref()
            .filter(|l| l.start() < below)
            .or_else(|| self.frozen.iter().rev().find(|l| l.start() < below))
    }

    /// Cuts a range into pieces with one next layer each; pieces without any are left out (2.3).
    pub fn search_range(&self, range: &Range<Key>, below: Lsn) -> Vec<(Range<Key>, Step)> {
        let mut out: Vec<(Range<Key>, Step)> = Vec::new();
        let mut from = range.start;
        while from < range.end {
            let to = self.historic.next_border(&from).map_or(range.end, |b| b.min(range.end));
            if let Some(step) = self.search(&from, below) {
                match out.last_mut() {
                    Some((keys, last))
                        if keys.end == from && last.layer.id() == step.layer.id() && last.floor == step.floor =>
                    {
                        keys.end = to
                    }
                    _ => out.push((from..to, step)),
                }
            }
            from = to;
        }
        out
    }

    /// The same map with other layer files. A name that is there already is an error.
    pub fn with_files(
        &self,
        add: impl IntoIterator<Item = Arc<LayerFile>>,
        remove: &[LayerName],
    ) -> Result<LayerMap, StoreError> {
        let mut by_name = self.historic.by_name.clone();
        for name in remove {
            if by_name.remove(name).is_none() {
                return Err(StoreError::Invalid(format!("layer {name} is not in the layer map")));
            }
        }
        for layer in add {
            let name = layer.name().clone();
            if by_name.insert(name.clone(), layer).is_some() {
                return Err(StoreError::Exists { path: name.to_string() });
            }
        }
        let historic = Arc::new(Historic::new(by_name));
        Ok(LayerMap { open: self.open.clone(), frozen: self.frozen.clone(), historic })
    }
}

#[cfg(test)]
#[path = "layer_map_tests.rs"]
mod tests;
