"""What an operator mistypes ends in a line that says so: nothing else is asked for, nothing half done stays."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from rich.console import Console

from pageserver.cli.client import ApiClient, Session, Unreachable
from pageserver.cli.output import make_console, make_table, print_table
from pageserver.cli.pagectl import main

TENANT, TIMELINE = "aa" * 16, "11" * 16
SOURCES = Path(__file__).parents[3] / "src"


class Server:
    """Answers everything as a page server that has one tenant, and notes what changes something."""

    def __init__(self) -> None:
        self.changes: list[str] = []

    def run(self, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
        client = httpx.Client(base_url="http://server", transport=httpx.MockTransport(self._answer))
        monkeypatch.setattr("pageserver.cli.client.httpx.Client", lambda **_: client)
        result = CliRunner().invoke(main, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.method != "GET":
            self.changes.append(f"{request.method} {request.url.path}")
        if request.url.path == "/v1/tenant":
            return httpx.Response(200, json=[{"id": TENANT, "state": {"slug": "Active"}, "generation": 1}])
        return httpx.Response(200, content=b"{}", headers={"x-lsn": "0/1"})


@pytest.mark.parametrize("name", [".", "..", ""])
@pytest.mark.parametrize(
    "command",
    [
        ["timeline", "unname", "NAME"],
        ["timeline", "name", TIMELINE, "NAME"],
        ["timeline", "rename", "NAME", "other"],
        ["timeline", "delete", "NAME", "--yes"],
        ["layer", "evict", "--timeline", TIMELINE, "NAME"],
        ["layer", "download", "--timeline", TIMELINE, "NAME"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_name_never_leads_to_another_path(command: list[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost once: `timeline unname ..` deleted the tenant, since the client made `DELETE /v1/tenant/T` of it."""
    server = Server()
    given = [name if part == "NAME" else part for part in command]
    code, text = server.run(*given, monkeypatch=monkeypatch)
    assert (code, server.changes) == (2, []), text


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["timeline", "lsn-at", TIMELINE, "9999-12-31T23:59:59-23:59"], "cannot read the moment"),
        (["timeline", "branch", "--ancestor", TIMELINE, "--time", "yesterday"], "2026-11-20T09:00:00Z"),
        (["tenant", "create", "-c", "gc_periodd='1h'"], "there is no tenant setting 'gc_periodd'"),
        (["tenant", "attach", TENANT, "-c", "x=1"], "there is no tenant setting 'x'"),
        (["timeline", "wait-lsn", TIMELINE, "0/1", "--timeout", "nan"], "not a number"),
        (["timeline", "wait-lsn", TIMELINE, "0/1", "--timeout", "inf"], "not in the range"),
        (["page", "get", "--timeline", TIMELINE, "--rel", "1/2/3", "--block", "4294967296"], "not in the range"),
        (["restore", "--timeline", TIMELINE, "--lsn", "0/1", "--to", "x", "--run-as", "no such user"], "no user"),
    ],
)
def test_what_cannot_be_is_a_wrong_usage(command: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    code, text = Server().run(*command, monkeypatch=monkeypatch)
    assert (code, says in text) == (2, True), text


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "absent" / "page"
    command = ["page", "get", "--timeline", TIMELINE, "--rel", "1/2/3", "-o", str(target)]
    code, text = Server().run(*command, monkeypatch=monkeypatch)
    assert (code, str(target) in text) == (1, True), text


def test_wal_that_cannot_be_decoded_is_a_failure(tmp_path: Path) -> None:
    segment = tmp_path / "000000010000000000000009"
    segment.write_bytes(b"no WAL at all" * 1000)
    result = CliRunner().invoke(main, ["wal", "decode", str(segment), "--pg-version", "16"])
    assert (result.exit_code, "decoding ended at 0/9000000" in result.output) == (1, True), result.output
    assert (
        CliRunner().invoke(main, ["wal", "decode", str(segment), "--pg-version", "16", "--limit", "-2"]).exit_code == 2
    )


def test_a_connection_string_that_is_none_is_told() -> None:
    result = CliRunner().invoke(main, ["redo-diff", "--primary", "nonsense=1"])
    assert (result.exit_code, "does not parse" in result.output) == (1, True), result.output


def test_programs_that_are_not_there_are_told_before_anything_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    manifest = {"pg_version": 16, "pg_installation": str(tmp_path / "absent")}
    monkeypatch.setattr("pageserver.cli.client.ApiClient.get", lambda *_, **__: manifest)
    command = ["restore", "--timeline", TIMELINE, "--tenant", TENANT, "--lsn", "0/1", "--to", str(tmp_path / "to")]
    for more in (["--start", "5544"], ["--start", "5544", "--pg-bin", str(tmp_path)]):
        code, text = Server().run(*command, *more, monkeypatch=monkeypatch)
        assert (code in (1, 2), "--pg-bin" in text) == (True, True), text
        assert list(tmp_path.iterdir()) == []


def test_an_address_that_is_none_is_told() -> None:
    result = CliRunner().invoke(main, ["--url", "http://[::1", "status"])
    assert (result.exit_code, "is not a URL" in result.output) == (2, True), result.output


def test_a_server_that_is_no_page_server_is_told() -> None:
    client = ApiClient("http://server")
    client._client = httpx.Client(
        base_url="http://server", transport=httpx.MockTransport(lambda _: httpx.Response(200, text="<html>"))
    )
    with pytest.raises(Unreachable, match="not as a page server does"):
        client.get("/v1/status")


def test_brackets_and_colons_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Lost once: the hint `configure [remote_storage]` was printed as `configure`, and `[/x]` was a traceback."""
    make_console().print(make_table(("what",), [("configure [remote_storage]",), ("[/x] :1234: [red]",)]))
    shown = capsys.readouterr().out
    assert "configure [remote_storage]" in shown
    assert "[/x] :1234: [red]" in shown


@pytest.mark.parametrize("width", [40, 80, 240])
def test_no_id_is_folded(width: int) -> None:
    """Lost once: on a terminal of 80 columns every id of `timeline list` was in two pieces, and could not be copied."""
    console = Console(width=width, file=io.StringIO(), markup=False)
    ids, reason = [TENANT, TIMELINE, "22" * 16], "the primary does not answer, " * 9
    print_table(console, make_table(("tenant", "timeline", "ancestor", "why"), [(*ids, reason)]))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert all(each in shown for each in ids)
    assert " ".join(shown.split()).count("answer,") == 9, "all of the text, in as many lines as it takes"
    assert len(shown.splitlines()) > 2, "texts are folded"


def test_bars_are_for_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    client: Any = None
    assert not Session(client, as_json=False, console=make_console()).shows_progress
    assert Session(client, as_json=False, console=Console(force_terminal=True)).shows_progress
    assert not Session(client, as_json=True, console=Console(force_terminal=True)).shows_progress


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_restore_that_is_stopped_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """Goal: half a data directory does not stay. Method: a stream that never ends, and a signal in its middle."""
    program = textwrap.dedent(
        """
        import contextlib, os, sys, tarfile, io, time
        from pathlib import Path
        import click
        from pageserver.cli.program import ProgramGroup
        from pageserver.cli.restore_directory import Target, restore

        class Endless:
            def __init__(self, part):
                member = tarfile.TarInfo(f"part{part}"); member.size = 1 << 40
                self.head = io.BytesIO(member.tobuf())
            def read(self, size=-1):
                time.sleep(0.01)
                return self.head.read(size) or bytes(size)

        @click.group(cls=ProgramGroup)
        def main(): pass

        @main.command()
        def go():
            restore(Target(Path(sys.argv[2])), parts=2, directories=[], tablespaces=[],
                    open_part=lambda part: contextlib.nullcontext(Endless(part)), on_bytes=lambda count: None)

        main(["go"])
        """
    )
    target = tmp_path / "restored"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "go", str(target)], env={**os.environ, "PYTHONPATH": str(SOURCES)}
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".restored.restore-*/part1")):
        assert process.poll() is None and time.monotonic() < deadline, "it never began"
        time.sleep(0.05)
    process.send_signal(number)
    while process.poll() is None:
        assert time.monotonic() < deadline + 30, "it does not end"
        process.send_signal(signal.SIGTERM)  # somebody is impatient
        time.sleep(0.01)
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("travel", "scan", "status", "says", "silent"),
    [
        (200, 200, 0, "pagectl tenant create", "--done-if-after"),
        (200, 404, 1, "there is nothing of tenant", "--done-if-after"),
        (500, 200, 1, "to repeat it: --done-if-after 2026", "pagectl tenant create"),
        (409, 200, 1, "says the server", "--done-if-after"),
    ],
)
def test_time_travel_tells_how_to_go_on(
    travel: int, scan: int, status: int, says: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost once: what is needed to repeat a travel that broke off, with the spinner that had said it; and a mistyped
    tenant was a success.
    """

    def answer(request: httpx.Request) -> httpx.Response:
        code = travel if request.method == "PUT" else scan
        return httpx.Response(code, json={"msg": "says the server"} if code != 200 else {})

    client = httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer))
    monkeypatch.setattr("pageserver.cli.client.httpx.Client", lambda **_: client)
    monkeypatch.setattr("pageserver.cli.tenant.SystemClock.now", lambda _: datetime(2026, 1, 1, tzinfo=UTC))
    result = CliRunner().invoke(main, ["tenant", "time-travel", TENANT, "--to", "2025-01-01T00:00:00Z"])
    assert (result.exit_code, says in result.output, silent in result.output) == (status, True, False), result.output
