"""The route of failpoints (http-api.md 4.1, 11): tests make the server fail with it."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pageserver.config.validation import describe
from pageserver.failpoints import FailpointsOffError
from pageserver.mgmt.context import context_of
from pageserver.mgmt.errors import bad_request
from pageserver.mgmt.requests import json_body

router = APIRouter()


class FailpointBody(BaseModel):
    """One failpoint and what it shall do from now on. Any name is taken, also one that lies nowhere."""

    model_config = ConfigDict(strict=True)

    name: str
    actions: str


_BODY = TypeAdapter(list[FailpointBody])


@router.put("/v1/failpoints")
async def put_failpoints(request: Request) -> Response:
    """Configure failpoints in order: those before a bad one stay configured."""
    failpoints = context_of(request).failpoints
    if not failpoints.is_enabled:
        raise FailpointsOffError
    document = await json_body(request)
    try:
        wanted = _BODY.validate_python(document)
    except ValidationError as error:
        raise bad_request(f"Failed to parse json request: {describe(error)}") from error
    for failpoint in wanted:
        failpoints.configure(failpoint.name, failpoint.actions)
    return JSONResponse(None)
