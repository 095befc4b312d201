"""`pagectl timeline source` and `resync`: where a timeline's WAL comes from, and what to do when that is lost."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from pageserver.cli.client import Session
from pageserver.cli.import_progress import watch_import
from pageserver.cli.output import make_table, show, size_text, tenant_option
from pageserver.cli.timeline import timeline
from pageserver.lsn import Lsn


def register(_group: click.Group) -> None:
    timeline.add_command(source)
    timeline.add_command(resync)


@click.group()
def source() -> None:
    """Where a timeline's WAL comes from."""


@source.command(name="set")
@tenant_option
@click.argument("timeline_id")
@click.option("--primary", "conninfo", required=True, help="libpq connection string; passwords belong into PGPASSFILE.")
@click.pass_obj
def set_source(session: Session, tenant: str | None, timeline_id: str, conninfo: str) -> None:
    """Have a timeline go on from this primary: after a fail-over, or from a bucket that Neon wrote."""
    path = f"{session.timeline_path(tenant, timeline_id)}/source"
    session.client.put(path, {"conninfo": conninfo})
    described = session.client.get(path)
    show(session, described, lambda: _table(described))


@source.command(name="show")
@tenant_option
@click.argument("timeline_id")
@click.pass_obj
def show_source(session: Session, tenant: str | None, timeline_id: str) -> None:
    """Show the source, its state, and the WAL that its replication slot retains at the primary."""
    described = session.client.get(f"{session.timeline_path(tenant, timeline_id)}/source")
    show(session, described, lambda: _table(described))


@click.command()
@tenant_option
@click.argument("timeline_id")
@click.option("--force", is_flag=True, help="Also if the slot is not known to be lost.")
@click.option("--no-wait", is_flag=True, help="Return as soon as the resync has begun.")
@click.pass_obj
def resync(session: Session, tenant: str | None, timeline_id: str, force: bool, no_wait: bool) -> None:
    """Take a new base backup into a timeline whose slot is lost. What lies between cannot be read; the rest stays."""
    path = session.timeline_path(tenant, timeline_id)
    info = session.client.post(f"{path}/source/resync", {"force": force})
    if not no_wait:
        gaps_before = len(info.get("gaps", []))

        def is_done(now: dict[str, Any]) -> bool:
            gaps = now.get("gaps", [])
            return len(gaps) > gaps_before and Lsn.parse(now["last_record_lsn"]) >= Lsn.parse(gaps[-1]["to_lsn"])

        info = watch_import(session, path, "resync", is_done)
    gaps = info.get("gaps", [])
    rows = [(gap["from_lsn"], gap["to_lsn"]) for gap in gaps]
    show(session, info, lambda: make_table(("readable up to", "and again from"), rows))


def _table(described: dict[str, Any]) -> Table:
    slot = described.get("slot_state")
    if described.get("slot") is None:
        retained = "-"
    elif "slot_state_error" in described:
        retained = f"not known: {described['slot_state_error']}"
    elif slot is None:
        retained = "there is no such slot"
    else:
        left = "no limit" if slot["safe_wal_size"] is None else f"{size_text(max(0, slot['safe_wal_size']))} left"
        limit = f"max_slot_wal_keep_size {slot['max_slot_wal_keep_size']}, {left}"
        retained = f"{size_text(slot['retained_bytes'])} ({slot['wal_status']}; {limit})"
    rows = [
        ("primary", described["connection"] or "-"),
        ("flavour", described["flavour"]),
        ("status", described["status"]),
        ("slot", described.get("slot") or "-"),
        ("WAL retained", retained),
        ("last record", described["last_record_lsn"]),
        ("durable", described["durable_lsn"]),
        *(("gap", f"{gap['from_lsn']} to {gap['to_lsn']}") for gap in described.get("gaps", [])),
    ]
    if described.get("neon_until_lsn"):
        rows.append(("Neon's until", described["neon_until_lsn"]))
    if described["error"]:
        rows.append(("error", described["error"]))
    return make_table(("", ""), rows)
