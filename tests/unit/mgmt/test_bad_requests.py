"""Requests that are wrong in ways that JSON libraries and frameworks disagree about: a clear 400, never a 500."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pageserver.remote import paths
from pageserver.tenant.location import LocationConfig
from tests.unit.mgmt.test_http import TL, Api, T, serve
from tests.unit.world import ROOT, TENANT


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve(tmp_path, wait_lsn_timeout="50ms") as served:
        await served.follow()
        yield served


BODIES = {
    "not UTF-8": b'{"new_timeline_id": "\xff"}',
    "UTF-16": '{"new_timeline_id": "x"}'.encode("utf-16"),
    "NaN": b'{"new_timeline_id": "x", "pg_version": NaN}',
    "Infinity": b'{"pg_version": -Infinity}',
    "half a surrogate pair": b'{"new_timeline_id": "\\ud800"}',
    "half a surrogate pair as key": b'{"\\udc00": 1}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "a number of 10,000 digits": b'{"pg_version": ' + b"9" * 10_000 + b"}",
    "a list": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "cut off": b'{"new_timeline_id": ',
    "two documents": b"{}{}",
    "NUL": b"\x00",
    "NUL in an id": b'{"new_timeline_id": "' + b"\\u0000" * 32 + b'"}',
    "digits of other scripts in an id": ('{"new_timeline_id": "' + "٣" * 32 + '"}').encode(),
    "an lsn of 200 bits": b'{"new_timeline_id": "'
    + b"5" * 32
    + b'", "ancestor_timeline_id": "'
    + b"1" * 32
    + b'", "ancestor_start_lsn": "0/'
    + b"F" * 50
    + b'"}',
    "a primary that is a text": b'{"new_timeline_id": "' + b"5" * 32 + b'", "primary": "x"}',
}


@pytest.mark.parametrize("route", [("POST", TL), ("PUT", f"{T}/location_config"), ("PATCH", "/v1/tenant/config")])
async def test_a_body_that_cannot_be_read_is_a_400(api: Api, route: tuple[str, str]) -> None:
    for name, content in BODIES.items():
        response = await api.client.request(*route, content=content)
        assert (response.status_code, list(response.json())) == (400, ["msg"]), (name, response.text)


QUERIES = {
    "an unbounded number": f"{T}/generations?limit={'9' * 5000}",
    "a number past 64 bits": f"{T}/generations?limit={1 << 64}",
    "digits of other scripts": f"{T}/generations?limit=%D9%A3",
    "an underscore in a number": f"{T}/generations?limit=1_0",
    "a timeline past 32 bits": f"{TL}/{ROOT}/data_directory?tli={1 << 32}&lsn=FF/0",
    "no part": f"{TL}/{ROOT}/data_directory?parts=0",
    "part below zero": f"{TL}/{ROOT}/data_directory/part/-1",
    "an lsn past 64 bits": f"{TL}/{ROOT}/keyspace?at_lsn=1FFFFFFFF/0",
    "an lsn of the future": f"{TL}/{ROOT}/get_timestamp_of_lsn?lsn=x",
    "a NUL": f"{TL}/{ROOT}/getpage?key=%00",
    "not UTF-8": f"{TL}/{ROOT}/getpage?key=%FF",
    "an impossible day": f"{TL}/{ROOT}/get_lsn_by_timestamp?timestamp=2026-02-30T10:00:00Z",
    "an impossible year": f"{TL}/{ROOT}/get_lsn_by_timestamp?timestamp=0000-01-01T10:00:00Z",
    "digits of other scripts in a time": f"{TL}/{ROOT}/get_lsn_by_timestamp?timestamp=202%D9%A3-02-03T10:00:00Z",
    "a NUL in a path": "/v1/tenant/%00",
    "a half byte in a path": f"{TL}/{ROOT}/layer/%FF",
    "a flag of another language": f"{TL}/{ROOT}?include-non-incremental-logical-size=1",
    "a flag without effect of another language": f"{TL}/{ROOT}?force-await-initial-logical-size=1",
    "the same in the list": f"{TL}?include-image-consistent-lsn=yes",
}


async def test_a_parameter_that_cannot_be_read_is_a_400(api: Api) -> None:
    for name, path in QUERIES.items():
        response = await api.client.get(path)
        assert (response.status_code, list(response.json())) == (400, ["msg"]), (name, response.text)


async def test_a_duration_longer_than_time_is_refused_and_a_long_one_is_not(api: Api) -> None:
    body = {"tenant_id": str(TENANT), "gc_period": f"{1 << 64}s"}
    assert (await api.ask("PATCH", "/v1/tenant/config", body))[0] == 400
    assert await api.ask("PATCH", "/v1/tenant/config", {**body, "gc_period": f"{1 << 63}s"}) == (200, None)
    assert (await api.ask("GET", T))[1]["state"] == {"slug": "Active"}


async def test_other_methods_are_unknown_pages(api: Api) -> None:
    """Neither 405 nor redirects, and no list of allowed methods."""
    for method in ("OPTIONS", "HEAD", "PATCH", "TRACE", "BREW"):
        response = await api.client.request(method, f"{TL}/{ROOT}/")
        assert response.status_code == 404, method
        assert response.text in ('{"msg":"page not found"}', "" if method == "HEAD" else None)
        assert "allow" not in response.headers


async def test_the_error_of_a_bug_in_the_engine_is_an_answer_too(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panic of compiled code comes as a BaseException of its own; the server goes on."""
    panic = type("PanicException", (BaseException,), {})

    def break_down(*_: object) -> None:
        raise panic("index out of bounds")

    monkeypatch.setattr(type(api.world.manager), "attached", break_down)
    response: httpx.Response = await api.client.get("/v1/tenant")
    assert (response.status_code, response.json()) == (500, {"msg": "HTTP request handler task panicked"})


async def test_settings_are_checked_whatever_the_mode_and_unknown_ones_survive_a_file(api: Api) -> None:
    """A location is written as TOML, which has no null and no numbers beyond 64 bits."""
    throttle: dict[str, Any] = {"task_kinds": [], "max": None}
    patch = {"tenant_id": str(TENANT), "timeline_get_throttle": throttle}
    assert (await api.ask("PATCH", "/v1/tenant/config", patch))[0] == 400, "a known key has no null inside"
    detached = {"mode": "Detached", "tenant_conf": {"checkpoint_distance": "1"}}
    assert (await api.ask("PUT", f"{T}/location_config", detached))[0] == 400
    assert (await api.ask("GET", T))[0] == 200
    odd_ones: list[dict[str, Any]] = [
        {"": 1},
        {"a\0b": "\0"},
        {"unknown": None},
        {"unknown": [None, 1]},
        {"unknown": [1, "x", {"y": None}]},
        {"unknown": {"y": None, "z": [[], {}]}},
        {"unknown": 1 << 70},
        {"unknown": 1e300},
        {"unknown": "\x7f\x01\t", "\x7f": "\x7f"},
        {"unknown": '\u0085\u2028\U0001f418\\"\n'},
    ]
    for odd in odd_ones:
        body = {"mode": "AttachedSingle", "generation": None, "tenant_conf": odd}
        status, answer = await api.ask("PUT", f"{T}/location_config", body)
        assert status == (400 if "[None" in str(odd) else 200), (odd, answer)
        assert (await api.ask("GET", T))[1]["state"] == {"slug": "Active"}, odd
        written = paths.location_config_path(api.world.workdir, TENANT).read_text()
        assert LocationConfig.decode(written) == api.world.manager.get(TENANT).location, odd
    assert (await api.ask("PUT", f"{T}/location_config", body))[0] == 200
