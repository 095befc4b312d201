"""Following an import to its end, with a bar for people."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn, TransferSpeedColumn

from pageserver.cli.client import ApiRefusal, Session, Unreachable
from pageserver.cli.output import state_text

_POLL_SECONDS = 0.2
_RESTART_SECONDS = 60.0


def watch_import(session: Session, path: str, what: str, is_done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Poll a timeline until `is_done` of what it says; return that. Raises click.ClickException if the import (called
    `what`) stops.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=session.console, disable=not session.shows_progress, transient=True) as bar:
        task = bar.add_task("connecting", total=None)
        while True:
            info = _get_patiently(session, path)
            if info.get("wal_source_error"):
                raise click.ClickException(f"the {what} stopped: {info['wal_source_error']}")
            if isinstance(info["state"], dict):
                raise click.ClickException(state_text(info))
            progress = info.get("import")
            if progress is not None:
                total = max(progress["bytes_total"], progress["bytes_done"]) or None
                bar.update(task, description=progress["phase"], completed=progress["bytes_done"], total=total)
            if is_done(info):
                return info
            time.sleep(_POLL_SECONDS)


def _get_patiently(session: Session, path: str) -> dict[str, Any]:
    """Ask for a timeline; a server that restarts meanwhile goes on with the import, so wait for it."""
    deadline = time.monotonic() + _RESTART_SECONDS
    while True:
        try:
            info: dict[str, Any] = session.client.get(path)
        except (Unreachable, ApiRefusal) as error:
            is_away = isinstance(error, Unreachable) or error.status == 503
            if not is_away or time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return info
