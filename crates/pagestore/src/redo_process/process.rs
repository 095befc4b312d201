//! One WAL redo process: its pipes, its two sections, its deadline, its end (spec walredo.md 2, 3.2).
//!
//! Invariants:
//! - Answers come in the order of requests. Whoever leaves a section half way (an error in the middle of a write or read)
//!   leaves it *poisoned*, and everybody after fails: an answer given to the wrong request would be a wrong page.
//! - The two helper threads end with the process: one reads standard error, the other kills at the deadline. Blocking reads
//!   and writes need no time-out of their own then, since a killed process closes its pipes.
//! - The thread that reads standard error also *starts* the process. The kernel sends a parent-death signal when the
//!   starting thread ends, not the starting process, and this is the one thread that lives exactly as long as the child.
//! - A `Process` that is dropped has been killed and reaped.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{mpsc, Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pagecore::BLCKSZ;

use super::metrics::{RedoMetrics, StopCause};
use super::scratch::Scratch;
use super::{PoolError, RedoCommand, RedoEvent, RedoLog};

/// Lines of standard error that are repeated in the error of a failed request.
const TAIL_LINES: usize = 4;
/// The longest line that is kept; a process that writes garbage must not fill our memory.
const LINE_LEN_MAX: usize = 8 * 1024;
/// Lines of standard error that are passed on in a second; a process that prints without end must not fill the log.
const LINES_PER_SECOND_MAX: u32 = 100;
/// How long the reader of standard error may take to come to its end once the process is dead.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(1);
const HELPER_STACK: usize = 256 * 1024;

pub(super) struct Process {
    pid: u32,
    knows_neon_records: bool,
    requests: Mutex<Requests>,
    answers: Mutex<Answers>,
    shared: Arc<Shared>,
    watchdog: Option<JoinHandle<()>>,
    /// Removed after the process is dead.
    _scratch: Option<Scratch>,
}

/// The stdin section.
struct Requests {
    pipe: ChildStdin,
    next: u64,
    poisoned: bool,
}

/// The stdout section: answers that have been read, from number `first` on; those already taken are None.
struct Answers {
    pipe: ChildStdout,
    first: u64,
    queue: VecDeque<Option<Bytes>>,
    poisoned: bool,
}

/// What the helper threads see.
struct Shared {
    /// None before the start and after the end.
    child: Mutex<Option<Child>>,
    watch: Mutex<Watch>,
    wake: Condvar,
    timed_out: AtomicBool,
    tail: Mutex<Tail>,
    said_all: Condvar,
    log: Arc<RedoLog>,
    metrics: Arc<RedoMetrics>,
}

/// The last lines of standard error, and whether there will be no more.
#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
    ended: bool,
}

/// Deadlines of the requests in flight. All have the same time-out, so the first is the earliest.
#[derive(Default)]
struct Watch {
    in_flight: VecDeque<(u64, Instant)>,
    next: u64,
    stop: bool,
}

/// A panic of ours while holding a lock leaves data that is checked by other means (the sections' own poison).
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// Starts a process. Returns before it is ready: the first exchange waits for it.
    pub(super) fn start(
        command: &RedoCommand,
        tenant: &str,
        scratch_name: &str,
        timeout: Duration,
        log: &Arc<RedoLog>,
        metrics: &Arc<RedoMetrics>,
    ) -> Result<Process, PoolError> {
        let launch = |what: &str, error: io::Error| PoolError::Launch(format!("{what}: {error}"));
        let scratch = match &command.scratch_template {
            None => None,
            Some(template) => Some(
                Scratch::copy(template, scratch_name, command.uid, command.gid)
                    .map_err(|error| launch("copying the scratch directory", error))?,
            ),
        };
        let knows_neon_records = command.knows_neon_records;
        // Not everybody may run what we may.
        let user = command.uid.map(|uid| format!(" as user {uid}")).unwrap_or_default();
        let what = format!("starting {}{user}", command.argv.first().map_or("nothing", String::as_str));
        let command = prepare(command, tenant, scratch.as_ref())?;
        let shared = Arc::new(Shared {
            child: Mutex::new(None),
            watch: Mutex::default(),
            wake: Condvar::new(),
            timed_out: AtomicBool::new(false),
            tail: Mutex::default(),
            said_all: Condvar::new(),
            log: Arc::clone(log),
            metrics: Arc::clone(metrics),
        });

        let (sender, receiver) = mpsc::sync_channel(1);
        thread::Builder::new()
            .name("redo stderr".into())
            .stack_size(HELPER_STACK)
            .spawn({
                let shared = Arc::clone(&shared);
                move || start_and_read_stderr(command, &shared, &sender)
            })
            .map_err(|error| launch("starting a thread", error))?;
        let (pid, stdin, stdout) = match receiver.recv() {
            Ok(Ok(started)) => started,
            Ok(Err(error)) => return Err(launch(&what, error)),
            Err(_) => return Err(PoolError::Launch("the starting thread ended".into())),
        };
        let mut process = Process {
            pid,
            knows_neon_records,
            requests: Mutex::new(Requests { pipe: stdin, next: 0, poisoned: false }),
            answers: Mutex::new(Answers { pipe: stdout, first: 0, queue: VecDeque::new(), poisoned: false }),
            shared,
            watchdog: None,
            _scratch: scratch,
        };
        let watchdog = thread::Builder::new().name("redo watchdog".into()).stack_size(HELPER_STACK).spawn({
            let shared = Arc::clone(&process.shared);
            move || watch(&shared, timeout)
        });
        match watchdog {
            Ok(handle) => process.watchdog = Some(handle),
            Err(error) => {
                process.shared.stop(pid, StopCause::Startup);
                return Err(launch("starting a thread", error));
            }
        }
        Ok(process)
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn knows_neon_records(&self) -> bool {
        self.knows_neon_records
    }

    /// Sends one encoded request and returns its answer. After an error the process is dead and this handle useless.
    pub(super) fn exchange(&self, request: &[u8], timeout: Duration) -> Result<Bytes, PoolError> {
        let ticket = self.shared.register(timeout);
        let result = self.write_request(request).and_then(|number| self.read_answer(number));
        self.shared.release(ticket);
        result.map_err(|error| {
            self.stop(StopCause::WalRedoProcessDrop);
            if self.shared.timed_out.load(Relaxed) {
                return PoolError::TimedOut;
            }
            let tail = self.shared.last_words();
            let said = if tail.is_empty() { tail } else { format!("; it said: {tail}") };
            PoolError::Failed { pid: self.pid, detail: format!("{error}{said}") }
        })
    }

    /// True while a request is in flight.
    pub(super) fn is_busy(&self) -> bool {
        !lock(&self.shared.watch).in_flight.is_empty()
    }

    /// Kills the process, waits for its end, and for what it last said. Blocking on purpose: it limits how fast broken
    /// processes can be replaced. Requests in flight fail.
    pub(super) fn stop(&self, cause: StopCause) {
        self.shared.stop(self.pid, cause);
    }

    fn write_request(&self, request: &[u8]) -> io::Result<u64> {
        let mut section = lock(&self.requests);
        if section.poisoned {
            return Err(io::Error::other("an earlier request was not written completely"));
        }
        section.poisoned = true;
        section.pipe.write_all(request)?;
        section.poisoned = false;
        let number = section.next;
        section.next += 1;
        Ok(number)
    }

    fn read_answer(&self, number: u64) -> io::Result<Bytes> {
        let mut section = lock(&self.answers);
        if section.poisoned {
            return Err(io::Error::other("an earlier answer was not read completely"));
        }
        while section.first + (section.queue.len() as u64) <= number {
            section.poisoned = true;
            let mut page = vec![0; BLCKSZ];
            section.pipe.read_exact(&mut page)?;
            section.queue.push_back(Some(page.into()));
            section.poisoned = false;
        }
        let index = usize::try_from(number - section.first).map_err(io::Error::other)?;
        let answer = section.queue.get_mut(index).and_then(Option::take);
        while let Some(None) = section.queue.front() {
            section.queue.pop_front();
            section.first += 1;
        }
        answer.ok_or_else(|| io::Error::other("the answer was taken by somebody else"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop(StopCause::NoLeakChildDrop);
        lock(&self.shared.watch).stop = true;
        self.shared.wake.notify_all();
        if let Some(watchdog) = self.watchdog.take() {
            let _ = watchdog.join();
        }
        // Something that the process left behind may hold its standard error; the thread then goes when that goes.
        self.shared.last_words();
    }
}

impl Shared {
    fn register(&self, timeout: Duration) -> u64 {
        let mut watch = lock(&self.watch);
        let ticket = watch.next;
        watch.next += 1;
        // The watchdog need not be woken: it looks again before any request that comes now can be late.
        watch.in_flight.push_back((ticket, Instant::now() + timeout));
        ticket
    }

    fn release(&self, ticket: u64) {
        let mut watch = lock(&self.watch);
        if let Some(at) = watch.in_flight.iter().position(|(other, _)| *other == ticket) {
            watch.in_flight.remove(at);
        }
    }

    /// What a dead process said last. Its end of the pipe is closed, but the reader may not have come to the end yet.
    fn last_words(&self) -> String {
        let tail = lock(&self.tail);
        let (tail, _) = self
            .said_all
            .wait_timeout_while(tail, LAST_WORDS_WAIT, |tail| !tail.ended)
            .unwrap_or_else(PoisonError::into_inner);
        tail.lines.iter().map(String::as_str).collect::<Vec<_>>().join(" / ")
    }

    fn stop(&self, pid: u32, cause: StopCause) {
        // Held until the process is reaped: who comes second returns when it is gone, too.
        let mut current = lock(&self.child);
        let Some(mut child) = current.take() else { return };
        // Both fail only if the process is reaped already, and nobody else reaps it.
        let _ = child.kill();
        let _ = child.wait();
        self.metrics.count_stop(cause);
        (self.log)(RedoEvent::Stopped { pid, cause });
    }
}

/// Fills in the placeholders.
fn prepare(command: &RedoCommand, tenant: &str, scratch: Option<&Scratch>) -> Result<Command, PoolError> {
    let path = scratch.map(|scratch| scratch.path().to_string_lossy().into_owned()).unwrap_or_default();
    let mut argv = command.argv.iter().map(|word| word.replace("{scratch}", &path).replace("{tenant}", tenant));
    let program = argv.next().ok_or_else(|| PoolError::Launch("the command is empty".into()))?;
    let mut prepared = Command::new(program);
    prepared
        .args(argv)
        .env_clear()
        .envs(command.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Keys pressed in our terminal are ours.
        .process_group(0);
    if let Some(scratch) = scratch {
        prepared.current_dir(scratch.path());
    }
    // Supplementary groups go with the change of user.
    if let Some(gid) = command.gid {
        prepared.gid(gid);
    }
    if let Some(uid) = command.uid {
        prepared.uid(uid);
    }
    Ok(prepared)
}

type Started = io::Result<(u32, ChildStdin, ChildStdout)>;

fn start_and_read_stderr(mut command: Command, shared: &Shared, sender: &mpsc::SyncSender<Started>) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            end_of_words(shared);
            let _ = sender.send(Err(error));
            return;
        }
    };
    // Frees what the command holds (paths, environment) for the life of the process.
    drop(command);
    shared.metrics.started.fetch_add(1, Relaxed);
    let pid = child.id();
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    *lock(&shared.child) = Some(child);
    let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
        shared.stop(pid, StopCause::Startup);
        end_of_words(shared);
        let _ = sender.send(Err(io::Error::other("a pipe is missing")));
        return;
    };
    if sender.send(Ok((pid, stdin, stdout))).is_err() {
        shared.stop(pid, StopCause::Startup);
        return end_of_words(shared);
    }
    shared.metrics.stderr_tasks_started.fetch_add(1, Relaxed);
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    let mut flood = Flood { since: Instant::now(), lines: 0 };
    loop {
        line.clear();
        match (&mut lines).take(LINE_LEN_MAX as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => note_line(shared, pid, &String::from_utf8_lossy(&line), &mut flood),
        }
    }
    flood.report(shared, pid);
    shared.metrics.stderr_tasks_finished.fetch_add(1, Relaxed);
    end_of_words(shared);
}

fn end_of_words(shared: &Shared) {
    lock(&shared.tail).ended = true;
    shared.said_all.notify_all();
}

/// Lines within one second.
struct Flood {
    since: Instant,
    lines: u32,
}

impl Flood {
    /// False: too many came lately.
    fn admits_another(&mut self, shared: &Shared, pid: u32) -> bool {
        if self.since.elapsed() >= Duration::from_secs(1) {
            self.report(shared, pid);
            *self = Flood { since: Instant::now(), lines: 0 };
        }
        self.lines = self.lines.saturating_add(1);
        self.lines <= LINES_PER_SECOND_MAX
    }

    /// Says what was left out.
    fn report(&self, shared: &Shared, pid: u32) {
        let left_out = self.lines.saturating_sub(LINES_PER_SECOND_MAX);
        if left_out > 0 {
            (shared.log)(RedoEvent::Output { pid, line: &format!("({left_out} more lines within a second)") });
        }
    }
}

fn note_line(shared: &Shared, pid: u32, line: &str, flood: &mut Flood) {
    let line = line.trim_end();
    // PostgreSQL prints harmless messages of this level at start.
    if line.is_empty() || line.contains("LOG:") {
        return;
    }
    {
        let lines = &mut lock(&shared.tail).lines;
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }
    if flood.admits_another(shared, pid) {
        (shared.log)(RedoEvent::Output { pid, line });
    }
}

/// Kills the process when a request is late; ends when it is told to, or has killed.
fn watch(shared: &Shared, timeout: Duration) {
    let mut watch = lock(&shared.watch);
    while !watch.stop {
        let now = Instant::now();
        let pause = match watch.in_flight.front() {
            Some((_, deadline)) if *deadline <= now => {
                drop(watch);
                shared.timed_out.store(true, Relaxed);
                // Only kill here: the request that fails because of it reaps and reports.
                if let Some(child) = lock(&shared.child).as_mut() {
                    let _ = child.kill();
                }
                return;
            }
            Some((_, deadline)) => *deadline - now,
            None => timeout / 2,
        };
        (watch, _) = shared.wake.wait_timeout(watch, pause).unwrap_or_else(PoisonError::into_inner);
    }
}
