//! The pagestream: GetPage and its relatives over COPY BOTH, on a thread of the connection's own.
//!
//! ```text
//! read what has arrived ─▶ cut into batches ─▶ one vectored read each ─▶ one write of all answers ─▶ read again
//! ```
//! A thread per pagestream, because reads block (disk, redo process, download) and because a hop between threads costs
//! more than a page that is in memory. Requests queue up in the socket while a batch executes, so batches grow exactly
//! while the executor is busy, as spec page-service.md 4.2 wants, and a client that does not read stops being read.
//!
//! Invariants: answers leave in the order of requests; no handle and no GC hold is kept while the socket is read or
//! written, or while another timeline is resolved; every other wait ends when the timeline closes or the service stops.
//! While a request waits or reads, no earlier answer waits in the output buffer: it is written before a batch begins.

mod batch;
mod metadata;

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pagecore::{Key, Lsn, RelTag, BLCKSZ};
use tokio::sync::watch;

use self::batch::{break_reason, plan_reads, Batch, Found, Member};
use crate::buffer::InputBuffer;
use crate::context::Context;
use crate::error::{PageError, QueryError};
use crate::handler::LogLevel;
use crate::ids::{TenantId, TimelineId};
use crate::lookup::Lookup;
use crate::lsn_rules::effective_lsn;
use crate::metrics::{BatchBreak, HandlerOutcome, RequestKind, TimelineMetrics};
use crate::output::Output;
use crate::protocol::frontend::{message_name, next_frame};
use crate::protocol::pagestream::{Answer, Body, DecodeError, Header, Request, Version, TAG_TEST};
use crate::registry::ResolveError;
use crate::source::ReadError;
use crate::timeline::{Closed, Handle, ShardSelector, WaitError};

/// After so long without a request the buffers are given back.
const RELEASE_AFTER: Duration = Duration::from_secs(10);
static ZERO_PAGE: [u8; BLCKSZ] = [0; BLCKSZ];

/// How a pagestream ends other than politely.
#[derive(Debug)]
pub(crate) enum StreamEnd {
    /// The client gets an ErrorResponse behind the answers that are still in the buffer.
    Query(QueryError),
    /// Nothing more can or should be sent.
    Close(String),
}

type Flow = Result<(), StreamEnd>;

pub(crate) struct PageStream {
    pub context: Arc<Context>,
    pub version: Version,
    pub tenant: TenantId,
    pub timeline: TimelineId,
    pub stream: Arc<TcpStream>,
    pub input: InputBuffer,
    pub output: Output,
    pub lookup: Lookup,
    batch: Batch,
    /// Of the timeline whose answers are in `output`.
    flushed_for: Option<Arc<TimelineMetrics>>,
}

impl PageStream {
    pub fn new(
        context: Arc<Context>,
        version: Version,
        (tenant, timeline): (TenantId, TimelineId),
        stream: Arc<TcpStream>,
        input: InputBuffer,
        lookup: Lookup,
    ) -> PageStream {
        let batch = Batch::default();
        let output = Output::default();
        PageStream { context, version, tenant, timeline, stream, input, output, lookup, batch, flushed_for: None }
    }

    /// Serves until the client ends the COPY (Ok: Terminate or EOF) or something fails. Blocks.
    pub fn run(&mut self) -> Flow {
        loop {
            let input = std::mem::take(&mut self.input);
            let (input, flow) = self.serve_arrived(input);
            self.input = input;
            // Whatever ended the loop, the answers before it are sent first; an ErrorResponse follows them.
            if flow? || !self.read_more()? {
                return Ok(());
            }
        }
    }

    /// Answers all complete requests of `input`. True: the client ended the stream.
    fn serve_arrived(&mut self, mut input: InputBuffer) -> (InputBuffer, Result<bool, StreamEnd>) {
        let result = loop {
            let frame = match next_frame(input.bytes()) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    break self.execute_batch(BatchBreak::ExecutorSteal).and_then(|()| self.flush()).map(|()| false)
                }
                Err(error) => break self.end_with(QueryError::Disconnected(error.to_string())),
            };
            let served = match frame.tag {
                b'd' => self.take_request(frame.body),
                b'X' => {
                    break self
                        .execute_batch(BatchBreak::NonBatchableRequest)
                        .and_then(|()| self.flush())
                        .map(|()| true)
                }
                tag => {
                    let error = match message_name(tag) {
                        Some(name) => QueryError::Other(format!("unexpected message: {name} during COPY")),
                        None => QueryError::Disconnected(format!("unknown message type {tag:#04x}")),
                    };
                    let len = frame.len;
                    let ended = self.end_with(error);
                    input.consume(len);
                    break ended;
                }
            };
            let len = frame.len;
            input.consume(len);
            if let Err(end) = served {
                break Err(end);
            }
        };
        (input, result)
    }

    /// What came before the error is still answered.
    fn end_with(&mut self, error: QueryError) -> Result<bool, StreamEnd> {
        self.execute_batch(BatchBreak::NonBatchableRequest)?;
        Err(StreamEnd::Query(error))
    }

    fn take_request(&mut self, payload: &[u8]) -> Flow {
        let is_refused = payload.first() == Some(&TAG_TEST) && !self.context.config.allow_test_messages;
        let request = match is_refused {
            true => Err(DecodeError::Tag(TAG_TEST)),
            false => Request::decode(self.version, payload),
        };
        match request {
            Err(error) => self.end_with(QueryError::Other(error.to_string())).map(|_| ()),
            Ok(Request { header, body: Body::GetPage { rel, block } }) => self.take_get_page(header, rel, block),
            Ok(request) => {
                self.execute_batch(BatchBreak::NonBatchableRequest)?;
                self.execute_other(&request)
            }
        }
    }

    // --- finding the timeline -------------------------------------------------------------------------------------

    /// Runs an asynchronous wait of this thread. None: the service stops.
    fn wait<T>(&self, future: impl std::future::Future<Output = T>) -> Option<T> {
        let mut stopping = self.context.stopping.subscribe();
        self.context.runtime.block_on(async {
            tokio::select! {
                biased;
                output = future => Some(output),
                _ = stopping.wait_for(|stopping| *stopping) => None,
            }
        })
    }

    fn stopped(&mut self) -> StreamEnd {
        // What is already in the buffer still goes out; the service cuts the socket if that takes too long.
        match self.flush() {
            Ok(()) => StreamEnd::Close("service stops".to_string()),
            Err(end) => end,
        }
    }

    /// The handle of the shard that holds what is asked for. Must not be called with a batch waiting.
    fn resolve(&mut self, selector: ShardSelector) -> Result<Result<Handle, ResolveError>, StreamEnd> {
        match self.lookup.cached(self.tenant, self.timeline, selector) {
            Ok(Some(handle)) => return Ok(Ok(handle)),
            Ok(None) => {}
            Err(error) => return Ok(Err(error)),
        }
        let mut lookup = std::mem::take(&mut self.lookup);
        let found = self.wait(lookup.resolve(&self.context, self.tenant, self.timeline, selector));
        self.lookup = lookup;
        match found {
            None => Err(self.stopped()),
            Some(found) => {
                if matches!(found, Err(ResolveError::NoShard(_))) {
                    self.context.metrics.misrouted_requests.fetch_add(1, Relaxed);
                }
                Ok(found)
            }
        }
    }

    /// Sleeps for the shard's throttle; delays everything behind it on this connection. Holds nothing meanwhile.
    fn pause(&mut self, handle: Handle, pause: Duration) -> Flow {
        handle.metrics.throttled_requests.fetch_add(1, Relaxed);
        let (closed, throttle) = (handle.watch_closed(), Arc::clone(&handle.throttle));
        drop(handle);
        let result = self.sleep(closed, pause);
        throttle.passed(&self.context.metrics.throttle);
        result
    }

    fn sleep(&mut self, mut closed: watch::Receiver<Option<Closed>>, pause: Duration) -> Flow {
        self.execute_batch(BatchBreak::ExecutorSteal)?;
        self.flush()?;
        let slept = self.wait(async {
            tokio::select! {
                () = tokio::time::sleep(pause) => None,
                why = closed.wait_for(Option::is_some) => Some(why.map_or(None, |why| *why)),
            }
        });
        match slept {
            None => Err(self.stopped()),
            Some(None) => Ok(()),
            Some(Some(why)) => {
                let error = closed_error(why.unwrap_or(Closed::Shutdown));
                self.count(&error);
                Err(StreamEnd::Query(error.client_text().err().unwrap_or(QueryError::Shutdown)))
            }
        }
    }

    // --- GetPage --------------------------------------------------------------------------------------------------

    /// Adds the request to the batch; what cannot be joined is executed first. A request that does not get so far is
    /// counted as executed in no time: what was started and what was executed agree.
    fn take_get_page(&mut self, header: Header, rel: RelTag, block: u32) -> Flow {
        self.context.metrics.request_started(RequestKind::GetPage);
        let mut counted = None;
        let joined = self.join_batch(header, rel, block, &mut counted);
        if !matches!(joined, Ok(true)) {
            self.context.metrics.requests_executed(RequestKind::GetPage, Duration::ZERO, 1);
            self.context.metrics.batch_wait_seconds.observe(Duration::ZERO, 1);
            if let Some(metrics) = counted {
                metrics.get_page_seconds.observe(Duration::ZERO, 1);
                metrics.batch_wait_seconds.observe(Duration::ZERO, 1);
            }
        }
        joined.map(|_| ())
    }

    /// False: it was answered with an error. `counted` is the timeline that counts the request as its own.
    fn join_batch(
        &mut self,
        header: Header,
        rel: RelTag,
        block: u32,
        counted: &mut Option<Arc<TimelineMetrics>>,
    ) -> Result<bool, StreamEnd> {
        let key = Key::rel_block(rel, block);
        let mut admitted = Instant::now();
        loop {
            let same = self.batch.handle.as_ref().filter(|handle| handle.shard_of(&key) == handle.shard_index().number);
            let handle = match same {
                Some(handle) => Arc::clone(handle),
                None => {
                    self.execute_batch(BatchBreak::NonUniformTimeline)?;
                    self.flush()?;
                    match self.resolve(ShardSelector::Page(key))? {
                        Ok(handle) => handle,
                        Err(error) => {
                            return self
                                .answer_error(&request(header, rel, block), error.for_get_page())
                                .map(|()| false)
                        }
                    }
                }
            };
            if counted.is_none() {
                handle.metrics.get_page_started.fetch_add(1, Relaxed);
                *counted = Some(Arc::clone(&handle.metrics));
                admitted = Instant::now();
                if let Some(pause) = handle.throttle.reserve(admitted, &self.context.metrics.throttle) {
                    self.pause(handle, pause)?;
                    admitted = Instant::now();
                    continue;
                }
            }
            let source = handle.source();
            // Taken before the cutoff is read, kept until the batch is done.
            let hold = if self.batch.members.is_empty() { source.hold_gc() } else { None };
            let readable = |lsn| handle.is_readable_below_cutoff(lsn);
            let lsn = match effective_lsn(&header, source.last_record_lsn(), source.gc_cutoff(), readable) {
                Ok(lsn) => lsn,
                Err(error) => {
                    drop((hold, handle));
                    self.execute_batch(BatchBreak::NonBatchableRequest)?;
                    return self.answer_error(&request(header, rel, block), error).map(|()| false);
                }
            };
            let member = Member { header, rel, block, lsn, admitted };
            let batch = &mut self.batch;
            if batch.members.is_empty() {
                batch.handle = Some(handle);
                batch.hold = hold;
                batch.max_lsn = lsn;
                batch.is_uniform_lsn = true;
            } else if let Some(reason) = break_reason(batch, &member, &self.context.config) {
                drop((hold, handle));
                self.execute_batch(reason)?;
                continue;
            }
            batch.is_uniform_lsn &= lsn == batch.max_lsn;
            batch.max_lsn = batch.max_lsn.max(lsn);
            batch.members.push(member);
            return Ok(true);
        }
    }

    /// Reads and answers what is waiting.
    fn execute_batch(&mut self, reason: BatchBreak) -> Flow {
        let Some(handle) = self.batch.handle.take() else { return Ok(()) };
        let mut batch = std::mem::take(&mut self.batch);
        let result = self.execute_members(&handle, &mut batch, reason);
        drop(batch.hold.take());
        drop(handle);
        batch.members.clear();
        batch.found.clear();
        batch.keys.clear();
        batch.pages.clear();
        self.batch = batch;
        result
    }

    fn execute_members(&mut self, handle: &Handle, batch: &mut Batch, reason: BatchBreak) -> Flow {
        let started = Instant::now();
        let count = batch.members.len();
        let context = Arc::clone(&self.context);
        context.metrics.batches.observe(count, reason);
        handle.metrics.batches.observe(count, reason);
        for member in &batch.members {
            let waited = started.saturating_duration_since(member.admitted);
            context.metrics.batch_wait_seconds.observe(waited, 1);
            handle.metrics.batch_wait_seconds.observe(waited, 1);
        }
        if !self.flushed_for.as_ref().is_some_and(|metrics| Arc::ptr_eq(metrics, &handle.metrics)) {
            self.flushed_for = Some(Arc::clone(&handle.metrics));
        }
        let waited = self.wait_for_lsn(handle, batch.max_lsn);
        if matches!(waited, Ok(Ok(()))) {
            plan_reads(handle, batch);
            if !batch.keys.is_empty() {
                handle.source().get_pages(&batch.keys, &mut batch.pages);
            }
        }
        let took = started.elapsed();
        context.metrics.requests_executed(RequestKind::GetPage, took, count as u64);
        handle.metrics.get_page_seconds.observe(took, count as u64);
        if let Err(error) = waited? {
            for member in &batch.members {
                self.answer_error(&request(member.header, member.rel, member.block), error.clone())?;
            }
            return Ok(());
        }
        let mut answered = 0;
        let mut result = Ok(());
        let Batch { members, found, pages, .. } = batch;
        for (member, found) in members.iter().zip(found.iter()) {
            let request = request(member.header, member.rel, member.block);
            let page = match found {
                Found::Zero => Ok(Bytes::from_static(&ZERO_PAGE)),
                Found::Failed(error) => Err(error.clone()),
                Found::Read(index) => match pages.get_mut(*index) {
                    Some(Ok(page)) if page.len() == BLCKSZ => Ok(std::mem::take(page)),
                    Some(Ok(page)) => Err(ReadError::Failed(format!("page has {} bytes", page.len()))),
                    Some(Err(error)) => Err(error.clone()),
                    None => Err(ReadError::Failed("the vectored read gave too few pages".to_string())),
                },
            };
            match page {
                Ok(page) => {
                    answered += 1;
                    request.begin_response(self.version, &mut self.output.bytes, BLCKSZ);
                    self.output.push_page(page);
                }
                Err(error) => {
                    result = self.answer_error(&request, page_error(error, handle, &request.body));
                    if result.is_err() {
                        break;
                    }
                }
            }
        }
        context.metrics.outcome(HandlerOutcome::Success, answered);
        result
    }

    /// The inner error is for each request that waited.
    fn wait_for_lsn(&mut self, handle: &Handle, lsn: Lsn) -> Result<Result<(), PageError>, StreamEnd> {
        if lsn <= handle.source().last_record_lsn() {
            return Ok(Ok(()));
        }
        let timeout = self.context.config.wait_lsn_timeout;
        match self.wait(handle.wait_for_lsn(lsn, timeout, &self.context.metrics, &*self.context.handler)) {
            None => Err(self.stopped()),
            Some(Ok(())) => Ok(Ok(())),
            Some(Err(WaitError::Timeout(text))) => Ok(Err(PageError::LsnTimeout(text))),
            Some(Err(WaitError::Closed(why))) => Ok(Err(closed_error(why))),
        }
    }

    // --- answers and the socket -----------------------------------------------------------------------------------

    fn count(&self, error: &PageError) {
        let outcome = match error {
            PageError::Read(_) | PageError::Redo { .. } | PageError::LsnTimeout(_) | PageError::Reconnect => {
                HandlerOutcome::InternalError
            }
            PageError::Shutdown | PageError::NotFound(_) | PageError::BadRequest(_) => HandlerOutcome::OtherError,
        };
        self.context.metrics.outcome(outcome, 1);
    }

    /// An Error message in the request's place, or the end of the pagestream.
    fn answer_error(&mut self, request: &Request<'_>, error: PageError) -> Flow {
        self.count(&error);
        match &error {
            PageError::Read(_) => {
                let text = format!("{error} (tenant {}, timeline {})", self.tenant, self.timeline);
                self.context.handler.log(LogLevel::Error, &text);
            }
            // The words are those that alerts look for (spec walredo.md 1.1, metrics.md).
            PageError::Redo { shard, detail } => {
                let timeline = self.timeline;
                let text = format!(
                    "[tenant_shard_id: {shard}, timeline_id: {timeline}] walredo failure during page reconstruction: {detail}"
                );
                self.context.handler.log(LogLevel::Critical, &text);
            }
            _ => {}
        }
        let text = error.client_text().map_err(StreamEnd::Query)?;
        request.respond(self.version, &Answer::Error(&text), &mut self.output.bytes);
        Ok(())
    }

    /// Blocks while the client does not read: nothing may be held here.
    fn flush(&mut self) -> Flow {
        if self.output.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let written = self.output.write_to(&*self.stream);
        self.output.clear();
        let micros = started.elapsed().as_micros() as u64;
        self.context.metrics.flush_micros.fetch_add(micros, Relaxed);
        if let Some(metrics) = &self.flushed_for {
            metrics.flush_micros.fetch_add(micros, Relaxed);
        }
        written.map_err(|error| StreamEnd::Close(error.to_string()))
    }

    /// Blocks until at least one byte arrives. False: the client closed its side.
    fn read_more(&mut self) -> Result<bool, StreamEnd> {
        let mut idle = Duration::ZERO;
        let limit = self.context.config.read_timeout;
        loop {
            if *self.context.stopping.borrow() {
                return Err(self.stopped());
            }
            match (&*self.stream).read(self.input.space()) {
                Ok(0) if *self.context.stopping.borrow() => return Err(self.stopped()),
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.input.filled(n);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    idle += self.read_slice();
                    if idle >= limit {
                        return Err(StreamEnd::Query(QueryError::Disconnected("timed out".to_string())));
                    }
                    self.input.release_if_empty();
                    self.output = Output::default();
                    self.batch = Batch::default();
                }
                Err(error) => return Err(StreamEnd::Query(QueryError::Disconnected(error.to_string()))),
            }
        }
    }

    /// The socket's own time-out: the read time-out in slices, so that an idle connection gives its buffers back.
    pub fn read_slice(&self) -> Duration {
        self.context.config.read_timeout.min(RELEASE_AFTER).max(Duration::from_millis(1))
    }
}

fn request(header: Header, rel: RelTag, block: u32) -> Request<'static> {
    Request { header, body: Body::GetPage { rel, block } }
}

fn closed_error(why: Closed) -> PageError {
    match why {
        Closed::Shutdown => PageError::Shutdown,
        Closed::Reconnect => PageError::Reconnect,
    }
}

fn page_error(error: ReadError, handle: &Handle, body: &Body<'_>) -> PageError {
    match error {
        // A read that fails because its timeline closed under it must not reach the user's statement.
        ReadError::Stopped => PageError::Shutdown,
        ReadError::Refused(text) => PageError::BadRequest(text),
        _ if handle.watch_closed().borrow().is_some() => PageError::Shutdown,
        ReadError::Redo(text) => PageError::Redo { shard: handle.tenant_shard, detail: format!("{text} ({body:?})") },
        ReadError::Failed(text) => PageError::Read(format!("{text} ({body:?})")),
    }
}
