"""The narrow door to object storage. Every store, also the one on local disk, is a class behind this protocol;
`docs/object-storage.md` tells how to write another one.

    RetryingStorage      tries again what may work, reads back what is uncertain      remote/retry.py
      UnreliableStorage  only with `test_remote_failures`                             remote/unreliable.py
        LocalStore, CloudStore, or yours: one attempt, permits, time-outs

Keys are relative, UTF-8, `/`-separated. Required of a store: read-after-write and list-after-write consistency, atomic
replacement by `put`, and a `put_if_absent` that exactly one of several callers wins (standalone.md 1).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pageserver.errors import ConflictError, CorruptDataError, NotFoundError, RequestError, UnavailableError

DELETE_CHUNK = 1000
"""Keys of one bulk deletion: S3's maximum (remote-storage.md 18)."""


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


class StoreUnavailableError(UnavailableError):
    """A read failed, or a write that certainly took no effect: the same call may work later."""

    def __init__(self, message: str, *, operation: str, key: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, operation=operation, key=key)
        self.operation = operation
        self.key = key


class UnknownOutcomeError(StoreUnavailableError):
    """A write failed in a way that does not tell whether it took effect (time-out, reset connection)."""


class StoreRefusedError(StoreUnavailableError):
    """The store answers, but not to us: wrong credentials, no permission, no such bucket. Trying again at once is
    pointless, though an operator may repair it while we run.
    """


class ObjectChecksumError(CorruptDataError):
    """An object's content is not what was uploaded (standalone.md 5). Sizes in bytes, checksums as CRC-32C."""

    def __init__(self, *, key: str, expected: int, got: int) -> None:
        super().__init__(
            f"object {key} is damaged: its CRC-32C is {got:08x}, it was uploaded with {expected:08x}",
            hint="keep it as evidence; restore an older version of the object if the bucket keeps versions",
            key=key,
            expected=expected,
            got=got,
        )
        self.key = key


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What a store tells about an object. `crc32c` (of the whole content) is there where it was uploaded with one,
    the store has metadata, and a `head` or `fetch` asked for it: listings never tell it.
    """

    key: str
    size_bytes: int
    modified_at: datetime
    etag: str | None = None
    crc32c: int | None = None


@dataclass(frozen=True, slots=True)
class FetchedObject:
    """An object, or a range of it; `description.size_bytes` is the size of the whole object."""

    description: StoredObject
    content: bytes


class ObjectStorage(Protocol):
    """What is asked of a store. All methods are safe to cancel; after a cancelled write it is unknown whether it took
    effect.

    Raises: ObjectNotFoundError where an object must exist; StoreUnavailableError for what may work when it is tried
    again, UnknownOutcomeError if it was a write that may have taken effect, StoreRefusedError if it is our credentials
    or the bucket; RequestError for a key that is no plain relative path. OSError is about a local file of the caller.
    """

    async def get(self, key: str) -> bytes:
        """Return a small object whole."""
        ...

    async def fetch(
        self, key: str, *, start: int = 0, end: int | None = None, unless_etag: str | None = None
    ) -> FetchedObject | None:
        """Return an object or its bytes `start` to `end` (exclusive; beyond the object is clamped), with what is known
        about it; None if its ETag still is `unless_etag`.

        The range must not be empty and `start` must lie inside of the object.
        """
        ...

    async def head(self, key: str) -> StoredObject:
        """Return size, time, ETag and checksum of an object."""
        ...

    async def download(self, key: str, target: Path) -> int:
        """Write an object to a new file, fsynced, and return its size. The directory is the caller's to sync.

        Whatever goes wrong, cancellation included, no file is left. Raises ObjectChecksumError if the object was
        uploaded with a checksum and has another one now; FileExistsError.
        """
        ...

    async def put(self, key: str, content: bytes) -> None:
        """Create or replace an object; durable when this returns."""
        ...

    async def put_if_absent(self, key: str, content: bytes) -> None:
        """Create an object. Raises ObjectExistsError and changes nothing if there is one.

        The content should hold something that nobody else would write there (a nonce): after an uncertain outcome the
        object is read back, and the create is ours if the content is.
        """
        ...

    async def upload(self, key: str, source: Path) -> None:
        """Create or replace an object with the content of a file, in parts if it is large, with its CRC-32C where the
        store has metadata; durable when this returns. Raises FileNotFoundError if there is no `source`.
        """
        ...

    async def copy(self, source_key: str, target_key: str) -> None:
        """Create or replace an object with the content of another one, inside of the store."""
        ...

    async def delete(self, keys: Iterable[str]) -> None:
        """Remove objects, in bulk where the store can. Absent ones are success; if any other fails, the call fails."""
        ...

    def list_objects(
        self, prefix: str, *, start_after: str | None = None, max_keys: int | None = None
    ) -> AsyncIterator[StoredObject]:
        """Yield the objects whose key starts with `prefix` (a plain string prefix) and is above `start_after`, in key
        order, at most `max_keys` of them. Pages are fetched as they are asked for.
        """
        ...

    async def list_directories(self, prefix: str) -> list[str]:
        """Return the names of the "directories" directly below `prefix`, which ends with `/`, in order."""
        ...


async def delete_prefix(storage: ObjectStorage, prefix: str) -> int:
    """Delete all objects whose key starts with `prefix`, chunk by chunk. Returns how many there were."""
    deleted = 0
    async for chunk in _chunks(storage.list_objects(prefix)):
        await storage.delete(chunk)
        deleted += len(chunk)
    return deleted


async def _chunks(objects: AsyncIterator[StoredObject]) -> AsyncIterator[list[str]]:
    chunk: list[str] = []
    async for found in objects:
        chunk.append(found.key)
        if len(chunk) == DELETE_CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def check_key(key: str) -> str:
    """Return the key of an object. Raises RequestError if it is no plain relative path (remote-storage.md 17)."""
    if key.startswith("/"):
        raise RequestError(f'Path "{key}" is not relative', key=key)
    if any(part in ("", ".", "..") for part in key.split("/")):
        raise RequestError(f"object key {key!r} is not a plain relative path", key=key)
    return key
