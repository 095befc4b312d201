"""The history in files that both sides know: ingested by our server it gives Neon's pages, also after a kill."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest
import zstandard

from pageserver.keyspace.key import Key, RelTag
from tests.page_server import PageServerProcess

VECTOR = Path(__file__).parents[3] / "shared" / "vectors" / "neon-pg16"
TENANT = "aa" * 16
TIMELINE = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa01"
PATH = f"/v1/tenant/{TENANT}/timeline/{TIMELINE}"


@pytest.fixture
def imported(server_dir: Path) -> Iterator[PageServerProcess]:
    """A server that took `source.tar.zst`: base backup and WAL."""
    with PageServerProcess(server_dir / "pageserver") as server:
        server.pagectl("tenant", "create", TENANT)
        import_history(server, server_dir)
        yield server


def import_history(server: PageServerProcess, server_dir: Path) -> None:
    """Unpack `source.tar.zst` into a directory, and import it."""
    with (VECTOR / "source.tar.zst").open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            archive.extractall(server_dir, filter="data")
    base = "import_basebackup?base_lsn=0/2000028&end_lsn=0/2000100&pg_version=16&flavour=stock"
    wal = "import_wal?start_lsn=0/2000028&end_lsn=0/4CF6E00"
    with httpx.Client(base_url=server.url, timeout=300) as client:
        for route, name in ((base, "base.tar"), (wal, "wal.tar")):
            response = client.put(f"{PATH}/{route}", content=next(server_dir.rglob(name)).read_bytes())
            assert (response.status_code, response.content) == (200, b"null"), response.text


def test_all_pages_are_neons_and_stay_so_after_a_kill(imported: PageServerProcess) -> None:
    info = imported.api("GET", PATH)
    assert (info["last_record_lsn"], info["prev_record_lsn"]) == ("0/4CF6E00", "0/4CF6D88")
    assert (info["disk_consistent_lsn"], info["min_readable_lsn"]) == ("0/4CF6E00", "0/2000100")
    assert different_pages(imported, every=1) == []
    imported.kill()
    imported.start()
    assert imported.api("GET", PATH)["last_record_lsn"] == "0/4CF6E00"
    assert different_pages(imported, every=20) == []


def test_a_base_lsn_that_is_not_the_backups_is_refused(imported: PageServerProcess, server_dir: Path) -> None:
    """What was lost: WAL between the backup's start and a later base_lsn, without a word."""
    backup = next(server_dir.rglob("base.tar")).read_bytes()
    path = f"/v1/tenant/{TENANT}/timeline/{'bb' * 16}"
    with httpx.Client(base_url=imported.url, timeout=300) as client:
        for lsn, message in [
            ("0/2000060", "the backup's START WAL LOCATION is 0/2000028, but base_lsn is 0/2000060"),
            ("0/2000000", "the backup's START WAL LOCATION is 0/2000028, but base_lsn is 0/2000000"),
            ("0/0", "invalid base_lsn 0/0"),
        ]:
            query = f"base_lsn={lsn}&end_lsn=0/2000100&pg_version=16&flavour=stock"
            response = client.put(f"{path}/import_basebackup?{query}", content=backup)
            assert response.status_code == 500 and message in response.text, response.text
            assert client.get(path).status_code == 404


def test_backups_come_over_the_page_service(imported: PageServerProcess) -> None:
    sizes = {}
    with psycopg.connect(host="127.0.0.1", port=imported.pg_port, user="x", dbname="x", autocommit=True) as connection:
        for command in ("basebackup", "fullbackup"):
            with connection.cursor().copy(f"{command} {TENANT} {TIMELINE}".encode()) as copy:
                content = b"".join(bytes(piece) for piece in copy)
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                names = archive.getnames()
            sizes[command] = len(names)
            assert {"PG_VERSION", "global/pg_control", "neon.signal"} <= set(names)
    assert sizes["basebackup"] < sizes["fullbackup"]


def different_pages(server: PageServerProcess, *, every: int) -> list[str]:
    """Ask for pages of the vector, one in `every`, and return those that are not Neon's."""
    found = []
    with (VECTOR / "pages.jsonl").open() as file, httpx.Client(base_url=server.url, timeout=60) as client:
        for line in list(file)[::every]:
            page = json.loads(line)
            key = Key.relation_block(RelTag.parse(page["rel"]).with_fork(page["fork"]), page["block"])
            accept = {"accept": "application/octet-stream"}
            response = client.get(f"{PATH}/getpage?key={key}&lsn={page['lsn']}", headers=accept)
            if response.is_error or hashlib.sha256(response.content).hexdigest() != page["sha256"]:
                found.append(f"{line.strip()}: {response.text if response.is_error else 'other bytes'}")
    return found


def test_a_backup_of_neons_tools_tells_its_last_record_and_is_taken_strictly(server_dir: Path) -> None:
    """tenants.md 26.31, 26.32: what `neon.signal` says is there, also after a restart; what has no place in such a copy
    fails the import, which leaves nothing.
    """
    with (VECTOR / "source.tar.zst").open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            archive.extractall(server_dir, filter="data")
    base = next(server_dir.rglob("base.tar")).read_bytes()
    route = f"{PATH}/import_basebackup?base_lsn=0/2000028&end_lsn=0/2000100&pg_version=16"
    signal = {"neon.signal": b"PREV LSN: 0/1F79038"}
    server = PageServerProcess(server_dir / "pageserver")
    with server, httpx.Client(base_url=server.url, timeout=300) as client:
        server.pagectl("tenant", "create", TENANT)
        for more, message in (
            ({**signal, "global/pg_internal.init": b"x"}, "pg_internal.init"),
            ({**signal, "pg_tblspc/16400/PG_16_202307071/5/16393": b""}, "Importing pg_tblspc is not implemented"),
            ({"neon.signal": b"PREV LSN: nowhere"}, "neon.signal"),
        ):
            response = client.put(route, content=with_files(base, more))
            assert (response.status_code, message in response.text) == (500, True), response.text
            assert client.get(PATH).status_code == 404
        response = client.put(route, content=with_files(base, signal))
        assert (response.status_code, response.content) == (200, b"null"), response.text
        for _ in range(2):
            info = server.api("GET", PATH)
            assert (info["last_record_lsn"], info["prev_record_lsn"]) == ("0/2000028", "0/1F79038")
            server.restart()
            server.wait_for(lambda: bool(client.get(PATH).is_success), 30, "the timeline")


def with_files(archive: bytes, more: dict[str, bytes]) -> bytes:
    """Add files to a tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            if not member.issym():
                new.addfile(member, old.extractfile(member) if member.isfile() else None)
        for name, content in more.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            new.addfile(info, io.BytesIO(content))
    return out.getvalue()
