"""Follows one stock primary for one timeline: connect, stream, ingest, report, and again after every interruption.

    socket ─▶ reader ─▶ bounded queue ─▶ ingester ─▶ engine (worker thread; rare records through apply.py)
       ▲                                    │
       └──── reporter: every 10 s, on request, and whenever more became durable

The three run side by side, so a long ingest step never delays a reply. A primary that stops waits until all its WAL is
flushed here; it is recognised by its impatience, and what is open is then made durable at once. What ends a
connection decides what follows: an `UnavailableError` and bad WAL are tried again after a growing pause, counted
from the start of the attempt, that is forgotten once WAL was processed; a `SourceRefusedError` stops this timeline's
source for good and is shown with it.

Invariant: the flush position told to the primary is the timeline's durable LSN, never more, so its slot keeps all that
a restart could ask for.
Source: spec wal-receiver.md 4.3, 5.4, 10; wal.md 1.6, 1.7; stock.md 1.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Protocol

from pageserver.clock import Clock
from pageserver.counts import ServerCounts, WalCounts
from pageserver.disk_errors import DiskGuard
from pageserver.errors import PageServerError, StoppedError, UnavailableError
from pageserver.failpoints import Failpoints
from pageserver.lsn import INVALID_LSN, Lsn
from pageserver.timeline.info import SourceStatus
from pageserver.wal.ingest import IngestStep, WalApplier
from pageserver.wal.ingest_gate import IngestGate, IngestPausedError
from pageserver.wal.primary import PrimaryConnection
from pageserver.wal.source_document import StoredSource
from pageserver.wal.source_errors import (
    RESYNC_HINT,
    MajorVersionError,
    OvertakenError,
    SlotInUseError,
    SlotLostError,
    SlotMissingError,
    SourceRefusedError,
    SourceUnavailableError,
    SystemIdentifierError,
    TimelineForkedError,
)
from pageserver.wal.takeover import check_history
from pageserver.wal.threads import run_blocking
from pageserver.wal.wal_stream import NextTimeline, Received, WalStream, next_timeline_of

QUEUE_BYTES_MAX: Final = 16 * 1024 * 1024
"""WAL received and not yet ingested; beyond that the socket fills, and the primary waits."""
REPORT_SECONDS_MAX: Final = 10.0
DURABLE_CHECK_SECONDS: Final = 0.5
IMPATIENT_REQUESTS: Final = 3
"""So many status requests in a row, each within a second of the one before and without new WAL, come from a server that
stops: it asks again right after each answer, until everything is flushed here."""
IMPATIENT_SECONDS_MAX: Final = 1.0
RETRY_SECONDS_MIN: Final = 0.1
RETRY_SECONDS_MAX: Final = 15.0
RETRY_GROWTH: Final = 1.5


class FollowedTimeline(Protocol):
    """What the receiver asks of its timeline."""

    @property
    def timeline_id(self) -> object: ...
    @property
    def pg_version(self) -> int: ...
    @property
    def last_record_lsn(self) -> Lsn: ...
    @property
    def durable_lsn(self) -> Lsn: ...
    @property
    def disk(self) -> DiskGuard: ...
    async def roll(self) -> None: ...
    async def freeze_and_flush(self) -> None: ...


class ReceiverPhase(Enum):
    """What the receiver is doing."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    STREAMING = "streaming"
    WAITING = "waiting"
    PAUSED = "paused"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ReceiverState:
    """A moment of the receiver, for the API and for metrics."""

    phase: ReceiverPhase = ReceiverPhase.STOPPED
    received_lsn: Lsn | None = None
    server_end_lsn: Lsn | None = None
    received_at_micros: int | None = None
    error: str | None = None
    stalled: str | None = None
    """Why WAL that comes cannot be taken, from the failure until some is taken again."""
    is_lost: bool = False
    """The primary has no WAL from our last record on."""
    reported_lsn: Lsn | None = None
    """Up to here the primary was told that it may throw WAL away: its slot's `restart_lsn`."""

    @property
    def retained_bytes(self) -> int | None:
        """WAL that the primary keeps for us, as far as it told us; none before it did."""
        if self.server_end_lsn is None or not self.reported_lsn:
            return None
        return max(0, self.server_end_lsn - self.reported_lsn)

    def text(self) -> str:
        """Return the line that the API shows as `walreceiver_status`."""
        match self.phase:
            case ReceiverPhase.STOPPED:
                return "stopping or stopped"
            case ReceiverPhase.CONNECTING:
                return "connecting to the primary"
            case ReceiverPhase.STREAMING:
                lsns = f"{self.server_end_lsn}|{self.received_lsn}"
                return f"streaming WAL from the primary, commit|streaming Lsn: {lsns}"
            case ReceiverPhase.WAITING:
                return f"disconnected, will try again: {self.error}"
            case ReceiverPhase.PAUSED:
                return f"paused: {self.error}"
            case ReceiverPhase.REFUSED:
                return f"stopped for good: {self.error}"


class RetryPauses:
    """When the next attempt may begin (spec wal-receiver.md 4.3)."""

    def __init__(self) -> None:
        self._next_seconds = RETRY_SECONDS_MIN

    def after_attempt(self, *, lasted_seconds: float) -> float:
        """Return how long to wait after an attempt that ended now, and let the pause grow."""
        pause = self._next_seconds
        self._next_seconds = min(max(RETRY_GROWTH * pause, RETRY_SECONDS_MIN), RETRY_SECONDS_MAX)
        return max(0.0, pause - lasted_seconds)

    def forget(self) -> None:
        """WAL was processed: the next failure is a first one."""
        self._next_seconds = RETRY_SECONDS_MIN


class WalReceiver:
    """The source of one timeline. `run` is a task of the timeline's owner; everything ends with it.

    `save` makes a changed source document durable; `new_applier` makes what takes WAL from the last record on.
    """

    def __init__(
        self,
        timeline: FollowedTimeline,
        source: StoredSource,
        *,
        save: Callable[[StoredSource], Awaitable[None]],
        new_applier: Callable[[StoredSource], WalApplier],
        application_name: str,
        connect_timeout_seconds: float,
        clock: Clock,
        log: Any,
        is_overtaken: Callable[[], Awaitable[bool]] | None = None,
        failpoints: Failpoints | None = None,
        ingest_pause: Callable[[], str | None] = lambda: None,
        counts: WalCounts | None = None,
    ) -> None:
        """`is_overtaken` asks whether another server has the timeline in a newer generation, `ingest_pause` why nothing
        may be ingested now, if so.
        """
        assert source.connection is not None, "a receiver needs a primary"
        self._timeline = timeline
        self._source = source
        self._save = save
        self._application_name = application_name
        self._connect_timeout_seconds = connect_timeout_seconds
        self._new_applier = new_applier
        self._clock = clock
        self._log = log
        self._is_overtaken = is_overtaken
        self.failpoints = failpoints or Failpoints.off()
        self.gate = IngestGate(ingest_pause, clock=clock, log=log)
        self.counts = counts or WalCounts(ServerCounts())
        self._pauses = RetryPauses()
        self.state = ReceiverState()

    def status(self) -> SourceStatus:
        """Describe the source for the timeline's detail."""
        refused = self.state.phase is ReceiverPhase.REFUSED
        return SourceStatus(
            text=self.state.text(),
            connection=self._source.connection,
            last_received_lsn=self.state.received_lsn,
            last_received_at_micros=self.state.received_at_micros,
            error=self.state.error if refused else None,
            paused=self.state.error if self.state.phase is ReceiverPhase.PAUSED else None,
            stalled=self.state.stalled,
            slot=self._source.slot,
            is_lost=self.state.is_lost,
            slot_retained_bytes=self.state.retained_bytes,
        )

    async def run(self) -> None:
        """Follow until cancelled, or until the source is refused for good.

        Raises: SourceRefusedError. Cancellation: safe; a running step of ingest is waited for.
        """
        try:
            while True:
                started = self._clock.monotonic_seconds()
                self._become(phase=ReceiverPhase.CONNECTING)
                try:
                    await self.gate.wait(
                        flush=lambda: self._timeline.freeze_and_flush(),
                        note=lambda reason: self._become(phase=ReceiverPhase.PAUSED, error=reason),
                    )
                    await self._follow()
                except IngestPausedError:
                    continue
                except SourceRefusedError as error:
                    self._log.error("source refused", error=str(error))
                    is_lost = isinstance(error, SlotLostError)
                    self._become(phase=ReceiverPhase.REFUSED, error=str(error), is_lost=is_lost)
                    raise
                except StoppedError:
                    return
                except SlotInUseError as error:
                    await self._stop_if_overtaken(error)
                    self._log.info("source interrupted", error=str(error))
                    self._become(phase=ReceiverPhase.WAITING, error=str(error))
                except SourceUnavailableError as error:
                    self._log.info("source interrupted", error=str(error))
                    self._become(phase=ReceiverPhase.WAITING, error=str(error))
                except (PageServerError, OSError) as error:
                    self._timeline.disk.check(error)
                    # A full disk, bad WAL, or bad data below it. Skipping it would corrupt data silently, so it is met
                    # again.
                    at = str(self._timeline.last_record_lsn)
                    self._log.error("could not ingest", error=str(error), last_record_lsn=at)
                    self._become(phase=ReceiverPhase.WAITING, error=str(error), stalled=str(error))
                lasted = self._clock.monotonic_seconds() - started
                await self._clock.sleep(self._pauses.after_attempt(lasted_seconds=lasted))
        finally:
            if self.state.phase is not ReceiverPhase.REFUSED:
                self._become(phase=ReceiverPhase.STOPPED)

    async def _stop_if_overtaken(self, error: SlotInUseError) -> None:
        """Leave the slot to a newer server (standalone.md 3). Raises: OvertakenError."""
        if self._is_overtaken is None:
            return
        try:
            overtaken = await self._is_overtaken()
        except UnavailableError:
            return
        if overtaken:
            refusal = OvertakenError(f"another server has taken over this timeline and its replication slot: {error}")
            self._log.error("source refused", error=str(refusal))
            self._become(phase=ReceiverPhase.REFUSED, error=str(refusal))
            raise refusal from error

    # One connection.

    async def _follow(self) -> None:
        connection = await self._connect()
        self.counts.connected()
        try:
            await self._check_source(connection)
            session = _Session(self, connection)
            while True:
                following = await session.stream(self._source)
                await self._go_on_with(following)
        finally:
            connection.close()

    async def _connect(self) -> PrimaryConnection:
        conninfo = self._source.connection
        assert conninfo is not None, "a receiver needs a primary"
        opened: list[PrimaryConnection] = []
        given_up = threading.Event()

        def connect() -> PrimaryConnection:
            opened.append(
                PrimaryConnection.connect(
                    conninfo,
                    application_name=self._application_name,
                    timeout_seconds=self._connect_timeout_seconds,
                    given_up=given_up,
                )
            )
            return opened[0]

        try:
            return await run_blocking(connect, interrupt=given_up.set)
        except asyncio.CancelledError:
            for connection in opened:
                connection.close()
            raise

    async def _check_source(self, connection: PrimaryConnection) -> None:
        """Compare the primary with what we follow (spec wal-receiver.md 10.1). Raises: SourceRefusedError."""
        facts = await run_blocking(connection.read_facts, interrupt=connection.close)
        expected = self._source.system_identifier
        if expected is not None and facts.identity.system_identifier != expected:
            raise SystemIdentifierError(expected=expected, got=facts.identity.system_identifier)
        if facts.major != self._timeline.pg_version:
            raise MajorVersionError(
                f"the primary is PostgreSQL {facts.major}, the timeline was made from {self._timeline.pg_version}",
                hint="after pg_upgrade the cluster has to be imported as a new timeline",
            )
        slot = self._source.slot
        if slot is not None and facts.major >= 15:
            state = await run_blocking(lambda: connection.read_slot(slot), interrupt=connection.close)
            if state is None:
                raise SlotMissingError(
                    f"the replication slot is lost: there is no {slot} on the primary, so WAL that we need may be gone",
                    hint=RESYNC_HINT,
                )
        last, end = self._timeline.last_record_lsn, facts.identity.flush_lsn
        self._become(server_end_lsn=end)
        if facts.identity.pg_tli == self._source.pg_tli:
            if last <= end < last.normalised():
                # Its WAL ends with a page, and so does ours; where the next one's header ends is ahead of it.
                raise SourceUnavailableError(f"the primary has nothing behind {end} yet")
        else:
            await run_blocking(
                lambda: check_history(
                    connection,
                    facts.identity,
                    pg_tli=self._source.pg_tli,
                    last_record_lsn=self._timeline.last_record_lsn,
                ),
                interrupt=connection.close,
            )

    async def _go_on_with(self, following: NextTimeline | None) -> None:
        """The primary's timeline ended: follow it to the next if our position allows (spec wal-receiver.md 10.4)."""
        if following is None:
            raise SourceUnavailableError("the primary ended the stream")
        last = self._timeline.last_record_lsn
        if last > following.start:
            raise TimelineForkedError(
                pg_tli=self._source.pg_tli,
                next_tli=following.pg_tli,
                switch_lsn=following.start,
                last_record_lsn=last,
            )
        source = self._source.with_next_timeline(following.pg_tli, following.start)
        await self._save(source)
        self._source = source
        self._log.info("source switched timeline", pg_tli=following.pg_tli, at=str(following.start))

    # What sessions report.

    def note_streaming(self, stream: WalStream) -> None:
        """The primary streams to us from here on, though one that idles says nothing for half a minute."""
        self._become(phase=ReceiverPhase.STREAMING, received_lsn=stream.received_lsn, error=None)

    def note_received(self, stream: WalStream, received: Received) -> None:
        """Publish positions before ingest, so that a stuck ingest does not look like a dead source."""
        self._become(
            phase=ReceiverPhase.STREAMING,
            received_lsn=stream.received_lsn,
            server_end_lsn=received.server_end or self.state.server_end_lsn,
            received_at_micros=self.now_micros(),
            error=None,
        )

    def note_reported(self, flush: Lsn) -> None:
        """The primary was told that everything up to there is durable."""
        self._become(reported_lsn=flush)

    def note_processed(self) -> None:
        self._pauses.forget()
        if self.state.stalled is not None:
            self._log.info("ingest goes on", last_record_lsn=str(self._timeline.last_record_lsn))
            self._become(stalled=None)

    def now_micros(self) -> int:
        return round(self._clock.now().timestamp() * 1_000_000)

    @property
    def timeline(self) -> FollowedTimeline:
        return self._timeline

    @property
    def clock(self) -> Clock:
        return self._clock

    def new_applier(self) -> WalApplier:
        """Make what takes WAL from our last record on."""
        return self._new_applier(self._source)

    def _become(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)


class _Session:
    """Streaming over one connection; several PostgreSQL timelines may follow one another in it."""

    def __init__(self, receiver: WalReceiver, connection: PrimaryConnection) -> None:
        self._receiver = receiver
        self._connection = connection
        self._applier: WalApplier | None = None
        self._position = INVALID_LSN
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._report = asyncio.Event()
        self._ended = False

    async def stream(self, source: StoredSource) -> NextTimeline | None:
        """Stream `source.pg_tli` to its end and return what follows it.

        The decoder goes on over the end of a timeline: the next one begins exactly there, perhaps by overwriting the
        rest of a record that was never completed.
        """
        if self._applier is None:
            self._applier = await run_blocking(self._receiver.new_applier)
            self._position = self._receiver.timeline.last_record_lsn.normalised()
        start = self._position
        row = await run_blocking(
            lambda: self._connection.start_replication(slot=source.slot, start=start, pg_tli=source.pg_tli),
            interrupt=self._connection.close,
        )
        if row is not None:
            return next_timeline_of(row)
        stream = WalStream(self._connection, start=start, now_microseconds=self._receiver.now_micros)
        self._ended = False
        self._receiver.note_streaming(stream)
        try:
            async with asyncio.TaskGroup() as group:
                reporter = group.create_task(self._report_loop(stream), name="report to primary")
                group.create_task(self._read_loop(stream), name="read from primary")
                await self._ingest_loop(self._applier)
                reporter.cancel()
        except* (PageServerError, OSError) as errors:
            raise _first(errors) from None
        self._position = stream.received_lsn
        try:
            return await stream.finish(timeout_seconds=REPORT_SECONDS_MAX)
        except TimeoutError as error:
            raise SourceUnavailableError("the primary did not end the stream in time") from error

    async def _read_loop(self, stream: WalStream) -> None:
        while True:
            while self._queued_bytes >= QUEUE_BYTES_MAX:
                self._taken.clear()
                await self._taken.wait()
            received = await stream.receive(timeout_seconds=REPORT_SECONDS_MAX)
            if received.server_end is not None:
                self._receiver.note_received(stream, received)
            if received.reply_requested:
                self._report.set()
            if received.wal:
                self._queue.append(received.wal)
                self._queued_bytes += len(received.wal)
                self._arrived.set()
            if received.ended:
                self._ended = True
                self._arrived.set()
                return

    async def _ingest_loop(self, applier: WalApplier) -> None:
        """Take what has arrived until the stream has ended and nothing is left."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            if not self._queue:
                if self._ended:
                    return
                continue
            before, records = self._receiver.timeline.last_record_lsn, applier.records
            wal = b"".join(self._queue)
            self._queue.clear()
            self._queued_bytes = 0
            self._taken.set()
            self._receiver.gate.check()
            await self._receiver.failpoints.sleep("wal-ingest-record-sleep")
            step = await run_blocking(lambda wal=wal: applier.take(wal))  # type: ignore[misc]
            while step is IngestStep.ROLL:
                await self._receiver.timeline.roll()
                step = await run_blocking(applier.go_on)
            self._receiver.counts.ingested(records=applier.records - records, size_bytes=len(wal))
            await self._receiver.failpoints.fail("walreceiver-after-ingest")
            if self._receiver.timeline.last_record_lsn > before:
                self._receiver.note_processed()
            if self._ended:
                self._arrived.set()

    async def _report_loop(self, stream: WalStream) -> None:
        """Report at once when asked, when more became durable, and at least every 10 seconds."""
        timeline = self._receiver.timeline
        impatience = _Impatience()
        reported: Lsn | None = None
        reported_at = 0.0
        async with asyncio.TaskGroup() as group:
            flush: asyncio.Task[None] | None = None
            while True:
                now = self._receiver.clock.monotonic_seconds()
                durable = timeline.durable_lsn
                asked = self._report.is_set()
                if asked or durable != reported or now - reported_at >= REPORT_SECONDS_MAX:
                    self._report.clear()
                    await stream.send_status(write=stream.received_lsn, flush=durable, apply=timeline.last_record_lsn)
                    self._receiver.note_reported(durable)
                    reported, reported_at = durable, now
                is_stopping = asked and impatience.grows(now, stream.received_lsn)
                if is_stopping and durable < timeline.last_record_lsn and (flush is None or flush.done()):
                    flush = group.create_task(timeline.freeze_and_flush(), name="flush for a stopping primary")
                with suppress(TimeoutError):
                    async with asyncio.timeout(DURABLE_CHECK_SECONDS):
                        await self._report.wait()


class _Impatience:
    """Tells a server that stops from one that asks for a sign of life now and then."""

    def __init__(self) -> None:
        self._count = 0
        self._last_at = 0.0
        self._received = INVALID_LSN

    def grows(self, now: float, received: Lsn) -> bool:
        """Note a request for a status; return whether the server is waiting for us to flush."""
        again = received == self._received and now - self._last_at <= IMPATIENT_SECONDS_MAX
        self._count = self._count + 1 if again else 1
        self._last_at, self._received = now, received
        return self._count >= IMPATIENT_REQUESTS


def _first(errors: BaseExceptionGroup[PageServerError | OSError]) -> PageServerError | OSError:
    """Return the error that says most: a refusal before an interruption, which often follows from it."""
    flat: list[PageServerError | OSError] = []
    pending: list[BaseException] = [errors]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        elif isinstance(error, PageServerError | OSError):
            flat.append(error)
    return min(flat, key=_passes_by_itself)


def _passes_by_itself(error: PageServerError | OSError) -> bool:
    return isinstance(error, UnavailableError | OSError)
