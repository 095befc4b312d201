"""Tasks with an owner: started by it, ended before it goes, their failures told to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class TaskScope:
    """The tasks of one owner. Unlike a TaskGroup, one task's failure does not end its siblings: it is reported to
    `on_failure`.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self.is_closed = False

    def spawn(
        self, work: Coroutine[Any, Any, None], *, name: str, on_failure: Callable[[Exception], None]
    ) -> asyncio.Task[None]:
        """Start a task. `on_failure` is called with what it raised, cancellation apart."""
        assert not self.is_closed, "a closed scope takes no tasks"
        task = asyncio.get_running_loop().create_task(_supervise(work, on_failure), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A task that is cancelled before it first runs never touches `work`, which would complain about that.
        task.add_done_callback(lambda _: work.close())
        return task

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        self.is_closed = True
        await end_tasks(*self._tasks)


async def end_tasks(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks and wait for their end. What they raise was reported by their scope."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def _supervise(work: Coroutine[Any, Any, None], on_failure: Callable[[Exception], None]) -> None:
    try:
        await work
    except Exception as error:
        on_failure(error)
