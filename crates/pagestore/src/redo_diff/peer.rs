//! The redo process as a witness: a few threads ask it, so that its pipe is never empty.
//!
//! A request that fails may be the victim of another thread's, which killed the process. It becomes a suspect, and when
//! all others are done the suspects are asked one by one: who fails alone is guilty, and that is a difference.

use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use pagecore::page::PageBytes;
use pagecore::redo::Context;
use pagecore::{Key, Lsn};

use super::agreement::{disagreement, Rule};
use super::replay::{RecordAt, Version};
use super::report::{Difference, Report, Witness};
use crate::redo_process::{Attempts, PoolError, RedoPool, RedoRequest};

/// Requests handed to a thread at once.
const BATCH_JOBS: usize = 32;
/// After so many failures in one piece of WAL the process is not asked any more: each costs the start of a process.
pub const PEER_FAILURES_MAX: usize = 200;

/// One exchange: a page before and the record, and what the in-process engine made of them.
pub(super) struct Job {
    key: Key,
    start: Lsn,
    end: Lsn,
    rmid: u8,
    info: u8,
    before: Option<Box<PageBytes>>,
    record: Box<[u8]>,
    after: Box<PageBytes>,
}

impl Job {
    pub fn new(version: &Version<'_>, after: &PageBytes) -> Job {
        let RecordAt { start, end, rmid, info, bytes } = version.record;
        let before = version.before.map(|page| Box::new(*page));
        Job { key: version.key, start, end, rmid, info, before, record: bytes.into(), after: Box::new(*after) }
    }

    fn difference(&self, detail: String) -> Difference {
        Difference {
            witness: Witness::Process,
            key: self.key,
            rmid: self.rmid,
            info: self.info,
            start: self.start,
            end: self.end,
            detail,
            ours: Some(self.after.clone()),
            theirs: None,
            lines: vec![],
        }
    }
}

pub(super) struct Peer {
    pool: Arc<RedoPool>,
    major: u8,
    hint_bits_logged: bool,
    threads: usize,
    given_up: bool,
}

/// Where the replay puts its requests; waits while the threads have enough to do.
pub(super) struct Queue {
    sender: Option<SyncSender<Vec<Job>>>,
    batch: Vec<Job>,
}

impl Queue {
    /// False if the process is not asked any more.
    pub fn put(&mut self, job: Job) -> bool {
        if self.sender.is_none() {
            return false;
        }
        self.batch.push(job);
        if self.batch.len() >= BATCH_JOBS {
            self.send();
        }
        true
    }

    fn send(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if self.sender.as_ref().is_some_and(|sender| sender.send(batch).is_err()) {
            self.sender = None;
        }
    }
}

impl Peer {
    pub fn new(pool: Arc<RedoPool>, context: &Context, threads: usize) -> Peer {
        let (major, hint_bits_logged) = (context.major, context.hint_bits_logged);
        Peer { pool, major, hint_bits_logged, threads: threads.max(1), given_up: false }
    }

    /// Runs `replay`, which puts requests into the queue; all are answered when this returns.
    pub fn run<R>(&mut self, report: &Mutex<Report>, replay: impl FnOnce(&mut Queue) -> R) -> R {
        if self.given_up {
            return replay(&mut Queue { sender: None, batch: vec![] });
        }
        let suspects = Mutex::new(Vec::new());
        let (sender, receiver) = sync_channel(2 * self.threads);
        let receiver = Mutex::new(receiver);
        let peer = &*self;
        let outcome = thread::scope(|scope| {
            for _ in 0..peer.threads {
                scope.spawn(|| peer.work(&receiver, report, &suspects));
            }
            let mut queue = Queue { sender: Some(sender), batch: vec![] };
            let outcome = replay(&mut queue);
            queue.send();
            outcome
        });
        let suspects = suspects.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut found = Report::new(suspects.len());
        if suspects.len() >= PEER_FAILURES_MAX {
            self.given_up = true;
            found.process_given_up = Some(format!("{} requests failed", suspects.len()));
        }
        for job in suspects.into_iter().take(PEER_FAILURES_MAX) {
            if let Err(error) = self.compare(&job, &mut found) {
                found.witness(Witness::Process).compared += 1;
                found.note(job.difference(error.to_string()));
            }
        }
        report.lock().unwrap_or_else(PoisonError::into_inner).merge(found);
        outcome
    }

    fn work(&self, jobs: &Mutex<Receiver<Vec<Job>>>, report: &Mutex<Report>, suspects: &Mutex<Vec<Job>>) {
        loop {
            let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(batch) = next else { return };
            let mut found = Report::new(BATCH_JOBS);
            for job in batch {
                let failed = || suspects.lock().unwrap_or_else(PoisonError::into_inner);
                if failed().len() < PEER_FAILURES_MAX && self.compare(&job, &mut found).is_err() {
                    failed().push(job);
                }
            }
            report.lock().unwrap_or_else(PoisonError::into_inner).merge(found);
        }
    }

    /// Asks the process for the page, and notes a difference.
    fn compare(&self, job: &Job, found: &mut Report) -> Result<(), PoolError> {
        let request = RedoRequest {
            key: job.key,
            lsn: job.end,
            major: self.major,
            hint_bits_logged: self.hint_bits_logged,
            // The base is older than any record; its LSN is not sent.
            base: job.before.as_ref().map(|page| (Lsn::INVALID, &page[..])),
            records: &[(job.end, &job.record)],
        };
        let answer = self.pool.redo(&request, Attempts::GcCompaction)?;
        found.witness(Witness::Process).compared += 1;
        let Ok(theirs) = <&PageBytes>::try_from(&answer[..]) else {
            found.note(job.difference(format!("a page of {} bytes", answer.len())));
            return Ok(());
        };
        if let Some(disagreement) = disagreement(&job.key, &job.after, theirs, Rule::SameInput) {
            let theirs = Some(Box::new(*theirs));
            found.note(Difference { theirs, lines: disagreement.lines, ..job.difference(disagreement.detail) });
        }
        Ok(())
    }
}
