"""The application: routing, headers and the form of errors, laid around FastAPI so that clients see what Neon's server
shows (http-api.md 2).

Differences to the framework's habits: one trailing slash is ignored instead of redirected, an unsupported method is a
404, bodies are read by us, every JSON answer without data is `null`.
"""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pageserver.errors import InternalError, PageServerError, UnavailableError
from pageserver.mgmt.context import ApiContext
from pageserver.mgmt.errors import ApiError, to_api_error
from pageserver.mgmt.openapi import build_document
from pageserver.mgmt.routes import ROUTERS, built_routes

_LOG = "pageserver.log"
"""In the scope: the logger whose lines belong to the request."""


def create_app(context: ApiContext) -> FastAPI:
    """Build the application with all routes."""
    app = FastAPI(
        title="Page Server API", redirect_slashes=False, docs_url=None, redoc_url=None, openapi_url="/openapi.json"
    )
    app.state.context = context
    for router in ROUTERS:
        app.include_router(router)
    document = build_document(built_routes(), version=app.version)
    app.openapi = lambda: document  # type: ignore[method-assign] # the framework's own way to replace it
    app.add_exception_handler(HTTPException, _answer_framework_error)
    app.add_exception_handler(ApiError, _answer_error)
    app.add_exception_handler(PageServerError, _answer_error)
    app.add_middleware(_Surface, context=context)
    return app


class _Surface:
    """Outermost layer: path, headers, log, and errors that would otherwise travel into the server."""

    def __init__(self, app: ASGIApp, *, context: ApiContext) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, method = scope["path"], scope["method"]
        request_id = _header(scope, b"x-request-id") or str(uuid.uuid4())
        span = {"method": method, "path": path, "request_id": request_id}
        log = self._context.log.bind(spans=[("request", span)])
        scope = {**scope, "path": path[:-1] if len(path) > 1 and path.endswith("/") else path, _LOG: log}
        status = 500
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                message["headers"] = [
                    *message.get("headers", []),
                    (b"PAGESERVER_LAUNCH_TIMESTAMP", self._context.launch_timestamp.encode()),
                    (b"x-request-id", request_id.encode("latin-1")),
                ]
            await send(message)

        if method != "GET":
            log.info("Handling request")
        try:
            await self._reach_failpoints(path)
            await self._app(scope, receive, send_with_headers)
        except BaseException as error:
            if not isinstance(error, Exception):
                if not _is_panic(error):
                    raise
                self._context.on_panic()
            if isinstance(error, ClientDisconnect):
                log.info("request was dropped before completing")
                return
            if started:
                log.error("response broke off", error=str(error), exc_info=error)
                raise
            answer = to_api_error(error)
            _report(log, answer, error)
            await JSONResponse(answer.body, answer.status)(scope, receive, send_with_headers)
        tell = log.debug if method == "GET" and status < 400 else log.info
        tell(f"Request handled, status: {_status_text(status)}")

    async def _reach_failpoints(self, path: str) -> None:
        """Fail, if a test asked for it, whatever the route; but let the test take that back."""
        if path.rstrip("/") != "/v1/failpoints":
            await self._context.failpoints.fail("api-503", text="failpoint", error=UnavailableError)
            await self._context.failpoints.fail("api-500", text="failpoint", error=InternalError)


async def _answer_framework_error(request: Request, error: Exception) -> JSONResponse:
    """A path that nobody serves, or not with this method: the same 404 for both."""
    assert isinstance(error, HTTPException), "registered for this kind"
    if error.status_code in (404, 405):
        return JSONResponse({"msg": "page not found"}, 404)
    return JSONResponse({"msg": str(error.detail)}, error.status_code)


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    answer = to_api_error(error)
    _report(request.scope[_LOG], answer, None)
    return JSONResponse(answer.body, answer.status)


def _report(log: Any, answer: ApiError, unexpected: BaseException | None) -> None:
    """Say once what was wrong: at error only what is wrong here, at warn refused callers, else at info."""
    tell = {500: log.error, 401: log.warning, 403: log.warning}.get(answer.status, log.info)
    kind = "Bad request: " if answer.status == 400 else ""
    more = {"exc_info": unexpected} if unexpected is not None and answer.status == 500 else {}
    tell(f"Error processing HTTP request: {kind}{answer.message}", **more)


def _status_text(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _is_panic(error: BaseException) -> bool:
    """Return whether compiled code broke down: PyO3 makes a BaseException of that, with a class that has no module to
    import it from.
    """
    return type(error).__name__ == "PanicException"


def _header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None
