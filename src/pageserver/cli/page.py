"""`pagectl page get`: one page as it was at an LSN."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import click

from pageserver.cli.client import Session
from pageserver.cli.output import tenant_option, timeline_option
from pageserver.errors import PageServerError
from pageserver.keyspace.key import Key, RelTag
from pageserver.lsn import Lsn

_ROW = 16


def register(group: click.Group) -> None:
    group.add_command(page)


@click.group()
def page() -> None:
    """Pages and other values."""


@page.command()
@tenant_option
@timeline_option
@click.option("--lsn", help="As it was here; left out, at the newest record.")
@click.option("--rel", help="Relation: SPACE/DATABASE/NUMBER, with _fsm, _vm or _init for other forks.")
@click.option("--block", type=click.IntRange(0, 2**32 - 2), default=0, show_default=True, help="Block of the relation.")
@click.option("--key", help="Instead of a relation: any key, 36 hexadecimal digits.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the bytes to a file.")
@click.pass_obj
def get(
    session: Session,
    tenant: str | None,
    timeline: str,
    lsn: str | None,
    rel: str | None,
    block: int,
    key: str | None,
    output: Path | None,
) -> None:
    """Fetch a value: hexadecimal on the terminal, or the bytes with -o."""
    if (rel is None) == (key is None):
        raise click.UsageError("name either --rel or --key")
    try:
        wanted = Key.parse(key) if key is not None else Key.relation_block(RelTag.parse(rel or ""), block)
        at = None if lsn is None else str(Lsn.parse(lsn))
    except (PageServerError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    response = session.client.get_bytes(f"{session.timeline_path(tenant, timeline)}/getpage", key=str(wanted), lsn=at)
    content = response.content
    if output is not None:
        output.write_bytes(content)
    if session.as_json:
        body = {"key": str(wanted), "lsn": response.headers["x-lsn"], "length": len(content)}
        if output is None:
            body["base64"] = base64.b64encode(content).decode()
        click.echo(json.dumps(body))
    elif output is None:
        for line in hex_dump(content):
            click.echo(line)


def hex_dump(content: bytes) -> Iterator[str]:
    """Yield lines of offset, bytes and characters; runs of equal lines are shown once, then as `*`."""
    before: bytes | None = None
    skipping = False
    for offset in range(0, len(content), _ROW):
        row = content[offset : offset + _ROW]
        if row == before:
            if not skipping:
                yield "*"
            skipping = True
            continue
        before, skipping = row, False
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{offset:06x}  {row.hex(' '):<{_ROW * 3 - 1}}  {text}"
    yield f"{len(content):06x}"
