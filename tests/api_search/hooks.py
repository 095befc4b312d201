"""What schemathesis calls (SCHEMATHESIS_HOOKS=tests.api_search.hooks).

Ids that are well-formed are mostly replaced by ids that exist, or nearly every answer would be a 404. What destroys or
changes goes to a scratch tenant or a scratch branch, which are made anew before each such call, so that the timeline
that reads are asked of stays. So do calls with misspelt ids, since a client may make another route of them (`..`).
Actions of failpoints that end, stop or freeze the server are taken out.
"""

from __future__ import annotations

import os
import re
import zlib
from typing import Any

import httpx
import schemathesis

from tests.api_search.allowed import is_prescribed, prescribed

URL = os.environ["API_SEARCH_URL"]
TENANT = os.environ["API_SEARCH_TENANT"]
TIMELINE = os.environ["API_SEARCH_TIMELINE"]
LAYER = os.environ["API_SEARCH_LAYER"]
LSN = os.environ["API_SEARCH_LSN"]
SCRATCH_TENANT = "5c" * 16
SCRATCH_BRANCH = "b5" * 16

_ID = re.compile(r"[0-9a-fA-F]{32}(-[0-9a-fA-F]{4})?")
_WORD = re.compile(r"[0-9A-Za-z_-]+")
_DEADLY = re.compile(r"exit|panic|pause|sleep|delay|yield")
_ON_SCRATCH_TENANT = {
    ("DELETE", "/v1/tenant/{tenant_shard_id}"),
    ("PUT", "/v1/tenant/{tenant_shard_id}/location_config"),
}
_ON_SCRATCH_BRANCH = {
    ("DELETE", "/v1/tenant/{tenant_shard_id}/timeline/{timeline_id}"),
    ("PUT", "/v1/tenant/{tenant_shard_id}/timeline/{timeline_id}/archival_config"),
    ("PUT", "/v1/tenant/{tenant_shard_id}/timeline/{timeline_id}/offload"),
}
_OF_FILES = "/v1/tenant/{tenant_id}/timeline/{timeline_id}/import_"
_WAIT_SECONDS_MAX = 1
_GENERATION_MAX = 1 << 16

_codes = prescribed()
_api = httpx.Client(base_url=URL, timeout=30)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Point a case at what exists, and prepare what it destroys."""
    route = (case.method.upper(), case.operation.path)
    if route in _ON_SCRATCH_TENANT or case.operation.path == "/v1/tenant/config":
        _api.put(
            f"/v1/tenant/{SCRATCH_TENANT}/location_config",
            json={"mode": "AttachedSingle", "generation": None, "tenant_conf": {}},
        )
    if route in _ON_SCRATCH_BRANCH:
        _api.post(
            f"/v1/tenant/{TENANT}/timeline",
            json={"new_timeline_id": SCRATCH_BRANCH, "ancestor_timeline_id": TIMELINE},
        )
    _aim_path(route, case.path_parameters or {})
    _aim_body(route, case.body)
    if isinstance(case.query, dict) and _is_common(str(case.query)):
        for name in ("lsn", "at_lsn"):
            if isinstance(case.query.get(name), str) and "/" in case.query[name]:
                case.query[name] = LSN


@schemathesis.check
def only_prescribed_server_errors(context: Any, response: Any, case: Any) -> None:
    """Fail for an answer of the 500s that the documentation does not list for the route."""
    if response.status_code < 500:
        return
    method, path = case.method.upper(), case.operation.path
    if not is_prescribed(_codes, method, path, response.status_code):
        raise AssertionError(f"{response.status_code} of {method} {path} is not prescribed: {response.text[:2000]}")


def _aim_path(route: tuple[str, str], parameters: dict[str, Any]) -> None:
    is_misspelt = any(_WORD.fullmatch(str(value)) is None for value in parameters.values())
    on_scratch = route in _ON_SCRATCH_TENANT or (is_misspelt and route[0] != "GET")
    for name in ("tenant_shard_id", "tenant_id"):
        if _may_replace(parameters.get(name)):
            parameters[name] = SCRATCH_TENANT if on_scratch else TENANT
    if _may_replace(parameters.get("timeline_id")) and not route[1].startswith(_OF_FILES):
        parameters["timeline_id"] = SCRATCH_BRANCH if route in _ON_SCRATCH_BRANCH else TIMELINE
    if isinstance(parameters.get("layer_file_name"), str) and _is_common(parameters["layer_file_name"]):
        parameters["layer_file_name"] = LAYER


def _aim_body(route: tuple[str, str], body: Any) -> None:
    if isinstance(body, list):
        for failpoint in body:
            if isinstance(failpoint, dict) and isinstance(failpoint.get("actions"), str):
                failpoint["actions"] = _DEADLY.sub("print", failpoint["actions"])
    if not isinstance(body, dict):
        return
    if route[1] == "/v1/tenant/config" and _may_replace(body.get("tenant_id")):
        body["tenant_id"] = SCRATCH_TENANT
    generation = body.get("generation")
    if isinstance(generation, int) and _GENERATION_MAX <= generation < 1 << 32:
        body["generation"] = _GENERATION_MAX  # The last one would leave none for the next attachment.
    if "/name/" in route[1] and _may_replace(body.get("timeline_id")):
        body["timeline_id"] = TIMELINE
    if _may_replace(body.get("ancestor_timeline_id")):
        body["ancestor_timeline_id"] = TIMELINE
    if route[1].endswith("/timeline") and "ancestor_timeline_id" not in body and _is_common(str(body)):
        body["ancestor_timeline_id"] = TIMELINE  # Or it runs initdb, which takes its time.
    if route[1].endswith("/wait_lsn"):
        for name in [name for name in body if name != "timeout" and _may_replace(name)]:
            body[TIMELINE] = body.pop(name)
        timeout = body.get("timeout")
        if isinstance(timeout, dict) and isinstance(timeout.get("secs"), int):
            timeout["secs"] = min(timeout["secs"], _WAIT_SECONDS_MAX)
            if isinstance(timeout.get("nanos"), int):
                timeout["nanos"] = min(timeout["nanos"], _WAIT_SECONDS_MAX * 10**9)


def _may_replace(value: Any) -> bool:
    if value in (TENANT, TIMELINE):  # schemathesis has learned them from an answer.
        return True
    return isinstance(value, str) and _ID.fullmatch(value) is not None and _is_common(value)


def _is_common(text: str) -> bool:
    """Return True for most values: always the same for one."""
    return zlib.crc32(text.encode(errors="replace")) % 8 != 0
