"""What every handler of the management API works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from pageserver.clock import Clock
from pageserver.config import ServerConfig
from pageserver.failpoints import Failpoints
from pageserver.tenant import TenantManager

ACTIVE_WAIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ApiContext:
    """What handlers work with. `metrics` renders the text of `/metrics`; `extras` are what other rooms' routes need, by
    name.
    """

    config: ServerConfig
    manager: TenantManager
    clock: Clock
    launch_timestamp: str
    metrics: Callable[[], bytes]
    log: Any
    failpoints: Failpoints = field(default_factory=Failpoints.off)
    extras: dict[str, Any] = field(default_factory=dict)


def context_of(request: Request) -> ApiContext:
    context = request.app.state.context
    assert isinstance(context, ApiContext), "create_app put it there"
    return context
