//! How fast WAL is taken, stage by stage: `wal_speed SEGMENT START_LSN MAJOR neon|stock [REPEATS]`.
//!
//! Prints one JSON line for each of: a copy of the bytes (the ceiling), framing with CRC, decoding, interpretation
//! into a buffer, ingest into a store that forgets. START_LSN is the first record's, in hexadecimal without a slash.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use pagecore::wal::{CheckPoint, DecodedRecord, Interpreter, StreamChecks, ValueSink, WalFramer};
use pagecore::{Flavour, Key, Lsn, RelTag, ShardIdentity, BLCKSZ};
use pagestore::ingest::{IngestSettings, IngestTarget, OpenLayerExtent, RareDetail, Step, WalIngest};
use pagestore::{StoreError, WriteBatch};

type AnyError = Box<dyn std::error::Error>;

const CHUNK: usize = 131_072;

#[derive(Default)]
struct Buffer {
    raw: Vec<u8>,
    entries: Vec<(Key, usize)>,
}

impl ValueSink for Buffer {
    fn put_image(&mut self, key: Key, _lsn: Lsn, page: &[u8; BLCKSZ]) {
        self.entries.push((key, self.raw.len()));
        pagecore::value::encode_image(&mut self.raw, page);
    }

    fn put_record(&mut self, key: Key, _lsn: Lsn, will_init: bool, record: &[u8]) {
        self.entries.push((key, self.raw.len()));
        pagecore::value::encode_postgres(&mut self.raw, will_init, record);
    }

    fn observe(&mut self, _key: Key, _lsn: Lsn) {}
}

/// Keeps nothing but sizes: what is measured is ingest itself.
struct Forgetful {
    interpreter: Interpreter,
    last: Mutex<Lsn>,
    sizes: Mutex<HashMap<RelTag, u32>>,
    bytes: Mutex<u64>,
}

impl Forgetful {
    fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl IngestTarget for Forgetful {
    fn shard(&self) -> ShardIdentity {
        self.interpreter.shard
    }

    fn major(&self) -> u8 {
        self.interpreter.major
    }

    fn flavour(&self) -> Flavour {
        self.interpreter.flavour
    }

    fn last_record_lsn(&self) -> Lsn {
        *Self::lock(&self.last)
    }

    fn get(&self, _key: Key, _lsn: Lsn) -> Result<Option<Bytes>, StoreError> {
        Ok(None)
    }

    fn get_pages(&self, keys: &[Key], _lsn: Lsn) -> Vec<Result<Bytes, StoreError>> {
        keys.iter().map(|_| Err(StoreError::Stopped)).collect()
    }

    fn rel_size(&self, rel: RelTag, _lsn: Lsn) -> Result<Option<u32>, StoreError> {
        Ok(Self::lock(&self.sizes).get(&rel).copied())
    }

    fn forget_uncommitted(&self) {}

    fn put(&self, batch: &WriteBatch) -> Result<(), StoreError> {
        *Self::lock(&self.bytes) += batch.raw.len() as u64;
        Ok(())
    }

    fn commit(&self, batch: &WriteBatch, record_lsns: &[Lsn]) -> Result<(), StoreError> {
        self.put(batch)?;
        if let Some(last) = record_lsns.last() {
            *Self::lock(&self.last) = *last;
        }
        Ok(())
    }

    fn note_rel_size(&self, rel: RelTag, _lsn: Lsn, blocks: u32) {
        Self::lock(&self.sizes).insert(rel, blocks);
    }

    fn note_rel_dropped(&self, rel: RelTag) {
        Self::lock(&self.sizes).remove(&rel);
    }

    fn note_database_dropped(&self, _spcnode: u32, _dbnode: u32) {}

    fn open_layer_extent(&self) -> Option<OpenLayerExtent> {
        None
    }
}

fn framer(interpreter: &Interpreter, start: Lsn) -> Result<WalFramer, AnyError> {
    Ok(WalFramer::new(interpreter.major, start, StreamChecks { system_identifier: None, check_prev: true })?)
}

/// Runs `stage` so often; the best run counts, since other work disturbs only upwards.
fn measure(
    name: &str,
    bytes: usize,
    repeats: u32,
    mut stage: impl FnMut() -> Result<u64, AnyError>,
) -> Result<(), AnyError> {
    let (mut best, mut count) = (f64::MAX, 0);
    for _ in 0..repeats {
        let start = Instant::now();
        count = stage()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let (rate, nanoseconds) = (bytes as f64 / best / 1e6, best * 1e9 / count.max(1) as f64);
    println!(
        "{{\"stage\": \"{name}\", \"mb_per_s\": {rate:.0}, \"records\": {count}, \"ns_per_record\": {nanoseconds:.0}}}"
    );
    Ok(())
}

fn each(
    interpreter: &Interpreter,
    start: Lsn,
    wal: &[u8],
    mut f: impl FnMut(Lsn, &[u8]) -> Result<(), AnyError>,
) -> Result<u64, AnyError> {
    let mut framer = framer(interpreter, start)?;
    let mut count = 0;
    for chunk in wal.chunks(CHUNK) {
        framer.feed(chunk);
        while let Some((lsn, record)) = framer.next_record()? {
            f(lsn, record)?;
            count += 1;
        }
    }
    Ok(count)
}

fn ingest(interpreter: Interpreter, start: Lsn, wal: &[u8]) -> Result<u64, AnyError> {
    let target =
        Arc::new(Forgetful { interpreter, last: Mutex::new(start), sizes: Mutex::default(), bytes: Mutex::default() });
    let settings = IngestSettings {
        start_lsn: start,
        checkpoint: CheckPoint([0; 88]),
        checks: StreamChecks::default(),
        tolerant_until: Lsn(0),
        checkpoint_distance: u64::MAX,
    };
    let mut ingest = WalIngest::new(target, settings)?;
    for chunk in wal.chunks(CHUNK) {
        ingest.feed(chunk);
        loop {
            match ingest.run()? {
                Step::NeedInput => break,
                Step::Roll => {}
                Step::Rare(rare) => {
                    if let RareDetail::RelationCreate { rel, .. } = rare.detail {
                        ingest.set_rel_size(rel, 0)?;
                    }
                }
            }
        }
    }
    Ok(ingest.records())
}

fn main() -> Result<(), AnyError> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, start, major, flavour, rest @ ..] = &args[..] else {
        return Err("usage: wal_speed SEGMENT START_LSN MAJOR neon|stock [REPEATS]".into());
    };
    let start = Lsn(u64::from_str_radix(start, 16)?);
    let flavour = if flavour == "stock" { Flavour::Stock } else { Flavour::Neon };
    let interpreter = Interpreter { major: major.parse()?, flavour, shard: ShardIdentity::UNSHARDED };
    let repeats = rest.first().map_or(Ok(5), |n| n.parse())?;
    let segment = std::fs::read(path)?;
    let wal = &segment[start.segment_offset() as usize..];
    let mut copy = Vec::with_capacity(wal.len());
    measure("copy", wal.len(), repeats, || {
        copy.clear();
        copy.extend_from_slice(std::hint::black_box(wal));
        Ok(1)
    })?;
    measure("frame", wal.len(), repeats, || each(&interpreter, start, wal, |_, _| Ok(())))?;
    measure("decode", wal.len(), repeats, || {
        each(&interpreter, start, wal, |_, bytes| {
            std::hint::black_box(DecodedRecord::decode(interpreter.major, bytes)?);
            Ok(())
        })
    })?;
    let mut buffer = Buffer::default();
    measure("interpret", wal.len(), repeats, || {
        each(&interpreter, start, wal, |lsn, bytes| {
            let record = DecodedRecord::decode(interpreter.major, bytes)?;
            std::hint::black_box(interpreter.interpret(lsn, bytes, &record, &mut buffer)?);
            if buffer.raw.len() > 1 << 20 {
                buffer.raw.clear();
                buffer.entries.clear();
            }
            Ok(())
        })
    })?;
    measure("ingest", wal.len(), repeats, || ingest(interpreter, start, wal))
}
