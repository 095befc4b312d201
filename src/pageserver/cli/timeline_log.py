"""`pagectl timeline`: its log and time, what is durable, what exists."""

from __future__ import annotations

import math
import time
from typing import Any

import click

from pageserver.cli.client import Session
from pageserver.cli.moments import parse_moment
from pageserver.cli.output import make_table, show, tenant_option
from pageserver.cli.working import working
from pageserver.errors import PageServerError
from pageserver.lsn import Lsn

_ACKNOWLEDGED_SECONDS_MAX = 10.0
_POLL_SECONDS = 0.1
_TIMEOUT_SECONDS_MAX = 86400.0


def parse_lsn(text: str) -> Lsn:
    """Read an LSN of the command line. Raises BadParameter."""
    try:
        return Lsn.parse(text)
    except PageServerError as error:
        raise click.BadParameter(str(error)) from error


def register(group: click.Group) -> None:
    timeline = group.commands["timeline"]
    assert isinstance(timeline, click.Group), "pageserver.cli.timeline registers it first"
    for command in (checkpoint, wait_lsn, lsn_at, time_of, keyspace):
        timeline.add_command(command)


@click.command()
@tenant_option
@click.argument("timeline_id")
@click.pass_obj
def checkpoint(session: Session, tenant: str | None, timeline_id: str) -> None:
    """Make everything that has come durable, now."""
    path = session.timeline_path(tenant, timeline_id)
    with working(session, "flushing and uploading"):
        session.client.put(f"{path}/checkpoint")
        info = _when_acknowledged(session, path)
    row = (info["last_record_lsn"], info["disk_consistent_lsn"], info["remote_consistent_lsn_visible"])
    show(session, info, lambda: make_table(("last record", "on disk", "durable"), [row]))


def _when_acknowledged(session: Session, path: str) -> dict[str, Any]:
    """Describe a timeline once what it uploaded counts as durable: the server asks first whether it still has the
    tenant. One that has not is described after a while.
    """
    deadline = time.monotonic() + _ACKNOWLEDGED_SECONDS_MAX
    while True:
        info: dict[str, Any] = session.client.get(path)
        durable, on_disk = (Lsn.parse(info[key]) for key in ("remote_consistent_lsn_visible", "disk_consistent_lsn"))
        if durable >= on_disk or time.monotonic() > deadline:
            return info
        time.sleep(_POLL_SECONDS)


@click.command(name="wait-lsn")
@tenant_option
@click.option(
    "--timeout", "timeout_seconds", type=click.FloatRange(0, _TIMEOUT_SECONDS_MAX), default=60.0, show_default=True
)
@click.argument("timeline_id")
@click.argument("lsn", type=parse_lsn)
@click.pass_obj
def wait_lsn(session: Session, tenant: str | None, timeout_seconds: float, timeline_id: str, lsn: Lsn) -> None:
    """Wait until a timeline has ingested an LSN; fails if that takes longer than the time-out."""
    if math.isnan(timeout_seconds):
        raise click.BadParameter("it is not a number", param_hint="--timeout")
    shard = session.resolve_tenant(tenant)
    wanted = str(session.resolve_timeline(shard, timeline_id))
    timeout = {"secs": int(timeout_seconds), "nanos": int(timeout_seconds % 1 * 10**9)}
    with working(session, f"waiting for {lsn}"):
        body = {wanted: str(lsn), "timeout": timeout}
        reached = session.client.post_status(f"/v1/tenant/{shard}/wait_lsn", body, lasts_seconds=timeout_seconds)
    if reached != 200:
        raise click.ClickException(f"{lsn} was not reached within {timeout_seconds:g} s")
    show(session, {"lsn": str(lsn)}, lambda: make_table(("reached",), [(str(lsn),)]))


@click.command(name="lsn-at")
@tenant_option
@click.argument("timeline_id")
@click.argument("moment")
@click.pass_obj
def lsn_at(session: Session, tenant: str | None, timeline_id: str, moment: str) -> None:
    """Tell the LSN of a moment (ISO 8601; without a zone it is local time)."""
    when = parse_moment(moment)
    path = session.timeline_path(tenant, timeline_id)
    found = session.client.get(f"{path}/get_lsn_by_timestamp", timestamp=f"{when:%Y-%m-%dT%H:%M:%S.%f}Z")
    show(session, found, lambda: make_table(("lsn", "kind"), [(found["lsn"], found["kind"])]))


@click.command(name="time-of")
@tenant_option
@click.argument("timeline_id")
@click.argument("lsn", type=parse_lsn)
@click.pass_obj
def time_of(session: Session, tenant: str | None, timeline_id: str, lsn: Lsn) -> None:
    """Tell when the last commit at or before an LSN was."""
    path = session.timeline_path(tenant, timeline_id)
    moment = session.client.get(f"{path}/get_timestamp_of_lsn", lsn=str(lsn))
    show(session, {"lsn": str(lsn), "time": moment}, lambda: make_table(("lsn", "time"), [(str(lsn), moment)]))


@click.command()
@tenant_option
@click.option("--lsn", type=parse_lsn, help="Where in the log; the end if left out.")
@click.argument("timeline_id")
@click.pass_obj
def keyspace(session: Session, tenant: str | None, lsn: Lsn | None, timeline_id: str) -> None:
    """List the ranges of keys that exist."""
    path = session.timeline_path(tenant, timeline_id)
    with working(session, "collecting keys"):
        answer = session.client.get(f"{path}/keyspace", at_lsn=None if lsn is None else str(lsn))
    rows = [(start, end, "") for start, end in answer["keys"]]
    rows += [(start, end, "sparse") for start, end in answer["sparse_keys"]]
    show(session, answer, lambda: make_table(("from", "to", ""), rows), heading=f"at {answer['at_lsn']}")
