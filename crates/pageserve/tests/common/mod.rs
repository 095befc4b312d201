//! A page service on loopback with made-up data, and a client that says exactly what it is told to say.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use pagecore::{Key, Lsn, RelTag, ShardIdentity, SlruKind, BLCKSZ};
use pageserve::error::QueryError;
use pageserve::handler::{BackupRequest, BackupSink, Handler, LeaseAnswer, LogLevel};
use pageserve::ids::{ShardIndex, TenantId, TenantShardId, TimelineId};
use pageserve::metrics::{Metrics, Snapshot};
use pageserve::protocol::pagestream::{Answer, Body, Header, Request, Response, Version};
use pageserve::registry::{Registry, ResolveBudget, ShardState};
use pageserve::service::{PageService, ServiceConfig};
use pageserve::source::{PageSource, ReadAt, ReadError};
use pageserve::timeline::Timeline;
use tokio::sync::oneshot;

pub const TENANT: TenantId = TenantId([0x3d; 16]);
pub const TIMELINE: TimelineId = TimelineId([0x8c; 16]);
pub const REL: RelTag = RelTag { spcnode: 1663, dbnode: 5, relnode: 16396, forknum: 0 };
pub const BLOCKS: u32 = 1000;
pub const LAST: u64 = 0x2000;
pub const CUTOFF: u64 = 0x1000;

/// A page that tells which block at which LSN it is.
pub fn page(rel: RelTag, block: u32, lsn: Lsn) -> Vec<u8> {
    let mut page = vec![0; BLCKSZ];
    page[..18].copy_from_slice(&Key::rel_block(rel, block).to_bytes());
    page[18..26].copy_from_slice(&lsn.0.to_be_bytes());
    page
}

type Waker = (Lsn, Box<dyn FnOnce() + Send>);

/// One relation of 1000 blocks, without its free space and visibility map forks; one CLOG segment.
pub struct FakeSource {
    last: AtomicU64,
    cutoff: AtomicU64,
    wakers: Mutex<Vec<Waker>>,
    /// Keys whose reads fail; that of block 13 in redo.
    pub broken: Mutex<HashSet<Key>>,
    /// Sizes of the vectored reads so far.
    pub reads: Mutex<Vec<usize>>,
    paused: Mutex<bool>,
    resumed: Condvar,
    pub waiting_readers: AtomicU64,
}

impl FakeSource {
    pub fn new() -> Arc<FakeSource> {
        Arc::new(FakeSource {
            last: AtomicU64::new(LAST),
            cutoff: AtomicU64::new(CUTOFF),
            wakers: Mutex::default(),
            broken: Mutex::default(),
            reads: Mutex::default(),
            paused: Mutex::new(false),
            resumed: Condvar::new(),
            waiting_readers: AtomicU64::new(0),
        })
    }

    pub fn advance(&self, lsn: u64) {
        self.last.store(lsn, SeqCst);
        let wakers = std::mem::take(&mut *self.wakers.lock().unwrap());
        for (wanted, wake) in wakers {
            self.on_lsn(wanted, wake);
        }
    }

    /// As a store does on shutdown.
    pub fn drop_wakers(&self) {
        self.wakers.lock().unwrap().clear();
    }

    pub fn pause_reads(&self, paused: bool) {
        *self.paused.lock().unwrap() = paused;
        self.resumed.notify_all();
    }
}

impl PageSource for FakeSource {
    fn last_record_lsn(&self) -> Lsn {
        Lsn(self.last.load(SeqCst))
    }

    fn disk_consistent_lsn(&self) -> Lsn {
        Lsn(0x1800)
    }

    fn gc_cutoff(&self) -> Lsn {
        Lsn(self.cutoff.load(SeqCst))
    }

    fn on_lsn(&self, lsn: Lsn, wake: Box<dyn FnOnce() + Send>) {
        let mut wakers = self.wakers.lock().unwrap();
        if self.last_record_lsn() >= lsn {
            drop(wakers);
            wake();
        } else {
            wakers.push((lsn, wake));
        }
    }

    fn rel_exists(&self, rel: RelTag, _at: ReadAt) -> Result<bool, ReadError> {
        Ok(rel == REL)
    }

    fn rel_size(&self, rel: RelTag, _at: ReadAt) -> Result<Option<u32>, ReadError> {
        Ok((rel == REL).then_some(BLOCKS))
    }

    fn db_size(&self, spcnode: u32, dbnode: u32, _at: ReadAt) -> Result<u64, ReadError> {
        assert_eq!(spcnode, 1663);
        match dbnode {
            5 => Ok(u64::from(BLOCKS)),
            _ => Err(ReadError::Failed("no such database".to_string())),
        }
    }

    fn slru_segment(&self, kind: SlruKind, segno: u32, _at: ReadAt) -> Result<Vec<Bytes>, ReadError> {
        match (kind, segno) {
            (SlruKind::Clog, 0) => Ok(vec![Bytes::from(vec![1; BLCKSZ + 8]), Bytes::from(vec![2; BLCKSZ])]),
            _ => Err(ReadError::Failed("no such segment".to_string())),
        }
    }

    fn get_pages(&self, keys: &[(Key, Lsn)], pages: &mut Vec<Result<Bytes, ReadError>>) {
        self.reads.lock().unwrap().push(keys.len());
        self.waiting_readers.fetch_add(1, SeqCst);
        let mut paused = self.paused.lock().unwrap();
        while *paused {
            paused = self.resumed.wait(paused).unwrap();
        }
        drop(paused);
        self.waiting_readers.fetch_sub(1, SeqCst);
        let broken = self.broken.lock().unwrap();
        for (key, lsn) in keys {
            pages.push(match broken.contains(key) {
                true if key.field6 == 13 => Err(ReadError::Redo("cannot apply a record".to_string())),
                true => Err(ReadError::Failed("broken on purpose".to_string())),
                false => Ok(Bytes::from(page(key.rel_tag(), key.field6, *lsn))),
            });
        }
    }
}

/// Backups are what the test says; leases are granted above 0/100.
#[derive(Default)]
pub struct FakeHandler {
    pub backups: Mutex<Vec<BackupRequest>>,
    /// Chunks of the next backups, and how they end.
    pub archive: Mutex<(Vec<Bytes>, Option<QueryError>)>,
    /// Sinks of backups that the test itself wants to feed.
    pub sinks: Mutex<Vec<BackupSink>>,
    pub keep_sinks: Mutex<bool>,
    pub activated: Mutex<Vec<TenantShardId>>,
    pub log: Mutex<Vec<String>>,
}

impl Handler for FakeHandler {
    fn backup(&self, request: BackupRequest, sink: BackupSink) {
        self.backups.lock().unwrap().push(request);
        if *self.keep_sinks.lock().unwrap() {
            self.sinks.lock().unwrap().push(sink);
            return;
        }
        let (chunks, error) = self.archive.lock().unwrap().clone();
        tokio::spawn(async move {
            for chunk in chunks {
                if sink.write(chunk).await.is_err() {
                    return;
                }
            }
            let _ = match error {
                None => sink.finish().await,
                Some(error) => sink.fail(error).await,
            };
        });
    }

    fn lease(&self, _shard: TenantShardId, _timeline: TimelineId, lsn: Lsn, answer: LeaseAnswer) {
        let _ = answer.send(Ok((lsn.0 > 0x100).then_some(1735689600000)));
    }

    fn activate(&self, shard: TenantShardId) {
        self.activated.lock().unwrap().push(shard);
    }

    fn receiver_status(&self, _shard: TenantShardId, _timeline: TimelineId, answer: oneshot::Sender<String>) {
        let _ = answer.send("streaming from somewhere".to_string());
    }

    fn log(&self, _level: LogLevel, text: &str) {
        self.log.lock().unwrap().push(text.to_string());
    }
}

/// A service with one tenant, one timeline, unsharded.
pub struct World {
    pub runtime: tokio::runtime::Runtime,
    pub service: Option<PageService>,
    pub registry: Arc<Registry>,
    pub handler: Arc<FakeHandler>,
    pub source: Arc<FakeSource>,
    pub timeline: Arc<Timeline>,
    pub metrics: Arc<Metrics>,
}

pub fn shard(number: u8, count: u8) -> (TenantShardId, ShardIdentity) {
    (
        TenantShardId { tenant: TENANT, shard: ShardIndex { number, count } },
        ShardIdentity { number, count, stripe_size: 8 },
    )
}

impl World {
    pub fn new() -> World {
        World::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut ServiceConfig)) -> World {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let registry = Arc::new(Registry::default());
        let (id, identity) = shard(0, 0);
        registry.set_shard(id, identity, ShardState::Active);
        let source = FakeSource::new();
        let timeline = registry.attach_timeline(id, TIMELINE, source.clone()).unwrap();
        let handler = Arc::new(FakeHandler::default());
        let metrics = Arc::new(Metrics::default());
        let mut config = ServiceConfig::new("127.0.0.1:0".parse().unwrap());
        config.wait_lsn_timeout = Duration::from_millis(200);
        config.resolve =
            ResolveBudget { timeout: Duration::from_millis(50), attempts: 3, pause: Duration::from_millis(5) };
        change(&mut config);
        let service = {
            let _inside = runtime.enter();
            PageService::start(config, registry.clone(), handler.clone(), metrics.clone()).unwrap()
        };
        World { runtime, service: Some(service), registry, handler, source, timeline, metrics }
    }

    pub fn stop(&mut self) -> bool {
        let service = self.service.take().unwrap();
        self.runtime.block_on(service.stop(Duration::from_secs(5)))
    }

    pub fn raw(&self) -> Client {
        let stream = TcpStream::connect(self.service.as_ref().unwrap().local_addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream }
    }

    /// Logged in.
    pub fn client(&self) -> Client {
        let mut client = self.raw();
        client.log_in();
        client
    }

    pub fn page_stream(&self, version: Version) -> Client {
        let mut client = self.client();
        let number = if version == Version::V2 { 2 } else { 3 };
        client.query(&format!("pagestream_v{number} {TENANT} {TIMELINE}"));
        assert_eq!(client.message(), (b'W', vec![0, 0, 0]));
        client
    }

    pub fn snapshot(&self) -> Snapshot {
        self.metrics.snapshot()
    }

    /// What was started was executed, or died and was counted (spec metrics.md 3.4): for every kind of request, here
    /// and of the timeline.
    pub fn check_all_counted(&self) {
        let snapshot = self.snapshot();
        for ((kind, started), (_, seconds)) in snapshot.requests_started.iter().zip(&snapshot.request_seconds) {
            assert_eq!(*started, seconds.counts.iter().sum::<u64>(), "{kind}");
        }
        let pages = counted(&snapshot.requests_started, "get_page_at_lsn");
        assert_eq!(pages, snapshot.batch_wait_seconds.counts.iter().sum::<u64>());
        let timeline = &self.timeline.metrics;
        let started = timeline.get_page_started.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(started, timeline.get_page_seconds.snapshot().counts.iter().sum::<u64>());
        assert_eq!(started, timeline.batch_wait_seconds.snapshot().counts.iter().sum::<u64>());
    }
}

pub struct Client {
    pub stream: TcpStream,
}

pub fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
    out
}

pub fn header(id: u64, request_lsn: u64, not_modified_since: u64) -> Header {
    Header { id, request_lsn: Lsn(request_lsn), not_modified_since: Lsn(not_modified_since) }
}

pub fn get_page(id: u64, block: u32) -> Request<'static> {
    Request { header: header(id, u64::MAX, LAST), body: Body::GetPage { rel: REL, block } }
}

impl Client {
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn log_in(&mut self) {
        let body = b"user\0x\0database\0y\0\0";
        let mut packet = (body.len() as u32 + 8).to_be_bytes().to_vec();
        packet.extend_from_slice(&0x0003_0000u32.to_be_bytes());
        packet.extend_from_slice(body);
        self.send(&packet);
        while self.message().0 != b'Z' {}
    }

    pub fn query(&mut self, text: &str) {
        let mut body = text.as_bytes().to_vec();
        body.push(0);
        self.send(&frame(b'Q', &body));
    }

    pub fn request(&mut self, version: Version, request: &Request<'_>) {
        let mut out = Vec::new();
        request.encode(version, &mut out);
        self.send(&out);
    }

    /// The next message, which must come.
    pub fn message(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head).unwrap();
        let len = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
        let mut body = vec![0; len - 4];
        self.stream.read_exact(&mut body).unwrap();
        (head[0], body)
    }

    /// SQLSTATE and text of an ErrorResponse, which must be next.
    pub fn error(&mut self) -> (String, String) {
        let (tag, body) = self.message();
        assert_eq!(tag, b'E', "expected an error, got {:?} {:?}", char::from(tag), body);
        let fields: HashMap<u8, String> = body
            .split(|b| *b == 0)
            .filter(|field| !field.is_empty())
            .map(|field| (field[0], String::from_utf8(field[1..].to_vec()).unwrap()))
            .collect();
        assert_eq!(fields.len(), 3);
        assert_eq!(fields[&b'S'], "ERROR");
        (fields[&b'C'].clone(), fields[&b'M'].clone())
    }

    pub fn ready(&mut self) {
        assert_eq!(self.message(), (b'Z', vec![b'I']));
    }

    pub fn select_1(&mut self) {
        assert_eq!(self.message(), (b'C', b"SELECT 1\0".to_vec()));
    }

    /// The server must have closed the connection.
    pub fn closed(&mut self) {
        let mut rest = Vec::new();
        let end = self.stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "expected the end, got {rest:?}");
        if let Err(error) = end {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        }
    }

    /// The connection still answers commands.
    pub fn is_usable(&mut self) {
        self.query("SET datestyle TO 'ISO'");
        self.select_1();
        self.ready();
    }

    /// Payload of the next CopyData.
    pub fn payload(&mut self) -> Vec<u8> {
        let (tag, body) = self.message();
        assert_eq!(tag, b'd', "expected CopyData, got {:?} {}", char::from(tag), String::from_utf8_lossy(&body));
        body
    }

    pub fn page_of(&mut self, id: u64, block: u32) {
        let payload = self.payload();
        let response = Response::decode(Version::V3, &payload).unwrap();
        assert_eq!(response.header, Some(get_page(id, block).header));
        assert_eq!(response.echo, Some(get_page(id, block).body));
        assert_eq!(response.answer, pageserve::protocol::pagestream::Answer::Page(&page(REL, block, Lsn(LAST))));
    }

    /// The text of the pagestream Error that must be next.
    pub fn page_error(&mut self) -> String {
        let payload = self.payload();
        match Response::decode(Version::V3, &payload).unwrap().answer {
            pageserve::protocol::pagestream::Answer::Error(text) => text.to_string(),
            other => panic!("expected an error, got {other:?}"),
        }
    }
}

/// Polls, since what is awaited happens on other threads.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("never happened: {what}");
}

pub fn req(id: u64, body: Body<'static>) -> Request<'static> {
    Request { header: header(id, u64::MAX, LAST), body }
}

pub fn ask(client: &mut Client, version: Version, request: &Request<'_>) -> Vec<u8> {
    client.request(version, request);
    client.payload()
}

pub fn answer(payload: &[u8]) -> Answer<'_> {
    Response::decode(Version::V3, payload).unwrap().answer
}

pub fn counted(counts: &[(&'static str, u64)], name: &str) -> u64 {
    counts.iter().find(|(other, _)| *other == name).unwrap().1
}
