"""When archived timelines are let go of by themselves (tenants.md 13.2).

Neon's server looks at the end of a compaction iteration; here it is a loop of its own with the same period: one round
after each `compaction_period`, none while that is 0. A timeline that is not ready, since it has children here or
uploads are pending, has its turn in a later round.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from pageserver.clock import Clock
from pageserver.config import TenantSettings
from pageserver.errors import PageServerError
from pageserver.tenant.archival import Archival

_DISABLED_CHECK_SECONDS = 10.0
_JITTER = 0.05


async def offload_by_and_by(
    archival: Archival, *, settings: Callable[[], TenantSettings], wanted_by_server: bool, clock: Clock, log: Any
) -> None:
    """Offload what may go, round after round, until cancelled. Settings are read afresh each time: of the server's
    `timeline_offloading` (`wanted_by_server`) and the tenant's own, one is enough.
    """
    random = Random()
    while True:
        period = settings().compaction_period.seconds
        await clock.sleep(period * random.uniform(1, 1 + _JITTER) or _DISABLED_CHECK_SECONDS)
        now = settings()
        if now.compaction_period.seconds and (wanted_by_server or now.timeline_offloading):
            await _offload_ready(archival, log)


async def _offload_ready(archival: Archival, log: Any) -> None:
    for timeline_id in archival.ready_to_offload():
        try:
            await archival.offload_unasked(timeline_id)
        except (PageServerError, OSError) as error:
            log.warning("an archived timeline stays here", timeline=str(timeline_id), error=str(error))
