"""Neon's way out of a lost bucket: the archive of initdb and all WAL since (remote-storage.md 8, tenants.md 9.4)."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import httpx
import pytest

from pageserver.lsn import Lsn
from tests.compat.vectors import VECTORS, unpack
from tests.page_server import PageServerProcess

LOST, FOUND = "ab" * 16, "cd" * 16
REDO, SEGMENT_START, TIP = Lsn(0x14AEB90), Lsn(0x14AEC08), Lsn(0x1FFFF98)
SEGMENT = "000000010000000000000001"


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the vectors are not here")
def test_neons_archive_and_its_wal_make_the_timeline_again(server_dir: Path) -> None:
    """Goal: an archive that Neon wrote begins a timeline, WAL from files continues it, and the result is durable.

    Method: put Neon's archive into an empty bucket as the preserved one of a lost timeline, make another one of it,
    import the segment that follows, and look on another machine.
    """
    bucket = server_dir / "bucket"
    settings = {"remote_storage": f"{{local_path='{bucket}'}}"}
    with PageServerProcess(server_dir / "one", settings=settings) as server:
        server.pagectl("tenant", "create")
        (tenant,) = server.api("GET", "/v1/tenant")
        path = f"/v1/tenant/{tenant['id']}/timeline"
        archive = (VECTORS / "neon-v15-pgbench" / "initdb.tar.zst").read_bytes()
        kept = bucket / "tenants" / tenant["id"] / "timelines" / LOST
        kept.mkdir(parents=True)
        (kept / "initdb-preserved.tar.zst").write_bytes(archive)
        body = {"new_timeline_id": FOUND, "existing_initdb_timeline_id": LOST, "pg_version": 15, "flavour": "neon"}
        made = server.api("POST", path, body)
        assert (made["initdb_lsn"], made["last_record_lsn"]) == (str(REDO), str(SEGMENT_START))
        assert (made["flavour"], made["prev_record_lsn"]) == ("neon", str(REDO))
        assert (bucket / "tenants" / tenant["id"] / "timelines" / FOUND / "initdb.tar.zst").read_bytes() == archive
        content = unpack(f"neon-v15-pgbench/{SEGMENT}.zst")
        wal = io.BytesIO()
        with tarfile.open(fileobj=wal, mode="w") as tar:
            header = tarfile.TarInfo(SEGMENT)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
        query = {"start_lsn": str(SEGMENT_START), "end_lsn": str(Lsn(TIP - 8))}
        answer = httpx.put(f"{server.url}{path}/{FOUND}/import_wal", params=query, content=wal.getvalue(), timeout=120)
        assert answer.status_code == 200, answer.text
        server.wait_for(
            lambda: server.api("GET", f"{path}/{FOUND}")["remote_consistent_lsn_visible"] == str(TIP), 30, "uploads"
        )
        server.kill()
    with PageServerProcess(server_dir / "two", settings=settings) as server:
        server.pagectl("tenant", "create", tenant["id"])
        found = server.api("GET", f"{path}/{FOUND}")
        assert (found["last_record_lsn"], found["state"], found["flavour"]) == (str(TIP), "Active", "neon")
        keys = server.api("GET", f"{path}/{FOUND}/keyspace?at_lsn={TIP}")["keys"]
        assert len(keys) > 900
