"""Lets many in until it is closed; closing waits until all are out. So nothing is taken away under who uses it."""

from __future__ import annotations

import threading
from types import TracebackType

from pageserver.errors import StoppedError


class Gate:
    """`with gate:` around each use, from any thread. Raises StoppedError once it is closed."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._inside = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            if self._is_closed:
                raise StoppedError(f"{self._what} is closed")
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._inside -= 1
            if not self._inside:
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in any more and wait until all are out. Again: the same."""
        with self._changed:
            self._is_closed = True
            self._changed.wait_for(lambda: not self._inside)
