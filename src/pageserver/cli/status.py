"""`pagectl status`: the server, its tenants and timelines at a glance."""

from __future__ import annotations

import click

from pageserver.cli.client import Session
from pageserver.cli.output import make_table, show, state_text


def register(group: click.Group) -> None:
    group.add_command(status)


@click.command()
@click.pass_obj
def status(session: Session) -> None:
    """Show what this server holds."""
    server = session.client.get("/v1/status")
    tenants = session.client.get("/v1/tenant")
    active = [tenant for tenant in tenants if tenant["state"]["slug"] == "Active"]
    timelines = [
        timeline for tenant in active for timeline in session.client.get(f"/v1/tenant/{tenant['id']}/timeline")
    ]
    rows = [
        (
            timeline["tenant_id"],
            timeline["timeline_id"],
            str(timeline["pg_version"]),
            state_text(timeline),
            timeline["last_record_lsn"],
            timeline["remote_consistent_lsn_visible"],
        )
        for timeline in timelines
    ]
    rows += [(tenant["id"], "", "", tenant["state"]["slug"], "", "") for tenant in tenants if tenant not in active]
    title = f"page server {server['id']} at {session.client.url}: {len(tenants)} tenants, {len(timelines)} timelines"
    show(
        session,
        {**server, "url": session.client.url, "tenants": tenants, "timelines": timelines},
        lambda: make_table(("tenant", "timeline", "pg", "state", "last record", "durable"), rows),
        heading=title,
    )
