"""`pagectl` from the outside: what it sends, what it prints, how it fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
from click.testing import CliRunner
from rich.console import Console

from pageserver.cli import index_part, layer, page, status, tenant, timeline
from pageserver.cli.client import ApiClient, Session
from pageserver.cli.page import hex_dump

TENANT = "aa" * 16
ROOT = "11" * 16
Answer = tuple[int, Any]

INFO = {
    "tenant_id": TENANT,
    "timeline_id": ROOT,
    "ancestor_timeline_id": None,
    "ancestor_lsn": None,
    "last_record_lsn": "0/2000228",
    "disk_consistent_lsn": "0/2000028",
    "remote_consistent_lsn_visible": "0/2000028",
    "min_readable_lsn": "0/2000128",
    "current_physical_size": 5_000_000,
    "wal_source_connstr": "host=primary",
    "walreceiver_status": "streaming",
    "pg_version": 16,
    "state": "Active",
    "flavour": "stock",
}


class Terminal:
    """Runs commands against made-up answers and remembers what was asked."""

    def __init__(self, answers: dict[tuple[str, str], Answer | Callable[[], Answer]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, str, Any]] = []

    def run(self, *arguments: str, as_json: bool = False) -> tuple[int, str]:
        group = click.Group()
        for module in (status, tenant, timeline, page, layer, index_part):
            module.register(group)
        client = ApiClient("http://server")
        client._client = httpx.Client(base_url="http://server", transport=httpx.MockTransport(self._answer))
        session = Session(client, as_json, Console(width=200))
        result = CliRunner().invoke(group, list(arguments), obj=session)
        return result.exit_code, result.output

    def _answer(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.method, request.url.path, body))
        answer = self.answers[request.method, request.url.path]
        code, content = answer() if callable(answer) else answer
        if isinstance(content, bytes):
            return httpx.Response(code, content=content, headers={"x-lsn": "0/2000228"})
        return httpx.Response(code, json=content)


ONE_TENANT: dict[tuple[str, str], Answer | Callable[[], Answer]] = {
    ("GET", "/v1/status"): (200, {"id": 7}),
    ("GET", "/v1/tenant"): (200, [{"id": TENANT, "state": {"slug": "Active"}, "generation": 1}]),
    ("GET", f"/v1/tenant/{TENANT}/timeline"): (200, [INFO]),
    ("GET", f"/v1/tenant/{TENANT}/timeline_and_offloaded"): (200, {"timelines": [INFO], "offloaded": []}),
    ("GET", f"/v1/tenant/{TENANT}/timeline/{ROOT}"): (200, INFO),
}


def test_status_shows_tables_to_people_and_json_to_programs() -> None:
    code, text = Terminal(ONE_TENANT).run("status")
    assert code == 0
    assert "1 tenants, 1 timelines" in text
    assert ROOT in text
    code, text = Terminal(ONE_TENANT).run("status", as_json=True)
    assert json.loads(text)["timelines"][0]["timeline_id"] == ROOT


def test_the_only_tenant_needs_no_name() -> None:
    assert ROOT in Terminal(ONE_TENANT).run("timeline", "list")[1]
    none: dict[tuple[str, str], Answer | Callable[[], Answer]] = {("GET", "/v1/tenant"): (200, [])}
    code, text = Terminal(none).run("timeline", "list")
    assert (code, "pagectl tenant create" in text) == (2, True)


def test_following_a_primary_waits_until_it_can_be_read() -> None:
    states: Iterator[Answer] = iter(
        [
            (503, {"msg": "tenant map is still initializing"}),
            (200, {**INFO, "state": "Loading", "import": {"phase": "copy", "bytes_done": 1, "bytes_total": 2}}),
            (200, {**INFO, "last_record_lsn": "0/2000028"}),
            (200, INFO),
        ]
    )
    terminal = Terminal(
        {
            **ONE_TENANT,
            ("POST", f"/v1/tenant/{TENANT}/timeline"): (201, {**INFO, "state": "Loading"}),
            ("GET", f"/v1/tenant/{TENANT}/timeline/{ROOT}"): lambda: next(states),
        }
    )
    code, text = terminal.run("timeline", "create", "--primary", "host=primary", "--timeline", ROOT, as_json=True)
    assert code == 0
    assert json.loads(text)["last_record_lsn"] == "0/2000228"
    assert terminal.asked[1][2] == {"new_timeline_id": ROOT, "primary": {"conninfo": "host=primary"}}


def test_refusals_are_told_as_the_server_put_them() -> None:
    refusal = (400, {"msg": '"wal_level is \\"minimal\\""'})
    terminal = Terminal({**ONE_TENANT, ("POST", f"/v1/tenant/{TENANT}/timeline"): refusal})
    code, text = terminal.run("timeline", "create", "--primary", "x")
    assert (code, text.strip()) == (1, 'Error: wal_level is "minimal"')


def test_a_branch_is_asked_for_at_an_lsn() -> None:
    terminal = Terminal({**ONE_TENANT, ("POST", f"/v1/tenant/{TENANT}/timeline"): (201, INFO)})
    code, _ = terminal.run("timeline", "branch", "--ancestor", ROOT, "--lsn", "0/2000200", "--timeline", "22" * 16)
    assert code == 0
    assert terminal.asked[-1][2] == {
        "new_timeline_id": "22" * 16,
        "ancestor_timeline_id": ROOT,
        "ancestor_start_lsn": "0/2000200",
    }
    assert terminal.run("timeline", "branch", "--ancestor", ROOT, "--lsn", "nonsense")[0] == 2


def test_a_page_is_shown_or_written(tmp_path: Path) -> None:
    content = b"\1\2" + bytes(8190)
    terminal = Terminal({**ONE_TENANT, ("GET", f"/v1/tenant/{TENANT}/timeline/{ROOT}/getpage"): (200, content)})
    code, text = terminal.run("page", "get", "--timeline", ROOT, "--rel", "1663/5/16384", "--block", "3")
    assert code == 0
    assert text.splitlines()[0].startswith("000000  01 02 00")
    assert text.splitlines()[-1] == "002000"
    assert terminal.run("page", "get", "--timeline", ROOT, "--key", "00" * 18, "-o", str(tmp_path / "page"))[0] == 0
    assert (tmp_path / "page").read_bytes() == content
    assert terminal.run("page", "get", "--timeline", ROOT)[0] == 2


def test_layer_files_are_listed_without_a_server(tmp_path: Path) -> None:
    name = "0" * 36 + "-" + "F" * 36 + "__00000000014FED58-000000000154C481"
    (tmp_path / f"{name}-v1-00000001").write_bytes(b"12345")
    (tmp_path / f"{name}-v1-00000001.1.temp_download").write_bytes(b"")
    (tmp_path / "ephemeral-1").write_bytes(b"")
    code, text = Terminal({}).run("layer", "list", str(tmp_path), as_json=True)
    found = json.loads(text)
    assert code == 0
    assert [(one["layer_file_name"], one["l0"], one["layer_file_size"]) for one in found] == [(name, True, 5)]


def test_an_index_is_shown_decoded(tmp_path: Path) -> None:
    name = "0" * 36 + "-" + "F" * 36 + "__00000000014FED58-000000000154C481"
    metadata = {
        "disk_consistent_lsn": "0/154C480",
        "ancestor_lsn": "0/0",
        "latest_gc_cutoff_lsn": "0/14FED58",
        "initdb_lsn": "0/14FED58",
        "pg_version": 16,
    }
    index = {"layer_metadata": {name: {"file_size": 5, "generation": 3}}, "disk_consistent_lsn": "0/154C480"}
    file = tmp_path / "index_part.json-00000003"
    file.write_text(json.dumps({**index, "metadata": metadata}))
    code, text = Terminal({}).run("index-part", "dump", str(file))
    shown = json.loads(text)
    assert code == 0
    assert shown["layer_metadata"][name] == {"file_size": 5, "generation": 3}
    assert shown["disk_consistent_lsn"] == "0/154C480"
    file.write_text("{")
    code, text = Terminal({}).run("index-part", "dump", str(file))
    assert (code, "malformed" in text) == (1, True)


@pytest.mark.parametrize("length", [0, 1, 16, 17])
def test_a_dump_ends_with_its_length(length: int) -> None:
    assert list(hex_dump(bytes(length)))[-1] == f"{length:06x}"


def test_timelines_are_archived_offloaded_and_shown() -> None:
    one = f"/v1/tenant/{TENANT}/timeline/{ROOT}"
    gone = {
        "timeline_id": "22" * 16,
        "ancestor_timeline_id": ROOT,
        "ancestor_retain_lsn": "0/2000100",
        "archived_at": "2026-01-01T00:00:00Z",
    }
    terminal = Terminal(
        {
            **ONE_TENANT,
            ("PUT", f"{one}/archival_config"): (200, b"null"),
            ("PUT", f"{one}/offload"): (200, b"null"),
            ("GET", f"/v1/tenant/{TENANT}/timeline_and_offloaded"): (
                200,
                {"timelines": [{**INFO, "is_archived": True}], "offloaded": [gone]},
            ),
        }
    )
    for command, path, body in (
        ("archive", "archival_config", {"state": "Archived"}),
        ("unarchive", "archival_config", {"state": "Unarchived"}),
        ("offload", "offload", None),
    ):
        assert terminal.run("timeline", command, ROOT)[0] == 0
        assert terminal.asked[-1] == ("PUT", f"{one}/{path}", body)
    text = terminal.run("timeline", "list")[1]
    assert "Active, archived" in text
    assert "offloaded, archived 2026-01-01T00:00:00Z" in text
    listed = json.loads(terminal.run("timeline", "list", as_json=True)[1])
    assert [info["state"] for info in listed] == ["Active", "Offloaded"]


def test_a_name_stands_for_a_timeline() -> None:
    """Goal: wherever a command takes a timeline it takes a name. Method: commands of each kind, and what they ask."""
    pair = {"name": "main", "timeline_id": ROOT}
    base = f"/v1/tenant/{TENANT}"
    terminal = Terminal(
        {
            **ONE_TENANT,
            ("GET", f"{base}/name/main"): (200, pair),
            ("GET", f"{base}/name"): (200, {"names": [pair]}),
            ("PUT", f"{base}/name/trunk"): (200, {**pair, "name": "trunk"}),
            ("POST", f"{base}/name/main/rename"): (200, {**pair, "name": "trunk"}),
            ("DELETE", f"{base}/name/main"): (200, b"null"),
            ("GET", f"{base}/name/nobody"): (404, {"msg": "NotFound: no timeline is called 'nobody'"}),
            ("POST", f"{base}/timeline"): (201, {**INFO, "names": ["work"]}),
            ("GET", f"{base}/timeline/{ROOT}/get_lsn_by_timestamp"): (200, {"lsn": "0/2000128", "kind": "present"}),
        }
    )
    assert ROOT in terminal.run("timeline", "detail", "main")[1]
    assert ROOT in terminal.run("timeline", "names")[1]
    assert terminal.run("timeline", "name", "main", "trunk")[0] == 0
    assert terminal.asked[-1] == ("PUT", f"{base}/name/trunk", {"timeline_id": ROOT})
    assert "trunk" in terminal.run("timeline", "rename", "main", "trunk")[1]
    assert terminal.asked[-1][2] == {"new_name": "trunk"}
    assert terminal.run("timeline", "unname", "main")[0] == 0
    code, text = terminal.run("timeline", "detail", "nobody")
    assert (code, "no timeline is called 'nobody'" in text) == (1, True)
    assert terminal.run("timeline", "detail", "a/b")[0] == 2
    branch = ("timeline", "branch", "--ancestor", "main", "--timeline", "22" * 16, "--name", "work", "--read-only")
    code, text = terminal.run(*branch, "--time", "2026-11-20T09:00:00Z")
    assert (code, "work" in text) == (0, True)
    assert terminal.asked[-1][2] == {
        "new_timeline_id": "22" * 16,
        "name": "work",
        "ancestor_timeline_id": ROOT,
        "ancestor_start_lsn": "0/2000128",
        "read_only": True,
    }
    assert terminal.run(*branch, "--time", "2026-11-20T09:00:00Z", "--lsn", "0/8")[0] == 2


def test_a_new_cluster_is_asked_for() -> None:
    gone = (404, {"msg": "NotFound: Timeline was not found"})
    terminal = Terminal(
        {
            **ONE_TENANT,
            ("POST", f"/v1/tenant/{TENANT}/timeline"): (201, INFO),
            ("GET", f"/v1/tenant/{TENANT}/timeline/{'22' * 16}"): gone,
        }
    )
    assert terminal.run("timeline", "create", "--pg-version", "16", "--timeline", ROOT)[0] == 0
    assert terminal.asked[-1][2] == {"new_timeline_id": ROOT, "pg_version": 16, "existing_initdb_timeline_id": None}
    assert terminal.run("timeline", "create", "--timeline", ROOT, "--initdb-of", "22" * 16)[0] == 0
    assert terminal.asked[-1][2] == {
        "new_timeline_id": ROOT,
        "pg_version": None,
        "existing_initdb_timeline_id": "22" * 16,
    }
    assert terminal.run("timeline", "create", "--initdb-of", ROOT)[0] == 0
    assert terminal.asked[-1][2]["pg_version"] == 16, "that of the timeline"
    assert terminal.run("timeline", "create", "--primary", "x", "--pg-version", "16")[0] == 2
