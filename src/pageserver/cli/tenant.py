"""`pagectl tenant`: create, list, describe, delete."""

from __future__ import annotations

import tomllib
from typing import Any

import click
from rich.table import Table

from pageserver.cli.client import ApiRefusal, Session, Unreachable, parse_tenant
from pageserver.cli.output import make_table, show, size_text
from pageserver.cli.working import working
from pageserver.clock import SystemClock
from pageserver.config import TenantSettings
from pageserver.ids import TenantId


def register(group: click.Group) -> None:
    group.add_command(tenant)


@click.group()
def tenant() -> None:
    """Tenants of this server."""


@tenant.command()
@click.argument("tenant_id", required=False)
@click.option("--generation", type=int, help="Attach in exactly this one; left out, the store hands out the next.")
@click.option("-c", "settings", multiple=True, metavar="KEY=VALUE", help="A tenant setting; the value is TOML.")
@click.pass_obj
def create(session: Session, tenant_id: str | None, generation: int | None, settings: tuple[str, ...]) -> None:
    """Create a tenant, or attach one that exists in the store."""
    shard = str(TenantId.generate()) if tenant_id is None else str(parse_tenant(tenant_id))
    body = {"mode": "AttachedSingle", "generation": generation, "tenant_conf": parse_settings(settings)}
    session.client.put(f"/v1/tenant/{shard}/location_config", body)
    info = session.client.get(f"/v1/tenant/{shard}")
    show(session, info, lambda: _table([info]))


@tenant.command(name="list")
@click.pass_obj
def list_tenants(session: Session) -> None:
    """List attached tenants."""
    tenants = session.client.get("/v1/tenant")
    show(session, tenants, lambda: _table(tenants))


@tenant.command()
@click.argument("tenant_id", required=False)
@click.pass_obj
def detail(session: Session, tenant_id: str | None) -> None:
    """Describe one tenant."""
    shard = session.resolve_tenant(tenant_id)
    info = session.client.get(f"/v1/tenant/{shard}")
    config = session.client.get(f"/v1/tenant/{shard}/config")["tenant_specific_overrides"]
    rows = [
        ("tenant", info["id"]),
        ("state", info["state"]["slug"]),
        ("generation", str(info["generation"])),
        ("layers", size_text(info["current_physical_size"])),
        ("timelines", ", ".join(info["timelines"]) or "-"),
        *((f"setting {key}", str(value)) for key, value in config.items()),
    ]
    show(session, {**info, "tenant_specific_overrides": config}, lambda: make_table(("", ""), rows))


@tenant.command()
@click.argument("tenant_id", required=False)
@click.option("--limit", type=click.IntRange(min=0), help="Show at most this many claims; 100 if left out.")
@click.pass_obj
def generations(session: Session, tenant_id: str | None, limit: int | None) -> None:
    """Show who claimed which generation in the store: a controller that takes over must start above them."""
    shard = session.resolve_tenant(tenant_id)
    record = session.client.get(f"/v1/tenant/{shard}/generations", limit=limit)
    rows = [
        (str(claim["generation"]), *(_text(claim[key]) for key in ("node_id", "host", "claimed_at", "instance")))
        for claim in record["claims"]
    ]
    heading = (
        f"{record['claims_total']} claims, the highest {record['highest_claim']}; "
        f"highest of an object {record['highest_object']}; next {record['next_generation']}"
    )
    columns = ("generation", "node", "host", "claimed at", "instance")
    show(session, record, lambda: make_table(columns, rows), heading=heading)


@tenant.command(name="time-travel")
@click.argument("tenant_id")
@click.option("--to", "travel_to", required=True, help="The moment, in RFC 3339 with Z.")
@click.option("--done-if-after", help="Repeat an attempt that broke off: when that one began. Left out, it is now.")
@click.pass_obj
def time_travel(session: Session, tenant_id: str, travel_to: str, done_if_after: str | None) -> None:
    """Bring the objects of a tenant back to how they were; versioned S3 buckets only. Detach it everywhere before."""
    begun = done_if_after or SystemClock().now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    shard = parse_tenant(tenant_id)
    path = f"/v1/tenant/{shard}/time_travel_remote_storage"
    text = f"travelling to {travel_to}; if this breaks off, repeat it with --done-if-after {begun}"
    with working(session, text):
        try:
            session.client.put(path, travel_to=travel_to, done_if_after=begun)
        except (ApiRefusal, Unreachable) as error:
            if isinstance(error, ApiRefusal) and error.status < 500:
                raise  # nothing was begun
            raise click.ClickException(f"{error.message}; to repeat it: --done-if-after {begun}") from error
    if not session.client.exists(f"/v1/tenant/{shard.tenant_id}/scan_remote_storage"):
        raise click.ClickException(
            f"there is nothing of tenant {shard.tenant_id} in the store, nor was there at {travel_to}"
        )
    answer = {"travel_to": travel_to, "done_if_after": begun}
    show(
        session,
        answer,
        lambda: make_table(("brought back to", "attach it with"), [(travel_to, "pagectl tenant create")]),
    )


@tenant.command()
@click.argument("tenant_id")
@click.confirmation_option(prompt="Delete this tenant with all its timelines, for good?")
@click.pass_obj
def delete(session: Session, tenant_id: str) -> None:
    """Delete a tenant for good."""
    session.client.delete(f"/v1/tenant/{parse_tenant(tenant_id)}")
    show(session, None, lambda: make_table(("deleted",), [(tenant_id,)]))


def _text(value: object) -> str:
    return "?" if value is None else str(value)


def parse_settings(texts: tuple[str, ...]) -> dict[str, Any]:
    """Read settings of the form `key=value`, the value in TOML. Raises UsageError."""
    settings: dict[str, Any] = {}
    for text in texts:
        try:
            settings.update(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            hint = "HINT: key=value in TOML, texts in quotes"
            raise click.UsageError(f"cannot parse {text!r}: {error}; {hint}") from error
    for key in settings.keys() - TenantSettings.model_fields.keys():
        # A server keeps what it does not know, for another that does: a mistyped setting would stay without effect.
        raise click.UsageError(f"there is no tenant setting {key!r}")
    return settings


def _table(tenants: list[dict[str, Any]]) -> Table:
    rows = [(tenant["id"], tenant["state"]["slug"], str(tenant["generation"])) for tenant in tenants]
    return make_table(("tenant", "state", "generation"), rows)
