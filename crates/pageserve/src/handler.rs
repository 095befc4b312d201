//! What the page service asks others: rare questions, never on the way to a page.

use bytes::Bytes;
use pagecore::Lsn;
use tokio::sync::{mpsc, oneshot};

use crate::error::QueryError;
use crate::ids::{TenantShardId, TimelineId};

/// Chunks that may wait between the maker of a backup and the socket.
const BACKUP_CHUNKS_MAX: usize = 8;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupRequest {
    pub tenant_shard: TenantShardId,
    pub timeline: TimelineId,
    /// Already waited for, and not below the cutoff. None: the last record.
    pub lsn: Option<Lsn>,
    /// `fullbackup` with an expected previous LSN.
    pub prev_lsn: Option<Lsn>,
    pub full: bool,
    pub gzip: bool,
    pub replica: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Info,
    Warning,
    Error,
    /// Suspected corruption.
    Critical,
}

pub trait Handler: Send + Sync + 'static {
    /// Starts making an archive and returns at once. An error before the first chunk is an ordinary command error.
    fn backup(&self, request: BackupRequest, sink: BackupSink);
    /// Answers with the expiry in milliseconds since 1970, or none if the LSN is too old. Returns at once.
    fn lease(&self, tenant_shard: TenantShardId, timeline: TimelineId, lsn: Lsn, answer: LeaseAnswer);
    /// A request waits for this shard to become active. Returns at once.
    fn activate(&self, tenant_shard: TenantShardId);
    /// Answers with what the receiver of the timeline's WAL is doing, in words. Returns at once.
    fn receiver_status(&self, tenant_shard: TenantShardId, timeline: TimelineId, answer: oneshot::Sender<String>);
    fn log(&self, level: LogLevel, text: &str);
}

pub type LeaseAnswer = oneshot::Sender<Result<Option<u64>, QueryError>>;

/// The client is gone, or its timeline is shutting down: stop making the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the receiver of the backup is gone")]
pub struct SinkClosed;

#[derive(Debug)]
pub(crate) enum BackupEvent {
    Chunk(Bytes),
    Done,
    Failed(QueryError),
}

/// Where the archive goes. Must end with `finish` or `fail`; a sink that is merely dropped is an error for the client.
pub struct BackupSink {
    sender: mpsc::Sender<BackupEvent>,
}

pub(crate) fn backup_channel() -> (BackupSink, mpsc::Receiver<BackupEvent>) {
    let (sender, receiver) = mpsc::channel(BACKUP_CHUNKS_MAX);
    (BackupSink { sender }, receiver)
}

impl BackupSink {
    fn send_blocking(&self, event: BackupEvent) -> Result<(), SinkClosed> {
        self.sender.blocking_send(event).map_err(|_| SinkClosed)
    }

    /// Blocks while the client is slow. Not to be called on a tokio worker.
    pub fn write_blocking(&self, chunk: Bytes) -> Result<(), SinkClosed> {
        self.send_blocking(BackupEvent::Chunk(chunk))
    }

    pub fn finish_blocking(&self) -> Result<(), SinkClosed> {
        self.send_blocking(BackupEvent::Done)
    }

    pub fn fail_blocking(&self, error: QueryError) -> Result<(), SinkClosed> {
        self.send_blocking(BackupEvent::Failed(error))
    }

    pub async fn write(&self, chunk: Bytes) -> Result<(), SinkClosed> {
        self.sender.send(BackupEvent::Chunk(chunk)).await.map_err(|_| SinkClosed)
    }

    pub async fn finish(&self) -> Result<(), SinkClosed> {
        self.sender.send(BackupEvent::Done).await.map_err(|_| SinkClosed)
    }

    pub async fn fail(&self, error: QueryError) -> Result<(), SinkClosed> {
        self.sender.send(BackupEvent::Failed(error)).await.map_err(|_| SinkClosed)
    }
}
