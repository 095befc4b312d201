//! What reads cost, counted (spec metrics.md 3.5). Pages that come from the page cache pass through no layer and are
//! not counted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of layers visited per read, over all timelines.
pub const LAYERS_BOUNDS: [u64; 11] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];
/// Upper bounds of layers visited per read of one timeline.
pub const TIMELINE_LAYERS_BOUNDS: [u64; 7] = [4, 8, 16, 32, 64, 128, 256];
/// Upper bounds of records applied per page.
pub const DELTAS_BOUNDS: [u64; 10] = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256];

/// How often a number was at or below each bound; one place more for what lies above the last.
pub struct Counted {
    bounds: &'static [u64],
    places: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Counted {
    pub fn new(bounds: &'static [u64]) -> Counted {
        Counted { bounds, places: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) }
    }

    /// Counts `number` for each of `times` observations.
    pub fn observe(&self, number: u64, times: u64) {
        let place = self.bounds.partition_point(|bound| *bound < number);
        self.places[place].fetch_add(times, Relaxed);
        self.sum.fetch_add(number * times, Relaxed);
    }

    /// Counts `whole / parts` for each of the parts; the sum is exact.
    fn observe_shared(&self, whole: u64, parts: u64) {
        let place = self.bounds.partition_point(|bound| bound * parts < whole);
        self.places[place].fetch_add(parts, Relaxed);
        self.sum.fetch_add(whole, Relaxed);
    }

    /// Bounds, counts (one more, not cumulative), sum.
    pub fn snapshot(&self) -> (&'static [u64], Vec<u64>, u64) {
        (self.bounds, self.places.iter().map(|place| place.load(Relaxed)).collect(), self.sum.load(Relaxed))
    }
}

/// Of all timelines of the process.
pub struct ReadStats {
    pub layers: Counted,
    pub layers_of_batch: Counted,
    pub layers_amortized: Counted,
    pub deltas: Counted,
}

impl Default for ReadStats {
    fn default() -> Self {
        ReadStats {
            layers: Counted::new(&LAYERS_BOUNDS),
            layers_of_batch: Counted::new(&LAYERS_BOUNDS),
            layers_amortized: Counted::new(&LAYERS_BOUNDS),
            deltas: Counted::new(&DELTAS_BOUNDS),
        }
    }
}

impl ReadStats {
    /// A batch of `reads` keys visited `layers` layers together: all of them count for each read.
    pub fn batch(&self, of_timeline: &Counted, layers: u64, reads: u64) {
        if reads > 0 {
            self.layers.observe(layers, reads);
            of_timeline.observe(layers, reads);
            self.layers_of_batch.observe(layers, 1);
            self.layers_amortized.observe_shared(layers, reads);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_layers_of_a_batch_count_for_each_of_its_reads() {
        let (stats, timeline) = (ReadStats::default(), Counted::new(&TIMELINE_LAYERS_BOUNDS));
        stats.batch(&timeline, 5, 2);
        stats.batch(&timeline, 9, 0);
        assert_eq!(timeline.snapshot(), (&TIMELINE_LAYERS_BOUNDS[..], vec![0, 2, 0, 0, 0, 0, 0, 0], 10));
        let counts = |counted: &Counted| counted.snapshot().1[..5].to_vec();
        assert_eq!((counts(&stats.layers), stats.layers.snapshot().2), (vec![0, 0, 0, 2, 0], 10));
        assert_eq!((counts(&stats.layers_of_batch), stats.layers_of_batch.snapshot().2), (vec![0, 0, 0, 1, 0], 5));
        // 2.5 layers for each.
        assert_eq!((counts(&stats.layers_amortized), stats.layers_amortized.snapshot().2), (vec![0, 0, 2, 0, 0], 5));
    }

    #[test]
    fn a_number_on_a_bound_belongs_to_it_and_large_ones_to_the_end() {
        let counted = Counted::new(&DELTAS_BOUNDS);
        for number in [0, 1, 256, 257, 5000] {
            counted.observe(number, 1);
        }
        assert_eq!(counted.snapshot().1, [1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    }
}
