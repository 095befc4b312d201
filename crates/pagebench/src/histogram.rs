//! Latencies in nanoseconds, kept to about 1.6 %: 64 buckets for each power of two.

const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;
const BUCKETS: usize = ((64 - SUB_BITS as usize) + 1) << SUB_BITS;

pub struct Histogram {
    counts: Box<[u64]>,
    count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS].into_boxed_slice(), count: 0 }
    }
}

fn bucket(value: u64) -> usize {
    if value < SUB {
        return value as usize;
    }
    let shift = 63 - value.leading_zeros() - SUB_BITS;
    ((u64::from(shift + 1) << SUB_BITS) + (value >> shift) - SUB) as usize
}

/// The least value of a bucket.
fn value(bucket: usize) -> u64 {
    let (group, rest) = ((bucket >> SUB_BITS) as u32, bucket as u64 & (SUB - 1));
    match group {
        0 => rest,
        _ => (SUB + rest) << (group - 1),
    }
}

impl Histogram {
    pub fn add(&mut self, nanos: u64) {
        self.counts[bucket(nanos)] += 1;
        self.count += 1;
    }

    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.count += other.count;
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn quantile(&self, quantile: f64) -> u64 {
        let wanted = ((self.count as f64 * quantile).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (i, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return value(i);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact_within_a_bucket() {
        let mut histogram = Histogram::default();
        for nanos in 1..=10_000u64 {
            histogram.add(nanos);
        }
        for (quantile, want) in [(0.5, 5000.0), (0.99, 9900.0), (1.0, 10000.0)] {
            let got = histogram.quantile(quantile) as f64;
            assert!((got / want - 1.0).abs() < 0.017, "{quantile}: {got}");
        }
        for v in [0, 1, 63, 64, 65, 127, 128, 1 << 40, u64::MAX] {
            assert!(value(bucket(v)) <= v && bucket(v) < BUCKETS, "{v}");
        }
    }
}
