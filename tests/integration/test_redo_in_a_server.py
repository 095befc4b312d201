"""A page server whose WAL redo processes do all the work, do none of it, hang, die, or are another program.

One server follows one primary with two tenants; it is restarted with other settings for each part. That pages are
right is the matter of other tests: here both engines must give the same ones, and `/metrics` must say which did it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from pageserver.keyspace.key import Key, RelTag
from pageserver.lsn import Lsn
from pageserver.postgres.redo_scratch import EXTENSION_FOLDER
from tests.page_server import PageServerProcess
from tests.postgres.provision import Installation
from tests.postgres.server import PostgresServer

MAJOR = 16
SENT = "pageserver_wal_redo_process_records_total"
STARTED = "pageserver_wal_redo_process_started_total"


@dataclass(frozen=True, slots=True)
class Setting:
    """A stopped page server with two copies of one primary, both complete up to `lsn`."""

    folder: Path
    installation: Installation
    tenants: tuple[tuple[str, str], tuple[str, str]]
    """(tenant, timeline) of each."""

    keys: tuple[Key, ...]
    lsn: Lsn

    @contextmanager
    def serve(self, **settings: str) -> Iterator[PageServerProcess]:
        with PageServerProcess(self.folder / "pageserver", settings=settings) as server:
            yield server

    def page(self, server: PageServerProcess, tenant: int, key: Key) -> bytes:
        owner, timeline = self.tenants[tenant]
        path = f"/v1/tenant/{owner}/timeline/{timeline}/getpage?key={key}&lsn={self.lsn}"
        return bytes(server.api("GET", path)["page"])

    def process_of(self, server: PageServerProcess, tenant: int) -> int | None:
        process = server.api("GET", f"/v1/tenant/{self.tenants[tenant][0]}")["walredo"]["process"]
        return None if process is None else int(process["pid"])

    def with_process(self) -> dict[str, str]:
        return {
            "redo": "'process-only'",
            f"pg_installations.{MAJOR}": f"'{self.installation.folder}'",
            # Pages shall be made, not remembered.
            "client_page_cache_bytes": "0",
        }


@pytest.fixture(scope="module")
def setting(postgres_installation: Any) -> Iterator[Setting]:
    """Import a primary, write to it, follow, and stop the primary: long chains of records over its pages."""
    if not EXTENSION_FOLDER.exists():
        pytest.skip("the WAL redo extension is not built: make walredo")
    installation = postgres_installation(MAJOR)
    folder = Path(tempfile.mkdtemp(prefix="pageserver-test-"))
    folder.chmod(0o755)
    postgres = PostgresServer(MAJOR, folder / "primary", installation=installation, settings={"autovacuum": "off"})
    with postgres, PageServerProcess(folder / "pageserver") as server:
        postgres.psql(
            "create table t (id int primary key, n int, words text) with (fillfactor = 70);"
            "create index t_hash on t using hash (n); create index t_gin on t using gin (to_tsvector('simple', words));"
            "create index t_brin on t using brin (n) with (pages_per_range = 2);"
            "insert into t select i, i % 90, 'word ' || i % 40 from generate_series(1, 3000) i"
        )
        tenants = []
        for _ in range(2):
            tenant = str(server.pagectl("tenant", "create")["id"])
            made = server.pagectl("timeline", "create", "--tenant", tenant, "--primary", postgres.conninfo())
            tenants.append((tenant, str(made["timeline_id"])))
        for step in range(6):
            postgres.psql(f"update t set n = n + 1 where id % 6 = {step}; delete from t where id % 101 = {step}")
            postgres.psql(
                f"insert into t select i, i, 'new ' || i % 7 from generate_series({step + 5}000, {step + 5}200) i"
            )
            postgres.psql("vacuum t")
        relations = postgres.sql(
            "select (select oid from pg_database where datname = current_database())::bigint, "
            "pg_relation_filenode(c.oid)::bigint, pg_relation_size(c.oid) / 8192 from pg_class c "
            "where relname ~ '^t(_|$)'"
        )
        lsn = Lsn.parse(postgres.value("select pg_current_wal_flush_lsn()"))
        for tenant, timeline in tenants:

            def has_arrived(tenant: str = tenant, timeline: str = timeline) -> bool:
                info = server.pagectl("timeline", "detail", "--tenant", tenant, timeline)
                return Lsn.parse(info["last_record_lsn"]) >= lsn

            server.wait_for(has_arrived, 60, f"wal up to {lsn}")
        keys = tuple(
            Key.relation_block(RelTag.parse(f"1663/{database}/{relation}"), block)
            for database, relation, blocks in relations
            for block in range(int(str(blocks)))
            if block < 3 or block % 9 == 0
        )
    yield Setting(folder, installation, (tenants[0], tenants[1]), keys, lsn)
    shutil.rmtree(folder)


def test_both_engines_give_the_same_pages_and_say_who_did_it(setting: Setting) -> None:
    """Goal: `redo` chooses the engine. Method: the same pages with each; the counts of records."""
    with setting.serve(client_page_cache_bytes="0") as server:
        native = [setting.page(server, 0, key) for key in setting.keys]
        counts = server.metrics()
        assert [counts[name] for name in counts if name.startswith(SENT)] == [0] * 11, "nothing needs the process"
        assert (counts[STARTED], setting.process_of(server, 0)) == (0, None)
        assert counts["pageserver_wal_redo_seconds_count"] > 0, "native runs are timed too"
        assert counts["pageserver_wal_redo_records_histogram_count"] == 0
    with setting.serve(**setting.with_process()) as server:
        assert [setting.page(server, 0, key) for key in setting.keys] == native
        counts = server.metrics()
        for name in ("Heap", "Heap2", "Btree", "Hash", "Gin", "BRIN"):
            assert counts[f'{SENT}{{rmgr="{name}"}}'] > 0, name
        sent = sum(value for name, value in counts.items() if name.startswith(SENT))
        assert counts["pageserver_replayed_wal_records_total"] == sent
        assert counts["pageserver_wal_redo_records_histogram_sum"] == sent
        assert counts[STARTED] == counts["pageserver_wal_redo_process_launch_duration_count"] == 1
        pid = setting.process_of(server, 0)
        assert pid is not None
        assert setting.process_of(server, 1) is None, "nobody has asked for the other tenant"
        last, never = (
            server.api("GET", f"/v1/tenant/{tenant}")["walredo"]["last_redo_at"] for tenant, _ in setting.tenants
        )
        assert never is None
        assert timedelta() <= datetime.now(UTC) - datetime.fromisoformat(last) < timedelta(minutes=2)
    assert not Path(f"/proc/{pid}").exists(), "it has ended with its server"


def test_a_hung_process_delays_its_tenant_and_nobody_else(setting: Setting) -> None:
    """Goal: SIGSTOP costs the requests of that tenant the timeout, once, and others nothing. Method: the other tenant's
    pages are read while the first one's request waits.
    """
    key = setting.keys[0]
    with setting.serve(**setting.with_process(), wal_redo_timeout="'3s'") as server, ThreadPoolExecutor(1) as pool:
        pages = [setting.page(server, tenant, key) for tenant in (0, 1)]
        pids = [setting.process_of(server, tenant) for tenant in (0, 1)]
        assert None not in pids and pids[0] != pids[1]
        os.kill(pids[0] or 0, signal.SIGSTOP)
        waiting = pool.submit(setting.page, server, 0, key)
        for _ in range(5):
            assert setting.page(server, 1, key) == pages[1]
        assert not waiting.done(), "its process does not run"
        assert waiting.result(60) == pages[0], "killed at the deadline, and tried again with another"
        assert setting.process_of(server, 1) == pids[1]
        assert setting.process_of(server, 0) not in (None, pids[0])
        assert server.metrics()['pageserver_wal_redo_process_stopped_total{cause="WalRedoProcessDrop"}'] == 1
        assert "WAL redo timed out" in server.log_path.read_text()


def test_a_process_that_is_killed_again_and_again_costs_no_request(setting: Setting) -> None:
    """Goal: kill -9 between and during requests is answered by another try; the other tenant keeps its process."""
    with setting.serve(**setting.with_process()) as server, ThreadPoolExecutor(2) as pool:
        expected = [setting.page(server, 0, key) for key in setting.keys[:4]]
        setting.page(server, 1, setting.keys[0])
        other = setting.process_of(server, 1)
        for _ in range(3):
            reading = [pool.submit(setting.page, server, 0, key) for key in setting.keys[:4]]
            pid = setting.process_of(server, 0)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
            assert [one.result(60) for one in reading] == expected
        assert setting.process_of(server, 1) == other
        counts = server.metrics()
        stopped = sum(value for name, value in counts.items() if name.startswith("pageserver_wal_redo_process_stopped"))
        assert counts[STARTED] - stopped == 2, "one process for each tenant, no zombie counted"


def test_another_program_is_started_as_configured_and_its_garbage_is_not_served(setting: Setting) -> None:
    """Goal: `redo_programs`; arguments and environment of walredo.md 2; garbage fails the request, not the server."""
    said = setting.folder / "said"
    said.mkdir()
    said.chmod(0o777)
    program = setting.folder / "other" / "bin" / "postgres"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/usr/bin/python3\n"
        "import json, os, sys\n"
        f"path = {str(said)!r} + f'/{{os.getpid()}}'\n"
        "json.dump([sys.argv, dict(os.environ)], open(path, 'w'))\n"
        "while sys.stdout.buffer.write(b'garbage ' * 1024):\n"
        "    sys.stdout.buffer.flush()\n"
    )
    program.chmod(0o755)
    other = {**setting.with_process(), f"redo_programs.{MAJOR}": f"'{program}'"}
    with setting.serve(**other) as server:
        with pytest.raises(httpx.HTTPStatusError) as caught:
            setting.page(server, 0, setting.keys[0])
        assert caught.value.response.status_code >= 500
        assert "not the page asked for" in caught.value.response.text
        starts = [json.loads(path.read_text()) for path in said.iterdir()]
        assert len(starts) == 3, "three tries, a new process for each"
        for argv, environment in starts:
            assert argv == [str(program), "--wal-redo", "--tenant-shard-id", setting.tenants[0][0]]
            # The interpreter of the script adds its own.
            environment.pop("LC_CTYPE", None)
            assert environment == {
                "LD_LIBRARY_PATH": str(setting.folder / "other" / "lib"),
                "DYLD_LIBRARY_PATH": str(setting.folder / "other" / "lib"),
                "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", ""),
                "UBSAN_OPTIONS": os.environ.get("UBSAN_OPTIONS", ""),
            }
        assert server.api("GET", "/v1/tenant")[0]["state"]["slug"] == "Active"
        assert server.is_running()


def test_a_program_that_prints_zeros_makes_no_pages_of_zeros(setting: Setting) -> None:
    """Goal: zeros are garbage, too, where a record makes a page; what the program says, and that a page could not be
    made, is in the log as alerts expect it (walredo.md 1.1, 2.1, 4.1).
    """
    program = setting.folder / "zeros" / "bin" / "postgres"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/bin/sh\n"
        "echo '2026-01-01 LOG:  all is well' >&2\n"
        "echo 'WARNING:  nothing but zeros' >&2\n"
        "yes 'FATAL:  a flood' | head -100000 >&2\n"
        "exec cat /dev/zero\n"
    )
    program.chmod(0o755)
    other = {**setting.with_process(), f"redo_programs.{MAJOR}": f"'{program}'", "log_format": "'json'"}
    with setting.serve(**other) as server:
        log_at = server.log_path.stat().st_size
        with pytest.raises(httpx.HTTPStatusError, match="500"):
            setting.page(server, 0, setting.keys[0])
        text = server.log_path.read_text()[log_at:]
        assert server.metrics()['libmetrics_tracing_event_count{level="critical"}'] == 1
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    messages = [(line["level"], line["fields"]["message"]) for line in lines]
    output = [line for line in lines if line["fields"]["message"] == "received output"]
    owner, timeline = setting.tenants[0]
    spans = {
        (line["level"], line["span"]["name"], line["span"]["tenant_id"], line["span"]["shard_id"]) for line in output
    }
    assert spans == {("ERROR", "wal-redo-postgres-stderr", owner, "0000")}
    said = [line["fields"]["output"] for line in output]
    assert "WARNING:  nothing but zeros" in said and not any("LOG:" in line for line in said)
    assert len(said) < 3000 and any("more lines within a second" in line for line in said)
    failures = [(level, text) for level, text in messages if text.startswith("error applying ")]
    assert [level for level, _ in failures] == ["ERROR"] * 3
    assert "during read page, from base image with LSN" in failures[0][1]
    begin = (
        f"CRITICAL: [tenant_shard_id: {owner}, timeline_id: {timeline}] walredo failure during page reconstruction: "
    )
    assert len([text for level, text in messages if level == "ERROR" and text.startswith(begin)]) == 1


def test_the_next_server_removes_what_a_killed_one_left_in_memory(setting: Setting) -> None:
    """Goal: scratch directories go, also after kill -9. Method: kill a server that has a process, start it again."""
    with setting.serve(**setting.with_process()) as server:
        setting.page(server, 0, setting.keys[0])
        pid = setting.process_of(server, 0)
        assert pid is not None
        files = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        root = Path(next(target for target in files if "/base/1/" in target)).parents[3]
        assert root.name.startswith("pageserver-redo-") and root.exists()
        server.kill()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            assert time.monotonic() < deadline, "the process outlives its server"
            time.sleep(0.02)
        assert root.exists()
        server.start()
        assert not root.exists(), "removed at the start, before any process is needed"
