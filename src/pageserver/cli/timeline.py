"""`pagectl timeline`: follow a primary, make a cluster, branch, list, describe, archive, delete."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click
from rich.table import Table

from pageserver.cli.client import ApiRefusal, Session, parse_timeline
from pageserver.cli.import_progress import watch_import
from pageserver.cli.moments import find_lsn
from pageserver.cli.output import make_table, show, size_text, state_text, tenant_option
from pageserver.cli.working import working
from pageserver.errors import PageServerError
from pageserver.ids import TimelineId
from pageserver.lsn import Lsn


def register(group: click.Group) -> None:
    group.add_command(timeline)


@click.group()
def timeline() -> None:
    """Timelines: histories that follow a primary, and branches."""


@timeline.command()
@tenant_option
@click.option("--primary", "conninfo", help="libpq connection string; passwords belong into PGPASSFILE.")
@click.option(
    "--pg-version",
    type=click.IntRange(14, 18),
    help="Major version; left out, that of --initdb-of if it is still there, else 17.",
)
@click.option("--initdb-of", help="Begin with the cluster that this timeline began with, not with a new one.")
@click.option("--timeline", "timeline_id", help="Id of the new timeline; left out, one is made up.")
@click.option("--name", help="What to call it; commands then take the name in place of the id.")
@click.option("--no-wait", is_flag=True, help="Return as soon as the import has begun.")
@click.pass_obj
def create(
    session: Session,
    tenant: str | None,
    conninfo: str | None,
    pg_version: int | None,
    initdb_of: str | None,
    timeline_id: str | None,
    name: str | None,
    no_wait: bool,
) -> None:
    """Make a timeline: of a primary, whose base backup is imported and whose WAL is followed, or, without --primary, of
    a new cluster that the server makes with initdb.
    """
    if conninfo is not None and (pg_version is not None or initdb_of is not None):
        raise click.UsageError("--primary does not go with --pg-version or --initdb-of: the primary decides")
    shard = session.resolve_tenant(tenant)
    new_id = TimelineId.generate() if timeline_id is None else parse_timeline(timeline_id)
    body: dict[str, Any] = _new_timeline(new_id, name)
    if conninfo is not None:
        body["primary"] = {"conninfo": conninfo}
    else:
        model = None if initdb_of is None else session.resolve_timeline(shard, initdb_of)
        if model is not None and pg_version is None:
            pg_version = _version_of(session, f"/v1/tenant/{shard}/timeline/{model}")
        body["pg_version"] = pg_version
        body["existing_initdb_timeline_id"] = None if model is None else str(model)
    with working(session, f"making timeline {new_id}"):
        info = session.client.post(f"/v1/tenant/{shard}/timeline", body)
    if conninfo is not None and not no_wait:
        info = watch_import(session, f"/v1/tenant/{shard}/timeline/{new_id}", "import", _is_imported)
    show(session, info, lambda: _detail_table(info))


@timeline.command(name="preserve-initdb")
@tenant_option
@click.argument("timeline_id")
@click.pass_obj
def preserve_initdb(session: Session, tenant: str | None, timeline_id: str) -> None:
    """Keep the cluster that a timeline began with beyond the timeline's deletion, for `create --initdb-of`."""
    session.client.post(f"{session.timeline_path(tenant, timeline_id)}/preserve_initdb_archive", {})
    show(session, None, lambda: make_table(("preserved",), [(timeline_id,)]))


@timeline.command(name="list")
@tenant_option
@click.pass_obj
def list_timelines(session: Session, tenant: str | None) -> None:
    """List the timelines of a tenant, those that are offloaded last."""
    answer = session.client.get(f"/v1/tenant/{session.resolve_tenant(tenant)}/timeline_and_offloaded")
    offloaded = [{**record, "state": "Offloaded"} for record in answer["offloaded"]]
    rows = [
        (
            info["timeline_id"],
            ", ".join(info.get("names", ())) or "-",
            str(info["pg_version"]),
            info.get("flavour", ""),
            state_text(info),
            info["last_record_lsn"],
            info["ancestor_timeline_id"] or "-",
            info["ancestor_lsn"] or "-",
        )
        for info in answer["timelines"]
    ] + [
        (
            record["timeline_id"],
            ", ".join(record.get("names", ())) or "-",
            "-",
            "-",
            f"offloaded, archived {record['archived_at']}",
            "-",
            record["ancestor_timeline_id"] or "-",
            record["ancestor_retain_lsn"] or "-",
        )
        for record in offloaded
    ]
    columns = ("timeline", "name", "pg", "flavour", "state", "last record", "ancestor", "at")
    show(session, [*answer["timelines"], *offloaded], lambda: make_table(columns, rows))


@timeline.command()
@tenant_option
@click.argument("timeline_id")
@click.pass_obj
def detail(session: Session, tenant: str | None, timeline_id: str) -> None:
    """Describe one timeline."""
    info = session.client.get(session.timeline_path(tenant, timeline_id))
    show(session, info, lambda: _detail_table(info))


@timeline.command()
@tenant_option
@click.option("--ancestor", required=True, help="Timeline to branch from.")
@click.option("--lsn", help="Where to branch; left out, at the newest record.")
@click.option(
    "--time", "moment", help='Branch at a moment, e.g. "2026-11-20T09:00:00Z"; without zone it is local time.'
)
@click.option("--timeline", "timeline_id", help="Id of the branch; left out, one is made up.")
@click.option("--name", help="What to call it; commands then take the name in place of the id.")
@click.option("--read-only", is_flag=True, help="It takes no WAL, neither of a primary nor from files.")
@click.pass_obj
def branch(
    session: Session,
    tenant: str | None,
    ancestor: str,
    lsn: str | None,
    moment: str | None,
    timeline_id: str | None,
    name: str | None,
    read_only: bool,
) -> None:
    """Branch a timeline at an LSN or a moment, at once and without copying."""
    if lsn is not None and moment is not None:
        raise click.UsageError("give --lsn or --time, not both")
    shard = session.resolve_tenant(tenant)
    new_id = TimelineId.generate() if timeline_id is None else parse_timeline(timeline_id)
    ancestor_id = session.resolve_timeline(shard, ancestor)
    start = None if lsn is None else _parse_lsn(lsn)
    if moment is not None:
        start = find_lsn(session, f"/v1/tenant/{shard}/timeline/{ancestor_id}", moment)
    body = {
        **_new_timeline(new_id, name),
        "ancestor_timeline_id": str(ancestor_id),
        "ancestor_start_lsn": None if start is None else str(start),
    }
    if read_only:
        body["read_only"] = True
    with working(session, "branching; a branch at an lsn waits until the ancestor has it"):
        info = session.client.post(f"/v1/tenant/{shard}/timeline", body)
    show(session, info, lambda: _detail_table(info))


@timeline.command(name="name")
@tenant_option
@click.argument("timeline_id")
@click.argument("name")
@click.pass_obj
def name_timeline(session: Session, tenant: str | None, timeline_id: str, name: str) -> None:
    """Call a timeline NAME. It may have several names; no two timelines have the same one."""
    shard = session.resolve_tenant(tenant)
    body = {"timeline_id": str(session.resolve_timeline(shard, timeline_id))}
    _show_names(session, [session.client.put(f"/v1/tenant/{shard}/name/{quote(name, safe='')}", body)])


@timeline.command()
@tenant_option
@click.argument("old")
@click.argument("new")
@click.pass_obj
def rename(session: Session, tenant: str | None, old: str, new: str) -> None:
    """Call the timeline OLD NEW instead."""
    path = f"/v1/tenant/{session.resolve_tenant(tenant)}/name/{quote(old, safe='')}/rename"
    _show_names(session, [session.client.post(path, {"new_name": new})])


@timeline.command()
@tenant_option
@click.argument("name")
@click.pass_obj
def unname(session: Session, tenant: str | None, name: str) -> None:
    """Take a name away; the timeline stays."""
    session.client.delete(f"/v1/tenant/{session.resolve_tenant(tenant)}/name/{quote(name, safe='')}")
    show(session, None, lambda: make_table(("unnamed",), [(name,)]))


@timeline.command()
@tenant_option
@click.pass_obj
def names(session: Session, tenant: str | None) -> None:
    """List the names of a tenant's timelines."""
    _show_names(session, session.client.get(f"/v1/tenant/{session.resolve_tenant(tenant)}/name")["names"])


@timeline.command()
@tenant_option
@click.argument("timeline_id")
@click.option("--horizon", type=click.IntRange(min=0), help="Bytes of WAL to keep instead of the tenant's gc_horizon.")
@click.pass_obj
def gc(session: Session, tenant: str | None, timeline_id: str, horizon: int | None) -> None:
    """Remove versions that nobody can read any more (tenants with the repository rocksdb)."""
    report = session.client.put(f"{session.timeline_path(tenant, timeline_id)}/do_gc", {"gc_horizon": horizon})
    columns = ("readable from", "versions", "removed")
    row = (report["cutoff_lsn"], str(report["versions_total"]), str(report["versions_removed"]))
    show(session, report, lambda: make_table(columns, [row]))


@timeline.command()
@tenant_option
@click.argument("timeline_id")
@click.confirmation_option(prompt="Delete this timeline for good?")
@click.pass_obj
def delete(session: Session, tenant: str | None, timeline_id: str) -> None:
    """Delete a timeline for good."""
    session.client.delete(session.timeline_path(tenant, timeline_id))
    show(session, None, lambda: make_table(("deleted",), [(timeline_id,)]))


@timeline.command()
@tenant_option
@click.argument("timeline_id")
@click.pass_obj
def archive(session: Session, tenant: str | None, timeline_id: str) -> None:
    """Archive a timeline: it stays as it is, but nothing branches off, and it may be offloaded."""
    _set_archival(session, tenant, timeline_id, "Archived")


@timeline.command()
@tenant_option
@click.argument("timeline_id")
@click.pass_obj
def unarchive(session: Session, tenant: str | None, timeline_id: str) -> None:
    """Take a timeline out of the archive; load it if it was offloaded."""
    _set_archival(session, tenant, timeline_id, "Unarchived")


@timeline.command()
@tenant_option
@click.argument("timeline_id")
@click.pass_obj
def offload(session: Session, tenant: str | None, timeline_id: str) -> None:
    """Let go of an archived timeline: it is kept in object storage only, until it is unarchived."""
    session.client.put(f"{session.timeline_path(tenant, timeline_id)}/offload")
    show(session, None, lambda: make_table(("offloaded",), [(timeline_id,)]))


def _set_archival(session: Session, tenant: str | None, timeline_id: str, state: str) -> None:
    session.client.put(f"{session.timeline_path(tenant, timeline_id)}/archival_config", {"state": state})
    show(session, None, lambda: make_table((state.lower(),), [(timeline_id,)]))


def _version_of(session: Session, path: str) -> int | None:
    """Return the major version of a timeline, None if it is not there (any more)."""
    try:
        version: int = session.client.get(path)["pg_version"]
    except ApiRefusal as refusal:
        if refusal.status != 404:
            raise
        return None
    return version


def _is_imported(info: dict[str, Any]) -> bool:
    readable_from = Lsn.parse(info["min_readable_lsn"])
    return info["state"] == "Active" and Lsn.parse(info["last_record_lsn"]) >= readable_from


def _detail_table(info: dict[str, Any]) -> Table:
    ancestor = f"{info['ancestor_timeline_id']} at {info['ancestor_lsn']}" if info["ancestor_timeline_id"] else "-"
    rows = [
        ("timeline", info["timeline_id"]),
        ("name", ", ".join(info.get("names", ())) or "-"),
        ("tenant", info["tenant_id"]),
        ("state", state_text(info)),
        ("PostgreSQL", f"{info['pg_version']}, {info.get('flavour', '')}"),
        ("ancestor", ancestor),
        ("last record", info["last_record_lsn"]),
        ("in layers", info["disk_consistent_lsn"]),
        ("durable", info["remote_consistent_lsn_visible"]),
        ("readable from", info["min_readable_lsn"]),
        ("layers", size_text(info["current_physical_size"])),
        ("source", info["wal_source_connstr"] or "-"),
        ("source status", info["walreceiver_status"]),
    ]
    if info.get("wal_source_error"):
        rows.append(("source error", info["wal_source_error"]))
    if info.get("ingest_stalled"):
        rows.append(("ingest stalled", info["ingest_stalled"]))
    return make_table(("", ""), rows)


def _show_names(session: Session, pairs: list[dict[str, Any]]) -> None:
    show(session, pairs, lambda: make_table(("name", "timeline"), [(one["name"], one["timeline_id"]) for one in pairs]))


def _new_timeline(new_id: TimelineId, name: str | None) -> dict[str, Any]:
    body = {"new_timeline_id": str(new_id)}
    return body if name is None else {**body, "name": name}


def _parse_lsn(text: str) -> Lsn:
    try:
        return Lsn.parse(text)
    except PageServerError as error:
        raise click.UsageError(str(error)) from error
