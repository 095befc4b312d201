"""The form of log lines (metrics.md 5), and that logging never stops the one who logs."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from collections.abc import Iterator

import pytest
import structlog

from pageserver.observe import EventCounts, configure_logging, level_of
from pageserver.observe.logging import PatientStream

_PLAIN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z +(TRACE|DEBUG|INFO|WARN|ERROR) ")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave the process's logging as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


class FullDisk(io.StringIO):
    """Takes nothing while it is full."""

    is_full = True

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(text)

    def flush(self) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")


def test_a_line_that_cannot_be_written_is_lost_and_nothing_else() -> None:
    disk = FullDisk()
    stream = PatientStream(disk)
    print("lost", file=stream, flush=True)
    disk.is_full = False
    print("kept", file=stream, flush=True)
    assert disk.getvalue() == "kept\n"


def test_plain_lines_have_neons_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    log = configure_logging("plain")
    log.bind(spans=[("request", {"method": "PUT", "path": "/v1/x"}), ("inner", {})]).info("Handling request")
    log.warning("odd", tenant="1" * 32, lsn="0/15", why='a "word"\nand more', number=3, nothing=None)
    log.critical("two servers")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP %s", "request")
    try:
        raise OSError("gone")
    except OSError as error:
        log.error("failed", exc_info=error)
    lines = out.getvalue().splitlines()
    assert all(_PLAIN.match(line) for line in lines[:5])
    assert [line[len("2024-02-21T10:02:59.123456Z ") :] for line in lines[:5]] == [
        " INFO request{method=PUT path=/v1/x}:inner{}: Handling request",
        f' WARN odd tenant={"1" * 32} lsn=0/15 why="a \\"word\\"\\nand more" number=3 nothing=None',
        "ERROR CRITICAL: two servers",
        " WARN Invalid HTTP request logger=uvicorn.error",
        "ERROR failed",
    ]
    assert (lines[5], lines[-1]) == ("Traceback (most recent call last):", "OSError: gone")


def test_json_lines_have_neons_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", out := io.StringIO())
    log = configure_logging("json")
    log.bind(spans=[("outer", {"x": 1}), ("inner", {})]).warning("odd", lsn="0/15")
    log.info("plain")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first.pop("timestamp"))
    assert first == {
        "level": "WARN",
        "fields": {"message": "odd", "lsn": "0/15"},
        "span": {"name": "inner"},
        "spans": [{"x": 1, "name": "outer"}, {"name": "inner"}],
    }
    assert list(second) == ["timestamp", "level", "fields"]


@pytest.mark.parametrize(
    ("directives", "expected"),
    [
        (None, logging.INFO),
        ("", logging.INFO),
        ("debug", logging.DEBUG),
        ("WARN,pageserver::tenant=debug", logging.WARNING),
        ("hyper=error,pageserver=debug", logging.DEBUG),
        ("pageserver=debug,error", logging.ERROR),
        ("trace", logging.NOTSET),
        ("loud", logging.INFO),
        ("warn,pageserver=loud", logging.INFO),
    ],
)
def test_rust_log_says_which_lines_appear(directives: str | None, expected: int) -> None:
    assert level_of(directives) == expected


def test_lines_that_pass_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    events = EventCounts()
    log = configure_logging("plain", level=level_of("debug"), events=events)
    log.debug("x")
    log.warning("x")
    log.critical("x")
    assert events.by_level == {"critical": 1, "error": 1, "warn": 1, "info": 0, "debug": 1, "trace": 0}
    log = configure_logging("plain", level=level_of("warn"), events=(events := EventCounts()))
    log.info("x")
    assert sum(events.by_level.values()) == 0
