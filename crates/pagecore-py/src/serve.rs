//! `PageService` and what goes with it: the page service for Python (spec page-service.md).
//!
//! Python tells which shards and timelines are here and answers rare questions. Questions go through one thread that
//! takes the GIL and hands them to the asyncio loop (`call_soon_threadsafe`), so that no thread which serves pages ever
//! waits for Python.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pagecore::{Lsn, ShardIdentity};
use pageserve::error::QueryError;
use pageserve::handler::{BackupRequest, BackupSink, Handler, LeaseAnswer, LogLevel};
use pageserve::ids::{ShardIndex, TenantId, TenantShardId, TimelineId};
use pageserve::metrics::{HistogramSnapshot, Metrics, QuestionKind};
use pageserve::registry::{Registry, ShardState};
use pageserve::service::{self, Batching, ServiceConfig};
use pageserve::source::PageSource;
use pageserve::throttle::{ThrottleConfig, ThrottleSnapshot};
use pageserve::timeline::{Closed, Leases, Timeline};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use tokio::sync::oneshot;

use crate::errors::{bad_argument, raise};
use crate::python_store::PageBridge;
use crate::store::TimelineStore;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn id16(py: Python<'_>, bytes: &[u8]) -> PyResult<[u8; 16]> {
    bytes.try_into().map_err(|_| bad_argument(py, &format!("an id has 16 bytes, not {}", bytes.len())))
}

fn seconds(py: Python<'_>, value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value).map_err(|error| bad_argument(py, &format!("{value} seconds: {error}")))
}

fn shard_id(py: Python<'_>, tenant: &[u8], (number, count): (u8, u8)) -> PyResult<TenantShardId> {
    Ok(TenantShardId { tenant: TenantId(id16(py, tenant)?), shard: ShardIndex { number, count } })
}

// --- questions to Python ----------------------------------------------------------------------------------------------

enum Question {
    Backup(BackupRequest, BackupSink),
    Lease(TenantShardId, TimelineId, Lsn, LeaseAnswer),
    Activate(TenantShardId),
    ReceiverStatus(TenantShardId, TimelineId, oneshot::Sender<String>),
    Log(LogLevel, String),
}

impl Question {
    fn kind(&self) -> QuestionKind {
        match self {
            Question::Backup(..) => QuestionKind::Backup,
            Question::Lease(..) => QuestionKind::Lease,
            Question::Activate(..) => QuestionKind::Activate,
            Question::ReceiverStatus(..) => QuestionKind::ReceiverStatus,
            Question::Log(..) => QuestionKind::Log,
        }
    }
}

struct Questions {
    sender: SyncSender<Question>,
    metrics: Arc<Metrics>,
}

impl Questions {
    /// A question that cannot be asked is dropped and counted; its asker notices by the dropped answer, and of a log
    /// line the count is all that stays.
    fn ask(&self, question: Question) {
        let kind = question.kind();
        if self.sender.try_send(question).is_err() {
            self.metrics.question_dropped(kind);
        }
    }
}

impl Handler for Questions {
    fn backup(&self, request: BackupRequest, sink: BackupSink) {
        self.ask(Question::Backup(request, sink));
    }

    fn lease(&self, tenant_shard: TenantShardId, timeline: TimelineId, lsn: Lsn, answer: LeaseAnswer) {
        self.ask(Question::Lease(tenant_shard, timeline, lsn, answer));
    }

    fn activate(&self, tenant_shard: TenantShardId) {
        self.ask(Question::Activate(tenant_shard));
    }

    fn receiver_status(&self, tenant_shard: TenantShardId, timeline: TimelineId, answer: oneshot::Sender<String>) {
        self.ask(Question::ReceiverStatus(tenant_shard, timeline, answer));
    }

    fn log(&self, level: LogLevel, text: &str) {
        self.ask(Question::Log(level, text.to_string()));
    }
}

/// Hands questions to the event loop until the service is gone.
fn forward(questions: &Receiver<Question>, event_loop: &Py<PyAny>, handler: &Py<PyAny>) {
    while let Ok(question) = questions.recv() {
        Python::attach(|py| {
            // A closed event loop cannot answer; dropping the question tells the asker.
            if let Err(error) = hand_over(py, question, event_loop.bind(py), handler.bind(py)) {
                error.write_unraisable(py, Some(handler.bind(py)));
            }
        });
    }
}

fn hand_over(
    py: Python<'_>,
    question: Question,
    event_loop: &Bound<'_, PyAny>,
    handler: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let call = |name: &str| -> PyResult<Bound<'_, PyAny>> { handler.getattr(name) };
    let soon = "call_soon_threadsafe";
    match question {
        Question::Backup(request, sink) => {
            let request = Py::new(py, PyBackupRequest { request })?;
            let sink = Py::new(py, PyBackupSink { sink: Mutex::new(Some(Arc::new(sink))) })?;
            event_loop.call_method1(soon, (call("backup")?, request, sink))?;
        }
        Question::Lease(shard, timeline, lsn, answer) => {
            let answer = Py::new(py, PyLeaseAnswer { answer: Mutex::new(Some(answer)) })?;
            let (tenant, index) = shard_to_python(py, shard);
            let timeline = PyBytes::new(py, &timeline.0);
            event_loop.call_method1(soon, (call("lease")?, tenant, index, timeline, lsn.0, answer))?;
        }
        Question::Activate(shard) => {
            let (tenant, index) = shard_to_python(py, shard);
            event_loop.call_method1(soon, (call("activate")?, tenant, index))?;
        }
        Question::ReceiverStatus(shard, timeline, answer) => {
            let answer = Py::new(py, PyStatusAnswer { answer: Mutex::new(Some(answer)) })?;
            let (tenant, index) = shard_to_python(py, shard);
            let timeline = PyBytes::new(py, &timeline.0);
            event_loop.call_method1(soon, (call("receiver_status")?, tenant, index, timeline, answer))?;
        }
        Question::Log(level, text) => {
            let level = match level {
                LogLevel::Info => "info",
                LogLevel::Warning => "warning",
                LogLevel::Error => "error",
                LogLevel::Critical => "critical",
            };
            event_loop.call_method1(soon, (call("log")?, level, text))?;
        }
    }
    Ok(())
}

fn shard_to_python(py: Python<'_>, id: TenantShardId) -> (Bound<'_, PyBytes>, (u8, u8)) {
    (PyBytes::new(py, &id.tenant.0), (id.shard.number, id.shard.count))
}

/// What a client asked for with `basebackup` or `fullbackup`.
#[pyclass(frozen, name = "BackupRequest", module = "pageserver._core")]
pub struct PyBackupRequest {
    request: BackupRequest,
}

#[pymethods]
impl PyBackupRequest {
    #[getter]
    fn tenant_id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.request.tenant_shard.tenant.0)
    }

    #[getter]
    fn shard(&self) -> (u8, u8) {
        (self.request.tenant_shard.shard.number, self.request.tenant_shard.shard.count)
    }

    #[getter]
    fn timeline_id<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.request.timeline.0)
    }

    #[getter]
    fn lsn(&self) -> Option<u64> {
        self.request.lsn.map(|lsn| lsn.0)
    }

    #[getter]
    fn prev_lsn(&self) -> Option<u64> {
        self.request.prev_lsn.map(|lsn| lsn.0)
    }

    #[getter]
    fn full(&self) -> bool {
        self.request.full
    }

    #[getter]
    fn gzip(&self) -> bool {
        self.request.gzip
    }

    #[getter]
    fn replica(&self) -> bool {
        self.request.replica
    }
}

fn query_error(py: Python<'_>, kind: &str, message: &str) -> PyResult<QueryError> {
    Ok(match kind {
        "error" => QueryError::Other(message.to_string()),
        "not_found" => QueryError::NotFound(message.to_string()),
        "shutdown" => QueryError::Shutdown,
        "reconnect" => QueryError::Reconnect,
        _ => return Err(bad_argument(py, &format!("unknown kind of page service error {kind:?}"))),
    })
}

/// Where the archive goes.
#[pyclass(frozen, name = "BackupSink", module = "pageserver._core")]
pub struct PyBackupSink {
    sink: Mutex<Option<Arc<BackupSink>>>,
}

impl PyBackupSink {
    fn gone(py: Python<'_>) -> PyErr {
        raise(py, "StoppedError", "the receiver of the backup is gone", &[])
    }
}

#[pymethods]
impl PyBackupSink {
    fn write(&self, py: Python<'_>, chunk: &[u8]) -> PyResult<()> {
        let sink = lock(&self.sink).clone().ok_or_else(|| Self::gone(py))?;
        let chunk = Bytes::copy_from_slice(chunk);
        py.detach(|| sink.write_blocking(chunk)).map_err(|_| Self::gone(py))
    }

    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let sink = lock(&self.sink).take().ok_or_else(|| Self::gone(py))?;
        py.detach(|| sink.finish_blocking()).map_err(|_| Self::gone(py))
    }

    fn fail(&self, py: Python<'_>, kind: &str, message: &str) -> PyResult<()> {
        let error = query_error(py, kind, message)?;
        let Some(sink) = lock(&self.sink).take() else { return Ok(()) };
        // Nobody is left to be told if this fails.
        let _ = py.detach(|| sink.fail_blocking(error));
        Ok(())
    }
}

/// Takes the answer to `lease lsn`, once.
#[pyclass(frozen, name = "LeaseAnswer", module = "pageserver._core")]
pub struct PyLeaseAnswer {
    answer: Mutex<Option<LeaseAnswer>>,
}

impl PyLeaseAnswer {
    fn give(&self, result: Result<Option<u64>, QueryError>) {
        if let Some(answer) = lock(&self.answer).take() {
            let _ = answer.send(result); // the client may be gone
        }
    }
}

#[pymethods]
impl PyLeaseAnswer {
    fn grant(&self, valid_until_millis: u64) {
        self.give(Ok(Some(valid_until_millis)));
    }

    fn refuse(&self) {
        self.give(Ok(None));
    }

    fn fail(&self, py: Python<'_>, kind: &str, message: &str) -> PyResult<()> {
        self.give(Err(query_error(py, kind, message)?));
        Ok(())
    }
}

/// Takes the words about a timeline's WAL receiver, once.
#[pyclass(frozen, name = "StatusAnswer", module = "pageserver._core")]
pub struct PyStatusAnswer {
    answer: Mutex<Option<oneshot::Sender<String>>>,
}

#[pymethods]
impl PyStatusAnswer {
    fn give(&self, status: String) {
        if let Some(answer) = lock(&self.answer).take() {
            let _ = answer.send(status); // the client may be gone
        }
    }
}

// --- timelines --------------------------------------------------------------------------------------------------------

/// A timeline that is, or was, served.
#[pyclass(frozen, name = "ServedTimeline", module = "pageserver._core")]
pub struct ServedTimeline {
    timeline: Arc<Timeline>,
}

#[pymethods]
impl ServedTimeline {
    fn set_leases(&self, leases: std::collections::HashMap<u64, u64>, grace_until_millis: u64) {
        self.timeline.set_leases(Leases { valid_until_millis: leases, grace_until_millis });
    }

    fn wait_left(&self, py: Python<'_>, timeout_seconds: f64) -> PyResult<bool> {
        let timeout = seconds(py, timeout_seconds)?;
        Ok(py.detach(|| self.timeline.wait_left(timeout)))
    }

    fn metrics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let metrics = &self.timeline.metrics;
        let out = PyDict::new(py);
        out.set_item("get_page_started", metrics.get_page_started.load(Relaxed))?;
        out.set_item("get_page_seconds", histogram(py, &metrics.get_page_seconds.snapshot())?)?;
        out.set_item("batch_wait_seconds", histogram(py, &metrics.batch_wait_seconds.snapshot())?)?;
        out.set_item("flush_micros", metrics.flush_micros.load(Relaxed))?;
        out.set_item("batch_sizes", metrics.batches.sizes())?;
        out.set_item("batch_breaks", counts(py, &metrics.batches.breaks())?)?;
        out.set_item("throttled_requests", metrics.throttled_requests.load(Relaxed))?;
        out.set_item("wait_lsn_started", metrics.waits.started.load(Relaxed))?;
        out.set_item("wait_lsn_finished", metrics.waits.finished.load(Relaxed))?;
        out.set_item("wait_lsn_micros", metrics.waits.micros.load(Relaxed))?;
        Ok(out)
    }
}

fn histogram<'py>(py: Python<'py>, histogram: &HistogramSnapshot) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    out.set_item("bounds_micros", histogram.bounds_micros)?;
    out.set_item("counts", &histogram.counts)?;
    out.set_item("sum_micros", histogram.sum_micros)?;
    Ok(out)
}

/// Started, finished, throttled, microseconds waited.
fn throttle_numbers(counts: &ThrottleSnapshot) -> (u64, u64, u64, u64) {
    (counts.started, counts.finished, counts.throttled, counts.wait_micros)
}

fn counts<'py>(py: Python<'py>, counts: &[(&'static str, u64)]) -> PyResult<Bound<'py, PyDict>> {
    let out = PyDict::new(py);
    for (name, count) in counts {
        out.set_item(*name, count)?;
    }
    Ok(out)
}

// --- the service ------------------------------------------------------------------------------------------------------

/// Dropped in this order: the service must not outlive its runtime.
struct Running {
    service: service::PageService,
    runtime: tokio::runtime::Runtime,
}

#[pyclass(frozen, module = "pageserver._core")]
pub struct PageService {
    config: ServiceConfig,
    worker_threads: usize,
    questions_max: usize,
    handler: Py<PyAny>,
    event_loop: Py<PyAny>,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    running: Mutex<Option<Running>>,
}

#[pymethods]
impl PageService {
    #[new]
    #[pyo3(signature = (
        *, listen, handler, event_loop, worker_threads = 2, read_timeout_seconds = 600.0,
        wait_lsn_timeout_seconds = 300.0, max_batch_size = 32, batching = "scattered-lsn", allow_test_messages = false,
        questions_max = 1024
    ))]
    #[allow(clippy::too_many_arguments, reason = "one keyword per setting")]
    fn new(
        py: Python<'_>,
        listen: &str,
        handler: Py<PyAny>,
        event_loop: Py<PyAny>,
        worker_threads: usize,
        read_timeout_seconds: f64,
        wait_lsn_timeout_seconds: f64,
        max_batch_size: usize,
        batching: &str,
        allow_test_messages: bool,
        questions_max: usize,
    ) -> PyResult<PageService> {
        let listen: SocketAddr =
            listen.parse().map_err(|_| bad_argument(py, &format!("not an address with a port: {listen:?}")))?;
        let mut config = ServiceConfig::new(listen);
        config.read_timeout = seconds(py, read_timeout_seconds)?;
        config.wait_lsn_timeout = seconds(py, wait_lsn_timeout_seconds)?;
        if max_batch_size == 0 {
            return Err(bad_argument(py, "max_batch_size must be at least 1"));
        }
        config.max_batch_size = max_batch_size;
        config.batching = match batching {
            "scattered-lsn" => Batching::ScatteredLsn,
            "uniform-lsn" => Batching::UniformLsn,
            _ => return Err(bad_argument(py, &format!("unknown batching {batching:?}"))),
        };
        config.allow_test_messages = allow_test_messages;
        Ok(PageService {
            config,
            worker_threads: worker_threads.max(1),
            questions_max,
            handler,
            event_loop,
            registry: Arc::default(),
            metrics: Arc::default(),
            running: Mutex::new(None),
        })
    }

    /// Binds and begins to accept; returns the port.
    fn start(&self, py: Python<'_>) -> PyResult<u16> {
        let mut running = lock(&self.running);
        if running.is_some() {
            return Err(bad_argument(py, "the page service runs already"));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(self.worker_threads)
            .thread_name("page-service")
            .enable_all()
            .build()?;
        let (sender, questions) = sync_channel(self.questions_max);
        let (event_loop, handler) = (self.event_loop.clone_ref(py), self.handler.clone_ref(py));
        std::thread::Builder::new().name("page-service-questions".to_string()).spawn(move || {
            forward(&questions, &event_loop, &handler);
        })?;
        let service = {
            let _inside = runtime.enter();
            service::PageService::start(
                self.config.clone(),
                Arc::clone(&self.registry),
                Arc::new(Questions { sender, metrics: Arc::clone(&self.metrics) }),
                Arc::clone(&self.metrics),
            )?
        };
        let port = service.local_addr().port();
        *running = Some(Running { service, runtime });
        Ok(port)
    }

    fn stop_accepting(&self) {
        if let Some(running) = lock(&self.running).as_ref() {
            running.service.stop_accepting();
        }
    }

    /// Ends all connections; false if some were still busy at the end of the time.
    fn stop(&self, py: Python<'_>, timeout_seconds: f64) -> PyResult<bool> {
        let timeout = seconds(py, timeout_seconds)?;
        let Some(running) = lock(&self.running).take() else { return Ok(true) };
        Ok(py.detach(|| {
            let Running { service, runtime } = running;
            let all_gone = runtime.block_on(service.stop(timeout));
            drop(service);
            // A thread that is still inside a read asks the runtime for nothing more than to be forgotten.
            runtime.shutdown_background();
            all_gone
        }))
    }

    #[pyo3(signature = (tenant_id, shard, state, reason = ""))]
    fn set_shard(
        &self,
        py: Python<'_>,
        tenant_id: &[u8],
        shard: (u8, u8, u32),
        state: &str,
        reason: &str,
    ) -> PyResult<()> {
        let (number, count, stripe_size) = shard;
        let state = match state {
            "InTransition" => ShardState::InTransition,
            "Attaching" => ShardState::Attaching,
            "Activating" => ShardState::Activating,
            "Active" => ShardState::Active,
            "Stopping" => ShardState::Stopping,
            "Broken" => ShardState::Broken(reason.to_string()),
            _ => return Err(bad_argument(py, &format!("unknown state of a tenant shard {state:?}"))),
        };
        let identity = ShardIdentity { number, count, stripe_size };
        self.registry.set_shard(shard_id(py, tenant_id, (number, count))?, identity, state);
        Ok(())
    }

    fn remove_shard(&self, py: Python<'_>, tenant_id: &[u8], shard: (u8, u8)) -> PyResult<Vec<ServedTimeline>> {
        let timelines = self.registry.remove_shard(shard_id(py, tenant_id, shard)?);
        Ok(timelines.into_iter().map(|timeline| ServedTimeline { timeline }).collect())
    }

    /// None turns the throttle off; otherwise (initial, max, refill interval in seconds, refill amount).
    #[pyo3(signature = (tenant_id, shard, throttle))]
    fn set_throttle(
        &self,
        py: Python<'_>,
        tenant_id: &[u8],
        shard: (u8, u8),
        throttle: Option<(u32, u32, f64, u32)>,
    ) -> PyResult<bool> {
        let config = throttle
            .map(|(initial, max, interval, refill_amount)| {
                let refill_interval = seconds(py, interval)?;
                PyResult::Ok(ThrottleConfig { initial, max, refill_interval, refill_amount })
            })
            .transpose()?;
        Ok(self.registry.set_throttle(shard_id(py, tenant_id, shard)?, config))
    }

    fn attach_timeline(
        &self,
        py: Python<'_>,
        tenant_id: &[u8],
        shard: (u8, u8),
        timeline_id: &[u8],
        store: &Bound<'_, PyAny>,
    ) -> PyResult<ServedTimeline> {
        let id = shard_id(py, tenant_id, shard)?;
        let timeline_id = TimelineId(id16(py, timeline_id)?);
        let source: Arc<dyn PageSource> = match store.cast::<TimelineStore>() {
            Ok(store) => store.get().store.clone(),
            Err(_) => store.cast::<PageBridge>()?.get().bridge.clone(),
        };
        match self.registry.attach_timeline(id, timeline_id, source) {
            Some(timeline) => Ok(ServedTimeline { timeline }),
            None => Err(raise(py, "NotFoundError", &format!("tenant shard {id} is not served here"), &[])),
        }
    }

    #[pyo3(signature = (tenant_id, shard, timeline_id, *, reconnect = false, state = None))]
    fn close_timeline(
        &self,
        py: Python<'_>,
        tenant_id: &[u8],
        shard: (u8, u8),
        timeline_id: &[u8],
        reconnect: bool,
        state: Option<String>,
    ) -> PyResult<Option<ServedTimeline>> {
        let why = if reconnect { Closed::Reconnect } else { Closed::Shutdown };
        let timeline_id = TimelineId(id16(py, timeline_id)?);
        let closed = self.registry.close_timeline(shard_id(py, tenant_id, shard)?, timeline_id, why, state);
        Ok(closed.map(|timeline| ServedTimeline { timeline }))
    }

    fn live_connections(&self) -> usize {
        lock(&self.running).as_ref().map_or(0, |running| running.service.live_connections())
    }

    fn metrics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let snapshot = self.metrics.snapshot();
        let out = PyDict::new(py);
        out.set_item("connections_started", snapshot.connections_started)?;
        out.set_item("connections_finished", snapshot.connections_finished)?;
        out.set_item("misrouted_requests", snapshot.misrouted_requests)?;
        out.set_item("flush_micros", snapshot.flush_micros)?;
        out.set_item("wait_lsn_micros", snapshot.wait_lsn_micros)?;
        out.set_item("wait_lsn_seconds", histogram(py, &snapshot.wait_lsn_seconds)?)?;
        out.set_item("throttle", throttle_numbers(&snapshot.throttle))?;
        let shards = PyDict::new(py);
        for (id, counts) in self.registry.throttle_counts() {
            let key = (PyBytes::new(py, &id.tenant.0), id.shard.number, id.shard.count);
            shards.set_item(key, throttle_numbers(&counts))?;
        }
        out.set_item("throttle_of_shards", shards)?;
        out.set_item("batch_wait_seconds", histogram(py, &snapshot.batch_wait_seconds)?)?;
        out.set_item("questions_dropped", counts(py, &snapshot.questions_dropped)?)?;
        out.set_item("commands", counts(py, &snapshot.commands)?)?;
        out.set_item("requests_started", counts(py, &snapshot.requests_started)?)?;
        let seconds = PyDict::new(py);
        for (name, snapshot) in &snapshot.request_seconds {
            seconds.set_item(*name, histogram(py, snapshot)?)?;
        }
        out.set_item("request_seconds", seconds)?;
        out.set_item("outcomes", counts(py, &snapshot.outcomes)?)?;
        out.set_item("batch_sizes", snapshot.batch_sizes)?;
        out.set_item("batch_breaks", counts(py, &snapshot.batch_breaks)?)?;
        Ok(out)
    }
}
