"""The text of `/metrics`: every room's part, under the names of metrics.md.

What Neon's server has and this release has not is listed, with the reason, in `tests/integration/metrics_not_built.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pageserver.config import BuildInfo, ServerSettings
from pageserver.observe.absent_parts import collect_absent_parts
from pageserver.observe.exposition import Exposition
from pageserver.observe.page_service_metrics import collect_page_service, collect_pipelining
from pageserver.observe.process_metrics import ProcessMetrics
from pageserver.observe.startup import StartupTimes
from pageserver.observe.store_metrics import (
    Counted,
    collect_caches,
    collect_deletions,
    collect_reads,
    collect_redo,
    collect_store,
)
from pageserver.observe.tenant_metrics import collect_tenants
from pageserver.remote.request_stats import RequestStats
from pageserver.serve.page_service import PageServiceMetrics
from pageserver.tenant import TenantManager
from pageserver.tenant.slots import MapState

_BLOCK_BYTES = 8192


def render_metrics(
    manager: TenantManager,
    ignored_items: Sequence[str],
    build: BuildInfo,
    *,
    settings: ServerSettings | None = None,
    store: RequestStats | None = None,
    redo: Mapping[str, Any] | None = None,
    pages: PageServiceMetrics | None = None,
    caches: Mapping[str, tuple[int, int, int, int]] | None = None,
    reads: Mapping[str, Counted] | None = None,
    process: ProcessMetrics | None = None,
    startup: StartupTimes | None = None,
) -> bytes:
    """Return the exposition text. May be called in any thread. ``redo``, ``caches`` and ``reads`` are what `CoreEngine`
    says.
    """
    exposition = Exposition()
    exposition.gauge(
        "libmetrics_build_info",
        "Build/version information",
        [({"revision": build.revision, "build_tag": build.build_tag}, 1)],
    )
    exposition.gauge(
        "pageserver_config_ignored_items",
        "TOML items present in the on-disk configuration file but ignored by the pageserver config parser.",
        [({"item": ""}, 0), *(({"item": item}, 1) for item in ignored_items)],
    )
    if settings is not None:
        collect_pipelining(exposition, settings)
    if manager.map_state is not MapState.INITIALIZING:
        collect_tenants(exposition, manager)
        collect_deletions(exposition, manager.deletions)
    if store is not None:
        collect_store(exposition, store)
    if redo is not None:
        collect_redo(exposition, redo)
    if pages is not None:
        collect_page_service(exposition, pages)
    if caches is not None and settings is not None:
        collect_caches(exposition, caches, blocks_max=settings.page_cache_size * _BLOCK_BYTES)
    if reads is not None:
        collect_reads(exposition, reads)
    collect_absent_parts(exposition)
    if process is not None:
        process.collect(exposition)
    if startup is not None:
        startup.collect(exposition)
    return exposition.encode()
