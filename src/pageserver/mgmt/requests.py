"""Reading requests as Neon does (http-api.md 1, 2): bodies are JSON whatever the content type says, parameters may be
repeated if they agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from pageserver.config import InvalidSettingError
from pageserver.config.validation import describe
from pageserver.errors import PageServerError
from pageserver.ids import TenantId, TenantShardId, TimelineId
from pageserver.lsn import Lsn
from pageserver.mgmt.errors import bad_request

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
_DIGITS_MAX = 32


def path_param(request: Request, name: str, parse: Callable[[str], T]) -> T:
    """Return a parsed path parameter. Raises ApiError 400."""
    try:
        return parse(request.path_params[name])
    except (PageServerError, ValueError) as error:
        raise bad_request(f"failed to parse {name}") from error


def tenant_shard_id(request: Request) -> TenantShardId:
    return path_param(request, "tenant_shard_id", TenantShardId.parse)


def unsharded_tenant_id(request: Request) -> TenantShardId:
    """Return the id of a route that takes a plain tenant id."""
    return TenantShardId.unsharded(path_param(request, "tenant_id", TenantId.parse))


def timeline_id(request: Request) -> TimelineId:
    return path_param(request, "timeline_id", TimelineId.parse)


def query_param(request: Request, name: str, parse: Callable[[str], T]) -> T | None:
    """Return a parsed query parameter, None if absent. Raises ApiError 400 (differing repetitions, unparsable)."""
    values = request.query_params.getlist(name)
    if not values:
        return None
    if any(value != values[0] for value in values):
        raise bad_request(f"param {name} specified more than once")
    try:
        return parse(values[0])
    except (PageServerError, ValueError) as error:
        raise bad_request(f"cannot parse query param {name}: {error}") from error


def required_query_param(request: Request, name: str, parse: Callable[[str], T]) -> T:
    value = query_param(request, name, parse)
    if value is None:
        raise bad_request(f"no {name} specified in query parameters")
    return value


def query_flag(request: Request, name: str, *, default: bool) -> bool:
    value = query_param(request, name, parse_bool)
    return default if value is None else value


def parse_bool(text: str) -> bool:
    """Read `true` or `false`, nothing else."""
    if text not in ("true", "false"):
        raise ValueError("provided string was not `true` or `false`")
    return text == "true"


def parse_count(text: str) -> int:
    """Read a number of up to 64 bits that is not negative."""
    if not (text.isascii() and text.isdecimal()) or len(text) > _DIGITS_MAX or (value := int(text)) >= 1 << 64:
        raise ValueError("expected a number of up to 64 bits")
    return value


def parse_u32(text: str) -> int:
    """Read a number of up to 32 bits that is not negative."""
    value = parse_count(text)
    if value >= 1 << 32:
        raise ValueError("expected a number of up to 32 bits")
    return value


def parse_choice(choices: Sequence[str]) -> Callable[[str], str]:
    """Return a parser that takes one of `choices`, nothing else."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return text

    return parse


def parse_pg_version(text: str) -> int:
    if text not in ("14", "15", "16", "17", "18"):
        raise ValueError(f"unknown PostgreSQL version {text}")
    return int(text)


def parse_lsn(text: str) -> Lsn:
    return Lsn.parse(text)


async def json_body(request: Request) -> object:
    """Return the parsed body. Raises ApiError 400."""
    content = await request.body()
    if not content:
        raise bad_request("missing request body")
    try:
        document = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
        _check_texts(document)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"Failed to parse json request: .: {error}") from error
    return document


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _check_texts(document: object) -> None:
    """Refuse halves of surrogate pairs, which JSON can spell and no text can hold. Raises ValueError."""
    if isinstance(document, str):
        document.encode("utf-8")
    elif isinstance(document, dict):
        for key, value in document.items():
            key.encode("utf-8")
            _check_texts(value)
    elif isinstance(document, list):
        for value in document:
            _check_texts(value)


async def model_body(request: Request, model: type[M]) -> M:
    """Return the body as a model. Raises ApiError 400 naming the path."""
    document = await json_body(request)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise bad_request(f"Failed to parse json request: {describe(error)}") from error
    except InvalidSettingError as error:
        raise bad_request(f"Failed to parse json request: {error}") from error
