"""Moments on the command line: the LSN at which a timeline was in a state of the past."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from pageserver.cli.client import Session
from pageserver.lsn import Lsn


def parse_moment(moment: str) -> datetime:
    """Read a moment of the command line: ISO 8601; without a zone it is local time. Raises UsageError."""
    try:
        return datetime.fromisoformat(moment).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        hint = 'HINT: it looks like "2026-11-20T09:00:00Z"'
        raise click.UsageError(f"cannot read the moment {moment!r}: {error}; {hint}") from error


def find_lsn(session: Session, timeline_path: str, moment: str) -> Lsn:
    """Return the LSN of the last commit at or before a moment (ISO 8601; without a zone it is local time).

    Raises UsageError, and ClickException if the timeline does not reach back so far.
    """
    when = parse_moment(moment)
    found = session.client.get(f"{timeline_path}/get_lsn_by_timestamp", timestamp=f"{when:%Y-%m-%dT%H:%M:%S.%f}Z")
    if found["kind"] in ("past", "nodata"):
        raise click.ClickException(f"no state of {moment} is kept; the oldest is that of lsn {found['lsn']}")
    return Lsn.parse(found["lsn"])
