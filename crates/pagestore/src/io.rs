//! Which bytes to read for a set of blobs: neighbours share one read (spec read-path-compaction-gc.md 4.3).

/// Reads start and end at multiples of this.
pub const CHUNK: u64 = 512;
/// No read that joins several blobs is longer (`max_vectored_read_bytes`).
pub const READ_BYTES_MAX: u64 = 133_120;

/// One read and the blobs, by their place in the input, that it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub start: u64,
    pub end: u64,
    pub blobs: std::ops::Range<usize>,
}

/// Joins blobs `start..end`, which must be sorted by start, into reads.
pub fn plan_reads(blobs: &[(u64, u64)]) -> Vec<Read> {
    let mut reads: Vec<Read> = Vec::new();
    for (i, (start, end)) in blobs.iter().enumerate() {
        let (start, end) = (start / CHUNK * CHUNK, end.next_multiple_of(CHUNK));
        match reads.last_mut() {
            Some(read) if start <= read.end && end.max(read.end) - read.start <= READ_BYTES_MAX => {
                read.end = read.end.max(end);
                read.blobs.end = i + 1;
            }
            _ => reads.push(Read { start, end, blobs: i..i + 1 }),
        }
    }
    reads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_read() {
        let reads = plan_reads(&[(100, 700), (1100, 1500), (2600, 2700)]);
        assert_eq!(reads, [Read { start: 0, end: 1536, blobs: 0..2 }, Read { start: 2560, end: 3072, blobs: 2..3 }]);
    }

    #[test]
    fn joined_reads_are_bounded_and_one_large_blob_is_read_alone() {
        let blobs: Vec<_> = (0..40).map(|i| (i * 8196, (i + 1) * 8196)).collect();
        let reads = plan_reads(&blobs);
        assert!(reads.iter().all(|r| r.end - r.start <= READ_BYTES_MAX));
        assert_eq!(reads.iter().map(|r| r.blobs.len()).sum::<usize>(), 40);
        assert!(reads.len() <= 3);
        assert_eq!(plan_reads(&[(0, 1_000_000)]), [Read { start: 0, end: 1_000_448, blobs: 0..1 }]);
    }
}
