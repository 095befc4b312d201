"""Speaking to a page server's management API from the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import click
import httpx
from rich.console import Console

from pageserver.errors import PageServerError
from pageserver.ids import TenantShardId, TimelineId

DEFAULT_URL = "http://127.0.0.1:9898"
_CONNECT_SECONDS = 30.0
_TIMEOUT = httpx.Timeout(_CONNECT_SECONDS, read=600.0)


class ApiRefusal(click.ClickException):
    """The server answered with an error. `status` is its code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Unreachable(click.ClickException):
    """Nobody answers at the server's address."""


class ApiClient:
    """A connection to one server. Every refusal becomes a message for the terminal."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._client = httpx.Client(base_url=self.url, timeout=_TIMEOUT)
        except (httpx.InvalidURL, ValueError) as error:
            raise click.UsageError(f"{url!r} is not a URL: {error}") from error

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **params: Any) -> Any:
        return self._json(self._ask("GET", path, params=_given(params)))

    def exists(self, path: str) -> bool:
        """Return whether there is an answer other than 404."""
        try:
            self._ask("GET", path)
        except ApiRefusal as refusal:
            if refusal.status != httpx.codes.NOT_FOUND:
                raise
            return False
        return True

    def get_bytes(self, path: str, **params: Any) -> httpx.Response:
        """Fetch a body as it is."""
        return self._ask("GET", path, params=_given(params), headers={"accept": "application/octet-stream"})

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._json(self._ask("POST", path, json=body))

    def post_status(self, path: str, body: Mapping[str, Any], *, lasts_seconds: float) -> int:
        """Post where the status of success is the answer, which may take so long."""
        patience = httpx.Timeout(_CONNECT_SECONDS, read=lasts_seconds + _CONNECT_SECONDS)
        return self._ask("POST", path, json=body, timeout=patience).status_code

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._json(self._ask("PATCH", path, json=body))

    def put(self, path: str, body: Any = None, **params: Any) -> Any:
        return self._json(self._ask("PUT", path, json=body, params=_given(params)))

    def delete(self, path: str) -> Any:
        return self._json(self._ask("DELETE", path))

    def change(self, method: str, path: str) -> bool:
        """Have something done; False if it was so already (304)."""
        return self._ask(method, path).status_code != httpx.codes.NOT_MODIFIED

    @contextmanager
    def stream(self, path: str, **params: Any) -> Iterator[httpx.Response]:
        """Fetch a large body piece by piece. Raises ApiRefusal."""
        check_path(path)
        try:
            with self._client.stream("GET", path, params=_given(params)) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        check_path(path)
        try:
            response = self._client.request(method, path, **more)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _refusal(response)
        return response

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise Unreachable(
                f"{self.url} answers, but not as a page server does ({response.status_code}, no JSON); "
                "HINT: --url names its management API"
            ) from error

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(f"no answer from {self.url}: {error}; HINT: is the page server running? (--url)")


@dataclass(slots=True)
class Session:
    """What every command gets: the server, the form of output, and the terminal."""

    client: ApiClient
    as_json: bool
    console: Console

    @property
    def shows_progress(self) -> bool:
        """Whether somebody looks: bars and spinners are for terminals only."""
        return not self.as_json and self.console.is_terminal

    def resolve_tenant(self, given: str | None) -> TenantShardId:
        """Return the tenant that is meant: the given one, else the only one that exists."""
        if given is not None:
            return parse_tenant(given)
        tenants = self.client.get("/v1/tenant")
        if len(tenants) == 1:
            return TenantShardId.parse(tenants[0]["id"])
        if not tenants:
            raise click.UsageError("there is no tenant yet; HINT: pagectl tenant create")
        raise click.UsageError("there are several tenants: name one with --tenant")

    def timeline_path(self, tenant: str | None, timeline: str) -> str:
        """Return the API path of one timeline, given by id or by name."""
        shard = self.resolve_tenant(tenant)
        return f"/v1/tenant/{shard}/timeline/{self.resolve_timeline(shard, timeline)}"

    def resolve_timeline(self, shard: TenantShardId, timeline: str) -> TimelineId:
        """Return the timeline that an id or a name means. Raises ApiRefusal (no such name), UsageError."""
        try:
            return TimelineId.parse(timeline)
        except PageServerError:
            if not timeline or "/" in timeline:
                raise click.UsageError(f"{timeline!r} is neither an id nor a name of a timeline") from None
        return TimelineId.parse(self.client.get(f"/v1/tenant/{shard}/name/{quote(timeline, safe='')}")["timeline_id"])


def check_path(path: str) -> None:
    """Refuse what would be another path than it looks like: clients resolve the segments `.` and `..`, so that a
    request for `/v1/tenant/T/name/..` asks for `/v1/tenant/T`, and deletes the tenant instead of a name.

    Raises UsageError.
    """
    for segment in path.split("/")[1:]:
        if unquote(segment) in ("", ".", ".."):
            raise click.UsageError(f"{unquote(segment)!r} cannot be the name of anything")


def parse_tenant(text: str) -> TenantShardId:
    try:
        return TenantShardId.parse(text)
    except PageServerError as error:
        raise click.UsageError(str(error)) from error


def parse_timeline(text: str) -> TimelineId:
    try:
        return TimelineId.parse(text)
    except PageServerError as error:
        raise click.UsageError(str(error)) from error


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if value is not None}


def _refusal(response: httpx.Response) -> ApiRefusal:
    try:
        message = response.json()["msg"]
    except (ValueError, TypeError, KeyError):
        message = response.text or response.reason_phrase
    if len(message) > 1 and message.startswith('"') and message.endswith('"'):
        message = message[1:-1].replace('\\"', '"')
    return ApiRefusal(response.status_code, message)
