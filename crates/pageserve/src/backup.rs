//! `basebackup` and `fullbackup` over libpq: framing only (spec page-service.md 6.1). The archive is made elsewhere.
//!
//! Invariant: no handle is held while chunks are awaited or written, and both waits end when the timeline closes.

use tokio::sync::watch;

use pagecore::Lsn;

use crate::connection::Connection;
use crate::error::QueryError;
use crate::handler::{backup_channel, BackupEvent, BackupRequest};
use crate::ids::{TenantId, TimelineId};
use crate::protocol::backend;
use crate::timeline::{Closed, ShardSelector, WaitError};

/// Chunks are cut into CopyData messages of at most this much. Boundaries carry no meaning.
const COPY_DATA_MAX: usize = 64 * 1024;

pub(crate) struct Wanted {
    pub lsn: Option<Lsn>,
    pub prev_lsn: Option<Lsn>,
    pub full: bool,
    pub gzip: bool,
    pub replica: bool,
}

pub(crate) enum BackupEnd {
    Query(QueryError),
    /// In the middle of a message: nothing more can be said.
    Cut(String),
}

impl From<QueryError> for BackupEnd {
    fn from(error: QueryError) -> Self {
        BackupEnd::Query(error)
    }
}

fn closed_error(why: Closed) -> QueryError {
    match why {
        Closed::Shutdown => QueryError::Shutdown,
        Closed::Reconnect => QueryError::Reconnect,
    }
}

/// Resolves when the timeline closes or the service stops.
async fn cancelled(closed: &mut watch::Receiver<Option<Closed>>, stopping: &mut watch::Receiver<bool>) -> QueryError {
    tokio::select! {
        why = closed.wait_for(Option::is_some) => closed_error(why.map_or(None, |why| *why).unwrap_or(Closed::Shutdown)),
        _ = stopping.wait_for(|stopping| *stopping) => QueryError::Shutdown,
    }
}

pub(crate) async fn run(
    connection: &mut Connection,
    tenant: TenantId,
    timeline: TimelineId,
    wanted: Wanted,
) -> Result<(), BackupEnd> {
    let context = std::sync::Arc::clone(&connection.context);
    let mut stopping = context.stopping.subscribe();
    let resolved = connection.lookup.resolve(&context, tenant, timeline, ShardSelector::Zero);
    let handle = tokio::select! {
        biased;
        _ = stopping.wait_for(|stopping| *stopping) => return Err(QueryError::Shutdown.into()),
        resolved = resolved => resolved.map_err(|error| error.for_command())?,
    };
    let mut closed = handle.watch_closed();
    if let Some(lsn) = wanted.lsn {
        let wait = handle.wait_for_lsn(lsn, context.config.wait_lsn_timeout, &context.metrics, &*context.handler);
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => return Err(QueryError::Shutdown.into()),
            waited = wait => waited.map_err(|error| match error {
                WaitError::Timeout(text) => QueryError::Other(text),
                WaitError::Closed(why) => closed_error(why),
            })?,
        }
        let cutoff = handle.source().gc_cutoff();
        if lsn < cutoff {
            return Err(QueryError::Other(format!(
                "invalid basebackup lsn: LSN {lsn} is earlier than latest GC cutoff {cutoff} \
                 (we might've already garbage collected needed data)"
            ))
            .into());
        }
    }
    let tenant_shard = handle.tenant_shard;
    drop(handle);

    let (sink, mut events) = backup_channel();
    let Wanted { lsn, prev_lsn, full, gzip, replica } = wanted;
    context.handler.backup(BackupRequest { tenant_shard, timeline, lsn, prev_lsn, full, gzip, replica }, sink);
    let mut has_begun = false;
    loop {
        let event = tokio::select! {
            biased;
            error = cancelled(&mut closed, &mut stopping) => return Err(error.into()),
            event = events.recv() => event,
        };
        let chunk = match event {
            Some(BackupEvent::Chunk(chunk)) => Some(chunk),
            Some(BackupEvent::Done) => None,
            // Takes the place of CopyDone, so that the client knows that its archive is not valid.
            Some(BackupEvent::Failed(error)) => return Err(error.into()),
            None => return Err(QueryError::Other("the backup ended without a result".to_string()).into()),
        };
        if !std::mem::replace(&mut has_begun, true) {
            connection.output.extend_from_slice(backend::COPY_OUT_RESPONSE);
        }
        let Some(chunk) = chunk else {
            connection.output.extend_from_slice(backend::COPY_DONE);
            connection.output.extend_from_slice(backend::COMMAND_COMPLETE_SELECT_1);
            return Ok(());
        };
        for piece in chunk.chunks(COPY_DATA_MAX) {
            backend::copy_data(&mut connection.output, piece);
            connection.write_or(cancelled(&mut closed, &mut stopping)).await?;
        }
    }
}
