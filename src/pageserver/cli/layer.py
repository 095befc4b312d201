"""`pagectl layer`: which layers a timeline or a directory has, and what is in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from pageserver._core import layer_entries, layer_summary, layer_value
from pageserver.cli import layer_residence
from pageserver.cli.client import Session
from pageserver.cli.output import make_table, show, size_text, tenant_option
from pageserver.cli.page import hex_dump
from pageserver.errors import PageServerError
from pageserver.keyspace.key import Key
from pageserver.lsn import Lsn
from pageserver.remote import LayerName, paths
from pageserver.remote.layer_name import LayerKind


def register(group: click.Group) -> None:
    layer_residence.add_commands(layer)
    group.add_command(layer)


@click.group()
def layer() -> None:
    """Layer files."""


@layer.command(name="list")
@tenant_option
@click.option("--timeline", help="Timeline id: ask the server.")
@click.argument("directory", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.pass_obj
def list_layers(session: Session, tenant: str | None, timeline: str | None, directory: Path | None) -> None:
    """List the layers of a timeline (--timeline), or the layer files in a DIRECTORY without a server."""
    if (timeline is None) == (directory is None):
        raise click.UsageError("name either --timeline or a directory")
    if directory is not None:
        layers = layers_in(directory)
    else:
        answer = session.client.get(f"{session.timeline_path(tenant, timeline or '')}/layer")
        layers = answer["historic_layers"]
    rows = [
        (
            one["kind"],
            "L0" if one.get("l0") else "",
            one["lsn_start"],
            one.get("lsn_end", ""),
            size_text(one["layer_file_size"]),
            one["layer_file_name"],
        )
        for one in sorted(layers, key=lambda one: (Lsn.parse(one["lsn_start"]), one["layer_file_name"]))
    ]
    show(session, layers, lambda: make_table(("kind", "", "from", "to", "size", "name"), rows))


@layer.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--key", help="Only this key, 36 hexadecimal digits.")
@click.option("--limit", type=click.IntRange(min=1), help="Show at most this many entries.")
@click.option("--lsn", help="With --key: print the stored value at this LSN in hexadecimal.")
@click.pass_obj
def dump(session: Session, file: Path, key: str | None, limit: int | None, lsn: str | None) -> None:
    """Show what a layer FILE holds, without a server: its summary, and one line for each value."""
    try:
        wanted = None if key is None else Key.parse(key)
        if lsn is not None:
            if wanted is None:
                raise click.UsageError("--lsn needs --key")
            _show_value(session, file, wanted, Lsn.parse(lsn))
            return
        summary = layer_summary(str(file))
        end = None if wanted is None else bytes(wanted.next())
        start = None if wanted is None else bytes(wanted)
        entries = layer_entries(str(file), key_start=start, key_end=end, limit=limit)
    except PageServerError as error:
        raise click.ClickException(str(error)) from error
    shown = {name: value.hex() if isinstance(value, bytes) else value for name, value in summary.items()}
    shown["lsn_start"], shown["lsn_end"] = (str(Lsn(summary[name])) for name in ("lsn_start", "lsn_end"))
    lines = [
        {"key": str(Key(one[0])), "lsn": str(Lsn(one[1])), "will_init": one[2], "offset": one[3], "stored": one[4]}
        for one in entries
    ]
    if session.as_json:
        click.echo(json.dumps({**shown, "entries": lines}))
        return
    session.console.print(make_table(("", ""), [(name, str(value)) for name, value in shown.items()]))
    click.echo()
    for one in lines:
        initialises = " will_init" if one["will_init"] else ""
        click.echo(f"{one['key']} {one['lsn']:>17} @{one['offset']} {one['stored']} bytes{initialises}")


def _show_value(session: Session, file: Path, key: Key, lsn: Lsn) -> None:
    value = layer_value(str(file), bytes(key), int(lsn))
    if session.as_json:
        click.echo(json.dumps({"key": str(key), "lsn": str(lsn), "length": len(value), "hex": value.hex()}))
        return
    for line in hex_dump(value):
        click.echo(line)


def layers_in(directory: Path) -> list[dict[str, Any]]:
    """Describe the layer files of a directory, as far as their names tell."""
    found = []
    for path in sorted(directory.iterdir()):
        if path.name.endswith(paths.LAYER_TEMPORARY_SUFFIXES):
            continue
        try:
            name = LayerName.parse(path.name)
        except PageServerError:
            continue
        entry: dict[str, Any] = {
            "kind": name.kind.value.capitalize(),
            "layer_file_name": str(name),
            "layer_file_size": path.stat().st_size,
            "lsn_start": str(name.lsn_start),
            "path": str(path),
        }
        if name.kind is LayerKind.DELTA:
            entry["lsn_end"] = str(name.lsn_end)
            entry["l0"] = name.key_start == "0" * 36 and name.key_end == "F" * 36
        found.append(entry)
    return found
