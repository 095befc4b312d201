"""Tables for people, JSON for programs, and the options that most commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from pageserver.cli.client import Session

_PIPE_WIDTH = 240
_WIDEST = 10_000

F = TypeVar("F", bound=Callable[..., Any])


def tenant_option(command: F) -> F:
    """Add `--tenant`, which may be left out where there is only one."""
    return click.option("--tenant", help="Tenant id; may be left out where there is only one.")(command)


def timeline_option(command: F) -> F:
    return click.option("--timeline", required=True, help="Id or name of a timeline.")(command)


def make_console() -> Console:
    """Return the terminal. What is printed is data: `[remote_storage]` in a message is no markup, `:1:` no picture.

    Into a pipe or a file, rows are not folded to the 80 columns of a terminal that is not there.
    """
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    return Console(width=width, markup=False, emoji=False)


def show(session: Session, data: Any, table: Callable[[], Table], *, heading: str | None = None) -> None:
    """Print `data` as JSON, or the table for people, under a heading that may be wider than the table."""
    if session.as_json:
        click.echo(json.dumps(data))
    else:
        if heading is not None:
            session.console.print(heading, style="italic", highlight=False)
        print_table(session.console, table())


def print_table(console: Console, table: Table) -> None:
    """Print a table in which texts are folded, but no id, LSN or file name is: people copy them. A terminal that is too
    narrow wraps the line itself.
    """
    least = Measurement.get(console, console.options.update(max_width=_WIDEST), table).minimum
    if least > console.width:
        wide = Console(
            file=console.file, width=least, force_terminal=console.is_terminal, no_color=console.no_color, markup=False
        )
        wide.print(table)
    else:
        console.print(table)


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at, column in enumerate(columns):
        is_text = any(" " in row[at] for row in rows)
        table.add_column(column, overflow="fold", no_wrap=not is_text)
    for row in rows:
        table.add_row(*row)
    return table


def size_text(size: int | None) -> str:
    """Return a size as people read it."""
    if size is None:
        return "-"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def state_text(info: dict[str, Any]) -> str:
    """Return the state in a few words, with what an import or a source says."""
    state = info["state"]
    if isinstance(state, dict):
        return f"Broken: {state['Broken']['reason']}"
    if info.get("wal_source_error"):
        return f"{state}, source stopped"
    if info.get("wal_source_paused"):
        return f"{state}, source paused"
    if info.get("ingest_stalled"):
        return f"{state}, ingest stalled"
    progress = info.get("import")
    if progress and state == "Loading":
        return f"importing ({progress['phase']})"
    return f"{state}, archived" if info.get("is_archived") else str(state)
