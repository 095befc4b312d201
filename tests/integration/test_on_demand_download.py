"""A machine is lost; another server starts with an empty disk and brings what it is asked for, and no more."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from pageserver.keyspace.key import Key, RelTag
from pageserver.lsn import Lsn
from tests.conftest import MakeServer
from tests.page_server import PageServerProcess

DOWNLOADED = "pageserver_remote_ondemand_downloaded_layers_total"
ROUNDS = 6


def test_a_page_is_served_from_an_empty_disk_after_fetching_only_what_it_needs(
    make_server: MakeServer, server_dir: Path
) -> None:
    """Goal: attaching brings no layer; a page brings those it needs, once; what it says is what it said before.

    Method: rounds of updates make delta layers; the page is asked for as it was after the second round, so that neither
    the layers of later rounds nor image layers of other keys are of use.
    """
    settings = {
        "remote_storage": f"{{local_path='{server_dir / 'bucket'}'}}",
        "tenant_config.checkpoint_distance": str(1 << 20),
    }
    primary = make_server(16, "primary", settings={"autovacuum": "off", "full_page_writes": "off"})
    primary.sql("CREATE TABLE t AS SELECT i, repeat('x', 100) AS filler FROM generate_series(1, 20000) i")
    with PageServerProcess(server_dir / "one", settings=settings) as first:
        first.pagectl("tenant", "create")
        (tenant,) = first.api("GET", "/v1/tenant")
        timeline = first.pagectl("timeline", "create", "--primary", primary.conninfo())["timeline_id"]
        moments = []
        for number in range(ROUNDS):
            primary.sql(f"UPDATE t SET filler = 'round {number}' WHERE i % 10 = {number}")
            moments.append(Lsn.parse(primary.value("SELECT pg_switch_wal()")))
            wait_until_uploaded(first, timeline, moments[-1])
        database = int(primary.value("SELECT oid FROM pg_database WHERE datname = 'postgres'"))
        relation = RelTag(1663, database, int(primary.value("SELECT pg_relation_filenode('t')")), 0)
        lsn = str(moments[1])
        path = f"/v1/tenant/{tenant['id']}/timeline/{timeline}"
        page = get_page(first, path, Key.relation_block(relation, 0), lsn)
        first.kill()

    primary.stop("immediate")  # nothing is streamed: what is brought is brought for the page
    with PageServerProcess(server_dir / "two", settings=settings) as second:
        second.pagectl("tenant", "create", tenant["id"])
        layers = second.api("GET", f"{path}/layer")["historic_layers"]
        assert len(layers) > ROUNDS
        assert second.metrics()[DOWNLOADED] == 0
        assert get_page(second, path, Key.relation_block(relation, 0), lsn) == page
        needed = second.metrics()[DOWNLOADED]
        assert 0 < needed < len(layers)
        assert get_page(second, path, Key.relation_block(relation, 0), lsn) == page
        assert second.metrics()[DOWNLOADED] == needed

        # What is evicted leaves the disk, and comes back with the next read.
        directory = server_dir / "two" / "tenants" / tenant["id"] / "timelines" / timeline
        resident = [
            one["layer_file_name"]
            for one in second.pagectl("layer", "map", "--timeline", timeline)["historic_layers"]
            if not one["remote"]
        ]
        assert len(resident) == needed
        assert layer_files(directory)
        outcomes = second.pagectl("layer", "evict", "--timeline", timeline, *resident)
        assert [one["outcome"] for one in outcomes] == ["evicted"] * len(resident)
        assert not layer_files(directory)
        assert get_page(second, path, Key.relation_block(relation, 0), lsn) == page
        # One whose index is still in memory, and does not have the key, need not come.
        assert needed < second.metrics()[DOWNLOADED] <= 2 * needed
        read_while_evicting(second, path, Key.relation_block(relation, 0), lsn, page, resident)
        assert get_page(second, path, Key.relation_block(relation, 0), lsn) == page

        # A layer that is gone from the bucket is an error that names it; the rest of the timeline goes on.
        for lost in (server_dir / "bucket").rglob("*__*"):
            lost.unlink()
        late = {"key": str(Key.relation_block(relation, 0)), "lsn": str(moments[-1])}
        answer = httpx.get(f"{second.url}{path}/getpage", params=late, timeout=60)
        assert answer.status_code >= 500
        assert "could not be downloaded" in answer.text
        assert get_page(second, path, Key.relation_block(relation, 0), lsn) == page


def test_all_layers_come_at_once_on_request(make_server: MakeServer, server_dir: Path) -> None:
    """Goal: layers that were evicted one by one come back by one task; the claims say who was attached."""
    settings = {"remote_storage": f"{{local_path='{server_dir / 'bucket'}'}}"}
    primary = make_server(16, "primary")
    with PageServerProcess(server_dir / "one", settings=settings) as server:
        server.pagectl("tenant", "create")
        (tenant,) = server.api("GET", "/v1/tenant")
        timeline = server.pagectl("timeline", "create", "--primary", primary.conninfo())["timeline_id"]
        layers = server.pagectl("layer", "map", "--timeline", timeline)["historic_layers"]
        wait_until_uploaded(server, timeline, Lsn.parse(primary.value("SELECT pg_switch_wal()")))
        names = [one["layer_file_name"] for one in layers]
        server.pagectl("layer", "evict", "--timeline", timeline, *names)
        status = server.pagectl("layer", "download", "--timeline", timeline, "--all")
        assert status["state"] == "Completed"
        assert status["successful_download_count"] == status["total_layer_count"] == len(names)
        layers = server.pagectl("layer", "map", "--timeline", timeline)["historic_layers"]
        assert not any(one["remote"] for one in layers)
        record = server.pagectl("tenant", "generations")
        assert [claim["generation"] for claim in record["claims"]] == [1]
        assert (tenant["generation"], record["next_generation"]) == (1, 2)


def layer_files(directory: Path) -> list[str]:
    return [file.name for file in directory.iterdir() if "__" in file.name]


def read_while_evicting(
    server: PageServerProcess, path: str, key: Key, lsn: str, page: bytes, names: list[str]
) -> None:
    """Read a page again and again while its layers are evicted again and again; every answer is the page."""
    evictions = 0
    stop = threading.Event()

    def evict() -> None:
        nonlocal evictions
        while not stop.is_set():
            for name in names:
                answer = httpx.delete(f"{server.url}{path}/layer/{name}", timeout=60)
                assert answer.status_code in (200, 304), answer.text
                evictions += answer.status_code == 200

    with ThreadPoolExecutor(1) as pool:
        evicting = pool.submit(evict)
        try:
            for _ in range(50):
                assert get_page(server, path, key, lsn) == page
        finally:
            stop.set()
        evicting.result(60)
    assert evictions > 0


def wait_until_uploaded(server: PageServerProcess, timeline: str, lsn: Lsn) -> None:
    def is_uploaded() -> bool:
        info = server.pagectl("timeline", "detail", timeline)
        if Lsn.parse(info["last_record_lsn"]) < lsn:
            return False
        server.api("PUT", f"/v1/tenant/{info['tenant_id']}/timeline/{timeline}/checkpoint")
        return Lsn.parse(server.pagectl("timeline", "detail", timeline)["remote_consistent_lsn"]) >= lsn

    server.wait_for(is_uploaded, 60, f"upload up to {lsn}")


def get_page(server: PageServerProcess, path: str, key: Key, lsn: str) -> bytes:
    accept = {"accept": "application/octet-stream"}
    answer = httpx.get(f"{server.url}{path}/getpage", params={"key": str(key), "lsn": lsn}, headers=accept, timeout=60)
    answer.raise_for_status()
    return answer.content
