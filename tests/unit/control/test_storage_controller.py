"""The upcall API against a small controller of the test's own (http-api.md 6; tenants.md 5.3)."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from pageserver.config import InvalidSettingError
from pageserver.control import ControllerGenerations, UpcallClient, read_registration
from pageserver.errors import RequestError
from pageserver.ids import Generation, TenantId, TenantShardId
from pageserver.lsn import Lsn
from pageserver.remote import LocalStore, paths
from pageserver.remote.deletion_queue import DeletionQueue
from pageserver.remote.validation import VisibleLsn
from pageserver.tenant import Attached, AttachMode, LocationConfig, Secondary
from tests.unit.remote.fakes import TIMELINE, QuickClock, until


def shard(number: int) -> TenantShardId:
    return TenantShardId(TenantId(number.to_bytes(16, "big")))


@dataclass
class Controller:
    """Answers what it is told to, after `failures` answers of 503. `newest` are the current generations."""

    url: str = ""
    failures: int = 0
    answers: dict[str, Any] = field(default_factory=dict)
    newest: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)

    def answer(self, method: str, body: dict[str, Any], authorization: str | None) -> tuple[int, bytes]:
        self.requests.append((method, body, authorization))
        if self.failures:
            self.failures -= 1
            return (503, b"starting") if self.failures % 2 else (200, b'{"tenants":[{}]}')
        if method == "validate":
            known = [tenant for tenant in body["tenants"] if tenant["id"] in self.newest]
            valid = [{"id": each["id"], "valid": each["gen"] == self.newest[each["id"]]} for each in known]
            return 200, json.dumps({"tenants": valid}).encode()
        return 200, json.dumps(self.answers[method]).encode()


@contextmanager
def controller(context: ssl.SSLContext | None = None) -> Iterator[Controller]:
    it = Controller()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            method = self.path.removeprefix("/upcall/v1/")
            status, content = it.answer(method, body, self.headers.get("Authorization"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    it.url = f"http{'s' if context else ''}://127.0.0.1:{server.server_port}/upcall/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield it
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def client_of(it: Controller, clock: QuickClock | None = None, **options: Any) -> UpcallClient:
    return UpcallClient(
        it.url,
        token=options.get("token"),
        ca_certificates=options.get("ca_certificates"),
        clock=clock or QuickClock(),
        log=structlog.get_logger(),
    )


def generations(client: UpcallClient, **options: Any) -> ControllerGenerations:
    arguments: dict[str, Any] = {"node_id": 7, "register": None, "emergency_mode": False}
    return ControllerGenerations(client, **{**arguments, **options}, log=structlog.get_logger())


def attached(generation: int, mode: AttachMode = AttachMode.SINGLE) -> LocationConfig:
    return LocationConfig(Attached(Generation(generation), mode))


async def test_a_request_is_repeated_until_it_is_answered() -> None:
    """503, answers that do not decode, and connections that fail are all tried again, with the growing pauses."""
    with controller() as it:
        it.failures, clock = 5, QuickClock()
        it.answers["re-attach"] = {"tenants": []}
        client = client_of(it, clock, token="secret")
        with capture_logs() as logs:
            assert await client.re_attach(node_id=7, register={"node_id": 7}, empty_local_disk=True) == []
        assert len(it.requests) == 6
        method, body, authorization = it.requests[-1]
        assert method == "re-attach"
        assert json.dumps(body) == '{"node_id": 7, "register": {"node_id": 7}, "empty_local_disk": true}'
        assert authorization == "Bearer secret"
        assert clock.pauses == [0.0, 1.1, pytest.approx(1.21), pytest.approx(1.331), pytest.approx(1.4641)]
        assert logs[0]["event"].startswith("storage controller upcall failed, will retry (attempt 0): ")
        assert [entry["log_level"] for entry in logs[:4]] == ["info", "info", "info", "warning"]
        await client.close()
    away = client_of(it, clock)
    waiting = asyncio.ensure_future(away.validate({shard(1): Generation(1)}))
    await until(lambda: len(clock.pauses) > 7)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await away.close()


async def test_validate_asks_for_at_most_128_shards_at_a_time() -> None:
    with controller() as it:
        it.newest = {str(shard(number)): 3 for number in range(1, 300)}
        client = client_of(it)
        asked = {shard(number): Generation(3 if number % 2 else 2) for number in range(301)}
        valid = await client.validate(asked)
        assert [len(body["tenants"]) for _, body, _ in it.requests] == [128, 128, 45]
        assert it.requests[0][1]["tenants"][1] == {"id": str(shard(1)), "gen": 3}
        assert shard(0) not in valid
        assert valid == {shard(number): number % 2 == 1 for number in range(1, 300)}
        await client.close()


async def test_each_location_starts_as_the_controller_says() -> None:
    """Goal: the table of tenants.md 5.3. Method: one location for each of its lines."""
    with controller() as it:
        it.answers["re-attach"] = {
            "tenants": [
                {"id": str(shard(1)), "gen": 8, "mode": "AttachedSingle", "stripe_size": 4096},
                {"id": str(shard(2)), "gen": 8, "mode": "AttachedStale"},
                {"id": str(shard(3)), "gen": 8, "mode": "AttachedMulti", "stripe_size": 0},
                {"id": str(shard(4)), "gen": None, "mode": "Secondary", "stripe_size": 0},
                {"id": str(shard(5)), "gen": None, "mode": "Secondary", "stripe_size": 0},
                {"id": str(shard(6)), "gen": None, "mode": "Detached", "stripe_size": 0},
                {"id": str(shard(7)), "gen": None, "mode": "AttachedSingle", "stripe_size": 0},
                {"id": str(shard(9)), "gen": 5, "mode": "AttachedSingle", "stripe_size": 0},
            ]
        }
        cold = LocationConfig(Secondary(warm=False))
        found = {
            shard(1): attached(7),
            shard(2): attached(9),
            shard(3): cold,
            shard(4): attached(7),
            shard(5): cold,
            shard(6): attached(7),
            shard(7): attached(7),
            shard(8): attached(7),
        }
        client = client_of(it)
        source = generations(client)
        locations = await source.start(found)
        assert {each: location.mode for each, location in locations.items()} == {
            shard(1): Attached(Generation(8), AttachMode.SINGLE),
            shard(2): Secondary(warm=True),
            shard(3): Attached(Generation(8), AttachMode.MULTI),
            shard(4): Secondary(warm=True),
            shard(5): Secondary(warm=False),
        }
        assert locations[shard(1)].shard.stripe_size == 4096
        assert not source.local_data_loss_suspected
        assert it.requests[-1][1]["empty_local_disk"] is False
        assert await source.start({}) == {}
        assert source.local_data_loss_suspected
        assert it.requests[-1][1]["empty_local_disk"] is True
        assert (await source.claim(shard(1), 12)).number == 12
        with pytest.raises(RequestError, match="Generation must be set when attaching"):
            await source.claim(shard(1), None)
        await client.close()


async def test_an_emergency_needs_no_controller() -> None:
    client = client_of(Controller(url="http://127.0.0.1:9/upcall/v1"))
    found = {shard(1): attached(7)}
    with capture_logs() as logs:
        assert await generations(client, emergency_mode=True).start(found) == found
    assert logs[0]["event"].startswith("Emergency mode!")
    assert logs[0]["log_level"] == "error"
    await client.close()


async def test_deletions_and_lsns_wait_for_the_controllers_word(tmp_path: Path) -> None:
    """Goal: nothing is deleted or acknowledged while the controller is away or says no. Method: both, then yes."""
    with controller() as it:
        store, clock = LocalStore(tmp_path / "bucket"), QuickClock()
        client = client_of(it, clock)
        queue = DeletionQueue(
            tmp_path, storage=store, validator=generations(client), clock=clock, log=structlog.get_logger()
        )
        queue.start()
        queue.recover({})
        key = paths.timeline_prefix(shard(1), TIMELINE) + "layer-00000003"
        for newest, survives in ((4, True), (3, False)):
            await store.put(key, b"layer")
            it.newest, it.failures, slot = {str(shard(1)): newest}, 4, VisibleLsn()
            queue.push_layers(shard(1), TIMELINE, Generation(3), ["layer-00000003"])
            queue.push_lsn(shard(1), TIMELINE, Generation(3), Lsn(64), slot)
            await queue.flush_execute()
            assert bool([item async for item in store.list_objects(key)]) == survives
            assert slot.value == (0 if survives else 64)
        await queue.close()
        await client.close()


def self_signed(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 and its key."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=controller"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *arguments.split(), *names], check=True, capture_output=True)
    return certificate, key


async def test_more_roots_are_trusted_where_a_file_names_them(tmp_path: Path) -> None:
    certificate, key = await asyncio.to_thread(self_signed, tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with controller(context) as it:
        it.newest = {str(shard(1)): 3}
        trusting = client_of(it, ca_certificates=certificate.read_text())
        assert await trusting.validate({shard(1): Generation(3)}) == {shard(1): True}
        await trusting.close()
        clock = QuickClock()
        wary = client_of(it, clock)
        waiting = asyncio.ensure_future(wary.validate({shard(1): Generation(3)}))
        await until(lambda: len(clock.pauses) > 2)
        waiting.cancel()
        await asyncio.wait({waiting})
        await wary.close()
    assert len(it.requests) == 1
    with pytest.raises(InvalidSettingError, match="ssl_ca_file"):
        client_of(it, ca_certificates="-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n")


FULL = {
    "host": "10.0.0.5",
    "port": 6400,
    "http_host": "10.0.0.5",
    "http_port": 9898,
    "availability_zone_id": "us-east-2a",
    "region_id": "us-east-2",
}


def registration(directory: Path, zone: str | None = None, **environment: str) -> dict[str, Any] | None:
    return read_registration(
        directory, node_id=1, availability_zone=zone, environment=environment, log=structlog.get_logger()
    )


def test_the_registration_says_what_the_deployment_wrote(tmp_path: Path) -> None:
    assert registration(tmp_path) is None
    file = tmp_path / "metadata.json"
    file.write_text(json.dumps(FULL))
    assert json.dumps(registration(tmp_path), separators=(",", ":")) == (
        '{"node_id":1,"listen_pg_addr":"10.0.0.5","listen_pg_port":6400,"listen_grpc_addr":null,'
        '"listen_grpc_port":null,"listen_http_addr":"10.0.0.5","listen_http_port":9898,"listen_https_port":null,'
        '"availability_zone_id":"us-east-2a","node_ip_addr":null}'
    )
    with_address = registration(tmp_path, HADRON_NODE_IP_ADDRESS="10.1.2.3")
    assert with_address is not None
    assert with_address["node_ip_addr"] == "10.1.2.3"
    with pytest.raises(InvalidSettingError, match="not an IP address"):
        registration(tmp_path, HADRON_NODE_IP_ADDRESS="here")
    file.write_text(json.dumps({key: value for key, value in FULL.items() if key != "availability_zone_id"}))
    from_setting = registration(tmp_path, "zone-b")
    assert from_setting is not None
    assert from_setting["availability_zone_id"] == "zone-b"
    with pytest.raises(InvalidSettingError, match="availability_zone"):
        registration(tmp_path)
    for damaged in ("{", "[]", '{"host":"x"}', json.dumps({**FULL, "port": 70000})):
        file.write_text(damaged)
        assert registration(tmp_path) is None
