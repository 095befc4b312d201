//! GetPage requests that become one vectored read (spec page-service.md 4).

use std::time::Instant;

use bytes::Bytes;
use pagecore::key::{FSM_FORK, VM_FORK};
use pagecore::{Key, Lsn, RelTag};

use crate::context::{Batching, ServiceConfig};
use crate::metrics::BatchBreak;
use crate::protocol::pagestream::Header;
use crate::source::{GcHold, ReadAt, ReadError};
use crate::timeline::Handle;

/// One GetPage request in a batch.
#[derive(Clone, Copy)]
pub(super) struct Member {
    pub(super) header: Header,
    pub(super) rel: RelTag,
    pub(super) block: u32,
    pub(super) lsn: Lsn,
    /// When it was through the throttle.
    pub(super) admitted: Instant,
}

/// What the batch found for a member.
pub(super) enum Found {
    /// Index into the results of the vectored read.
    Read(usize),
    Zero,
    Failed(ReadError),
}

/// Requests that become one vectored read. Buffers are kept from batch to batch.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) handle: Option<Handle>,
    pub(super) hold: GcHold,
    pub(super) members: Vec<Member>,
    pub(super) max_lsn: Lsn,
    pub(super) is_uniform_lsn: bool,
    pub(super) found: Vec<Found>,
    pub(super) keys: Vec<(Key, Lsn)>,
    pub(super) pages: Vec<Result<Bytes, ReadError>>,
}

/// Why the member cannot join the batch that is waiting (spec 4.3, in this order).
pub(super) fn break_reason(batch: &Batch, member: &Member, config: &ServiceConfig) -> Option<BatchBreak> {
    if batch.members.len() >= config.max_batch_size {
        return Some(BatchBreak::BatchFull);
    }
    if batch.is_uniform_lsn && member.lsn == batch.max_lsn {
        return None;
    }
    match config.batching {
        Batching::UniformLsn => Some(BatchBreak::NonUniformLsn),
        Batching::ScatteredLsn => batch
            .members
            .iter()
            .any(|other| other.lsn != member.lsn && other.block == member.block && other.rel == member.rel)
            .then_some(BatchBreak::SamePageAtDifferentLsn),
    }
}

pub(super) fn check_relnode(rel: RelTag) -> Result<(), ReadError> {
    match rel.relnode {
        0 => Err(ReadError::Failed("relation number 0".to_string())),
        _ => Ok(()),
    }
}

/// PostgreSQL creates the free space and visibility map forks on demand and asks for their size first.
pub(super) fn rel_size_or_zero(handle: &Handle, rel: RelTag, at: ReadAt) -> Result<u32, ReadError> {
    match handle.source().rel_size(rel, at)? {
        Some(blocks) => Ok(blocks),
        None if matches!(rel.forknum, FSM_FORK | VM_FORK) => Ok(0),
        None => Err(ReadError::Failed(format!("relation {rel} not found at {}", at.lsn))),
    }
}

/// Looks up sizes and decides which members need a read. Neighbours mostly ask for the same relation at the same LSN.
pub(super) fn plan_reads(handle: &Handle, batch: &mut Batch) {
    let mut known: Option<(RelTag, ReadAt, Result<u32, ReadError>)> = None;
    for member in &batch.members {
        let at = ReadAt { lsn: member.lsn, latest: member.header.request_lsn == Lsn::MAX };
        let is_known = matches!(&known, Some((rel, known_at, _)) if *rel == member.rel && *known_at == at);
        if !is_known {
            let size = check_relnode(member.rel).and_then(|()| rel_size_or_zero(handle, member.rel, at));
            known = Some((member.rel, at, size));
        }
        let found = match &known {
            Some((_, _, Ok(blocks))) if member.block < *blocks => {
                batch.keys.push((Key::rel_block(member.rel, member.block), member.lsn));
                Found::Read(batch.keys.len() - 1)
            }
            Some((_, _, Err(error))) => Found::Failed(error.clone()),
            _ => Found::Zero,
        };
        batch.found.push(found);
    }
}
