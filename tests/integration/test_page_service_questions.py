"""What the compiled page service asks of Python when Python does not keep up: dropped, told and counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import psycopg
import pytest

from pageserver import _core

TENANT, TIMELINE = "4e" * 16, "71" * 16


class BusyLoop:
    """An event loop that takes its first call only when it is let go."""

    def __init__(self) -> None:
        self.entered, self.released = threading.Event(), threading.Event()

    def call_soon_threadsafe(self, call: Callable[..., None], *arguments: Any) -> None:
        self.entered.set()
        self.released.wait(30)
        call(*arguments)


class Handler:
    """Keeps the log lines; nothing else is asked here."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, level: str, text: str) -> None:
        self.lines.append(f"{level}: {text}")


def ask(port: int) -> None:
    """Send a command that is refused, and logged."""
    connection = psycopg.connect(host="127.0.0.1", port=port, user="x", dbname="x", autocommit=True)
    with connection, pytest.raises(psycopg.Error, match="not found"):
        connection.execute(f"lease lsn {TENANT} {TIMELINE} 0/16B3748")


def test_log_lines_that_find_no_room_are_counted() -> None:
    """Goal: nothing that Python is not told disappears in silence. Method: a loop that hangs, room for one question,
    and three log lines: one is being handed over, one waits, the third is dropped. Clients are answered meanwhile.
    """
    loop, handler = BusyLoop(), Handler()
    service = _core.PageService(
        listen="127.0.0.1:0",
        handler=cast("_core.PageServiceHandler", handler),
        event_loop=cast(Any, loop),
        questions_max=1,
    )
    port = service.start()
    try:
        ask(port)
        assert loop.entered.wait(30)
        ask(port)
        assert not any(service.metrics()["questions_dropped"].values())
        ask(port)
        assert service.metrics()["questions_dropped"]["log"] == 1
        loop.released.set()
        for _ in range(300):
            if len(handler.lines) == 2:
                break
            time.sleep(0.05)
        assert len(handler.lines) == 2
    finally:
        loop.released.set()
        service.stop(5.0)
