"""`pagectl layer`: which layers a timeline or a directory has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pageserver.cli.client import Session
from pageserver.cli.output import make_table, show, size_text, tenant_option
from pageserver.errors import PageServerError
from pageserver.lsn import Lsn
from pageserver.remote import LayerName, paths
from pageserver.remote.layer_name import LayerKind


def register(group: click.Group) -> None:
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
