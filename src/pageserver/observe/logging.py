"""Log lines on standard output, one per event (metrics.md 5): for people (`plain`; `test` is the same), for machines
(`json`).

    2024-02-21T10:02:59.123456Z  INFO request{method=PUT path=… request_id=0b1c}: Request handled, status: 200 OK
    <time in UTC> <level, right-aligned> <spans>: <message> <field=value …>

An event is a message and fields. A field `spans`, a list of names with their own fields, outermost first, says what
the line belongs to. A traceback follows its line. Critical lines are errors whose message begins with `CRITICAL: `.

`RUST_LOG` says from which level on lines appear. Lines of ours have no module that a directive could name, so what
counts is the directive without a target, or with `pageserver` alone.

A line that cannot be written is lost, and nothing else: standard output may be a file on the disk that is full just
now, and whoever reports that must not die of reporting it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO, cast

import structlog

from pageserver.observe.process_metrics import EventCounts

_LEVELS = {
    "off": logging.CRITICAL,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.NOTSET,
}
_SHOWN = {"critical": "ERROR", "exception": "ERROR", "warning": "WARN"}
_BARE = re.compile(r"[A-Za-z0-9_./:+@,*-]+")


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
    structlog.configure(
        processors=[
            *([] if events is None else [events.processor]),
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%S.%fZ", utc=True),
            structlog.processors.format_exc_info,
            render_json if log_format == "json" else render_plain,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", PatientStream(sys.stdout))),
        cache_logger_on_first_use=False,
    )
    # uvicorn and asyncio speak through the standard library: warnings and errors of theirs are worth a line.
    logging.basicConfig(level=logging.WARNING, handlers=[_ToStructlog()], force=True)
    return structlog.get_logger()


def level_of(directives: str | None) -> int:
    """Return the level that `RUST_LOG` asks for: info without it, and if it cannot be read."""
    found = logging.INFO
    is_general = False
    for directive in filter(None, (part.strip() for part in (directives or "").split(","))):
        target, _, word = directive.rpartition("=")
        level = _LEVELS.get(word.lower())
        if level is None:
            return logging.INFO
        if not target or (target == "pageserver" and not is_general):
            found, is_general = level, not target
    return found


def render_plain(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    """Write an event as one line of text, and its traceback behind it."""
    time, level, message, spans, traceback = _parts(event)
    prefix = ":".join(f"{name}{{{_fields(fields)}}}" for name, fields in spans)
    line = f"{time} {level:>5} {f'{prefix}: ' if prefix else ''}{message}{' ' if event else ''}{_fields(event)}"
    return f"{line}\n{traceback}" if traceback else line


def render_json(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    """Write an event as a JSON object: `timestamp`, `level`, `fields`, and its spans if it has some."""
    time, level, message, spans, traceback = _parts(event)
    fields = {"message": message, **event, **({"backtrace": traceback} if traceback else {})}
    line: dict[str, Any] = {"timestamp": time, "level": level, "fields": fields}
    named = [{**each, "name": name} for name, each in spans]
    if named:
        line |= {"span": named[-1], "spans": named}
    return json.dumps(line, default=str, ensure_ascii=False)


class _ToStructlog(logging.Handler):
    """Gives lines of the standard library the form of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        tell = log.error if record.levelno >= logging.ERROR else log.warning
        tell(record.getMessage(), logger=record.name, **({"exc_info": record.exc_info} if record.exc_info else {}))


def _parts(event: MutableMapping[str, Any]) -> tuple[str, str, str, list[tuple[str, Mapping[str, Any]]], str | None]:
    """Take time, level, message, spans and traceback out of an event; its fields stay."""
    level = event.pop("level")
    message = str(event.pop("event"))
    if level == "critical":
        message = f"CRITICAL: {message}"
    spans, traceback = event.pop("spans", []), event.pop("exception", None)
    return event.pop("timestamp"), _SHOWN.get(level, level.upper()), message, spans, traceback


def _fields(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in fields.items())


def _value(value: object) -> str:
    """Write a value; a text that is more than one plain word in quotes."""
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) else json.dumps(value, ensure_ascii=False)
    return str(value)
