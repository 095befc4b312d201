"""`pagectl tenant`: where and how a tenant is attached, its settings, what the bucket has of it."""

from __future__ import annotations

from typing import Any

import click

from pageserver.cli.client import Session, parse_tenant
from pageserver.cli.output import make_table, show
from pageserver.cli.tenant import parse_settings
from pageserver.cli.working import working

_MODES = ("AttachedSingle", "AttachedMulti", "AttachedStale", "Secondary")


def register(group: click.Group) -> None:
    tenant = group.commands["tenant"]
    assert isinstance(tenant, click.Group), "pageserver.cli.tenant registers it first"
    for command in (attach, detach, locations, config, scan, heatmap):
        tenant.add_command(command)


@click.command()
@click.argument("tenant_id")
@click.option("--mode", type=click.Choice(_MODES), default="AttachedSingle", show_default=True)
@click.option("--generation", type=int, help="Attach in exactly this one; left out, the store hands out the next.")
@click.option("-c", "settings", multiple=True, metavar="KEY=VALUE", help="A tenant setting; the value is TOML.")
@click.option("--lazy", is_flag=True, help="Attach when there is time, or when somebody asks for the tenant.")
@click.pass_obj
def attach(
    session: Session, tenant_id: str, mode: str, generation: int | None, settings: tuple[str, ...], lazy: bool
) -> None:
    """Attach a tenant, or change how it is attached. The settings given replace those it has."""
    shard = parse_tenant(tenant_id)
    body: dict[str, Any] = {
        "mode": mode,
        "generation": generation,
        "shard_number": shard.shard_number,
        "shard_count": shard.shard_count,
        "tenant_conf": parse_settings(settings),
    }
    with working(session, f"attaching tenant {shard}"):
        session.client.put(f"/v1/tenant/{shard}/location_config", body, lazy="true" if lazy else None)
    location = session.client.get(f"/v1/location_config/{shard}")
    show(session, location, lambda: make_table(_COLUMNS, [_row(str(shard), location)]))


@click.command()
@click.argument("tenant_id")
@click.pass_obj
def detach(session: Session, tenant_id: str) -> None:
    """Stop serving a tenant; what object storage has of it stays."""
    shard = parse_tenant(tenant_id)
    with working(session, f"detaching tenant {shard}"):
        session.client.put(f"/v1/tenant/{shard}/location_config", {"mode": "Detached", "tenant_conf": {}})
    show(session, None, lambda: make_table(("detached",), [(str(shard),)]))


@click.command()
@click.pass_obj
def locations(session: Session) -> None:
    """List all locations, also secondary ones and those that are changing."""
    answer = session.client.get("/v1/location_config")
    rows = [_row(shard, location) for shard, location in answer["tenant_shards"]]
    show(session, answer, lambda: make_table(_COLUMNS, rows))


@click.command()
@click.argument("tenant_id", required=False)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting; the value is TOML.")
@click.option("--unset", "removed", multiple=True, metavar="KEY", help="Go back to the server's default.")
@click.pass_obj
def config(session: Session, tenant_id: str | None, settings: tuple[str, ...], removed: tuple[str, ...]) -> None:
    """Show the settings in effect, and which of them are the tenant's own; change some."""
    shard = session.resolve_tenant(tenant_id)
    changes = {**parse_settings(settings), **dict.fromkeys(removed)}
    if changes:
        session.client.patch("/v1/tenant/config", {"tenant_id": str(shard), **changes})
    answer = session.client.get(f"/v1/tenant/{shard}/config")
    own = answer["tenant_specific_overrides"]
    rows = [
        (key, _text(value), "tenant" if key in own else "server")
        for key, value in sorted({**answer["effective_config"], **own}.items())
    ]
    show(session, answer, lambda: make_table(("setting", "value", "of"), rows))


@click.command()
@click.argument("tenant_id")
@click.pass_obj
def scan(session: Session, tenant_id: str) -> None:
    """Tell what object storage has of a tenant, attached here or not."""
    with working(session, "listing object storage"):
        answer = session.client.get(f"/v1/tenant/{parse_tenant(tenant_id).tenant_id}/scan_remote_storage")
    rows = [
        (found["tenant_shard_id"], _text(found["generation"]), _text(found["stripe_size"]))
        for found in answer["shards"]
    ]
    show(session, answer, lambda: make_table(("shard", "generation", "stripe size"), rows))


@click.command()
@click.argument("tenant_id", required=False)
@click.pass_obj
def heatmap(session: Session, tenant_id: str | None) -> None:
    """Upload the list of layers that are worth to have, now."""
    shard = session.resolve_tenant(tenant_id)
    with working(session, "uploading the heatmap"):
        session.client.post(f"/v1/tenant/{shard}/heatmap_upload", {})
    show(session, None, lambda: make_table(("heatmap uploaded",), [(str(shard),)]))


_COLUMNS = ("tenant", "mode", "generation", "settings")


def _row(shard: str, location: dict[str, Any] | None) -> tuple[str, str, str, str]:
    if location is None:
        return shard, "changing", "-", "-"
    settings = ", ".join(f"{key}={value}" for key, value in sorted(location["tenant_conf"].items()))
    return shard, location["mode"], _text(location["generation"]), settings or "-"


def _text(value: object) -> str:
    return "-" if value is None else str(value)
