"""The receiver against real primaries, with an engine that only keeps the bytes it is given.

Goal: no byte of WAL is lost, repeated or made up over restarts, crashes and promotions; what cannot be followed is said
clearly. Method: collect the stream, compare it with the primary's own segment files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import structlog

from pageserver.clock import SystemClock
from pageserver.disk_errors import DiskGuard
from pageserver.lsn import INVALID_LSN, WAL_SEGMENT_SIZE, Lsn
from pageserver.wal.ingest import IngestStep, WalApplier
from pageserver.wal.primary import PrimaryConnection
from pageserver.wal.receiver import WalReceiver
from pageserver.wal.source_document import Flavour, StoredSource
from pageserver.wal.source_errors import (
    MajorVersionError,
    PrimaryBehindError,
    SlotMissingError,
    SourceRefusedError,
    SystemIdentifierError,
    TimelineForkedError,
)
from tests.postgres.server import PostgresServer

MakeServer = Callable[..., PostgresServer]


class QuietLog:
    """Takes what is logged."""

    def info(self, event: str, **fields: object) -> None: ...
    def error(self, event: str, **fields: object) -> None: ...


@dataclass
class FakeTimeline:
    """A timeline whose last record ends wherever the bytes end."""

    last_record_lsn: Lsn
    pg_version: int
    durable_lsn: Lsn = INVALID_LSN
    timeline_id: str = "fake"
    rolls: int = 0
    wal: dict[int, bytes] = field(default_factory=dict)
    disk: DiskGuard = field(default_factory=lambda: DiskGuard(structlog.get_logger()))

    async def freeze_and_flush(self) -> None:
        """Nothing of this timeline is ever durable but what a test says."""

    async def roll(self) -> None:
        self.rolls += 1


class FakeApplier:
    """Keeps bytes by position. Wants a roll after each megabyte; may be slow. Knows nothing of records."""

    records = 0
    """It decodes nothing."""

    def __init__(self, timeline: FakeTimeline, *, step_seconds: float = 0.0) -> None:
        self._timeline = timeline
        self._position = timeline.last_record_lsn.normalised()
        self._step_seconds = step_seconds

    def take(self, wal: bytes) -> IngestStep:
        time.sleep(self._step_seconds)
        self._timeline.wal[self._position] = wal
        self._position = self._position + len(wal)
        return IngestStep.ROLL if len(wal) > 1 << 20 else self.go_on()

    def go_on(self) -> IngestStep:
        # A connection may be cut anywhere; ours may only begin again at a multiple of 8.
        self._timeline.last_record_lsn = Lsn(self._position // 8 * 8)
        return IngestStep.DONE


@dataclass
class World:
    """A receiver and what it fills."""

    server: PostgresServer
    timeline: FakeTimeline
    receiver: WalReceiver
    saved: list[StoredSource]

    async def until(self, condition: Callable[[], bool], *, timeout_seconds: float = 30.0) -> None:
        """Look until `condition`, which may block, is true."""
        deadline = time.monotonic() + timeout_seconds
        while not await asyncio.to_thread(condition):
            assert time.monotonic() < deadline, "it did not happen in time"

    async def caught_up(self) -> Lsn:
        """Wait until all that the server has flushed has come."""
        end = Lsn.parse(await asyncio.to_thread(self.server.value, "SELECT pg_current_wal_flush_lsn()"))

        def has_come() -> bool:
            time.sleep(0.02)
            return self.timeline.last_record_lsn + 7 >= end

        await self.until(has_come)
        return end


def make_world(server: PostgresServer, *, step_seconds: float = 0.0, **changes: Any) -> World:
    """Create the slot and a receiver that begins where it reserves WAL."""
    with PrimaryConnection.connect(server.conninfo(), application_name="test") as connection:
        facts = connection.read_facts()
        connection.create_physical_slot("ours")
    slot = server.value("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'ours'")
    source = StoredSource(
        **{
            "flavour": Flavour.STOCK,
            "pg_version": server.major,
            "connection": server.conninfo(),
            "slot": "ours",
            "system_identifier": facts.identity.system_identifier,
            "pg_tli": facts.identity.pg_tli,
            **changes,
        }
    )
    timeline = FakeTimeline(Lsn.parse(slot), pg_version=server.major)
    saved: list[StoredSource] = []

    async def save(changed: StoredSource) -> None:
        saved.append(changed)

    receiver = WalReceiver(
        timeline,
        source,
        save=save,
        new_applier=lambda _: cast("WalApplier", FakeApplier(timeline, step_seconds=step_seconds)),
        application_name="test-receiver",
        connect_timeout_seconds=5,
        clock=SystemClock(),
        log=QuietLog(),
    )
    return World(server, timeline, receiver, saved)


class Running:
    """The receiver's task for the length of a block."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def __aenter__(self) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._world.receiver.run())
        return self._task

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError, SourceRefusedError):
            await self._task


def write_some(server: PostgresServer, rows: int = 5000) -> None:
    server.sql(f"CREATE TABLE IF NOT EXISTS t (a int); INSERT INTO t SELECT generate_series(1, {rows})")


def check_wal(world: World, end: Lsn, *, pg_tli: int = 1) -> None:
    """Compare what was collected with the files of the primary, up to `end`."""
    position: int | None = None
    for start, wal in sorted(world.timeline.wal.items()):
        if position is not None:
            assert start <= position, f"gap before {Lsn(start)}"
        position = max(position or 0, start + len(wal))
        for offset in range(0, len(wal), WAL_SEGMENT_SIZE):
            at, piece = start + offset, wal[offset : offset + WAL_SEGMENT_SIZE]
            while piece:
                segment, inside = divmod(at, WAL_SEGMENT_SIZE)
                part, piece = piece[: WAL_SEGMENT_SIZE - inside], piece[WAL_SEGMENT_SIZE - inside :]
                path = world.server.data_dir / "pg_wal" / f"{pg_tli:08X}{segment >> 8:08X}{segment & 255:08X}"
                with open(path, "rb") as file:
                    file.seek(inside)
                    assert file.read(len(part)) == part, f"difference in the {len(part)} bytes at {Lsn(at)}"
                at += len(part)
    assert position is not None and position >= end


async def test_restarts_and_crashes_of_the_primary_lose_nothing(make_server: MakeServer) -> None:
    server = make_server(16, settings={"wal_keep_size": "1GB"})
    world = make_world(server)
    async with Running(world):
        await asyncio.to_thread(write_some, server, 100_000)
        await world.caught_up()
        await asyncio.to_thread(server.restart)
        await asyncio.to_thread(write_some, server)
        await world.caught_up()
        await asyncio.to_thread(server.crash)
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(write_some, server)
        end = await world.caught_up()
        assert "streaming" in world.receiver.status().text
        assert world.timeline.rolls > 0
    assert "stopped" in world.receiver.status().text
    check_wal(world, end)


async def test_replies_are_not_delayed_by_a_long_ingest_step(make_server: MakeServer) -> None:
    """The primary gives up a connection without a reply for wal_sender_timeout; steps here take longer."""
    server = make_server(15, settings={"wal_sender_timeout": "1s"})
    world = make_world(server, step_seconds=4.0)
    async with Running(world):
        pids = "SELECT pid FROM pg_stat_replication"
        await world.until(lambda: bool(server.sql(pids)))
        first = await asyncio.to_thread(server.sql, pids)
        for _ in range(3):
            await asyncio.to_thread(write_some, server)
            await asyncio.sleep(1.5)
        assert await asyncio.to_thread(server.sql, pids) == first


async def test_an_idle_primary_is_not_being_connected_to(make_server: MakeServer) -> None:
    """Lost once: after a restart the status said "connecting to the primary" until somebody wrote, or for half a
    minute.
    """
    world = make_world(make_server(17))
    async with Running(world):
        end = await world.caught_up()
    async with Running(world):
        await world.until(lambda: world.receiver.status().text.startswith("streaming"), timeout_seconds=8)
        assert str(end) in world.receiver.status().text, "where the primary's WAL ends"


async def test_only_what_is_durable_is_reported_as_flushed(make_server: MakeServer) -> None:
    server = make_server(17)
    world = make_world(server)
    query = "SELECT flush_lsn, restart_lsn FROM pg_stat_replication, pg_replication_slots"
    first = world.timeline.last_record_lsn
    async with Running(world):
        await asyncio.to_thread(write_some, server)
        end = await world.caught_up()
        await asyncio.sleep(1.5)
        assert await asyncio.to_thread(server.value, "SELECT restart_lsn FROM pg_replication_slots") == str(first)
        world.timeline.durable_lsn = end
        await world.until(lambda: server.sql(query) == [(str(end), str(end))])


@pytest.mark.parametrize("major", [14, 18])
async def test_a_slot_that_is_gone_stops_the_source(make_server: MakeServer, major: int) -> None:
    server = make_server(major)
    world = make_world(server)
    server.sql("SELECT pg_drop_replication_slot('ours')")
    with pytest.raises(SlotMissingError):
        await asyncio.wait_for(world.receiver.run(), 20)
    assert world.receiver.status().error is not None


async def test_another_cluster_is_refused(make_server: MakeServer) -> None:
    world = make_world(make_server(16), system_identifier=1)
    with pytest.raises(SystemIdentifierError):
        await asyncio.wait_for(world.receiver.run(), 20)


async def test_another_major_version_is_refused(make_server: MakeServer) -> None:
    world = make_world(make_server(16))
    world.timeline.pg_version = 15
    with pytest.raises(MajorVersionError):
        await asyncio.wait_for(world.receiver.run(), 20)


async def test_a_primary_from_an_older_state_is_refused(make_server: MakeServer) -> None:
    world = make_world(make_server(16))
    world.timeline.last_record_lsn = Lsn(0x700000028)
    with pytest.raises(PrimaryBehindError):
        await asyncio.wait_for(world.receiver.run(), 20)


def make_standby(primary: PostgresServer, make_server: MakeServer) -> PostgresServer:
    """Return a running hot standby of a PostgreSQL 15 primary."""
    standby = make_server(15, "standby", start=False)
    for path in sorted(standby.data_dir.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    primary.program("pg_basebackup", "-D", str(standby.data_dir), "-X", "stream", "-R", "-c", "fast")
    standby.start()
    return standby


async def test_a_promotion_is_followed(make_server: MakeServer) -> None:
    """Stream from a standby, promote it: the stream ends and goes on with the next timeline."""
    primary = make_server(15, "primary", settings={"wal_keep_size": "1GB"})
    standby = make_standby(primary, make_server)
    world = make_world(standby)
    async with Running(world):
        await asyncio.to_thread(write_some, primary)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(primary.stop)
        await asyncio.to_thread(standby.sql, "SELECT pg_promote()")
        await asyncio.to_thread(write_some, standby)
        end = await world.caught_up()
        assert [(source.pg_tli, len(source.history)) for source in world.saved] == [(2, 1)]
    first = world.saved[0].history[0].end_lsn
    world.timeline.wal = {at: wal for at, wal in world.timeline.wal.items() if at >= first}
    check_wal(world, end, pg_tli=2)


async def test_a_history_that_left_ours_behind_us_is_refused(make_server: MakeServer) -> None:
    """We took WAL of the old primary that the promoted standby never got."""
    primary = make_server(15, "primary")
    standby = make_standby(primary, make_server)
    world = make_world(standby)
    await asyncio.to_thread(standby.sql, "SELECT pg_promote()")
    world.timeline.last_record_lsn = world.timeline.last_record_lsn + (64 << 20)
    with pytest.raises(TimelineForkedError):
        await asyncio.wait_for(world.receiver.run(), 30)
