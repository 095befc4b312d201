"""Failpoints over the management API (http-api.md 4.1, 11; conformance 46, 47)."""

from __future__ import annotations

from pathlib import Path

import structlog

from pageserver.failpoints import Failpoints
from tests.unit.mgmt.test_http import ATTACH, T, serve

PATH = "/v1/failpoints"


async def test_failpoints_are_configured_in_order(tmp_path: Path) -> None:
    """Also: whatever is configured, the test can take it back."""
    async with serve(tmp_path, failpoints=Failpoints(structlog.get_logger())) as api:

        async def configure(*pairs: tuple[str, str]) -> tuple[int, object]:
            return await api.ask("PUT", PATH, [{"name": name, "actions": actions} for name, actions in pairs])

        assert await configure(("api-503", "1*return")) == (200, None)
        assert await api.ask("GET", "/v1/tenant") == (503, {"msg": "failpoint"})
        assert (await api.ask("GET", "/v1/tenant"))[0] == 200
        assert await configure(("api-500", "return"), ("some-name-that-lies-nowhere", "pause")) == (200, None)
        assert (await api.ask("GET", "/v1/status"))[0] == 500
        status, answer = await configure(("api-500", "off"), ("api-503", "fly"), ("api-500", "return"))
        assert status == 400
        assert isinstance(answer, dict) and "fly" in answer["msg"]
        assert (await api.ask("GET", "/v1/status"))[0] == 200, "what came before the bad one was applied"
        await configure(("put-location-conf-handler", "1*return"))
        assert (await api.ask("PUT", f"{T}/location_config", ATTACH))[0] == 503
        assert (await api.ask("PUT", f"{T}/location_config", ATTACH))[0] == 200
        assert (await api.ask("PUT", PATH, {"name": "x", "actions": "off"}))[0] == 400
        assert (await api.ask("PUT", PATH, [{"name": "x"}]))[0] == 400


async def test_without_testing_apis_failpoints_are_refused(tmp_path: Path) -> None:
    async with serve(tmp_path) as api:
        status, answer = await api.ask("PUT", PATH, [{"name": "api-503", "actions": "return"}])
        assert status == 400
        assert "Cannot manage failpoints because pageserver was compiled without testing APIs" in answer["msg"]
        assert (await api.ask("GET", "/v1/status"))[0] == 200
