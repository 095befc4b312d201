"""GetPage over loopback: `pagebench` against the server, and against `pagebench-echo` in the same minute.

Blocks are drawn uniformly over all pages of the pgbench relations. Three states of the timeline: `images`, right after
the import, when every page is in an image layer; `images, small cache`, the same with a cache of pages that holds a
twelfth of them, so that most pages come out of the layer files; `deltas`, right after some minutes of pgbench, when
nothing was compacted and the few pages of branches and tellers carry tens of thousands of records each.

The echo (one thread a connection, one read, one write, a constant page) is what loopback and the load generator allow
at most. Measurements alternate, echo and server, and each figure is the median of the repetitions, so that other
load on the machine meets both.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.world import ROOT, Report, lsn_number, note, page_server, primary, work_directory
from tests.page_server import PageServerProcess
from tests.ports import free_port
from tests.postgres.server import PostgresServer

SHAPES = ((1, 1), (1, 32), (8, 1), (8, 32))
"""(connections, requests in flight on each)"""

SMALL_CACHE_BYTES = 64 << 20

PRIMARY_SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",  # no checkpoint while pgbench runs: chains are as long as they get
    "checkpoint_timeout": "1h",
    "wal_keep_size": "8GB",
}


@dataclass(frozen=True, slots=True)
class Options:
    """`seconds` is per measurement; a state takes 8 x repeat x (seconds + 1)."""

    scale: int
    load_seconds: int
    seconds: float
    repeat: int
    pagebench_folder: Path | None


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of the load generator."""

    requests_per_second: float
    p50_us: float
    p99_us: float
    errors: int


class Generator:
    """Runs pagebench against one timeline and against the echo."""

    def __init__(self, folder: Path, options: Options, blocks: Path) -> None:
        self._folder = folder
        self._options = options
        self._blocks = blocks
        self.port = free_port()

    @contextmanager
    def echo(self) -> Iterator[None]:
        address = f"127.0.0.1:{self.port}"
        process = subprocess.Popen([self._folder / "pagebench-echo", address], stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it listens
            yield
        finally:
            process.kill()
            process.wait()

    def run(self, port: int, ids: tuple[str, str], connections: int, depth: int, *, seconds: float) -> Measured:
        command = [str(self._folder / "pagebench"), "--connect", f"127.0.0.1:{port}", "--tenant", ids[0]]
        command += ["--timeline", ids[1], "--relations", str(self._blocks), "--connections", str(connections)]
        command += ["--depth", str(depth), "--seconds", str(seconds), "--warmup", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        figures = json.loads(done.stdout)
        return Measured(*(figures[name] for name in ("requests_per_second", "p50_us", "p99_us", "errors")))


def run(report: Report, options: Options) -> None:
    """Measure all states."""
    folder = options.pagebench_folder or build_pagebench()
    with (
        work_directory() as base,
        primary(base, scale=options.scale, settings=PRIMARY_SETTINGS) as postgres,
        page_server(base) as server,
    ):
        tenant = str(server.pagectl("tenant", "create")["id"])
        note("importing the primary")
        timeline = str(server.pagectl("timeline", "create", "--primary", postgres.conninfo())["timeline_id"])
        generator = Generator(folder, options, write_blocks(base / "blocks.json", postgres))
        ids = (tenant, timeline)
        measure_state(report, generator, server, ids, options, "images", {})
        with restarted_with(server, "client_page_cache_bytes", str(SMALL_CACHE_BYTES)):
            facts = {"client_page_cache_bytes": SMALL_CACHE_BYTES}
            measure_state(report, generator, server, ids, options, "images, small cache", facts)
        load = run_load(postgres, options.load_seconds)
        wait_until_followed(server, timeline, postgres)
        write_blocks(base / "blocks.json", postgres)
        measure_state(report, generator, server, ids, options, "deltas", load)


@contextmanager
def restarted_with(server: PageServerProcess, setting: str, value: str) -> Iterator[None]:
    """Restart the server with another setting, and without it afterwards."""
    server.restart(more={setting: value})
    yield
    server.restart()


def build_pagebench() -> Path:
    """Build the load generator and the echo; nothing happens if they are there."""
    note("building pagebench")
    command = ["cargo", "build", "--release", "--quiet", "--package", "pagebench", "--message-format", "json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        executable = json.loads(line).get("executable")
        if executable is not None:
            return Path(executable).parent
    raise AssertionError("cargo built no pagebench")


def write_blocks(path: Path, postgres: PostgresServer) -> Path:
    """List the main forks of the pgbench relations with their sizes."""
    rows = postgres.sql("""
        select 1663, (select oid from pg_database where datname = current_database())::bigint,
               pg_relation_filenode(oid)::bigint, pg_relation_size(oid) / 8192
        from pg_class where relname like 'pgbench%' and relkind in ('r', 'i')
    """)
    names = ("spcnode", "dbnode", "relnode", "blocks")
    path.write_text(json.dumps([{**dict(zip(names, row, strict=True)), "forknum": 0} for row in rows]))
    return path


def run_load(postgres: PostgresServer, seconds: int) -> dict[str, Any]:
    """Run pgbench and say what it wrote."""
    note(f"pgbench for {seconds} s")
    before = lsn_number(postgres.value("select pg_current_wal_insert_lsn()"))
    thread = threading.Thread(target=postgres.pgbench, args=("-n", "-c", "8", "-j", "2", "-T", str(seconds)))
    thread.start()
    thread.join()
    written = lsn_number(postgres.value("select pg_current_wal_insert_lsn()")) - before
    transactions = int(postgres.value("select count(*) from pgbench_history"))
    return {"load_seconds": seconds, "transactions": transactions, "wal_bytes": written}


def wait_until_followed(server: PageServerProcess, timeline: str, postgres: PostgresServer) -> None:
    """Wait until the timeline has all of the primary's WAL."""
    target = lsn_number(postgres.value("select pg_current_wal_flush_lsn()"))

    def arrived() -> bool:
        return lsn_number(server.pagectl("timeline", "detail", timeline)["last_record_lsn"]) >= target

    note("waiting for the wal")
    server.wait_for(arrived, 600.0, "the primary's wal")


def measure_state(
    report: Report,
    generator: Generator,
    server: PageServerProcess,
    ids: tuple[str, str],
    options: Options,
    state: str,
    facts: dict[str, Any],
) -> None:
    """Print a line for each shape."""
    with generator.echo():
        # The first read of every file and of every hot page is not what is measured.
        warm = generator.run(server.pg_port, ids, 2, 32, seconds=options.seconds)
        note(f"{state}: {warm.requests_per_second:.0f} requests/s while warming up")
        for connections, depth in SHAPES:
            pairs = []
            for _ in range(options.repeat):
                echo = generator.run(generator.port, ids, connections, depth, seconds=options.seconds)
                ours = generator.run(server.pg_port, ids, connections, depth, seconds=options.seconds)
                assert ours.errors == 0, f"{ours.errors} requests failed"
                pairs.append((ours, echo))
            report.line(
                "getpage",
                state=state,
                scale=options.scale,
                **facts,
                connections=connections,
                depth=depth,
                **_medians([ours for ours, _ in pairs], ""),
                **_medians([echo for _, echo in pairs], "echo_"),
                ratio=round(statistics.median(o.requests_per_second / e.requests_per_second for o, e in pairs), 3),
                p50_ratio=round(statistics.median(o.p50_us / e.p50_us for o, e in pairs), 2),
                seconds=options.seconds,
                repeat=options.repeat,
                target=_target(state, connections, depth),
            )


def _medians(runs: list[Measured], prefix: str) -> dict[str, float]:
    names = ("requests_per_second", "p50_us", "p99_us")
    return {prefix + name: statistics.median(getattr(one, name) for one in runs) for name in names}


def _target(state: str, connections: int, depth: int) -> str | None:
    if state != "deltas":
        return "ratio >= 0.5" if depth == 32 else "p50_ratio <= 2"
    return "requests_per_second >= 10000 and p99_us <= 15000" if (connections, depth) == (8, 1) else None
