"""An HTTP proxy before an object store that breaks some of the requests, and remembers all of them.

A test gives it `choose`, a function from a request to the fault that befalls it. The Host header is passed on as the
client wrote it, since signatures cover it.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

_UPSTREAM_TIMEOUT_SECONDS = 60.0
_SLOW_SECONDS = 0.5


class Fault(Enum):
    """What befalls a request."""

    NONE = "none"
    ERROR_BEFORE = "an error 500, and the store hears nothing"
    ERROR_AFTER = "an error 500 after the store did it"
    RESET_BEFORE = "a reset connection, and the store hears nothing"
    RESET_AFTER = "a reset connection after the store did it"
    CONFLICT_BEFORE = "S3's 409 of two conditional creates at once, and the store hears nothing"
    TRUNCATED = "half of the answer's body, then the end of the connection"
    FLIPPED = "one bit of the answer's body is another one"
    SLOW = "the answer begins late, and its second half later still"
    HANGS = "no answer for as long as the client waits"


@dataclass(frozen=True, slots=True)
class ProxiedRequest:
    """A request as the client sent it; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    size_bytes: int


class FaultProxy:
    """Listens on a free port of the loopback and forwards to `port`."""

    def __init__(self, port: int) -> None:
        self.requests: list[ProxiedRequest] = []
        self.choose: Callable[[ProxiedRequest], Fault] = lambda request: Fault.NONE
        self.closing = threading.Event()
        proxy = self

        class Handler(_Handler):
            owner = proxy
            upstream_port = port

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def endpoint(self, path: str = "") -> str:
        """Return the URL that clients are told."""
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def fail(self, fault: Fault, *, times: int = 1, method: str | None = None) -> None:
        """Break the next `times` requests, of a method only if one is named; later ones pass."""
        left = [times]
        lock = threading.Lock()

        def choose(request: ProxiedRequest) -> Fault:
            with lock:
                if left[0] == 0 or method not in (None, request.method):
                    return Fault.NONE
                left[0] -= 1
                return fault

        self.choose = choose

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    owner: FaultProxy
    upstream_port: int
    protocol_version = "HTTP/1.1"

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = ProxiedRequest(self.command, self.path, headers, len(body))
        self.owner.requests.append(request)
        fault = self.owner.choose(request)
        self.close_connection = True
        match fault:
            case Fault.ERROR_BEFORE:
                self._answer(500, {}, b"<Error><Code>InternalError</Code><Message>try again</Message></Error>")
            case Fault.CONFLICT_BEFORE:
                self._answer(409, {}, b"<Error><Code>ConditionalRequestConflict</Code></Error>")
            case Fault.RESET_BEFORE:
                self._reset()
            case Fault.HANGS:
                self.owner.closing.wait(_UPSTREAM_TIMEOUT_SECONDS)
            case _:
                # A client that has given up meanwhile hears nothing.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self._forward(body, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any

    def _forward(self, body: bytes, fault: Fault) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream_port, timeout=_UPSTREAM_TIMEOUT_SECONDS)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() != "connection":
                upstream.putheader(name, value)
        upstream.endheaders(body)
        response = upstream.getresponse()
        content = response.read()
        upstream.close()
        if fault is Fault.RESET_AFTER:
            self._reset()
            return
        if fault is Fault.ERROR_AFTER:
            self._answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
            return
        headers = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
        if self.command == "HEAD":
            self._answer(response.status, headers, b"", declared=int(response.getheader("Content-Length") or 0))
        elif fault is Fault.SLOW:
            self._answer_slowly(response.status, headers, content)
        elif fault is Fault.TRUNCATED:
            self._answer(response.status, headers, content[: len(content) // 2], declared=len(content))
        elif fault is Fault.FLIPPED and content:
            middle = len(content) // 2
            self._answer(
                response.status, headers, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )
        else:
            self._answer(response.status, headers, content)

    def _answer(self, status: int, headers: dict[str, str], content: bytes, *, declared: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if declared is None else declared))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _answer_slowly(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.owner.closing.wait(_SLOW_SECONDS)
        half = len(content) // 2
        self._answer(status, headers, content[:half], declared=len(content))
        self.wfile.flush()
        self.owner.closing.wait(_SLOW_SECONDS)
        self.wfile.write(content[half:])

    def _reset(self) -> None:
        # Linger of zero seconds: closing sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def finish(self) -> None:
        # After a reset there is nothing to flush.
        if self.connection.fileno() != -1:
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 — the base class names it
        """Say nothing: `requests` has it all."""


_HOP_BY_HOP = frozenset({"connection", "content-length", "transfer-encoding", "keep-alive"})
