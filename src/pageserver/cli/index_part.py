"""`pagectl index-part`: what an index object says, without a server (remote-storage.md 21)."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pageserver.errors import PageServerError
from pageserver.remote import IndexPart


def register(group: click.Group) -> None:
    group.add_command(index_part)


@click.group(name="index-part")
def index_part() -> None:
    """Index objects (`index_part.json-<generation>`)."""


@index_part.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def dump(file: Path) -> None:
    """Print a decoded index as JSON, in the form in which it would be written today."""
    try:
        index = IndexPart.decode(file.read_bytes())
    except PageServerError as error:
        raise click.ClickException(f"{file}: {error}") from error
    click.echo(json.dumps(json.loads(index.encode()), indent=2))
