"""The compiled page service, driven by Python on one side and by clients on the other (page-service.md 1-4).

The protocol itself is tested in ``crates/pageserve``; here is what lies between the two languages.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from pageserver._core import (
    BackupRequest,
    BackupSink,
    Caches,
    LeaseAnswer,
    PageService,
    ServedTimeline,
    StatusAnswer,
    TimelineStore,
)
from pageserver.errors import NotFoundError, RequestError, StoppedError
from pageserver.keyspace.directories import encode_database_directory, encode_relation_directory, encode_size
from pageserver.keyspace.key import Key, RelTag

TENANT, TIMELINE = bytes([0x3D]) * 16, bytes([0x8C]) * 16
UNSHARDED = (0, 0, 2048)
LAST = 0x2000
LATEST = 2**64 - 1
RELATION = (1663, 5, 16396, 0)
PAGE = bytes(range(256)) * 32


@dataclass
class Handler:
    """Answers with what the test sets."""

    make: Callable[[BackupRequest, BackupSink], None] | None = None
    valid_until: int | None = None
    receiver: str | None = None
    log_lines: list[str] = field(default_factory=list)
    activated: list[tuple[bytes, tuple[int, int]]] = field(default_factory=list)

    def backup(self, request: BackupRequest, sink: BackupSink) -> None:
        make = self.make
        assert make is not None
        threading.Thread(target=make, args=(request, sink)).start()

    def lease(
        self, tenant_id: bytes, shard: tuple[int, int], timeline_id: bytes, lsn: int, answer: LeaseAnswer
    ) -> None:
        assert (tenant_id, shard, timeline_id, lsn) == (TENANT, (0, 0), TIMELINE, 0x1800)
        if self.valid_until is None:
            answer.refuse()
        else:
            answer.grant(self.valid_until)

    def activate(self, tenant_id: bytes, shard: tuple[int, int]) -> None:
        self.activated.append((tenant_id, shard))

    def receiver_status(
        self, tenant_id: bytes, shard: tuple[int, int], timeline_id: bytes, answer: StatusAnswer
    ) -> None:
        assert (tenant_id, shard, timeline_id) == (TENANT, (0, 0), TIMELINE)
        if self.receiver is not None:
            answer.give(self.receiver)

    def log(self, level: str, text: str) -> None:
        self.log_lines.append(f"{level}: {text}")


@dataclass
class World:
    service: PageService
    handler: Handler
    store: TimelineStore
    timeline: ServedTimeline
    port: int

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(f"host=127.0.0.1 port={self.port} user=x dbname=y sslmode=disable", autocommit=True)

    def page_stream(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(struct.pack(">II", 9, 0x30000) + b"\0")
        read_until(connection, b"Z")
        query = f"pagestream_v3 {TENANT.hex()} {TIMELINE.hex()}".encode() + b"\0"
        connection.sendall(b"Q" + struct.pack(">I", len(query) + 4) + query)
        read_until(connection, b"W")
        return connection


def read_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        assert piece, "the server closed the connection"
        data += piece
    return data


def message(connection: socket.socket) -> tuple[bytes, bytes]:
    tag, length = struct.unpack(">cI", read_exactly(connection, 5))
    return tag, read_exactly(connection, length - 4)


def read_until(connection: socket.socket, tag: bytes) -> None:
    while message(connection)[0] != tag:
        pass


def get_page(block: int, *, request_lsn: int = LATEST, not_modified_since: int = LAST) -> bytes:
    body = struct.pack(">BQQQIIIBI", 2, block, request_lsn, not_modified_since, *RELATION, block)
    return b"d" + struct.pack(">I", len(body) + 4) + body


def count_blocks(*, request_lsn: int) -> bytes:
    body = struct.pack(">BQQQIIIB", 1, 9, request_lsn, 0x1000, *RELATION)
    return b"d" + struct.pack(">I", len(body) + 4) + body


def make_store(directory: Path) -> TimelineStore:
    store = TimelineStore(
        directory=str(directory),
        tenant_id=TENANT,
        timeline_id=TIMELINE,
        shard=UNSHARDED,
        pg_version=16,
        flavour="stock",
        hint_bits_logged=False,
        data_checksums=False,
        last_record_lsn=LAST - 8,
        prev_record_lsn=0,
        disk_consistent_lsn=LAST - 8,
        gc_cutoff_lsn=0x1000,
        next_open_layer_at=LAST - 8,
        ancestor=None,
        ancestor_lsn=0,
        redo=None,
        caches=Caches(block_cache_bytes=1 << 20, page_cache_bytes=1 << 20, value_memory_bytes=1 << 20),
    )
    spc, db, rel, fork = RELATION
    tag = RelTag(spc, db, rel, fork)
    images = [(Key.relation_block(tag, block), PAGE) for block in range(3)]
    images.append((Key.relation_size(tag), encode_size(3)))
    images.append((Key.relation_directory(spc, db), encode_relation_directory([(rel, fork)])))
    images.append((Key.database_directory(), encode_database_directory({(spc, db): True})))
    store.put_images(LAST, [(bytes(key), image) for key, image in images])
    return store


@asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    handler = Handler()
    service = PageService(
        listen="127.0.0.1:0", handler=handler, event_loop=asyncio.get_running_loop(), wait_lsn_timeout_seconds=0.2
    )
    service.set_shard(TENANT, UNSHARDED, "Active")
    store = make_store(directory)
    timeline = service.attach_timeline(TENANT, (0, 0), TIMELINE, store)
    try:
        yield World(service, handler, store, timeline, service.start())
    finally:
        assert await asyncio.to_thread(service.stop, 10)


async def test_pages_of_a_store_reach_a_client(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        connection = await asyncio.to_thread(w.page_stream)
        connection.sendall(b"".join(get_page(block) for block in (0, 1, 2, 3)))
        pages = [message(connection) for _ in range(4)]
        for block, (tag, payload) in enumerate(pages):
            assert (tag, payload[:9], len(payload)) == (b"d", struct.pack(">BQ", 102, block), 8234)
            assert payload[-8192:] == (PAGE if block < 3 else bytes(8192))
        counters = w.service.metrics()
        assert counters["requests_started"]["get_page_at_lsn"] == 4
        assert w.timeline.metrics()["get_page_started"] == 4
        assert w.service.live_connections() == 1
        connection.close()


async def test_a_lsn_that_does_not_come_is_an_error_with_the_receivers_status(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.handler.receiver = "waiting for a primary"
        connection = await asyncio.to_thread(w.page_stream)
        connection.sendall(get_page(0, not_modified_since=0x9000))
        _, payload = await asyncio.to_thread(message, connection)
        assert payload[25:].startswith(b"LSN timeout: Timed out while waiting for WAL record at LSN 0/9000 to arrive")
        assert payload.endswith(b"WalReceiver status: waiting for a primary\0")
        w.handler.receiver = None
        connection.sendall(get_page(0, not_modified_since=0x9000))
        _, payload = await asyncio.to_thread(message, connection)
        assert payload.endswith(b"WalReceiver status: Not active\0"), "nobody knows"
        connection.close()


async def test_what_lies_in_a_gap_of_the_history_is_refused_with_both_ends(tmp_path: Path) -> None:
    """Goal: a client in a gap gets an error, never the state before it (docs/decisions/0008), also if it waited there;
    one at either end gets its page, and the connection goes on.
    """
    async with world(tmp_path) as w:
        connection = await asyncio.to_thread(w.page_stream)
        end, inside = LAST + 0x1000, LAST + 0x800
        w.store.set_gaps([(LAST, end)])
        connection.sendall(get_page(0, not_modified_since=inside, request_lsn=inside))
        await asyncio.sleep(0)
        await asyncio.to_thread(w.store.put_images, end, [(bytes(Key.checkpoint()), bytes(88))])
        _, waited = await asyncio.to_thread(message, connection)
        asked = [
            get_page(0, request_lsn=LAST),
            get_page(0, request_lsn=inside),
            count_blocks(request_lsn=inside),
            get_page(0, request_lsn=end),
            count_blocks(request_lsn=end),
        ]
        connection.sendall(b"".join(asked))
        before, page, count, behind, counted = [(await asyncio.to_thread(message, connection))[1] for _ in asked]
        for refused in (waited, page, count):
            assert b"gap of the timeline's history, between 0/2000 and 0/3000" in refused, refused
        assert before[-8192:] == behind[-8192:] == PAGE
        assert counted[-4:] == struct.pack(">I", 3)
        connection.close()


async def test_a_backup_made_by_python_is_copied_out(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        asked: list[BackupRequest] = []

        def make(request: BackupRequest, sink: BackupSink) -> None:
            asked.append(request)
            for i in range(100):
                sink.write(bytes([i]) * 10_000)
            sink.finish()

        def copy(command: str) -> bytes:
            with w.connect() as connection, connection.cursor() as cursor, cursor.copy(command) as out:
                return b"".join(bytes(piece) for piece in out)

        w.handler.make = make
        ids = f"{TENANT.hex()} {TIMELINE.hex()}"
        archive = await asyncio.to_thread(copy, f"basebackup {ids} 0/1800 --gzip")
        assert archive == b"".join(bytes([i]) * 10_000 for i in range(100))
        request = asked[0]
        assert (request.tenant_id, request.shard, request.timeline_id) == (TENANT, (0, 0), TIMELINE)
        assert (request.lsn, request.prev_lsn, request.gzip) == (0x1800, None, True)
        assert (request.full, request.replica) == (False, False)

        w.handler.make = lambda _, sink: sink.fail("not_found", "timeline is archived")
        with pytest.raises(psycopg.Error, match="not found"):
            await asyncio.to_thread(copy, f"fullbackup {ids}")


async def test_a_backup_ends_when_its_timeline_closes(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        ended = threading.Event()

        def make(_: BackupRequest, sink: BackupSink) -> None:
            with pytest.raises(StoppedError):
                while True:
                    sink.write(bytes(1 << 20))
            ended.set()

        w.handler.make = make
        connection = socket.create_connection(("127.0.0.1", w.port), timeout=20)
        connection.sendall(struct.pack(">II", 9, 0x30000) + b"\0")
        query = f"basebackup {TENANT.hex()} {TIMELINE.hex()}".encode() + b"\0"
        connection.sendall(b"Q" + struct.pack(">I", len(query) + 4) + query)
        await asyncio.sleep(0.2)
        w.service.set_shard(TENANT, UNSHARDED, "Stopping")
        closed = w.service.close_timeline(TENANT, (0, 0), TIMELINE)
        assert closed is not None
        assert await asyncio.to_thread(closed.wait_left, 5)
        assert await asyncio.to_thread(ended.wait, 5)
        connection.close()


async def test_leases_are_granted_by_python_and_open_what_is_below_the_cutoff(tmp_path: Path) -> None:
    async with world(tmp_path) as w:

        def ask() -> object:
            with w.connect() as connection:
                result = connection.pgconn.exec_(f"lease lsn {TENANT.hex()} {TIMELINE.hex()} 0/1800".encode())
                return result.get_value(0, 0)

        assert await asyncio.to_thread(ask) is None
        w.handler.valid_until = 1735689600000
        assert await asyncio.to_thread(ask) == b"1735689600000"
        w.timeline.set_leases({0x800: int(time.time() * 1000) + 60_000}, 0)


async def test_a_shard_that_is_attaching_is_asked_to_activate(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.service.set_shard(TENANT, UNSHARDED, "Attaching")
        connection = await asyncio.to_thread(w.page_stream)
        connection.sendall(get_page(1))
        for _ in range(400):
            if w.handler.activated:
                break
            await asyncio.sleep(0.01)
        assert w.handler.activated == [(TENANT, (0, 0))]
        w.service.set_shard(TENANT, UNSHARDED, "Active")
        assert (await asyncio.to_thread(message, connection))[1][0] == 102
        connection.close()


async def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        with pytest.raises(RequestError):
            w.service.set_shard(b"short", UNSHARDED, "Active")
        with pytest.raises(RequestError):
            w.service.set_shard(TENANT, UNSHARDED, "Sleeping")
        with pytest.raises(NotFoundError):
            w.service.attach_timeline(TENANT, (1, 2), TIMELINE, w.store)
        with pytest.raises(RequestError):
            w.service.start()
        assert w.service.close_timeline(TENANT, (0, 0), bytes(16)) is None
