//! How fast the engine is by itself: `store_speed DIRECTORY [VALUES]`.
//!
//! Prints one JSON line for each of: values into the open layer, a flush, pages out of an image layer (one by one and
//! 32 at a time), pages with a few records, a page with many records. Files are in the page cache.

use std::sync::Arc;
use std::time::Instant;

use pagecore::layer::Compression;
use pagecore::value::{encode_postgres, Record, Value};
use pagecore::{Flavour, Key, Lsn, RelTag, ShardIdentity, SlruKind, BLCKSZ};
use pagestore::image_layer::{ImageLayerPlan, Piece};
use pagestore::{Caches, TimelineConfig, TimelineStore, WriteBatch};

type AnyError = Box<dyn std::error::Error>;

const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16384, forknum: 0 };
const PAGES: u32 = 40_000;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Time on the wall, and on the CPU of this thread: the latter is hardly disturbed by other work on the machine.
struct Clock(Instant, f64);

impl Clock {
    fn cpu() -> f64 {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        text.split_whitespace().next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
    }

    fn start() -> Clock {
        Clock(Instant::now(), Clock::cpu())
    }

    /// Seconds on the wall and on the CPU.
    fn stop(&self) -> (f64, f64) {
        (self.0.elapsed().as_secs_f64(), Clock::cpu() - self.1)
    }
}

fn peak_rss_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM"));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn main() -> Result<(), AnyError> {
    let mut args = std::env::args().skip(1);
    let directory = std::path::PathBuf::from(args.next().ok_or("which directory?")?);
    let values: u64 = args.next().map_or(Ok(2_000_000), |n| n.parse())?;
    let store = TimelineStore::new(TimelineConfig {
        directory,
        tenant_id: [1; 16],
        timeline_id: [2; 16],
        shard: ShardIdentity::UNSHARDED,
        pg_version: 16,
        flavour: Flavour::Stock,
        hint_bits_logged: false,
        data_checksums: false,
        last_record_lsn: Lsn(0x10),
        prev_record_lsn: Lsn(0),
        disk_consistent_lsn: Lsn(0x10),
        gc_cutoff: Lsn(0),
        next_open_layer_at: Lsn(0x11),
        ancestor: None,
        ancestor_lsn: Lsn(0),
        redo: None,
        caches: Arc::new(Caches::new(64 << 20, 64 << 20, 0)),
        fetch: None,
    })?;
    let mut random = Random(42);

    // A page that compresses to about half, as pages of pgbench do.
    for compression in [Compression::Disabled, Compression::Zstd(Some(1))] {
        let lsn = if compression == Compression::Disabled { Lsn(0x10) } else { Lsn(0x18) };
        store.advance(lsn)?;
        let mut pages = Vec::new();
        for _ in 0..64 {
            let mut page = vec![0u8; BLCKSZ];
            page.iter_mut().step_by(2).for_each(|b| *b = random.below(256) as u8);
            pages.push(page);
        }
        let keys = Key::MIN..Key::MAX;
        let plan = ImageLayerPlan { keys, lsn, generation: None, compression };
        let started = Clock::start();
        let pieces =
            (0..PAGES).map(|n| Piece::Bytes { key: Key::rel_block(REL, n), value: &pages[n as usize % pages.len()] });
        store.write_image_layer(&plan, pieces)?;
        let (write, _) = started.stop();
        for batch in [1usize, 32] {
            let reads = 100_000 / batch;
            let started = Clock::start();
            for _ in 0..reads {
                let keys: Vec<_> =
                    (0..batch).map(|_| (Key::rel_block(REL, random.below(u64::from(PAGES)) as u32), lsn)).collect();
                for page in store.get_vectored(&keys) {
                    assert_eq!(page?.len(), BLCKSZ);
                }
            }
            let (wall, cpu) = started.stop();
            let pages = (reads * batch) as f64;
            println!(
                "{{\"what\":\"image\",\"compression\":\"{compression}\",\"batch\":{batch},\"micros_per_page\":{:.2},\"cpu_micros_per_page\":{:.2},\"layer_write_mb_per_s\":{:.0}}}",
                wall * 1e6 / pages,
                cpu * 1e6 / pages,
                f64::from(PAGES) * BLCKSZ as f64 / 1e6 / write
            );
        }
    }

    // Records of 100 bytes for random pages, 100 in a commit.
    let mut batch = WriteBatch::default();
    let mut encoded = Vec::new();
    encode_postgres(&mut encoded, false, &[7; 100]);
    let first = 0x20;
    let mut lsn = first;
    let started = Clock::start();
    for _ in 0..values / 100 {
        batch.clear();
        let mut lsns = Vec::with_capacity(100);
        for _ in 0..100 {
            lsn += 120;
            let block = random.below(u64::from(PAGES) * 10) as u32;
            batch.push(Key::rel_block(RelTag { relnode: 20000, ..REL }, block), Lsn(lsn), &encoded, false);
            lsns.push(Lsn(lsn));
        }
        store.commit(&batch, &lsns)?;
    }
    let (seconds, cpu) = started.stop();
    let mb = values as f64 * encoded.len() as f64 / 1e6;
    let (nanos, cpu_nanos) = (seconds * 1e9 / values as f64, cpu * 1e9 / values as f64);
    println!(
        "{{\"what\":\"append\",\"nanos_per_value\":{nanos:.0},\"cpu_nanos_per_value\":{cpu_nanos:.0},\"mb_per_s\":{:.0},\"peak_rss_mb\":{}}}",
        mb / seconds,
        peak_rss_mb()
    );
    store.freeze()?;
    let started = Clock::start();
    let written = store.flush_oldest(None)?.ok_or("nothing was frozen")?;
    let (seconds, cpu) = started.stop();
    println!(
        "{{\"what\":\"flush\",\"mb_per_s\":{:.0},\"seconds\":{seconds:.2},\"cpu_seconds\":{cpu:.2},\"file_mb\":{},\"peak_rss_mb\":{}}}",
        mb / seconds,
        written.size / 1_000_000,
        peak_rss_mb()
    );

    // A hot page: many records, then more of them, with reads between.
    let key = Key::slru_block(SlruKind::Clog, 0, 0);
    store.put_images(Lsn(lsn + 8), [(key, &[0; BLCKSZ][..])])?;
    lsn += 8;
    for n in 0..30_000u32 {
        lsn += 8;
        batch.clear();
        let record = Value::Record(Record::ClogSetCommitted { xids: vec![n], timestamp: 1 });
        batch.push(key, Lsn(lsn), &record.encode(), false);
        store.commit(&batch, &[Lsn(lsn)])?;
    }
    store.freeze()?;
    store.flush_oldest(None)?;
    for what in ["first read of 30000 records", "second read"] {
        let started = Clock::start();
        let page = store.get_page(key, Lsn(lsn))?;
        let (wall, cpu) = started.stop();
        let (micros, cpu_micros) = (wall * 1e6, cpu * 1e6);
        println!(
            "{{\"what\":\"{what}\",\"micros\":{micros:.1},\"cpu_micros\":{cpu_micros:.1},\"replayed\":{}}}",
            page.replayed
        );
    }
    Ok(())
}
