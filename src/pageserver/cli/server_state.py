"""`pagectl deletions flush`, `pagectl failpoint`: what concerns the whole server."""

from __future__ import annotations

import click

from pageserver.cli.client import Session
from pageserver.cli.output import make_table, show
from pageserver.cli.working import working


def register(group: click.Group) -> None:
    group.add_command(deletions)
    group.add_command(failpoint)


@click.group()
def deletions() -> None:
    """Objects that wait to be deleted."""


@deletions.command()
@click.option("--execute", is_flag=True, help="Return when the objects are deleted, not when they are listed on disk.")
@click.pass_obj
def flush(session: Session, execute: bool) -> None:
    """Write pending deletions to disk, or carry them out."""
    with working(session, "deleting objects" if execute else "writing deletions"):
        session.client.put("/v1/deletion_queue/flush", execute="true" if execute else "false")
    show(session, None, lambda: make_table(("deletions",), [("executed" if execute else "on disk",)]))


@click.command()
@click.argument("name")
@click.argument("actions")
@click.pass_obj
def failpoint(session: Session, name: str, actions: str) -> None:
    """For tests: say what happens at a named instant, `off` to take it back (docs/failpoints.md)."""
    session.client.put("/v1/failpoints", [{"name": name, "actions": actions}])
    show(session, None, lambda: make_table(("failpoint", "actions"), [(name, actions)]))
