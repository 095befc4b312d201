"""`names/<tenant>.json-<generation>`: what users call the timelines of a tenant (standalone.md 4).

    {"version": 1, "names": {"main": "<timeline id>", …}}      compact, names in order

A small document, put whole under the writer's generation and looked up like an index: the newest one not above our
generation. It lies outside of `tenants/`, and belongs to the tenant, not to a shard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType

from pageserver.errors import CorruptDataError, PageServerError, RequestError
from pageserver.ids import Generation, TenantId, TimelineId
from pageserver.remote import paths
from pageserver.remote.generations import find_generationed
from pageserver.remote.storage import ObjectNotFoundError, ObjectStorage

NAMES_VERSION = 1
NAME_LENGTH_MAX = 63
NO_NAMES: Mapping[str, TimelineId] = MappingProxyType({})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_ID = re.compile(r"[0-9A-Fa-f]{32}", re.ASCII)


class InvalidNameError(RequestError):
    """The text cannot be a name."""

    def __init__(self, *, name: str, reason: str) -> None:
        super().__init__(f"{name!r} cannot be the name of a timeline: {reason}", name=name)


class NamesDecodeError(CorruptDataError):
    """The document does not decode; it is neither used nor replaced."""


def check_name(name: str) -> str:
    """Return a name that can be told from an id, and be part of a path and of a command. Raises InvalidNameError."""
    if not name or len(name) > NAME_LENGTH_MAX:
        raise InvalidNameError(name=name, reason=f"it must have 1 to {NAME_LENGTH_MAX} characters")
    if _NAME.fullmatch(name) is None:
        raise InvalidNameError(
            name=name, reason="letters, digits, '.', '_' and '-' are allowed, the first a letter or digit"
        )
    if _ID.fullmatch(name) is not None:
        raise InvalidNameError(name=name, reason="it looks like a timeline id")
    return name


def decode_names(content: bytes) -> dict[str, TimelineId]:
    """Read a document; unknown keys are ignored. Raises NamesDecodeError."""
    try:
        body = json.loads(content)
        if body["version"] != NAMES_VERSION:
            raise ValueError(f"version {body['version']!r} is not known")
        return {check_name(name): TimelineId.parse(text) for name, text in body["names"].items()}
    except (PageServerError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise NamesDecodeError(f"document of names does not decode: {error}") from error


def encode_names(names: Mapping[str, TimelineId]) -> bytes:
    body = {"version": NAMES_VERSION, "names": {name: str(names[name]) for name in sorted(names)}}
    return json.dumps(body, separators=(",", ":")).encode()


async def read_names(
    storage: ObjectStorage, tenant_id: TenantId, generation: Generation
) -> tuple[dict[str, TimelineId], Generation] | None:
    """Return the newest names not above `generation`, and the generation that wrote them; None if there is no document.

    Raises NamesDecodeError, UnavailableError.
    """
    try:
        content, found = await find_generationed(storage, paths.names_base_key(tenant_id), generation)
    except ObjectNotFoundError:
        return None
    return decode_names(content), found


async def write_names(
    storage: ObjectStorage, tenant_id: TenantId, generation: Generation, names: Mapping[str, TimelineId]
) -> None:
    """Store the names under this generation; durable when this returns."""
    await storage.put(paths.names_base_key(tenant_id) + generation.suffix(), encode_names(names))
