"""Something to look at while a request without a measure lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pageserver.cli.client import Session


@contextmanager
def working(session: Session, what: str) -> Iterator[None]:
    """Show people that something goes on that has no measure."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=session.console, disable=not session.shows_progress, transient=True) as bar:
        bar.add_task(what, total=None)
        yield
