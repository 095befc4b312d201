//! What the tests of this crate share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A directory that is removed with its owner.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pagestore-test-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A small, seeded generator of numbers (xorshift).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A new, unsharded timeline of a stock PostgreSQL 16 whose last record ends at `lsn`.
pub fn store_config(dir: &TempDir, lsn: u64) -> crate::TimelineConfig {
    use pagecore::Lsn;
    crate::TimelineConfig {
        directory: dir.path().to_path_buf(),
        tenant_id: [1; 16],
        timeline_id: [2; 16],
        shard: pagecore::ShardIdentity::UNSHARDED,
        pg_version: 16,
        flavour: pagecore::Flavour::Stock,
        hint_bits_logged: false,
        data_checksums: false,
        last_record_lsn: Lsn(lsn),
        prev_record_lsn: Lsn(0),
        disk_consistent_lsn: Lsn(lsn),
        gc_cutoff: Lsn(0),
        next_open_layer_at: Lsn(lsn + 1),
        ancestor: None,
        ancestor_lsn: Lsn(0),
        redo: None,
        caches: std::sync::Arc::new(crate::Caches::new(1 << 20, 1 << 20, 2 << 20)),
        fetch: None,
    }
}
