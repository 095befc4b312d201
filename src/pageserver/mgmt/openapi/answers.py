"""Bodies and answers as the document shows them."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

Json = dict[str, Any]
JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"
TAR_TYPE = "application/x-tar"
BYTES: Json = {"type": "string", "format": "binary"}


def ref(name: str) -> Json:
    """Return a reference to a schema of `schemas`."""
    return {"$ref": f"#/components/schemas/{name}"}


@dataclass(frozen=True, slots=True)
class Answer:
    """One status of one route. `content` is schema and example by media type; none means that there is no body."""

    description: str
    content: dict[str, tuple[Json, Any]]

    def to_openapi(self) -> Json:
        described: Json = {"description": self.description}
        if self.content:
            described["content"] = {
                kind: {"schema": schema}
                if example is None and schema is BYTES
                else {"schema": schema, "example": example}
                for kind, (schema, example) in self.content.items()
            }
        return described


@dataclass(frozen=True, slots=True)
class RequestBody:
    """What a route takes. Bodies are read as JSON whatever their type says, and so are documented as JSON."""

    schema: Json
    example: Any
    media_type: str = JSON_TYPE
    is_required: bool = True

    def to_openapi(self) -> Json:
        content: Json = {"schema": self.schema}
        if self.example is not None:
            content["example"] = self.example
        return {"required": self.is_required, "content": {self.media_type: content}}


def answer(description: str, schema: Json, example: Any) -> Answer:
    """Return an answer with a JSON body."""
    return Answer(description, {JSON_TYPE: (schema, example)})


def done(description: str) -> Answer:
    """Return the answer of a route without a result: the text `null`."""
    return answer(description, {"type": "null"}, None)


def stream(description: str, media_type: str) -> Answer:
    return Answer(description, {media_type: (BYTES, None)})


def empty(description: str) -> Answer:
    """Return an answer without a body, as HTTP wants it of 304."""
    return Answer(description, {})


_EXAMPLES = {
    400: '"failed to parse tenant_shard_id"',
    404: "NotFound: tenant 99999999999999999999999999999999",
    406: "invalid branch start lsn: less than latest GC cutoff 0/2000028",
    408: "lsn 0/5000000 is not reached yet: last record lsn is 0/4CF6E00",
    409: "Conflict: Tenant is already being modified",
    412: "Precondition failed: Requested tenant is missing",
    429: "creation of timeline with the given ID is in progress",
    500: "tenant is broken: layer map does not decode",
    501: "compaction is not implemented yet",
    503: "Tenant not yet active",
}
_MEANINGS = {
    400: "The request cannot be read, or asks for what cannot be",
    404: "Not here",
    406: "Can never work: do not retry",
    408: "Not in time: retry",
    409: "Another request is at work, or it exists with other parameters",
    412: "The state of what is named does not allow it",
    429: "The same creation is under way: retry later",
    500: "Data or state that is not what it must be",
    501: "Part of the specification that this release does not have yet",
    503: "In between, or shutting down: retry",
}


def error_answer(status: int, description: str | None = None) -> Answer:
    """Return the answer of an error: `{"msg": …}`."""
    assert status in _MEANINGS, HTTPStatus(status)
    return answer(description or _MEANINGS[status], ref("Error"), {"msg": _EXAMPLES[status]})
