"""What every handler of the management API works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request

from pageserver.clock import Clock
from pageserver.config import ServerConfig
from pageserver.failpoints import Failpoints
from pageserver.tenant import TenantManager

ACTIVE_WAIT_SECONDS = 5.0


class Scrapes(Protocol):
    """What the room of metrics offers."""

    async def answer(self, *, use_latest: bool) -> bytes:
        """Return the text of one answer."""


@dataclass(frozen=True, slots=True)
class ApiContext:
    """What handlers work with. `scrapes` answers `/metrics`; `on_panic` counts compiled code that broke down; `extras`
    are what other rooms' routes need, by name.
    """

    config: ServerConfig
    manager: TenantManager
    clock: Clock
    launch_timestamp: str
    scrapes: Scrapes
    log: Any
    on_panic: Callable[[], None] = lambda: None
    failpoints: Failpoints = field(default_factory=Failpoints.off)
    extras: dict[str, Any] = field(default_factory=dict)


def context_of(request: Request) -> ApiContext:
    context = request.app.state.context
    assert isinstance(context, ApiContext), "create_app put it there"
    return context
