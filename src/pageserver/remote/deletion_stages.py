"""The three workers behind the deletion queue (remote-storage.md 11.4).

    ListWriter  collects names in a list, writes the list to disk, hands it on
    Validator   asks whether the lists' generations are current, notes that in the header, has them executed, and
                publishes uploaded LSNs on the way
    Deleter     deletes objects in batches until it succeeds

A list that was handed on lies on disk; an object is deleted only if its list passed validation, or if it came the
immediate way (deletion of a whole timeline). In doubt an object is left: leaks are allowed, deleting something that is
referenced is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pageserver.clock import Clock
from pageserver.disk_errors import DiskGuard
from pageserver.failpoints import FailpointError, Failpoints
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.remote.backoff import retry_for_ever
from pageserver.remote.deletion_list import DeletionDirectory, DeletionList, DeletionListError
from pageserver.remote.storage import ObjectStorage
from pageserver.remote.validation import GenerationValidator, LsnUpdates

LIST_NAMES_MAX = 16_384
DELETE_KEYS_MAX = 1000
IDLE_SECONDS = 10.0
_RETRY_WRITE_SECONDS = 0.1
_STAGE_DEPTH = 16


@dataclass(slots=True)
class DeletionCounters:
    """Since the start. `submitted` = `dropped` + `executed` when the queue is idle and every flush executed."""

    submitted: int = 0
    dropped: int = 0
    executed: int = 0
    validated: int = 0
    dropped_lsn_updates: int = 0
    remote_errors: int = 0
    failpoint_errors: int = 0
    unexpected_errors: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Flush:
    """Do what is there, then wake."""

    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class PushLayers:
    shard: TenantShardId
    timeline_id: TimelineId
    generation: Generation
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recover:
    """Take over what an earlier process left; `attached` are the generations of this one."""

    attached: Mapping[TenantShardId, Generation]


@dataclass(frozen=True, slots=True)
class Wake:
    """Look whether LSNs wait."""


@dataclass(slots=True)
class Shared:
    """What the stages have in common."""

    directory: DeletionDirectory
    storage: ObjectStorage
    validator: GenerationValidator
    clock: Clock
    log: Any
    disk: DiskGuard
    idle_seconds: float = IDLE_SECONDS
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    counters: DeletionCounters = field(default_factory=DeletionCounters)
    lsn_updates: LsnUpdates = field(default_factory=LsnUpdates)
    failpoints: Failpoints = field(default_factory=Failpoints.off)


class Deleter:
    """Accumulates keys and deletes them."""

    def __init__(self, shared: Shared) -> None:
        self.inbox: asyncio.Queue[tuple[str, ...] | Flush] = asyncio.Queue(_STAGE_DEPTH)
        self._shared = shared
        self._keys: list[str] = []

    async def flush(self) -> None:
        """Wait until everything pushed so far is deleted."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self.inbox.put(Flush(done))
        await done

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._shared.idle_seconds):
                    message = await self.inbox.get()
            except TimeoutError:
                await self._execute(0)
                continue
            if isinstance(message, Flush):
                await self._execute(0)
                wake(message)
            else:
                self._keys.extend(message)
                await self._execute(DELETE_KEYS_MAX)

    async def _execute(self, at_least: int) -> None:
        while self._keys and len(self._keys) >= at_least:
            batch = self._keys[:DELETE_KEYS_MAX]
            await retry_for_ever(
                lambda batch=batch: self._delete(batch),  # type: ignore[misc]
                what=f"deleting {len(batch)} objects",
                stop=self._shared.stop,
                clock=self._shared.clock,
                log=self._shared.log,
            )
            del self._keys[: len(batch)]
            self._shared.counters.executed += len(batch)

    async def _delete(self, batch: list[str]) -> None:
        failpoints = self._shared.failpoints
        await failpoints.pause("deletion-queue-before-execute-pause", unless=self._shared.stop)
        try:
            await failpoints.fail("deletion-queue-before-execute")
        except FailpointError:
            self._shared.counters.failpoint_errors += 1
            raise
        try:
            await self._shared.storage.delete(batch)
        except Exception:
            self._shared.counters.remote_errors += 1
            raise


class Validator:
    """Lists wait here for the word that their generation is current."""

    def __init__(self, shared: Shared, deleter: Deleter) -> None:
        self.inbox: asyncio.Queue[DeletionList | Flush | Wake] = asyncio.Queue(_STAGE_DEPTH)
        self._shared = shared
        self._deleter = deleter
        self._lists: list[DeletionList] = []
        self._pending_names = 0
        self._is_header_stuck = False

    def wake(self) -> None:
        """Have waiting LSNs validated now. A full inbox needs no waking: the worker looks before it rests."""
        if self.inbox.empty():
            self.inbox.put_nowait(Wake())

    async def flush(self) -> None:
        """Wait until every list handed over so far is validated, executed and gone."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self.inbox.put(Flush(done))
        await done

    async def run(self) -> None:
        while True:
            waits = len(self._shared.lsn_updates) and self._shared.validator.answers_at_once
            try:
                async with asyncio.timeout(0 if waits and self.inbox.empty() else self._shared.idle_seconds):
                    message = await self.inbox.get()
            except TimeoutError:
                await self._process()
                continue
            match message:
                case DeletionList():
                    self._lists.append(message)
                    self._pending_names += message.size
                    if self._pending_names > LIST_NAMES_MAX:
                        await self._process()
                case Flush():
                    await self._process()
                    wake(message)
                case Wake():
                    # Everything: LSNs that come all the time must not keep lists waiting for a quiet moment.
                    await self._process()

    async def _process(self) -> None:
        await self._publish_lsns_and_validate()
        await self._execute()

    async def _publish_lsns_and_validate(self) -> None:
        """Steps 1 to 5: one question for everything that waits."""
        shared = self._shared
        unvalidated = [pending for pending in self._lists if not pending.is_validated]
        asked: dict[TenantShardId, Generation] = {}
        for pending in unvalidated:
            asked.update({shard: deletions.generation for shard, deletions in pending.tenants.items()})
        updates = shared.lsn_updates.take()
        for shard, generation in updates.generations().items():
            asked[shard] = max(generation, asked.get(shard, generation))
        valid = await self._ask(asked)
        for shard, count in updates.apply(valid).items():
            shared.counters.dropped_lsn_updates += count
            shared.log.info(
                f"Dropped remote consistent LSN updates for tenant {shard} in stale generation {asked[shard]}"
            )
        for pending in unvalidated:
            await self._settle(pending, valid)
        if self._lists and not self._is_header_stuck:
            await self._write_header(max(pending.sequence for pending in self._lists))

    async def _ask(self, asked: Mapping[TenantShardId, Generation]) -> dict[TenantShardId, Generation]:
        if not asked:
            return {}
        shared = self._shared
        answer = await retry_for_ever(
            lambda: shared.validator.validate(asked),
            what=f"validating {len(asked)} generations",
            stop=shared.stop,
            clock=shared.clock,
            log=shared.log,
        )
        for shard, generation in asked.items():
            if not answer.get(shard, False):
                shared.validator.found_stale(shard, generation)
        return {shard: generation for shard, generation in asked.items() if answer.get(shard, False)}

    async def _settle(self, pending: DeletionList, valid: Mapping[TenantShardId, Generation]) -> None:
        """Drop what is not valid, and make the list on disk say the same before the header may cover it."""
        shared = self._shared
        stale = [shard for shard, deletions in pending.tenants.items() if valid.get(shard) != deletions.generation]
        for shard in stale:
            generation = pending.tenants[shard].generation
            dropped = pending.drop(shard)
            shared.counters.dropped += dropped
            shared.log.info(
                f"Dropping stale deletions for tenant {shard} in generation {generation}, objects may be leaked",
                objects=dropped,
            )
        pending.is_validated = True
        shared.counters.validated += pending.size
        if not stale:
            return
        try:
            await asyncio.to_thread(shared.directory.write_list, pending)
        except OSError as error:
            shared.disk.check(error)
            # The file still names what was dropped. A header beyond it would declare that valid, so there is none any
            # more in this process, and what is left of the list is forgotten.
            shared.log.warning("a validated deletion list cannot be rewritten", error=str(error))
            shared.counters.unexpected_errors += 1
            shared.counters.dropped += pending.size
            pending.clear()
            self._is_header_stuck = True

    async def _write_header(self, sequence: int) -> None:
        try:
            await asyncio.to_thread(self._shared.directory.write_header, sequence)
        except OSError as error:
            self._shared.disk.check(error)
            self._shared.log.warning("the deletion header cannot be written", error=str(error))
            self._shared.counters.unexpected_errors += 1

    async def _execute(self) -> None:
        """Step 6: delete, then forget the lists. A crash in between deletes again, which is harmless."""
        if not self._lists:
            return
        for pending in self._lists:
            keys = tuple(pending.keys())
            if keys:
                await self._deleter.inbox.put(keys)
        await self._deleter.flush()
        for pending in self._lists:
            await asyncio.to_thread(self._shared.directory.remove_list, pending.sequence)
        self._lists.clear()
        self._pending_names = 0


class ListWriter:
    """Where deletions come in. The first message it acts on must be `Recover`."""

    def __init__(self, shared: Shared, validator: Validator) -> None:
        self.inbox: asyncio.Queue[PushLayers | Flush | Recover] = asyncio.Queue()
        self._shared = shared
        self._validator = validator
        self._pending = DeletionList(sequence=1)
        self._flushes: list[Flush] = []
        self._has_recovered = False

    async def flush(self) -> None:
        """Wait until everything pushed so far is in a list on disk."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self.inbox.put(Flush(done))
        await done

    async def run(self) -> None:
        await asyncio.to_thread(self._shared.directory.prepare)
        while True:
            try:
                async with asyncio.timeout(_RETRY_WRITE_SECONDS if self._flushes else self._shared.idle_seconds):
                    message = await self.inbox.get()
            except TimeoutError:
                await self._write()
                continue
            match message:
                case Recover(attached):
                    await self._recover(attached)
                case PushLayers():
                    await self._push(message)
                case Flush():
                    self._flushes.append(message)
                    await self._write()

    async def _push(self, push: PushLayers) -> None:
        assert self._has_recovered, "nothing is deleted before the lists of the last process were read"
        while not self._pending.push(push.shard, push.timeline_id, push.generation, push.names):
            # Another generation of a shard that is in the list: a list is validated for one.
            if not await self._write():
                await self._shared.clock.sleep(_RETRY_WRITE_SECONDS)
        if self._pending.size > LIST_NAMES_MAX:
            await self._write()

    async def _write(self) -> bool:
        """Write the pending list and begin the next one. On failure everything is kept for the next attempt."""
        if self._pending.size:
            try:
                await asyncio.to_thread(self._shared.directory.write_list, self._pending)
            except OSError as error:
                self._shared.disk.check(error)
                self._shared.log.warning("a deletion list cannot be written, will retry", error=str(error))
                self._shared.counters.unexpected_errors += 1
                return False
            written, self._pending = self._pending, DeletionList(sequence=self._pending.sequence + 1)
            await self._validator.inbox.put(written)
        for flush in self._flushes:
            wake(flush)
        self._flushes.clear()
        return True

    async def _recover(self, attached: Mapping[TenantShardId, Generation]) -> None:
        """Hand on what an earlier process wrote (11.6).

        A list of the generation before ours is as good as ours: it lies on our disk, so we held that generation, and
        since numbers are consecutive nobody was attached in between. Older ones are dropped by validation.
        """
        directory, log = self._shared.directory, self._shared.log
        try:
            validated = await asyncio.to_thread(directory.read_header)
        except DeletionListError as error:
            log.warning("the deletion header is ignored; objects may be leaked", error=str(error))
            validated = 0
        sequences, unknown = await asyncio.to_thread(directory.scan)
        for name in unknown:
            log.warning("unexpected file in the deletion directory", name=name)
        self._pending = DeletionList(sequence=max([validated, *sequences]) + 1)
        self._has_recovered = True
        for sequence in sequences:
            try:
                found = await asyncio.to_thread(directory.read_list, sequence)
            except (DeletionListError, OSError) as error:
                log.warning("a deletion list is skipped; objects may be leaked", sequence=sequence, error=str(error))
                continue
            found.sequence = sequence
            if sequence <= validated:
                found.is_validated = True
            elif not found.is_validated:
                for shard, deletions in found.tenants.items():
                    current = attached.get(shard)
                    if current is not None and deletions.generation == current.previous():
                        deletions.generation = current
            self._shared.counters.submitted += found.size
            await self._validator.inbox.put(found)


def wake(flush: Flush) -> None:
    """Tell the waiter, if it still waits."""
    if not flush.done.done():
        flush.done.set_result(None)
