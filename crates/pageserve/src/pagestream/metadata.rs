//! The requests of a pagestream that are not GetPage: one at a time, each for shard zero (spec page-service.md 3).

use std::time::{Duration, Instant};

use pagecore::{Lsn, SlruKind, BLCKSZ};

use super::batch::{check_relnode, rel_size_or_zero};
use super::{page_error, Flow, PageStream, StreamEnd};
use crate::error::PageError;
use crate::lsn_rules::effective_lsn;
use crate::metrics::{HandlerOutcome, RequestKind};
use crate::protocol::pagestream::{Answer, Body, Request, MAX_SLRU_BLOCKS};
use crate::source::{ReadAt, ReadError};
use crate::timeline::{Handle, ShardSelector};

/// The default tablespace: the only one that DbSize counts.
const DEFAULT_TABLESPACE: u32 = 1663;

impl PageStream {
    pub(super) fn execute_other(&mut self, request: &Request<'_>) -> Flow {
        let kind = match request.body {
            Body::Exists { .. } => RequestKind::Exists,
            Body::Nblocks { .. } => RequestKind::Nblocks,
            Body::GetPage { .. } => RequestKind::GetPage,
            Body::DbSize { .. } => RequestKind::DbSize,
            Body::SlruSegment { .. } => RequestKind::SlruSegment,
            Body::Test { .. } => RequestKind::Test,
        };
        self.context.metrics.request_started(kind);
        let mut took = Duration::ZERO;
        let result = self.execute_alone(request, &mut took);
        self.context.metrics.requests_executed(kind, took, 1);
        result
    }

    /// `took` stays as it is if the request dies before it is executed.
    fn execute_alone(&mut self, request: &Request<'_>, took: &mut Duration) -> Flow {
        if let Body::Test { message, .. } = request.body {
            request.respond(self.version, &Answer::Test(message), &mut self.output.bytes);
            return Ok(());
        }
        self.flush()?;
        let mut has_token = false;
        let handle = loop {
            let handle = match self.resolve(ShardSelector::Zero)? {
                Ok(handle) => handle,
                Err(error) => return Err(StreamEnd::Query(error.for_command())),
            };
            if std::mem::replace(&mut has_token, true) {
                break handle;
            }
            match handle.throttle.reserve(Instant::now(), &self.context.metrics.throttle) {
                None => break handle,
                Some(pause) => self.pause(handle, pause)?,
            }
        };
        let started = Instant::now();
        let _hold = handle.source().hold_gc();
        let source = handle.source();
        let readable = |lsn| handle.is_readable_below_cutoff(lsn);
        let answer = match effective_lsn(&request.header, source.last_record_lsn(), source.gc_cutoff(), readable) {
            Err(error) => Err(error),
            Ok(lsn) => match self.wait_for_lsn(&handle, lsn) {
                Err(end) => {
                    *took = started.elapsed();
                    return Err(end);
                }
                Ok(Err(error)) => Err(error),
                Ok(Ok(())) => {
                    let at = ReadAt { lsn, latest: request.header.request_lsn == Lsn::MAX };
                    self.read_other(&handle, request, at)
                }
            },
        };
        *took = started.elapsed();
        match answer {
            Ok(()) => {
                self.context.metrics.outcome(HandlerOutcome::Success, 1);
                Ok(())
            }
            Err(error) => self.answer_error(request, error),
        }
    }

    fn read_other(&mut self, handle: &Handle, request: &Request<'_>, at: ReadAt) -> Result<(), PageError> {
        let source = handle.source();
        let failed = |error| page_error(error, handle, &request.body);
        let mut segment = Vec::new();
        let answer = match request.body {
            Body::Exists { rel } => {
                check_relnode(rel).map_err(failed)?;
                Answer::Exists(source.rel_exists(rel, at).map_err(failed)?)
            }
            Body::Nblocks { rel } => {
                check_relnode(rel).map_err(failed)?;
                Answer::Nblocks(rel_size_or_zero(handle, rel, at).map_err(failed)?)
            }
            Body::DbSize { dbnode } => {
                let blocks = source.db_size(DEFAULT_TABLESPACE, dbnode, at).map_err(failed)?;
                Answer::DbSize(i64::try_from(blocks.saturating_mul(BLCKSZ as u64)).unwrap_or(i64::MAX))
            }
            Body::SlruSegment { kind, segno } => {
                let kind =
                    SlruKind::from_u8(kind).ok_or_else(|| PageError::BadRequest("invalid SLRU kind".to_string()))?;
                let blocks = source.slru_segment(kind, segno, at).map_err(failed)?;
                if blocks.len() > MAX_SLRU_BLOCKS {
                    let text = format!("SLRU segment has {} blocks, the client has room for 32", blocks.len());
                    return Err(failed(ReadError::Failed(text)));
                }
                for block in &blocks {
                    let page = block.get(..BLCKSZ);
                    let short = || ReadError::Failed(format!("SLRU block has {} bytes", block.len()));
                    segment.extend_from_slice(page.ok_or_else(short).map_err(failed)?);
                }
                Answer::SlruSegment(&segment)
            }
            // Both are answered elsewhere.
            Body::GetPage { .. } | Body::Test { .. } => {
                return Err(PageError::BadRequest("invalid request".to_string()))
            }
        };
        request.respond(self.version, &answer, &mut self.output.bytes);
        Ok(())
    }
}
