//! The processes of one tenant: started on demand, replaced after errors, stopped when idle (spec walredo.md 2.2, 4.1).
//!
//! Normally there is one process. WAL of two PostgreSQL majors, or of sources that differ in logging hint bits, needs one for
//! each kind.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pagecore::Lsn;

use super::metrics::{RedoMetrics, StopCause};
use super::process::Process;
use super::{answer, wire, Attempts, CommandSource, PoolError, RedoCommand, RedoEvent, RedoLog, RedoRequest};

/// Which process can serve a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    major: u8,
    hint_bits_logged: bool,
}

/// Makes names of scratch directories unique within this server.
static SCRATCH_NUMBER: AtomicU64 = AtomicU64::new(0);

pub struct RedoPool {
    tenant: String,
    timeout: Duration,
    commands: CommandSource,
    /// Held while a process is started, so that concurrent first requests wait for one start.
    starting: Mutex<()>,
    state: Mutex<State>,
    log: Arc<RedoLog>,
    metrics: Arc<RedoMetrics>,
}

#[derive(Default)]
struct State {
    current: HashMap<Kind, Arc<Process>>,
    /// Every process that may be alive, also those taken out of rotation, for `shutdown`.
    all: Vec<Weak<Process>>,
    last_redo: Option<Instant>,
    stopped: bool,
}

impl RedoPool {
    /// `timeout` is that of a whole exchange, waiting for others included.
    pub fn new(
        tenant: String,
        timeout: Duration,
        commands: CommandSource,
        log: RedoLog,
        metrics: Arc<RedoMetrics>,
    ) -> RedoPool {
        RedoPool {
            tenant,
            timeout,
            commands,
            starting: Mutex::default(),
            state: Mutex::default(),
            log: Arc::new(log),
            metrics,
        }
    }

    /// Returns the 8192 bytes of the page. Blocks; safe to repeat.
    pub fn redo(&self, request: &RedoRequest<'_>, attempts: Attempts) -> Result<Bytes, PoolError> {
        let message = wire::encode(request)?;
        let kind = Kind { major: request.major, hint_bits_logged: request.hint_bits_logged };
        let mut tries = 1;
        loop {
            match self.try_once(kind, request, &message) {
                Ok(page) => {
                    if tries > 1 {
                        (self.log)(RedoEvent::Recovered { tries });
                    }
                    return Ok(page);
                }
                Err(error) if error.is_retriable() => {
                    let text = describe_failure(request, attempts, tries, &error);
                    (self.log)(RedoEvent::Failed { attempts, text: &text });
                    if tries >= attempts.tries() {
                        return Err(error);
                    }
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    pub fn is_running(&self) -> bool {
        !self.lock().current.is_empty()
    }

    /// The process id of the current process (of any one, should there be several).
    pub fn pid(&self) -> Option<u32> {
        self.lock().current.values().map(|process| process.pid()).min()
    }

    /// How long ago the last request came; none if there was none.
    pub fn idle_for(&self) -> Option<Duration> {
        self.lock().last_redo.map(|at| at.elapsed())
    }

    /// Stops the processes if there was no request for `idle`; true if one was stopped.
    pub fn stop_if_idle(&self, idle: Duration) -> bool {
        let taken: Vec<_> = {
            let mut state = self.lock();
            let busy = state.current.values().any(|process| process.is_busy());
            if busy || state.last_redo.is_some_and(|at| at.elapsed() < idle) {
                return false;
            }
            state.current.drain().collect()
        };
        taken.iter().for_each(|(_, process)| process.stop(StopCause::WalRedoProcessDrop));
        !taken.is_empty()
    }

    /// No process is started any more; those that run are killed and reaped before this returns. Requests in flight fail.
    pub fn shutdown(&self) {
        self.lock().stopped = true;
        // A start that is under way ends first, and sees that it was in vain.
        let starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<Arc<Process>> = {
            let mut state = self.lock();
            let all = std::mem::take(&mut state.all).iter().filter_map(Weak::upgrade).collect();
            state.current.clear();
            all
        };
        all.iter().for_each(|process| process.stop(StopCause::WalRedoProcessDrop));
        drop(starting);
    }

    /// True if the processes of this kind understand heap records in the layouts of Neon's computes.
    pub fn knows_neon_records(&self, major: u8, hint_bits_logged: bool) -> Result<bool, PoolError> {
        let kind = Kind { major, hint_bits_logged };
        if let Some(process) = self.current(kind)? {
            return Ok(process.knows_neon_records());
        }
        self.command(kind).map(|command| command.knows_neon_records)
    }

    pub fn metrics(&self) -> &Arc<RedoMetrics> {
        &self.metrics
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The current process of this kind, started if there is none.
    fn process(&self, kind: Kind) -> Result<Arc<Process>, PoolError> {
        if let Some(process) = self.current(kind)? {
            return Ok(process);
        }
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(process) = self.current(kind)? {
            return Ok(process);
        }
        let command = self.command(kind)?;
        let name = format!("redo-{}-{}", self.tenant, SCRATCH_NUMBER.fetch_add(1, Relaxed));
        let begun = Instant::now();
        let process = Process::start(&command, &self.tenant, &name, self.timeout, &self.log, &self.metrics)?;
        self.metrics.launch_seconds.observe(begun.elapsed().as_secs_f64());
        (self.log)(RedoEvent::Started { pid: process.pid(), major: kind.major });
        let process = Arc::new(process);
        let mut state = self.lock();
        if state.stopped {
            drop(state);
            process.stop(StopCause::WalRedoProcessDrop);
            return Err(PoolError::Stopped);
        }
        state.all.retain(|old| old.strong_count() > 0);
        state.all.push(Arc::downgrade(&process));
        state.current.insert(kind, Arc::clone(&process));
        Ok(process)
    }

    fn command(&self, kind: Kind) -> Result<RedoCommand, PoolError> {
        let no_command = |reason| PoolError::NoCommand { major: kind.major, reason };
        (self.commands)(kind.major, kind.hint_bits_logged).map_err(no_command)
    }

    fn current(&self, kind: Kind) -> Result<Option<Arc<Process>>, PoolError> {
        let mut state = self.lock();
        if state.stopped {
            return Err(PoolError::Stopped);
        }
        state.last_redo = Some(Instant::now());
        Ok(state.current.get(&kind).cloned())
    }

    /// Takes a process out of rotation, unless somebody has replaced it already.
    fn discard(&self, kind: Kind, process: &Arc<Process>) {
        let mut state = self.lock();
        if state.current.get(&kind).is_some_and(|current| Arc::ptr_eq(current, process)) {
            state.current.remove(&kind);
        }
    }

    fn try_once(&self, kind: Kind, request: &RedoRequest<'_>, message: &[u8]) -> Result<Bytes, PoolError> {
        let process = self.process(kind)?;
        let begun = Instant::now();
        let result = process.exchange(message, self.timeout).and_then(|page| match answer::check(request, &page) {
            Ok(()) => Ok(page),
            Err(detail) => {
                // Its answers may be out of step with the requests; nothing more of it can be believed.
                process.stop(StopCause::WalRedoProcessDrop);
                Err(PoolError::Failed { pid: process.pid(), detail })
            }
        });
        self.metrics.observe_run(request.records, begun.elapsed());
        result.map_err(|error| {
            self.discard(kind, &process);
            if self.lock().stopped {
                PoolError::Stopped
            } else {
                error
            }
        })
    }
}

impl Drop for RedoPool {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// The message of spec walredo.md 4.1.
fn describe_failure(request: &RedoRequest<'_>, attempts: Attempts, tries: u32, error: &PoolError) -> String {
    let lsn_of = |record: Option<&(Lsn, &[u8])>| record.map_or(Lsn::INVALID, |(lsn, _)| *lsn);
    format!(
        "error applying {} WAL records {}..{} ({} bytes) to key {} during {}, from base image with LSN {} to reconstruct \
         page image at LSN {} n_attempts={}: {}",
        request.records.len(),
        lsn_of(request.records.first()),
        lsn_of(request.records.last()),
        request.records.iter().map(|(_, record)| record.len()).sum::<usize>(),
        request.key,
        attempts.name(),
        request.base.map_or(Lsn::INVALID, |(lsn, _)| lsn),
        request.lsn,
        tries,
        error
    )
}
