"""Errors of the local disk after which a server must not go on (remote-storage.md 2.5; http-api.md 10.3).

After a failed fsync the kernel may have dropped what was to be written and reports success the next time: going on
could acknowledge data that is not durable. The process ends as in a crash, which every start is made for. A full disk
is no such error: it mends itself.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from pageserver.errors import PageServerError

FATAL_ERRNOS = frozenset({errno.EIO, errno.EROFS, errno.EACCES})


class DiskGuard:
    """Ends the process for a fatal error. One for a server; whoever writes locally and would retry asks it first."""

    def __init__(self, log: Any, *, end_process: Callable[[], object] = os.abort) -> None:
        self._log = log
        self._end_process = end_process

    def check(self, error: BaseException) -> None:
        """Do not return from a fatal error; of others nothing happens.

        The engine's errors carry the number of the operating system's as the fact `errno`.
        """
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, PageServerError):
            number = error.facts.get("errno")
        if number in FATAL_ERRNOS:
            self._log.critical("fatal I/O error, the process ends", errno=errno.errorcode[number], error=str(error))
            self._end_process()
