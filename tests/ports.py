"""Ports of the loopback for servers of tests."""

from __future__ import annotations

import random
import socket
from typing import Final

_FIRST: Final = 15000
_LAST: Final = 32000
"""Below what the kernel gives to outgoing connections: a server that was killed must find its port free again."""


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    for port in random.sample(range(_FIRST, _LAST), 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no free port between {_FIRST} and {_LAST}")
