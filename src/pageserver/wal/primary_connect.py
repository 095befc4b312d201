"""Logs in to a server without holding up anything but the calling thread.

libpq's own blocking connect keeps Python's interpreter lock through psycopg, so that one primary which does not answer
would stop the whole process, and so does its looking up of names. Here names are looked up by Python, each address is
tried for itself, as libpq would try them, and the thread waits on the socket.
Source: PostgreSQL manual, "Database Connection Control Functions" (PQconnectPoll, multiple hosts).
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Final

from psycopg import Error as PsycopgError
from psycopg import pq
from psycopg.conninfo import make_conninfo

_PER_HOST: Final = ("host", "hostaddr", "port")
_STEP_SECONDS: Final = 0.2
"""So late is it noticed that nobody waits any more."""


class LoginError(Exception):
    """No address let us in. `is_silent`: one of them did not answer in time."""

    def __init__(self, message: str, *, is_silent: bool) -> None:
        super().__init__(message)
        self.is_silent = is_silent


def log_in(
    parameters: Mapping[str, str], *, timeout_seconds: float, given_up: threading.Event | None = None
) -> pq.abc.PGconn:
    """Connect (blocking) and return the connection; each address has `timeout_seconds`. Once `given_up` is set, nobody
    waits for it any more. Raises LoginError.
    """
    failures: list[str] = []
    is_silent = False
    given_up = given_up or threading.Event()
    for attempt in _attempts(parameters, failures):
        try:
            return _log_in_at(attempt, time.monotonic() + timeout_seconds, given_up)
        except LoginError as error:
            failures.append(str(error))
            is_silent |= error.is_silent
            if given_up.is_set():
                break
    raise LoginError(" ".join(failures), is_silent=is_silent)


def _attempts(parameters: Mapping[str, str], failures: list[str]) -> Iterator[Mapping[str, str]]:
    """Yield parameters of one address each. A name that has none is a failure."""
    lists = {key: parameters[key].split(",") for key in _PER_HOST if parameters.get(key)}
    count = max((len(values) for key, values in lists.items() if key != "port"), default=1)
    if any(len(values) not in (1, count) for values in lists.values()):
        yield parameters  # libpq says what does not fit
        return
    for number in range(count):
        one = {key: values[number % len(values)] for key, values in lists.items()}
        host = one.get("host", "")
        if not host or host.startswith(("/", "@")) or one.get("hostaddr"):
            yield {**parameters, **one}
            continue
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            failures.append(f'could not translate host name "{host}" to address: {error.strerror}')
            continue
        for address in dict.fromkeys(str(each[4][0]) for each in found):
            yield {**parameters, **one, "hostaddr": address}


def _log_in_at(parameters: Mapping[str, str], deadline: float, given_up: threading.Event) -> pq.abc.PGconn:
    pgconn = pq.PGconn.connect_start(make_conninfo("", **parameters).encode())
    try:
        while pgconn.status != pq.ConnStatus.BAD:
            polled = pgconn.connect_poll()
            if polled == pq.PollingStatus.OK:
                return pgconn
            if polled == pq.PollingStatus.FAILED:
                break
            _wait(pgconn, select.POLLIN if polled == pq.PollingStatus.READING else select.POLLOUT, deadline, given_up)
        raise LoginError(_text(pgconn.error_message), is_silent=False)
    except PsycopgError as error:
        pgconn.finish()
        raise LoginError(_text(str(error).encode()), is_silent=False) from error
    except LoginError:
        pgconn.finish()
        raise


def _wait(pgconn: pq.abc.PGconn, events: int, deadline: float, given_up: threading.Event) -> None:
    """Wait until the connection can go on. Raises LoginError."""
    poll = select.poll()
    poll.register(pgconn.socket, events)
    while not poll.poll(min(_STEP_SECONDS, max(0.0, deadline - time.monotonic())) * 1000):
        is_given_up = given_up.is_set()
        if is_given_up or time.monotonic() >= deadline:
            where = f'"{pgconn.host.decode()}", port {pgconn.port.decode()}'
            why = "given up" if is_given_up else "timeout expired"
            raise LoginError(f"connection to server at {where} failed: {why}", is_silent=True)


def _text(message: bytes) -> str:
    return " ".join(message.decode("utf-8", "replace").split())
