"""Log lines on standard output: for people (`plain`), for machines (`json`), for tests (`test`: plain without
colours).

A line that cannot be written is lost, and nothing else: standard output may be a file on the disk that is full just
now, and whoever reports that must not die of reporting it.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, Literal, TextIO, cast

import structlog

from pageserver.observe.process_metrics import EventCounts


class PatientStream:
    """A text stream that does not mind if it cannot be written to; what it could not write may be lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def configure_logging(
    log_format: Literal["plain", "json", "test"], *, level: int = logging.INFO, events: EventCounts | None = None
) -> Any:
    """Set up structlog for the process and return the root logger; `events` counts lines. Called once, at start."""
    colours = log_format == "plain" and sys.stdout.isatty()
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=0, sort_keys=False)
    )
    tail: list[Any] = [structlog.processors.format_exc_info, renderer] if log_format == "json" else [renderer]
    structlog.configure(
        processors=[
            *([] if events is None else [events.processor]),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *tail,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", PatientStream(sys.stdout))),
        cache_logger_on_first_use=False,
    )
    # uvicorn and asyncio speak through the standard library: warnings and errors of theirs are worth a line.
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stdout, format="%(asctime)s [%(levelname)s] %(name)s: %(message)s"
    )
    return structlog.get_logger()
