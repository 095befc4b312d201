"""`pagectl layer map`, `download`, `evict`: which layers of a timeline are on the server's disk, and changing that."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pageserver.cli.client import ApiRefusal, Session
from pageserver.cli.output import make_table, show, size_text, tenant_option, timeline_option
from pageserver.lsn import Lsn

_POLL_SECONDS = 0.2
_CONCURRENCY = 8


def add_commands(group: click.Group) -> None:
    """Add the commands to the group `layer`."""
    for command in (show_map, download, evict):
        group.add_command(command)


@click.command(name="map")
@tenant_option
@timeline_option
@click.pass_obj
def show_map(session: Session, tenant: str | None, timeline: str) -> None:
    """Show the layers of a timeline, in memory, on the server's disk, or remote."""
    answer = session.client.get(f"{session.timeline_path(tenant, timeline)}/layer")
    historic = sorted(answer["historic_layers"], key=lambda one: (Lsn.parse(one["lsn_start"]), one["layer_file_name"]))
    rows = [
        (
            f"{one['kind']} L0" if one.get("l0") else one["kind"],
            "remote" if one["remote"] else "disk",
            one["lsn_start"],
            one.get("lsn_end", ""),
            size_text(one["layer_file_size"]),
            one["layer_file_name"],
        )
        for one in historic
    ]
    rows += [
        (one["kind"], "memory", one["lsn_start"], one.get("lsn_end", ""), "", "") for one in answer["in_memory_layers"]
    ]
    on_disk = [one["layer_file_size"] for one in historic if not one["remote"]]
    total = sum(one["layer_file_size"] for one in historic)
    heading = f"{len(historic)} layers, {size_text(total)}; on disk {len(on_disk)}, {size_text(sum(on_disk))}"
    columns = ("kind", "where", "from", "to", "size", "name")
    show(session, answer, lambda: make_table(columns, rows), heading=heading)


@click.command()
@tenant_option
@timeline_option
@click.argument("names", nargs=-1)
@click.option("--all", "wants_all", is_flag=True, help="Every layer that is not on the server's disk.")
@click.option("--concurrency", type=click.IntRange(min=1), default=_CONCURRENCY, show_default=True, help="With --all.")
@click.pass_obj
def download(
    session: Session, tenant: str | None, timeline: str, names: tuple[str, ...], wants_all: bool, concurrency: int
) -> None:
    """Bring layers to the server's disk: those NAMED, or --all."""
    if wants_all == bool(names):
        raise click.UsageError("name either layers or --all")
    path = session.timeline_path(tenant, timeline)
    if not wants_all:
        _change_each(
            session,
            names,
            lambda name: session.client.change("GET", f"{path}/layer/{quote(name, safe='')}"),
            "downloaded",
        )
        return
    status = _download_all(session, f"{path}/download_remote_layers", concurrency)
    row = tuple(
        str(status[key]) for key in ("state", "total_layer_count", "successful_download_count", "failed_download_count")
    )
    show(session, status, lambda: make_table(("state", "layers", "downloaded", "failed"), [row]))
    if status["state"] != "Completed" or status["failed_download_count"]:
        raise click.ClickException("not all layers were downloaded; HINT: the server's log says why")


@click.command()
@tenant_option
@timeline_option
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def evict(session: Session, tenant: str | None, timeline: str, names: tuple[str, ...]) -> None:
    """Remove layers from the server's disk; the next read brings them back from remote storage."""
    path = session.timeline_path(tenant, timeline)
    _change_each(
        session, names, lambda name: session.client.change("DELETE", f"{path}/layer/{quote(name, safe='')}"), "evicted"
    )


def _change_each(session: Session, names: tuple[str, ...], change: Callable[[str], bool], done: str) -> None:
    """Do one after the other; what was refused is told at the end, after all have been tried."""
    results: list[dict[str, Any]] = []
    refusals = 0
    for name in names:
        try:
            outcome = done if change(name) else "unchanged"
        except ApiRefusal as refusal:
            outcome, refusals = f"refused: {refusal.message}", refusals + 1
        results.append({"layer_file_name": name, "outcome": outcome})
    rows = [(one["layer_file_name"], one["outcome"]) for one in results]
    show(session, results, lambda: make_table(("layer", "outcome"), rows))
    if refusals:
        raise click.ClickException(f"{refusals} of {len(names)} layers were refused")


def _download_all(session: Session, path: str, concurrency: int) -> dict[str, Any]:
    """Start the task, or join the one that runs, and follow it with a bar for people."""
    try:
        status: dict[str, Any] = session.client.post(path, {"max_concurrent_downloads": concurrency})
    except ApiRefusal as refusal:
        if refusal.status != 409:
            raise
        status = session.client.get(path)
    columns = (TextColumn("downloading"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=session.console, disable=not session.shows_progress, transient=True) as bar:
        task = bar.add_task("layers", total=status["total_layer_count"])
        while status["state"] == "Running":
            time.sleep(_POLL_SECONDS)
            status = session.client.get(path)
            done = status["successful_download_count"] + status["failed_download_count"]
            bar.update(task, completed=done, total=status["total_layer_count"])
    return status
