"""`pagectl wal decode`: what WAL segment files hold, without a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from pageserver._core import decode_wal
from pageserver.cli.client import Session
from pageserver.cli.output import make_table, show
from pageserver.errors import PageServerError
from pageserver.lsn import WAL_SEGMENT_SIZE, Lsn

_SEGMENT_NAME = re.compile(r"[0-9A-F]{8}([0-9A-F]{8})([0-9A-F]{8})")


def register(group: click.Group) -> None:
    group.add_command(wal)


@click.group()
def wal() -> None:
    """Write-ahead log, offline."""


@wal.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--pg-version", type=click.Choice(["14", "15", "16", "17", "18"]), required=True)
@click.option("--flavour", type=click.Choice(["stock", "neon"]), default="stock", show_default=True)
@click.option("--start", help="LSN of a record to begin at; left out, the first one that begins in the file.")
@click.option("--limit", type=click.IntRange(min=1), help="Show at most this many records.")
@click.pass_obj
def decode(session: Session, file: Path, pg_version: str, flavour: str, start: str | None, limit: int | None) -> None:
    """Show the records of a WAL segment file. Exit status 1 if none can be decoded."""
    base = segment_start(file)
    try:
        at = base if start is None else Lsn.parse(start)
    except PageServerError as error:
        raise click.UsageError(str(error)) from error
    if not base <= at < base + WAL_SEGMENT_SIZE:
        raise click.UsageError(f"{at} is not in {file.name}")
    data = file.read_bytes()[at - base :]
    try:
        decoded = decode_wal(data, pg_version=int(pg_version), flavour=flavour, start_lsn=int(at), limit=limit)
    except PageServerError as error:
        raise click.ClickException(str(error)) from error
    records = [_readable(record) for record in decoded.records]
    body = {"records": records, "lsn_end": str(Lsn(decoded.lsn_end)), "error": decoded.error}
    columns = ("lsn", "manager", "type", "xid", "bytes", "blocks", "what it means")
    show(session, body, lambda: make_table(columns, [_row(record) for record in records]))
    if decoded.error and not session.as_json:
        click.echo(f"decoding ended at {Lsn(decoded.lsn_end)}: {decoded.error}", err=True)
    if decoded.error and not records:
        raise SystemExit(1)


def segment_start(file: Path) -> Lsn:
    """Return the LSN of a segment file's first byte, which its name tells."""
    match = _SEGMENT_NAME.fullmatch(file.name[:24])
    if match is None:
        raise click.UsageError(f"{file.name} is not named like a WAL segment (24 hexadecimal digits)")
    return Lsn((int(match[1], 16) << 32) + int(match[2], 16) * WAL_SEGMENT_SIZE)


def _readable(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, **{key: str(Lsn(record[key])) for key in ("lsn", "lsn_end", "prev")}}


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    blocks = (f"{block['rel']} blk {block['block']}{' FPI' if block['image'] else ''}" for block in record["blocks"])
    return (
        record["lsn"],
        record["rmgr"],
        str(record["type"]),
        str(record["xid"]),
        str(record["length"]),
        ", ".join(blocks),
        record["metadata"] or "",
    )
