"""A bucket that Neon wrote goes on from an unmodified primary, and stays Neon's in form (docs/decisions/0008)."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import zstandard

from pageserver.keyspace.key import Key, RelTag
from tests.integration.test_restore_and_verify import verify
from tests.integration.test_source_changes import end_of_log, wait_for
from tests.page_server import PageServerProcess
from tests.ports import free_port
from tests.postgres.provision import Installation
from tests.postgres.server import PostgresServer, unprivileged_user
from tests.unit.tenant.test_neon_bucket import TIMELINE, VECTOR, unpack
from tests.unit.world import TENANT

MAJOR = 16
NEON_END = "0/4CF6E00"
FIRST_SEGMENT = "000000010000000000000004"
PATH = f"/v1/tenant/{TENANT}/timeline/{TIMELINE}"
OURS = frozenset(
    {"flavour", "wal_source_error", "wal_source_paused", "ingest_stalled", "import", "gaps", "names", "read_only"}
)
"""Keys that our bodies have beyond Neon's."""
MAPS = frozenset({"layer_metadata", "tenant_specific_overrides", "effective_config", "tenant_conf"})
"""Objects whose keys are names of things, or settings."""


def members(archive: str) -> tarfile.TarFile:
    stream = zstandard.ZstdDecompressor().stream_reader((VECTOR / archive).read_bytes())
    return tarfile.open(fileobj=io.BytesIO(stream.read()))


def make_primary(folder: Path, installation: Installation) -> PostgresServer:
    """Start the server that the bucket's history comes from, where that history ends."""
    with members("pgdata.tar.zst") as pgdata:
        pgdata.extractall(folder, filter="data")
    directory = folder / "pgdata"
    with members("source.tar.zst") as source:
        wal = source.extractfile("wal.tar")
        assert wal is not None
        with tarfile.open(fileobj=wal) as segments:
            for member in segments.getmembers():
                if member.name >= FIRST_SEGMENT:
                    segments.extract(member, directory / "pg_wal", filter="data")
    (directory / "pg_hba.conf").write_text("host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n")
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
        if (user := unprivileged_user()) is not None:
            shutil.chown(path, user, user)
    return PostgresServer(MAJOR, directory, installation=installation)


@pytest.fixture
def neons(
    server_dir: Path, postgres_installation: Callable[[int], Installation]
) -> Iterator[tuple[PostgresServer, PageServerProcess]]:
    """The primary, and a server that has attached Neon's bucket in generation 2."""
    unpack(server_dir / "bucket")
    settings = {"remote_storage": f"{{local_path='{server_dir / 'bucket'}'}}"}
    with (
        make_primary(server_dir, postgres_installation(MAJOR)) as primary,
        PageServerProcess(server_dir / "pageserver", settings=settings) as server,
    ):
        server.pagectl(
            "tenant", "create", str(TENANT), "-c", "checkpoint_distance=4194304", "-c", "pitr_interval='7days'"
        )
        yield primary, server


def pages(every: int) -> list[dict[str, Any]]:
    lines = (VECTOR / "pages.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[::every]]


def check_pages(server: PageServerProcess, wanted: list[dict[str, Any]]) -> None:
    for page in wanted:
        key = Key.relation_block(RelTag.parse(page["rel"]).with_fork(page["fork"]), page["block"])
        answer = server.api("GET", f"{PATH}/getpage?key={key}&lsn={page['lsn']}")
        assert hashlib.sha256(bytes(answer["page"])).hexdigest() == page["sha256"], page


def check_moments(server: PageServerProcess) -> None:
    for line in (VECTOR / "metadata.jsonl").read_text().splitlines():
        question = json.loads(line)
        if question["ask"] == "lsn_by_timestamp" and question["kind"] in ("present", "past"):
            answer = server.api("GET", f"{PATH}/get_lsn_by_timestamp?timestamp={question['timestamp']}")
            assert answer["kind"] == question["kind"]
            if question["kind"] == "past" or answer["lsn"] == question["lsn"]:
                continue
            raise AssertionError(f"{question}: {answer}")


def load(primary: PostgresServer) -> None:
    """Change what Neon's history has, and make what it has not: tables, a tablespace's worth of kinds of records."""
    primary.pgbench("-i", "-q", "-s", "2")
    primary.pgbench("-c", "4", "-t", "300")
    primary.sql("create table kinds (id int primary key, text text, words text[])")
    primary.sql("create index on kinds using gin (words)")
    primary.sql("create index on kinds using brin (id)")
    primary.sql("insert into kinds select i, repeat('k', i % 50), array[i::text] from generate_series(1, 3000) i")
    with primary.connect(autocommit=False) as one, primary.connect(autocommit=False) as other:
        one.execute("select * from kinds where id < 20 for share")
        other.execute("select * from kinds where id < 20 for key share")
        one.execute("insert into kinds values (100000, 'shared', '{}')")
        one.commit()
        other.commit()
    primary.sql("begin; insert into kinds values (200000, 'prepared', '{}'); prepare transaction 'left open'")
    primary.sql("delete from kinds where id % 3 = 0")
    primary.sql("vacuum kinds, pgbench_accounts")


def forms(value: Any, path: str = "") -> set[tuple[str, str]]:
    """Return (path, kind) of everything in a JSON value; elements of a list, and of a map by name, are one path."""
    match value:
        case dict():
            is_map = path.rpartition(".")[2] in MAPS
            found = {(path, "object")}
            for key, item in value.items():
                found |= forms(item, f"{path}.*" if is_map else f"{path}.{key}")
            return found
        case list():
            return {(path, "list")}.union(*(forms(item, f"{path}[]") for item in value))
        case None:
            return {(path, "null")}
        case bool():
            return {(path, "bool")}
        case int() | float():
            return {(path, "number")}
        case _:
            return {(path, "lsn" if "/" in value and len(value) < 18 else "text")}


def check_forms(ours: Any, theirs: Any, *, extra: frozenset[str] = frozenset()) -> None:
    """Every key of theirs is in ours and the other way round, with values of one kind wherever neither is null."""
    mine, wanted = forms(ours), forms(theirs)
    mine = {(path, kind) for path, kind in mine if path.rpartition(".")[2] not in extra}
    assert {path for path, _ in mine} == {path for path, _ in wanted}, "keys"
    kinds = {path: {kind for at, kind in wanted if at == path} - {"null"} for path, _ in wanted}
    for path, kind in mine:
        assert kind == "null" or not kinds[path] or kind in kinds[path], (path, kind, kinds[path])


def test_neons_bucket_goes_on_from_an_unmodified_primary(
    neons: tuple[PostgresServer, PageServerProcess], server_dir: Path
) -> None:
    """Goal: nothing of the old history changes, the new one is right page for page, and what is stored and answered has
    Neon's keys and forms. Method: point the timeline at the primary, load, restart, restore, compare, scrub.
    """
    primary, server = neons
    old = pages(every=20)
    check_pages(server, old[::5])
    described = server.pagectl("timeline", "source", "set", str(TIMELINE), "--primary", primary.conninfo())
    assert (described["flavour"], described["neon_until_lsn"], described["error"]) == ("stock", NEON_END, None)
    assert described["slot"] == f"pageserver_{TIMELINE}"
    assert described["slot_state"]["wal_status"] == "reserved"
    load(primary)
    lsn = primary.value("select pg_current_wal_insert_lsn()")
    counts = [primary.value(f"select count(*) from {table}") for table in ("pgbench_accounts", "kinds")]
    server.restart()
    primary.sql("insert into kinds select i, 'later', '{}' from generate_series(300000, 301000) i")
    wait_for(server, str(TIMELINE), primary.value("select pg_current_wal_flush_lsn()"))
    server.api("PUT", f"{PATH}/checkpoint")
    check_pages(server, old)
    check_moments(server)
    check_restore(primary, server, lsn, counts, server_dir)
    with pytest.raises(AssertionError, match="it is Neon's"):
        server.pagectl("restore", "--timeline", str(TIMELINE), "--lsn", "0/4CF6D88", "--to", str(server_dir / "old"))
    check_bodies(server)
    check_objects(server, server_dir / "bucket")
    primary.sql("checkpoint")
    primary.stop("fast")
    wait_for(server, str(TIMELINE), end_of_log(primary))
    report = verify(server, str(TIMELINE), primary.data_dir)
    assert (report["different"], report["missing"], report["extra"], report["unsupported"]) == (0, 0, 0, 0), report
    server.stop()
    check_scrub(server, server_dir / "bucket")


def check_restore(
    primary: PostgresServer, server: PageServerProcess, lsn: str, counts: list[str], server_dir: Path
) -> None:
    directory, port = server_dir / "restored", free_port()
    run_as = ["--run-as", user] if (user := unprivileged_user()) is not None else []
    start = ["--start", str(port), "--pg-bin", str(primary.installation.bin), *run_as]
    server.pagectl("restore", "--timeline", str(TIMELINE), "--to", str(directory), "--lsn", lsn, *start)
    restored = PostgresServer(MAJOR, directory, installation=primary.installation, port=port)
    try:
        with psycopg.connect(restored.conninfo(), autocommit=True) as session:
            found = [
                session.execute(f"select count(*)::text from {table}".encode()).fetchone()
                for table in ("pgbench_accounts", "kinds")
            ]
            assert found == [(count,) for count in counts]
            session.execute("commit prepared 'left open'")
            session.execute("select * from kinds where id < 20 for update")
    finally:
        restored.program("pg_ctl", "-D", str(directory), "-m", "fast", "-w", "stop")


def check_bodies(server: PageServerProcess) -> None:
    """HTTP bodies have Neon's keys (vector `http/`), and some of ours behind them."""
    for name, path in (
        ("tenant", f"/v1/tenant/{TENANT}"),
        ("timeline", PATH),
        ("timelines", f"/v1/tenant/{TENANT}/timeline"),
        ("status", "/v1/status"),
        ("keyspace", f"{PATH}/keyspace"),
        ("layers", f"{PATH}/layer"),
        ("location_config", f"/v1/location_config/{TENANT}"),
    ):
        theirs = json.loads((VECTOR / "http" / f"{name}.json").read_text())
        ours = server.api("GET", path)
        if name == "layers":
            ours["in_memory_layers"] = theirs["in_memory_layers"]
            # A list of layers of every kind on both sides: what an element has depends on its kind.
            for kind in ("Delta", "Image"):
                pair = [[e for e in body["historic_layers"] if e["kind"] == kind] for body in (ours, theirs)]
                check_forms(*pair)
            continue
        check_forms(ours, theirs, extra=OURS)


def check_objects(server: PageServerProcess, bucket: Path) -> None:
    """What we store beside Neon's objects has the forms of theirs, and of spec remote-storage.md 6 and 7."""
    branch = server.pagectl("timeline", "branch", "--ancestor", str(TIMELINE), "--lsn", NEON_END)["timeline_id"]
    server.api("PUT", f"/v1/tenant/{TENANT}/timeline/{branch}/archival_config", {"state": "Archived"})
    server.pagectl("timeline", "offload", branch)
    server.api("POST", f"/v1/tenant/{TENANT}/heatmap_upload")
    below = bucket / "tenants" / str(TENANT)
    manifest = json.loads(max(below.glob("tenant-manifest-*.json")).read_text())
    (offloaded,) = manifest.pop("offloaded_timelines")
    assert list(manifest) == ["version", "stripe_size"]
    assert list(offloaded) == ["timeline_id", "ancestor_timeline_id", "ancestor_retain_lsn", "archived_at"]
    assert offloaded["ancestor_retain_lsn"] == NEON_END
    datetime.fromisoformat(offloaded["archived_at"][:26]).replace(tzinfo=UTC)
    heatmap = json.loads((below / "heatmap-v1.json").read_text())
    assert list(heatmap) == ["generation", "timelines", "upload_period_ms"]
    layer = heatmap["timelines"][0]["layers"][0]
    assert (list(layer), list(layer["metadata"])) == (
        ["name", "metadata", "access_time", "cold"],
        ["file_size", "generation"],
    )
    indices = sorted((below / "timelines" / str(TIMELINE)).glob("index_part.json-*"))
    assert indices[0].name.endswith("-00000001") and len(indices) > 1
    theirs, ours = json.loads(indices[0].read_text()), json.loads(indices[-1].read_text())
    check_forms(ours, theirs)
    assert list(ours) == list(theirs), "in this order"
    assert {entry["generation"] for entry in ours["layer_metadata"].values()} >= {1, 2}
    for name, entry in ours["layer_metadata"].items():
        path = below / "timelines" / str(TIMELINE) / f"{name}-{entry['generation']:08x}"
        assert path.stat().st_size == entry["file_size"], name


def check_scrub(server: PageServerProcess, bucket: Path) -> None:
    report = server.pagectl("scrub", "--remote-storage", f"{{local_path='{bucket}'}}", "--deep")
    assert report["errors"] == [] and report["warnings"] == [], report
