"""Putting the document together (OpenAPI 3.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pageserver.mgmt.openapi.answers import Answer, error_answer
from pageserver.mgmt.openapi.operations import OPERATIONS, Operation
from pageserver.mgmt.openapi.parameters import NAMED_TIMELINE, PATH_PARAMETERS, Parameter
from pageserver.mgmt.openapi.schemas import component_schemas

OPENAPI_VERSION = "3.1.0"
_PARAMETER = re.compile(r"\{(\w+)\}")


def build_document(routes: Iterable[tuple[str, str]], *, version: str) -> dict[str, Any]:
    """Return the document of the given routes (method, path). One that is not described is left out."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path in routes:
        operation = OPERATIONS.get((method, path))
        if operation is not None:
            paths.setdefault(path, {})[method.lower()] = _describe(method, path, operation)
    return {
        "openapi": OPENAPI_VERSION,
        "info": {
            "title": "Page server management API",
            "version": version,
            "description": "Routes of Neon's page server with the same bodies, codes and retry rules, and some of "
            "our own. "
            'Every error has the body `{"msg": text}`. 503 and 408 may be retried at once, 409 and 429 later.',
        },
        "paths": paths,
        "components": {"schemas": component_schemas()},
    }


def _describe(method: str, path: str, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": _operation_id(method, path),
        "summary": operation.summary,
        "tags": [operation.tag],
        "parameters": [
            *(parameter.to_openapi(location="path") for parameter in _in_path(path, operation)),
            *(parameter.to_openapi(location="query") for parameter in operation.query),
        ],
        "responses": _responses(path, operation),
    }
    if operation.body is not None:
        described["requestBody"] = operation.body.to_openapi()
    return described


def _in_path(path: str, operation: Operation) -> Iterable[Parameter]:
    for name in _PARAMETER.findall(path):
        is_named = name == NAMED_TIMELINE.name and operation.takes_name
        yield NAMED_TIMELINE if is_named else PATH_PARAMETERS[name]


def _responses(path: str, operation: Operation) -> dict[str, Any]:
    answers: dict[int, Answer] = dict(operation.answers)
    for status in _implied_errors(path, operation):
        answers.setdefault(status, error_answer(status))
    return {str(status): answer.to_openapi() for status, answer in sorted(answers.items())}


def _implied_errors(path: str, operation: Operation) -> Iterable[int]:
    """Errors that every route of a kind may give (http-api.md 2, 3.3), besides those that the operation lists."""
    yield from operation.errors
    takes_input = "{" in path or operation.query or operation.body is not None
    if takes_input:
        yield 400
    if "{" in path or operation.needs_tenant:
        # Nothing is there by that name; or the path, decoded, is another one.
        yield 404
    if "{" in path or operation.needs_tenant or operation.needs_map:
        yield 503
    if operation.waits_for_active:
        yield from (409, 500)


def _operation_id(method: str, path: str) -> str:
    words = [method.lower(), *(word for word in re.split(r"[/{}_]+", path.removeprefix("/v1")) if word)]
    return words[0] + "".join(word.capitalize() for word in words[1:])
