"""Requests whose work belongs to the tenant: it goes on when the client hangs up, and ends with the tenant
(tenants.md 7.5, 25.18).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from pageserver.tenant.tasks import TaskScope
from pageserver.tenant.tenant_errors import TenantStoppingError

T = TypeVar("T")


async def run_owned(tasks: TaskScope, work: Coroutine[Any, Any, T], *, name: str) -> T:
    """Run `work` in a task of the tenant, and wait for its result.

    Raises what the work raises, and TenantStoppingError if the tenant stops before it has ended. Cancellation of the
    caller: only the waiting ends.
    """
    if tasks.is_closed:
        work.close()
        raise TenantStoppingError
    result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    failure: Exception = TenantStoppingError()

    async def run() -> None:
        value = await work
        if not result.done():
            result.set_result(value)

    def failed(error: Exception) -> None:
        nonlocal failure
        failure = error

    def ended(_: asyncio.Task[None]) -> None:
        # A task that is cancelled before it first runs never touches the work.
        work.close()
        if not result.done():
            result.set_exception(failure)

    tasks.spawn(run(), name=name, on_failure=failed).add_done_callback(ended)
    return await result
