//! A page service whose source copies one page: what the service itself costs, to compare with `pagebench-echo`.
//!
//! `cargo run --release -p pageserve --example memcpy_server -- 127.0.0.1:64002` serves tenant and timeline `11…11`.
use std::sync::Arc;

use bytes::Bytes;
use pagecore::{Key, Lsn, RelTag, ShardIdentity, SlruKind, BLCKSZ};
use pageserve::error::QueryError;
use pageserve::handler::{BackupRequest, BackupSink, Handler, LeaseAnswer, LogLevel};
use pageserve::ids::{ShardIndex, TenantId, TenantShardId, TimelineId};
use pageserve::registry::{Registry, ShardState};
use pageserve::service::{PageService, ServiceConfig};
use pageserve::source::{PageSource, ReadAt, ReadError};
use tokio::sync::oneshot;

const BLOCKS: u32 = 80_000;

struct OnePage(Vec<u8>);

impl PageSource for OnePage {
    fn last_record_lsn(&self) -> Lsn {
        Lsn(0x2000)
    }

    fn disk_consistent_lsn(&self) -> Lsn {
        Lsn(0x2000)
    }

    fn gc_cutoff(&self) -> Lsn {
        Lsn(0x1000)
    }

    fn on_lsn(&self, lsn: Lsn, wake: Box<dyn FnOnce() + Send>) {
        if lsn <= self.last_record_lsn() {
            wake();
        }
    }

    fn rel_exists(&self, _rel: RelTag, _at: ReadAt) -> Result<bool, ReadError> {
        Ok(true)
    }

    fn rel_size(&self, _rel: RelTag, _at: ReadAt) -> Result<Option<u32>, ReadError> {
        Ok(Some(BLOCKS))
    }

    fn db_size(&self, _spcnode: u32, _dbnode: u32, _at: ReadAt) -> Result<u64, ReadError> {
        Ok(u64::from(BLOCKS))
    }

    fn slru_segment(&self, _kind: SlruKind, _segno: u32, _at: ReadAt) -> Result<Vec<Bytes>, ReadError> {
        Err(ReadError::Failed("there are no SLRU segments here".to_string()))
    }

    fn get_pages(&self, keys: &[(Key, Lsn)], pages: &mut Vec<Result<Bytes, ReadError>>) {
        pages.extend(keys.iter().map(|_| Ok(Bytes::copy_from_slice(&self.0))));
    }
}

struct Refuse;

impl Handler for Refuse {
    fn backup(&self, _request: BackupRequest, sink: BackupSink) {
        tokio::spawn(async move { sink.fail(QueryError::Other("no backups here".to_string())).await });
    }

    fn lease(&self, _shard: TenantShardId, _timeline: TimelineId, _lsn: Lsn, answer: LeaseAnswer) {
        let _ = answer.send(Ok(None)); // the client may be gone
    }

    fn activate(&self, _shard: TenantShardId) {}

    fn receiver_status(&self, _: TenantShardId, _: TimelineId, _: oneshot::Sender<String>) {}

    fn log(&self, level: LogLevel, text: &str) {
        eprintln!("{level:?}: {text}");
    }
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:64002".to_string());
    let address = address.parse().map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let registry = Arc::new(Registry::default());
        let shard = TenantShardId { tenant: TenantId([0x11; 16]), shard: ShardIndex::UNSHARDED };
        registry.set_shard(shard, ShardIdentity::UNSHARDED, ShardState::Active);
        registry.attach_timeline(shard, TimelineId([0x11; 16]), Arc::new(OnePage(vec![0x5a; BLCKSZ])));
        let service = PageService::start(ServiceConfig::new(address), registry, Arc::new(Refuse), Arc::default())?;
        println!("{}", service.local_addr());
        std::future::pending().await
    })
}
