"""A tenant with `repository = "rocksdb"`, end to end: the pages of the layered repository, through the same doors."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import zstandard

from tests.integration.test_import_from_files import PATH, TENANT, TIMELINE, VECTOR, different_pages
from tests.page_server import PageServerProcess

LAYERED_TENANT = "bb" * 16
LAYERED_PATH = PATH.replace(TENANT, LAYERED_TENANT)
END = "0/4CF6E00"
BASE = "import_basebackup?base_lsn=0/2000028&end_lsn=0/2000100&pg_version=16&flavour=stock"
WAL = f"import_wal?start_lsn=0/2000028&end_lsn={END}"


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServerProcess]:
    """A server with the history of `source.tar.zst` twice: in objects, and in layers."""
    folder = tmp_path_factory.mktemp("objects")
    with (VECTOR / "source.tar.zst").open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            archive.extractall(folder, filter="data")
    with PageServerProcess(folder / "pageserver") as server:
        server.pagectl("tenant", "create", TENANT, "-c", 'repository="rocksdb"')
        server.pagectl("tenant", "create", LAYERED_TENANT)
        with httpx.Client(base_url=server.url, timeout=300) as client:
            for path in (PATH, LAYERED_PATH):
                for route, name in ((BASE, "base.tar"), (WAL, "wal.tar")):
                    response = client.put(f"{path}/{route}", content=next(folder.rglob(name)).read_bytes())
                    assert (response.status_code, response.content) == (200, b"null"), response.text
        yield server


@pytest.mark.slow
def test_all_pages_are_neons_and_stay_so_after_a_kill(imported: PageServerProcess) -> None:
    """Goal: a real history in objects. Method: the recorded pages, before and after the process was killed."""
    info = imported.api("GET", PATH)
    assert (info["last_record_lsn"], info["prev_record_lsn"]) == (END, "0/4CF6D88")
    assert (info["disk_consistent_lsn"], info["min_readable_lsn"]) == (END, "0/2000100")
    assert not list(imported.workdir.glob(f"tenants/{TENANT}/timelines/*/*")), "no layer files"
    assert different_pages(imported, every=10) == []
    imported.kill()
    imported.start()
    assert imported.api("GET", PATH)["last_record_lsn"] == END
    assert different_pages(imported, every=100) == []


def test_both_repositories_give_the_same_data_directory(imported: PageServerProcess) -> None:
    """Goal: the oracle and the layered repository agree about everything that exists. Method: every file of the data
    directory at three LSNs, as a restore would get it: relations, SLRUs, maps, two-phase files.
    """
    for lsn in ("0/2000100", "0/3000060", END):
        assert digests(imported, PATH, lsn) == digests(imported, LAYERED_PATH, lsn), lsn


def test_single_questions_are_answered_alike(imported: PageServerProcess) -> None:
    for question in (
        f"get_timestamp_of_lsn?lsn={END}",
        "get_lsn_by_timestamp?timestamp=2100-01-01T00:00:00Z",
        "keyspace?at_lsn=0/3000060",
    ):
        answers = [ask(imported, f"{path}/{question}") for path in (PATH, LAYERED_PATH)]
        assert answers[0] == answers[1] != (404, None), question


def test_the_page_service_serves_objects(imported: PageServerProcess) -> None:
    """Goal: a client need not know where pages lie. Method: a full backup of both tenants over the page service."""
    found = []
    for tenant in (TENANT, LAYERED_TENANT):
        with (
            psycopg.connect(host="127.0.0.1", port=imported.pg_port, user="x", dbname="x", autocommit=True) as session,
            session.cursor().copy(f"fullbackup {tenant} {TIMELINE} {END}".encode()) as copy,
        ):
            found.append(files_of(b"".join(bytes(piece) for piece in copy)))
    assert found[0] == found[1]


def test_a_branch_reads_through_its_ancestor_and_goes_away(imported: PageServerProcess) -> None:
    info = imported.pagectl("timeline", "branch", "--ancestor", TIMELINE, "--lsn", "0/3000060", "--tenant", TENANT)
    assert info["ancestor_lsn"] == "0/3000060"
    branch = info["timeline_id"]
    path = PATH.replace(TIMELINE, branch)
    assert digests(imported, path, "0/3000060") == digests(imported, PATH, "0/3000060")
    imported.api("DELETE", path)
    imported.wait_for(lambda: ask(imported, path)[0] == 404, 30, "the end of the branch")


def test_what_cannot_be_had_is_refused(imported: PageServerProcess) -> None:
    """Goal: no setting promises what it cannot do. Method: change the repository of a tenant that exists, detach it."""
    with httpx.Client(base_url=imported.url, timeout=60) as client:
        changed = client.patch("/v1/tenant/config", json={"tenant_id": TENANT, "repository": "layered"})
        assert (changed.status_code, "cannot become layered" in changed.text) == (412, True), changed.text
        unknown = client.patch("/v1/tenant/config", json={"tenant_id": TENANT, "repository": "paper"})
        assert unknown.status_code == 400 and "repository" in unknown.text
        detached = client.put(f"/v1/tenant/{TENANT}/location_config", json={"mode": "Detached", "tenant_conf": {}})
        assert (detached.status_code, "only copy" in detached.text) == (412, True), detached.text
    assert imported.api("GET", PATH)["state"] == "Active"


def test_garbage_collection_leaves_the_newest_versions(imported: PageServerProcess) -> None:
    """Goal: space comes back, answers stay. Method: collect all that is older than the end; the end is as in layers."""
    pitr = {"tenant_id": TENANT, "pitr_interval": "0s"}
    imported.api("PATCH", "/v1/tenant/config", pitr)
    location = imported.api("GET", f"/v1/location_config/{TENANT}")
    cutoff = ask(imported, PATH)[1]["applied_gc_cutoff_lsn"]
    for mode in ("AttachedMulti", "AttachedStale"):
        imported.api("PUT", f"/v1/tenant/{TENANT}/location_config", {**location, "mode": mode})
        report = imported.pagectl("timeline", "gc", TIMELINE, "--tenant", TENANT, "--horizon", "0")
        assert (report["cutoff_lsn"], report["versions_removed"]) == (cutoff, 0), mode
    imported.api("PUT", f"/v1/tenant/{TENANT}/location_config", location)
    report = imported.pagectl("timeline", "gc", TIMELINE, "--tenant", TENANT, "--horizon", "0")
    assert report["cutoff_lsn"] == END
    assert 0 < report["versions_removed"] < report["versions_total"]
    assert ask(imported, f"{PATH}/data_directory?lsn=0/3000060")[0] == 400
    assert digests(imported, PATH, END) == digests(imported, LAYERED_PATH, END)
    assert ask(imported, PATH)[1]["min_readable_lsn"] == END
    with httpx.Client(base_url=imported.url, timeout=60) as client:
        assert client.put(f"{LAYERED_PATH}/do_gc", json={}).status_code == 501


def test_a_server_with_remote_storage_refuses_the_repository(server_dir: Path) -> None:
    remote = {"remote_storage": f"{{local_path='{server_dir / 'bucket'}'}}"}
    (server_dir / "bucket").mkdir()
    with PageServerProcess(server_dir / "pageserver", settings=remote) as server:
        with pytest.raises(AssertionError, match="cannot be used with"):
            server.pagectl("tenant", "create", TENANT, "-c", 'repository="rocksdb"')
        assert server.api("GET", "/v1/tenant") == []


def digests(server: PageServerProcess, path: str, lsn: str) -> dict[str, str]:
    """Return file -> SHA-256 of the data directory that a restore at an LSN gives."""
    with (
        httpx.Client(base_url=server.url, timeout=300) as client,
        client.stream("GET", f"{path}/data_directory/part/0?lsn={lsn}") as response,
    ):
        assert response.status_code == 200, response.read()
        content = b"".join(response.iter_bytes())
    return files_of(content)


def files_of(content: bytes) -> dict[str, str]:
    """Return file -> SHA-256 of a tar archive."""
    found: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                found[member.name] = hashlib.sha256(file.read()).hexdigest()
    assert len(found) > 500
    return found


def ask(server: PageServerProcess, path: str) -> tuple[int, Any]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        response = client.get(path)
        return response.status_code, response.json() if response.is_success else None
