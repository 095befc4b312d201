"""A page server process under a storage controller: re-attach, generations, a controller that is away."""

from __future__ import annotations

import contextlib
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.page_server import PageServerProcess
from tests.unit.control.test_storage_controller import Controller, controller

ONE, TWO = "aa" * 16, "bb" * 16


def attach(server: PageServerProcess, tenant: str, generation: int | None) -> None:
    body: dict[str, object] = {"mode": "AttachedSingle", "generation": generation, "tenant_conf": {}}
    server.api("PUT", f"/v1/tenant/{tenant}/location_config", body)


def modes(server: PageServerProcess) -> dict[str, tuple[str, int | None]]:
    shards = server.api("GET", "/v1/location_config")["tenant_shards"]
    return {shard: (location["mode"], location["generation"]) for shard, location in shards}


def re_attached(it: Controller) -> list[dict[str, object]]:
    return [body for method, body, _ in it.requests if method == "re-attach"]


def check_clients_wait_for_the_controller(server: PageServerProcess, it: Controller) -> None:
    """http-api.md 2, 43: while the controller does not answer, clients connect, and are not answered either."""
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(server.start)

        def is_connected() -> bool:
            with contextlib.suppress(ConnectionError):
                socket.create_connection(("127.0.0.1", server.http_port), 1).close()
                return True
            return False

        deadline = time.monotonic() + 30
        while not is_connected():
            assert time.monotonic() < deadline, "the address is not bound"
            time.sleep(0.05)
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{server.url}/v1/status", timeout=0.5)
        it.failures = 0
        starting.result(60)


def test_the_controller_decides_what_is_attached(tmp_path: Path) -> None:
    """Goal: nothing is answered before the re-attach, whose answer decides; the claims of the bucket play no part.

    Method: a controller that fails first, knows one of two tenants at the next start, and is away at the end.
    """
    with controller() as it:
        it.answers["re-attach"] = {"tenants": []}
        it.failures = 3
        settings = {
            "remote_storage": f"{{local_path='{tmp_path / 'bucket'}'}}",
            "control_plane_api": f"'{it.url}'",
            "control_plane_api_token": "'secret'",
        }
        server = PageServerProcess(tmp_path / "work", settings=settings)
        with server:
            assert len(re_attached(it)) == 4
            assert re_attached(it)[-1] == {"node_id": 1, "empty_local_disk": True}
            attach(server, ONE, 5)
            attach(server, TWO, 5)
            with pytest.raises(httpx.HTTPStatusError):
                attach(server, "cc" * 16, None)
            assert modes(server) == {ONE: ("AttachedSingle", 5), TWO: ("AttachedSingle", 5)}
            server.api("PUT", "/v1/deletion_queue/flush?execute=true")
        it.answers["re-attach"] = {"tenants": [{"id": ONE, "gen": 6, "mode": "AttachedMulti", "stripe_size": 2048}]}
        with server:
            assert re_attached(it)[-1]["empty_local_disk"] is False
            assert modes(server) == {ONE: ("AttachedMulti", 6)}
            assert not (tmp_path / "work" / "tenants" / TWO).exists()
            assert not (tmp_path / "bucket" / "generations").exists()
            it.failures = 1 << 30
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 30, "a controller that is away does not hold up a stop"
        server.start(more={"control_plane_emergency_mode": "true"})
        assert modes(server) == {ONE: ("AttachedMulti", 6)}
        assert "Emergency mode!" in server.log_end()
        server.stop()
        check_clients_wait_for_the_controller(server, it)
        server.stop()
