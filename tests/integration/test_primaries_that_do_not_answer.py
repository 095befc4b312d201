"""Waiting for some takes nothing from the others: primaries that accept connections and never say a word."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from pageserver.lsn import Lsn
from pageserver.wal.primary_connect import LoginError, log_in
from tests.conftest import MakeServer
from tests.page_server import PageServerProcess

SILENT = 24


def test_silent_primaries_do_not_keep_the_others_from_working(make_server: MakeServer, server_dir: Path) -> None:
    """Goal: a timeline is followed and made durable while many primaries do not answer.

    Method: more timelines are asked for than a small machine has threads for, of sockets that only listen; meanwhile
    another one takes WAL and is flushed, before any of the others is given up.
    """
    primary = make_server(16, "primary")
    with PageServerProcess(server_dir / "pageserver") as server, ExitStack() as sockets:
        tenant = server.pagectl("tenant", "create")["id"]
        path = f"/v1/tenant/{tenant}/timeline"
        timeline = server.pagectl("timeline", "create", "--primary", primary.conninfo())["timeline_id"]
        ports = []
        for _ in range(SILENT):
            silent = sockets.enter_context(socket.socket())
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            ports.append(silent.getsockname()[1])

        def follow(number: int) -> int:
            body = {
                "new_timeline_id": f"{number:032x}",
                "primary": {"conninfo": f"host=127.0.0.1 port={ports[number]} user=postgres dbname=postgres"},
            }
            return httpx.post(f"{server.url}{path}/", json=body, timeout=120).status_code

        with ThreadPoolExecutor(SILENT) as pool:
            asked = [pool.submit(follow, number) for number in range(SILENT)]
            lsn = Lsn.parse(primary.value("SELECT pg_current_wal_insert_lsn()"))
            primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)")
            server.wait_for(
                lambda: Lsn.parse(server.api("GET", f"{path}/{timeline}")["last_record_lsn"]) > lsn, 60, str(lsn)
            )
            server.api("PUT", f"{path}/{timeline}/checkpoint")
            size = server.logical_size(f"{path}/{timeline}")
            assert not any(future.done() for future in asked), "nobody had to wait for those"
            assert size > 0
            assert {future.result() for future in asked} == {503}


def test_each_address_is_tried_and_what_failed_is_told(make_server: MakeServer) -> None:
    """Goal: lists of hosts work as in libpq. Method: a port where nobody listens, a name that is none, the server."""
    primary = make_server(16)
    port = conninfo_to_dict(primary.conninfo())["port"]
    rest = {"user": "postgres", "dbname": "postgres"}
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        ports = f"{unused.getsockname()[1]},{port},{port}"
        pgconn = log_in({**rest, "host": "127.0.0.1,no.such.host.invalid,localhost", "port": ports}, timeout_seconds=5)
        assert pgconn.status == pq.ConnStatus.OK
        assert pgconn.host == b"localhost"
        pgconn.finish()
        with pytest.raises(LoginError) as raised:
            log_in(
                {**rest, "host": "127.0.0.1,no.such.host.invalid", "port": ports.rpartition(",")[0]}, timeout_seconds=5
            )
    assert "Connection refused" in str(raised.value)
    assert 'could not translate host name "no.such.host.invalid"' in str(raised.value)
    assert not raised.value.is_silent
    with pytest.raises(LoginError, match="number"):
        log_in({**rest, "host": "a,b,c", "port": "1,2"}, timeout_seconds=5)


def test_a_silent_server_is_given_up_after_its_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(LoginError, match=f"port {port} failed: timeout expired") as raised:
            log_in({"host": "127.0.0.1", "port": str(port), "user": "postgres"}, timeout_seconds=0.2)
    assert raised.value.is_silent


def test_waiting_for_a_silent_server_ends_when_nobody_waits_any_more() -> None:
    """Goal: a server that stops does not wait for its primaries. Method: give up while a thread connects."""
    given_up = threading.Event()
    with socket.socket() as silent, ThreadPoolExecutor(1) as pool:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        host = {"host": "127.0.0.1,127.0.0.1", "port": str(silent.getsockname()[1]), "user": "postgres"}
        waiting = pool.submit(log_in, host, timeout_seconds=600, given_up=given_up)
        connection, _ = silent.accept()
        given_up.set()
        with pytest.raises(LoginError, match="given up"):
            waiting.result(60)
        connection.close()
