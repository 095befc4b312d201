"""All groups of routes, in the order in which they are tried. A new group is one file and one line here."""

from __future__ import annotations

from fastapi.routing import APIRoute

from pageserver.mgmt import (
    archival_routes,
    data_directory_routes,
    failpoint_routes,
    import_routes,
    layer_routes,
    name_routes,
    process_routes,
    remote_storage_routes,
    source_routes,
    tenant_routes,
    timeline_routes,
    unbuilt_routes,
)

ROUTERS = [
    process_routes.router,
    failpoint_routes.router,
    tenant_routes.router,
    archival_routes.router,
    timeline_routes.router,
    source_routes.router,
    layer_routes.router,
    name_routes.router,
    import_routes.router,
    data_directory_routes.router,
    remote_storage_routes.router,
    unbuilt_routes.router,
]


def built_routes() -> list[tuple[str, str]]:
    """Return method and path of every route that does something, in the order in which they are tried."""
    return [
        (method, route.path)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in sorted(route.methods or ())
    ]
