"""A tenant's settings that the page service obeys, and what it says of a tenant's WAL, on a real server."""

from __future__ import annotations

import io
import socket
import struct
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.page_server import PageServerProcess
from tests.postgres.provision import Installation

MAJOR = 16
LATEST = 2**64 - 1


class Client:
    """Says what it is told to say; a message is a letter and a body."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.sendall(struct.pack(">II", 9, 0x30000) + b"\0")
        self.read_until(b"Z")

    def close(self) -> None:
        self._socket.close()

    def send(self, letter: bytes, body: bytes) -> None:
        self._socket.sendall(letter + struct.pack(">I", len(body) + 4) + body)

    def read(self) -> tuple[bytes, bytes]:
        letter, length = struct.unpack(">cI", self._exactly(5))
        return letter, self._exactly(length - 4)

    def read_until(self, letters: bytes) -> list[tuple[bytes, bytes]]:
        messages = [self.read()]
        while messages[-1][0] not in letters:
            messages.append(self.read())
        return messages

    def query(self, text: str, letters: bytes = b"Z") -> list[tuple[bytes, bytes]]:
        self.send(b"Q", text.encode() + b"\0")
        return self.read_until(letters)

    def size_of_database(self, *, not_modified_since: int = 1) -> bytes:
        """Ask for the size of database 1 in a pagestream of version 2. Returns the answer."""
        self.send(b"d", struct.pack(">BQQI", 3, LATEST, not_modified_since, 1))
        return self.read()[1]

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._socket.recv(count - len(data))
            assert piece, "the server closed the connection"
            data += piece
        return data


@pytest.fixture(scope="module")
def served(
    postgres_installation: Callable[[int], Installation], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[PageServerProcess, str, str]]:
    """A server with one bootstrapped timeline: the server, tenant, timeline."""
    folder = tmp_path_factory.mktemp("page-service-settings")
    installation = postgres_installation(MAJOR)
    settings = {"pg_installations": f"{{{MAJOR}='{installation.folder}'}}", "wait_lsn_timeout": "'1s'"}
    with PageServerProcess(Path(folder) / "pageserver", settings=settings) as server:
        tenant = str(server.pagectl("tenant", "create")["id"])
        body = {"new_timeline_id": "8c" * 16, "pg_version": MAJOR}
        made = server.api("POST", f"/v1/tenant/{tenant}/timeline/", body)
        yield server, tenant, made["timeline_id"]


@contextmanager
def configured(server: PageServerProcess, tenant: str, config: dict[str, Any]) -> Iterator[None]:
    """Let the tenant have other settings for a while."""
    server.api("PUT", "/v1/tenant/config", {"tenant_id": tenant, **config})
    yield
    server.api("PUT", "/v1/tenant/config", {"tenant_id": tenant})


@contextmanager
def connected(server: PageServerProcess) -> Iterator[Client]:
    client = Client(server.pg_port)
    yield client
    client.close()


def names_in(server: PageServerProcess, command: str) -> set[str]:
    with connected(server) as client:
        messages = client.query(command)
    assert [letter for letter, _ in messages if letter != b"d"] == [b"H", b"c", b"C", b"Z"], messages[-2:]
    archive = b"".join(body for letter, body in messages if letter == b"d")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return set(tar.getnames())


def test_slru_segments_are_left_out_for_computes_that_fetch_them(served: tuple[PageServerProcess, str, str]) -> None:
    """Spec page-service.md 6.4: with `lazy_slru_download` no segments, but their directories; a full backup has all."""
    server, tenant, timeline = served
    segments = {"pg_xact/0000", "pg_multixact/members/0000", "pg_multixact/offsets/0000"}
    folders = {"pg_xact", "pg_multixact/members", "pg_multixact/offsets"}
    assert names_in(server, f"basebackup {tenant} {timeline}") >= segments | folders
    with configured(server, tenant, {"lazy_slru_download": True}):
        names = names_in(server, f"basebackup {tenant} {timeline}")
        assert names >= folders and not names & segments
        assert names_in(server, f"fullbackup {tenant} {timeline}") >= segments | folders
    assert names_in(server, f"basebackup {tenant} {timeline}") >= segments


def test_the_time_of_base_backups_is_counted_and_that_of_full_ones_is_not(
    served: tuple[PageServerProcess, str, str],
) -> None:
    """Spec page-service.md 1.5, 6.13."""
    server, tenant, timeline = served

    def counted() -> float:
        return server.metrics()['pageserver_basebackup_query_seconds_count{result="ok"}']

    before = counted()
    names_in(server, f"fullbackup {tenant} {timeline}")
    names_in(server, f"basebackup {tenant} {timeline}")
    server.wait_for(lambda: counted() > before, 10, "the base backup to be counted")
    assert counted() == before + 1, "one of the two"


def test_the_throttle_of_a_tenant_can_be_switched_on_and_off(served: tuple[PageServerProcess, str, str]) -> None:
    """Goal: `timeline_get_throttle` reaches the page service. Method: one request a second, two at hand; then none."""
    server, tenant, timeline = served
    throttle = {
        "task_kinds": ["PageRequestHandler"],
        "initial": 0,
        "refill_interval": "1s",
        "refill_amount": 1,
        "max": 2,
    }
    with connected(server) as client:
        client.query(f"pagestream_v2 {tenant} {timeline}", b"W")
        client.size_of_database()
        with configured(server, tenant, {"timeline_get_throttle": throttle}):
            started = time.monotonic()
            for _ in range(3):
                client.size_of_database()
            assert time.monotonic() - started > 2, "nothing was at hand at the start"
            check_throttle_metrics(server, tenant)
        started = time.monotonic()
        for _ in range(20):
            client.size_of_database()
        assert time.monotonic() - started < 10, "twenty seconds with the throttle"


def check_throttle_metrics(server: PageServerProcess, tenant: str) -> None:
    """Metrics.md 3.2, 22: three requests waited, and waiting is no part of execution."""
    found = server.metrics()
    shard = f'{{kind="pagestream",shard_id="0000",tenant_id="{tenant}"}}'
    for name, expected in (("count_accounted_start", 3), ("count_accounted_finish", 3), ("count", 3)):
        assert found[f"pageserver_tenant_throttling_{name}{shard}"] == expected
        assert found[f'pageserver_tenant_throttling_{name}_global{{kind="pagestream"}}'] == expected
    assert found[f"pageserver_tenant_throttling_wait_usecs_sum{shard}"] > 2_000_000
    executed = found['pageserver_smgr_query_seconds_global_sum{smgr_query_type="get_db_size"}']
    assert executed < found[f"pageserver_tenant_throttling_wait_usecs_sum{shard}"] / 1e6 / 2


def test_who_waits_in_vain_learns_what_the_receiver_does(served: tuple[PageServerProcess, str, str]) -> None:
    """Spec page-service.md 3.3: the error ends with the same words as the management API."""
    server, tenant, timeline = served
    status = server.api("GET", f"/v1/tenant/{tenant}/timeline/{timeline}")["walreceiver_status"]
    with connected(server) as client:
        client.query(f"pagestream_v2 {tenant} {timeline}", b"W")
        text = client.size_of_database(not_modified_since=1 << 40).decode()
        assert "LSN timeout: Timed out while waiting for WAL record at LSN 100/0 to arrive" in text
        assert text.endswith(f"WalReceiver status: {status}\0")
