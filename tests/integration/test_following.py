"""From a live primary to pages: import, stream, and every page compared with the stopped server's files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from pageserver.keyspace.key import DEFAULT_TABLESPACE, PAGE_SIZE, VM_FORK
from pageserver.lsn import Lsn
from pageserver.postgres.control_file import ControlFile
from tests.integration.following import Followed
from tests.postgres.server import PostgresServer
from tests.torture.acceptance import empty_directory_for_server
from tests.torture.workload import SERVER_SETTINGS, PgbenchLoad, TortureLoad

MakeServer = Callable[..., PostgresServer]
FIRST_NORMAL_OID = 16384


@pytest.fixture(autouse=True)
def all_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every difference of a report: each one is looked at here."""
    monkeypatch.setattr("pageserver.serve.verify_compare.DIFFERENCES_KEPT", 100_000)


def end_of_wal(server: PostgresServer) -> Lsn:
    """Return where the log of a stopped server ends: behind its shutdown checkpoint."""
    control = ControlFile((server.data_dir / "global/pg_control").read_bytes())
    return Lsn(control.check_point + 1).aligned()


async def stopped_and_compared(server: PostgresServer, timeline: Followed) -> None:
    """Stop the server cleanly while it is followed, then compare everything."""
    await asyncio.to_thread(server.stop)
    end = end_of_wal(server)
    await timeline.wait_for(end)
    report = await asyncio.to_thread(timeline.compare, timeline.last_record_lsn)
    facts = report.to_json()
    assert report.total("missing") == report.total("extra") == 0, facts
    different = [found for found in report.differences if found.verdict == "different"]
    assert len(different) == report.total("different"), facts
    unexplained = [found for found in different if not bits_were_not_logged(server, timeline, found.path, found.block)]
    assert not unexplained, unexplained
    if server.major in (15, 16, 18):
        assert report.total("unsupported") == 0, facts


def bits_were_not_logged(server: PostgresServer, timeline: Followed, path: str, block: int) -> bool:
    """Say whether a visibility map lacks only bits that PostgreSQL did not log.

    CREATE DATABASE with the strategy wal_log logs the pages of visibility maps as standard ones, whose contents lie in
    the hole: the log says "no bits", and PostgreSQL's own crash recovery makes such pages too. So in a database that
    was made that way our page has no bit that the server's has not.
    """
    folder, _, name = path.rpartition("/")
    database = int(folder.rpartition("/")[2])
    if not name.endswith("_vm") or database < FIRST_NORMAL_OID:
        return False
    relation = int(name.removesuffix("_vm"))
    spc = DEFAULT_TABLESPACE
    ours = timeline.store.read_blocks(
        spc, database, relation, VM_FORK, block, 1, timeline.last_record_lsn, stamp_checksums=False
    )
    theirs = (server.data_dir / path).read_bytes()[block * PAGE_SIZE : (block + 1) * PAGE_SIZE]
    # Before the flags lie LSN and checksum; a bit that is cleared moves the LSN in our pages only.
    return ours[10:24] == theirs[10:24] and all(a & ~b == 0 for a, b in zip(ours[24:], theirs[24:], strict=True))


@pytest.mark.parametrize("major", [14, 15, 16, 17, 18])
async def test_tables_of_a_primary_are_served_as_it_wrote_them(
    major: int, make_server: MakeServer, server_dir: Path
) -> None:
    """Heap and B-tree only, so that no redo process is needed."""
    server = make_server(major, checksums=major % 2 == 0)
    await asyncio.to_thread(server.pgbench, "-i", "-q", "-s", "2")
    timeline = await asyncio.to_thread(Followed, server, server_dir / "timeline")
    try:
        async with timeline.streaming():
            await asyncio.to_thread(server.pgbench, "-c", "4", "-t", "500")
            await asyncio.to_thread(server.sql, "VACUUM")
            await stopped_and_compared(server, timeline)
    finally:
        timeline.close()


async def test_an_import_under_load_and_a_restart_give_the_same_pages(
    make_server: MakeServer, server_dir: Path
) -> None:
    """Goal: what the copy may already contain, and WAL that comes twice, do no harm.

    Method: import while pgbench runs; flush, reopen from the layers in the middle, stream on; compare.
    """
    server = make_server(16, settings={"checkpoint_timeout": "30s"})
    await asyncio.to_thread(server.pgbench, "-i", "-q", "-s", "2")
    load = asyncio.create_task(asyncio.to_thread(server.pgbench, "-c", "4", "-T", "8"))
    await asyncio.sleep(1)
    timeline = await asyncio.to_thread(Followed, server, server_dir / "timeline", checkpoint_distance=4 << 20)
    try:
        async with timeline.streaming():
            await asyncio.sleep(2)
        await asyncio.to_thread(timeline.reopen)
        async with timeline.streaming():
            await load
            await stopped_and_compared(server, timeline)
    finally:
        timeline.close()


@pytest.mark.torture
@pytest.mark.parametrize("major", [15, 16, 18])
async def test_the_torture_load_is_followed_page_for_page(
    major: int, make_server: MakeServer, server_dir: Path
) -> None:
    server = make_server(major, checksums=major == 18, settings=SERVER_SETTINGS)
    space = empty_directory_for_server(server_dir / "space")
    with TortureLoad(server, seed=major, pgbench=PgbenchLoad(scale=1), tablespace=space) as load:
        await asyncio.to_thread(load.prepare)
        load.start()
        await asyncio.to_thread(load.run_for, 2)
        timeline = await asyncio.to_thread(Followed, server, server_dir / "timeline")
        try:
            async with timeline.streaming():
                await asyncio.to_thread(load.run_for, 10)
                await asyncio.to_thread(load.stop)
                await stopped_and_compared(server, timeline)
        finally:
            timeline.close()
