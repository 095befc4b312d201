"""The narrow door to object storage. Every store, also the one on local disk, is a class behind this protocol.

Keys are relative, UTF-8, `/`-separated. Required of a store: read-after-write and list-after-write consistency, atomic
replacement by `put`, and a `put_if_absent` that exactly one of several callers wins (standalone.md 1).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pageserver.errors import ConflictError, NotFoundError


class ObjectNotFoundError(NotFoundError):
    """The store has no object of that key."""

    def __init__(self, *, key: str) -> None:
        super().__init__(f"no object {key} in the store", key=key)
        self.key = key


class ObjectExistsError(ConflictError):
    """A conditional create found an object: somebody else was first."""

    def __init__(self, *, key: str) -> None:
        super().__init__(f"object {key} exists already", key=key)
        self.key = key


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One line of a listing."""

    key: str
    size_bytes: int
    modified_at: datetime


class ObjectStorage(Protocol):
    """What is asked of a store. All methods are safe to cancel; after a cancelled write it is unknown whether it took
    effect.

    Raises: ObjectNotFoundError where an object must exist; UnavailableError for what may work when it is tried again.
    """

    async def get(self, key: str) -> bytes:
        """Return a small object whole."""
        ...

    async def head(self, key: str) -> StoredObject:
        """Return size and time of an object."""
        ...

    async def download(self, key: str, target: Path) -> int:
        """Write an object to a new file, fsynced, and return its size. The directory is the caller's to sync."""
        ...

    async def put(self, key: str, content: bytes) -> None:
        """Create or replace an object; durable when this returns."""
        ...

    async def put_if_absent(self, key: str, content: bytes) -> None:
        """Create an object. Raises ObjectExistsError and changes nothing if there is one."""
        ...

    async def upload(self, key: str, source: Path) -> None:
        """Create or replace an object with the content of a file; durable when this returns."""
        ...

    async def delete(self, keys: Iterable[str]) -> None:
        """Remove objects. Absent ones are success."""
        ...

    def list_objects(self, prefix: str) -> AsyncIterator[StoredObject]:
        """Yield all objects whose key starts with `prefix` (a plain string prefix), in key order."""
        ...

    async def list_directories(self, prefix: str) -> list[str]:
        """Return the names of the "directories" directly below `prefix`, which ends with `/`."""
        ...
