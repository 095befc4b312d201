"""The second form of relation directory (keyspace.md 5.12): begun when a tenant asks for it, read where it decides."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pageserver.lsn import Lsn
from tests.integration.test_import_from_files import PATH, TENANT, TIMELINE, different_pages, import_history
from tests.page_server import PageServerProcess


@pytest.fixture
def server(server_dir: Path) -> Iterator[PageServerProcess]:
    settings = {"remote_storage": f"{{local_path='{server_dir / 'bucket'}'}}"}
    with PageServerProcess(server_dir / "pageserver", settings=settings) as server:
        yield server


def test_both_forms_are_written_once_a_tenant_asks_and_the_second_can_decide(
    server: PageServerProcess, server_dir: Path
) -> None:
    """Goal: checklist 27, 28. Method: take a history with the setting on; then let the index say that the second form
    decides, as no release of ours ever writes it, and compare what exists at two moments.
    """
    server.pagectl("tenant", "create", TENANT)
    server.api("PATCH", "/v1/tenant/config", {"tenant_id": TENANT, "rel_size_v2_enabled": True})
    import_history(server, server_dir)
    index = newest_index(server_dir)
    assert json.loads(index.read_text())["rel_size_migration"] == "migrating"
    migrated_at = Lsn.parse(json.loads(index.read_text())["rel_size_migrated_at"])
    assert Lsn.parse("0/2000100") < migrated_at < Lsn.parse("0/4CF6E00")
    info = server.api("GET", PATH)
    assert (info["rel_size_migration"], info["rel_size_migrated_at"]) == ("migrating", str(migrated_at))
    moments = [Lsn.parse("0/2000100"), migrated_at, Lsn.parse("0/4CF6E00")]
    before = [dense_keyspace(server, moment) for moment in moments]
    assert len({json.dumps(keys) for keys in before}) == 3, "relations come and go between the moments"

    server.stop()
    body = json.loads(index.read_text())
    body["rel_size_migration"] = "migrated"
    index.write_text(json.dumps(body))
    server.start()
    assert server.api("GET", PATH)["rel_size_migration"] == "migrated"
    assert [dense_keyspace(server, moment) for moment in moments] == before
    assert different_pages(server, every=100) == []


def newest_index(server_dir: Path) -> Path:
    indices = (server_dir / "bucket").rglob(f"{TIMELINE}/index_part.json-*")
    return max(indices, key=lambda path: path.name)


def dense_keyspace(server: PageServerProcess, lsn: Lsn) -> Any:
    return server.api("GET", f"{PATH}/keyspace?at_lsn={lsn}")["keys"]
