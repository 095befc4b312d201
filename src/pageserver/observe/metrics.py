"""The text of `/metrics`, encoded by hand because Neon's names are not the Prometheus client's (design.md 9)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pageserver.tenant import TenantManager
from pageserver.tenant.manager import MapState


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    kind: str
    text: str
    samples: Sequence[tuple[dict[str, str], float]]


def render_metrics(manager: TenantManager, ignored_items: Sequence[str], version: str) -> bytes:
    """Return the exposition text of what is counted so far."""
    families = [
        _Family(
            "libmetrics_build_info", "gauge", "Build/version information", [({"revision": version, "build_tag": ""}, 1)]
        ),
        _Family(
            "pageserver_config_ignored_items",
            "gauge",
            "TOML items present in the on-disk configuration file but ignored by the pageserver config parser.",
            [({"item": ""}, 0), *(({"item": item}, 1) for item in ignored_items)],
        ),
    ]
    if manager.map_state is not MapState.INITIALIZING:
        families += _tenant_families(manager)
    return "".join(_encode(families)).encode()


def _tenant_families(manager: TenantManager) -> list[_Family]:
    states: dict[str, float] = {}
    last: list[tuple[dict[str, str], float]] = []
    consistent: list[tuple[dict[str, str], float]] = []
    size: list[tuple[dict[str, str], float]] = []
    for tenant in manager.attached():
        states[tenant.state.status.value] = states.get(tenant.state.status.value, 0) + 1
        for timeline in tenant.open_timelines():
            labels = {
                "tenant_id": str(tenant.shard.tenant_id),
                "shard_id": tenant.shard.slug(),
                "timeline_id": str(timeline.timeline_id),
            }
            info = timeline.detail()
            last.append((labels, float(info.last_record_lsn)))
            consistent.append((labels, float(info.disk_consistent_lsn)))
            size.append((labels, float(timeline.resident_bytes())))
    return [
        _Family(
            "pageserver_tenant_states_count",
            "gauge",
            "Count of tenants per state",
            [({"state": state}, count) for state, count in sorted(states.items())],
        ),
        _Family("pageserver_last_record_lsn", "gauge", "Last record LSN grouped by timeline", last),
        _Family("pageserver_disk_consistent_lsn", "gauge", "Disk consistent LSN grouped by timeline", consistent),
        _Family(
            "pageserver_remote_ondemand_downloaded_layers_total",
            "counter",
            "Total on-demand downloaded layers",
            [({}, manager.downloads.layers)],
        ),
        _Family(
            "pageserver_remote_ondemand_downloaded_bytes_total",
            "counter",
            "Total bytes of layers on-demand downloaded",
            [({}, manager.downloads.bytes)],
        ),
        _Family("pageserver_resident_physical_size", "gauge", "The size of the layer files present on disk", size),
    ]


def _encode(families: Iterable[_Family]) -> Iterable[str]:
    for family in families:
        yield f"# HELP {family.name} {family.text}\n# TYPE {family.name} {family.kind}\n"
        for labels, value in family.samples:
            shown = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
            braced = f"{{{shown}}}" if shown else ""
            yield f"{family.name}{braced} {int(value) if value == int(value) else format(value, 'g')}\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
