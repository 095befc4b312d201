"""Objects in S3, Azure Blob Storage or Google Cloud Storage, through `obstore`: one attempt of each operation.

What this layer adds to the library: the configured prefix; plain string prefixes in listings (the library's match whole
path segments) in strict key order; permits and time-outs; CRC-32C of uploaded files as user metadata `crc32c`, checked
when they are downloaded; absent keys in bulk deletions; and errors that tell absence from refusal (`cloud_errors.py`).
The library's own retries are off: `RetryingStorage` is the one layer that retries.

Permits (remote-storage.md 17): two pools, one for reads and one for writes. A download keeps its permit until the body
is on disk, a listing takes one for each page, so that a slow consumer holds none. Waiting for a permit does not count
towards a request's time-out.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import obstore
from obstore.exceptions import NotModifiedError
from obstore.store import AzureStore, GCSStore, S3Store

from pageserver._core import crc32c
from pageserver.remote.cloud_errors import CLOUD_ERRORS, timed_out, translate
from pageserver.remote.local_store import new_file
from pageserver.remote.request_stats import RequestKind, RequestStats
from pageserver.remote.storage import (
    DELETE_CHUNK,
    FetchedObject,
    ObjectChecksumError,
    ObjectNotFoundError,
    StoredObject,
    StoreRefusedError,
    StoreUnavailableError,
    check_key,
)
from pageserver.remote.versions import ObjectVersion, TimeTravelUnsupportedError

if TYPE_CHECKING:
    from pageserver.remote.s3_versions import S3Versions

CHECKSUM_METADATA = "crc32c"
"""Name of the user metadata that holds a layer's CRC-32C as 8 hex digits."""
_LIST_CHUNK = 1000
_STREAM_CHUNK_BYTES = 4 << 20
_UPLOAD_PART_PARALLELISM = 4


@dataclass(frozen=True, slots=True)
class CloudOptions:
    """How requests are made. Sizes in bytes; `storage_class` is sent with every new object."""

    concurrency: int = 100
    timeout_seconds: float = 120.0
    small_timeout_seconds: float = 120.0
    """For requests with neither a large body nor a large answer."""
    multipart_threshold_bytes: int = 16 << 20
    multipart_part_bytes: int = 8 << 20
    """Also the bound for memory: an upload holds four parts, or a whole file below the threshold."""
    storage_class: str | None = None


class CloudStore:
    """A bucket, or what is below a prefix of it. `name` is for messages: kind, bucket and endpoint."""

    def __init__(
        self,
        store: S3Store | AzureStore | GCSStore,
        *,
        name: str,
        prefix: str,
        options: CloudOptions,
        open_versions: Callable[[], S3Versions] | None = None,
    ) -> None:
        """`open_versions` is there where old versions can be listed and copied."""
        assert not prefix or prefix.endswith("/"), "a prefix ends with a slash"
        self.name = name
        self.stats = RequestStats()
        self._store = store
        self._prefix = prefix
        self._options = options
        self._open_versions = open_versions
        self._versions: S3Versions | None = None
        self._reads = asyncio.Semaphore(options.concurrency)
        self._writes = asyncio.Semaphore(options.concurrency)

    async def get(self, key: str) -> bytes:
        fetched = await self.fetch(key)
        assert fetched is not None, "nothing was asked about an ETag"
        return fetched.content

    async def fetch(
        self, key: str, *, start: int = 0, end: int | None = None, unless_etag: str | None = None
    ) -> FetchedObject | None:
        assert start >= 0 and (end is None or end > start), "a range must not be empty"
        path = self._path(key)
        options: dict[str, Any] = {}
        if end is not None:
            options["range"] = (start, end)
        elif start:
            options["range"] = {"offset": start}
        if unless_etag is not None:
            options["if_none_match"] = unless_etag
        async with self._request(RequestKind.GET, "get", key, self._options.small_timeout_seconds):
            try:
                result = await obstore.get_async(self._store, path, options=options)  # type: ignore[arg-type]
            except NotModifiedError:
                return None
            content = bytes(await result.bytes_async())
            first, after = result.range
            self._check_length(key, expected=after - first, got=len(content))
            return FetchedObject(self._describe(result.meta, result.attributes), content)

    async def head(self, key: str) -> StoredObject:
        path = self._path(key)
        try:
            async with self._request(RequestKind.HEAD, "head", key, self._options.small_timeout_seconds):
                result = await obstore.get_async(self._store, path, options={"head": True})
                return self._describe(result.meta, result.attributes)
        except ObjectNotFoundError:
            # The answer to a HEAD has no body, so "no such bucket" looks the same. A GET tells.
            async with self._request(RequestKind.GET, "get", key, self._options.small_timeout_seconds):
                found = await obstore.get_async(self._store, path)
                return self._describe(found.meta, found.attributes)

    async def download(self, key: str, target: Path) -> int:
        path = self._path(key)
        async with self._request(RequestKind.GET, "download", key, self._options.timeout_seconds) as request:
            result = await obstore.get_async(self._store, path)
            expected = _checksum(result.attributes)
            checksum = size = 0
            with request.local_files(), new_file(target) as file:
                stream = aiter(result.stream(min_chunk_size=_STREAM_CHUNK_BYTES))
                while (chunk := await request.store_side(anext(stream, None))) is not None:
                    checksum = await asyncio.to_thread(_write_chunk, file, bytes(chunk), checksum)
                    size += len(chunk)
                self._check_length(key, expected=result.meta["size"], got=size)
                if expected is not None and expected != checksum:
                    raise ObjectChecksumError(key=key, expected=expected, got=checksum)
                await asyncio.to_thread(_sync, file)
            return size

    async def put(self, key: str, content: bytes) -> None:
        await self._put(key, content, "overwrite")

    async def put_if_absent(self, key: str, content: bytes) -> None:
        await self._put(key, content, "create")

    async def upload(self, key: str, source: Path) -> None:
        path = self._path(key)
        checksum, size = await asyncio.to_thread(_checksum_of_file, source)
        parts = -(-size // self._options.multipart_part_bytes)
        in_parts = size > self._options.multipart_threshold_bytes
        # The library bounds every request; the whole of them is bounded as well, in case one of them hangs elsewhere.
        seconds = self._options.timeout_seconds * (2 + parts if in_parts else 1)
        try:
            async with self._request(RequestKind.PUT, "upload", key, seconds):
                await obstore.put_async(
                    self._store,
                    path,
                    source,
                    attributes=self._attributes(**{CHECKSUM_METADATA: f"{checksum:08x}"}),
                    use_multipart=in_parts,
                    chunk_size=self._options.multipart_part_bytes,
                    max_concurrency=_UPLOAD_PART_PARALLELISM,
                )
        except StoreRefusedError as error:
            if not await asyncio.to_thread(source.exists):  # the library says this in the same way
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source)) from error
            raise

    async def copy(self, source_key: str, target_key: str) -> None:
        source, target = self._path(source_key), self._path(target_key)
        async with self._request(RequestKind.COPY, "copy", source_key, self._options.timeout_seconds):
            await obstore.copy_async(self._store, source, target)

    async def delete(self, keys: Iterable[str]) -> None:
        names = list(dict.fromkeys(keys))
        for start in range(0, len(names), DELETE_CHUNK):
            chunk = names[start : start + DELETE_CHUNK]
            if not await self._delete_chunk(chunk):
                # Azure and GCS end a bulk deletion with the first absent key; then each key is asked for alone.
                async with asyncio.TaskGroup() as group:
                    for key in chunk:
                        group.create_task(self._delete_chunk([key]))
            self.stats.count_deleted(len(chunk))

    async def list_objects(
        self, prefix: str, *, start_after: str | None = None, max_keys: int | None = None
    ) -> AsyncIterator[StoredObject]:
        wanted = self._prefix + prefix
        directory, _, name = wanted.rpartition("/")
        offset = _just_below(wanted) if name else None
        if start_after is not None and (offset is None or self._prefix + start_after > offset):
            offset = self._prefix + start_after
        pages = obstore.list(self._store, directory or None, offset=offset, chunk_size=_LIST_CHUNK)
        last, count = "", 0
        while max_keys is None or count < max_keys:
            async with self._request(RequestKind.LIST, "list", prefix, self._options.timeout_seconds):
                page = await anext(aiter(pages), None)
            if page is None:
                return
            for meta in page:
                path = meta["path"]
                if path <= last:
                    raise StoreUnavailableError(
                        f"{self.name} lists {path!r} after {last!r}: not in key order", operation="list", key=prefix
                    )
                last = path
                if path.startswith(wanted) and (max_keys is None or count < max_keys):
                    count += 1
                    yield self._describe(meta, {})
                elif path > wanted and not path.startswith(wanted):
                    return

    async def list_directories(self, prefix: str) -> list[str]:
        assert prefix.endswith("/"), "a directory prefix ends with a slash"
        wanted = self._prefix + prefix
        async with self._request(RequestKind.LIST, "list", prefix, 10 * self._options.timeout_seconds):
            found = await obstore.list_with_delimiter_async(self._store, wanted)
        return sorted(path.removeprefix(wanted).rstrip("/") for path in found["common_prefixes"])

    @property
    def has_versions(self) -> bool:
        """Whether `list_versions` and `restore_version` can be asked."""
        return self._open_versions is not None

    async def list_versions(self, prefix: str, *, limit: int) -> list[ObjectVersion]:
        """See `versions.VersionedStore`."""
        versions = await self._opened_versions()
        found: list[ObjectVersion] = []
        following: dict[str, str] | None = {}
        while following is not None and len(found) < limit:
            async with self._request(RequestKind.LIST_VERSIONS, "list versions", prefix, self._options.timeout_seconds):
                page, following = await asyncio.to_thread(versions.list_page, self._prefix + prefix, following)
            found += (replace(version, key=version.key.removeprefix(self._prefix)) for version in page)
        return found[:limit]

    async def restore_version(self, version: ObjectVersion) -> None:
        """See `versions.VersionedStore`."""
        versions = await self._opened_versions()
        whole = replace(version, key=self._path(version.key))
        async with self._request(RequestKind.TIME_TRAVEL, "restore", version.key, self._options.timeout_seconds):
            await asyncio.to_thread(versions.copy, whole)

    async def _opened_versions(self) -> S3Versions:
        if self._open_versions is None:
            raise TimeTravelUnsupportedError
        if self._versions is None:
            self._versions = await asyncio.to_thread(self._open_versions)
        return self._versions

    async def _put(self, key: str, content: bytes, mode: Any) -> None:
        path = self._path(key)
        async with self._request(RequestKind.PUT, "put", key, self._options.timeout_seconds):
            await obstore.put_async(
                self._store, path, content, attributes=self._attributes(), mode=mode, use_multipart=False
            )

    async def _delete_chunk(self, keys: list[str]) -> bool:
        """Delete keys at once. Returns false if some are absent and others may be left."""
        paths = [self._path(key) for key in keys]
        try:
            async with self._request(RequestKind.DELETE, "delete", keys[0], self._options.timeout_seconds):
                await obstore.delete_async(self._store, paths)
        except ObjectNotFoundError:
            return len(keys) == 1
        return True

    def _path(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _attributes(self, **metadata: str) -> dict[str, str]:
        if self._options.storage_class is not None:
            metadata["Storage-Class"] = self._options.storage_class
        return metadata

    def _describe(self, meta: Any, attributes: Any) -> StoredObject:
        return StoredObject(
            key=meta["path"].removeprefix(self._prefix),
            size_bytes=meta["size"],
            modified_at=meta["last_modified"],
            etag=_quoted(meta["e_tag"]),
            crc32c=_checksum(attributes),
        )

    def _check_length(self, key: str, *, expected: int, got: int) -> None:
        if got != expected:
            raise StoreUnavailableError(
                f"{self.name} sent {got} bytes of {key!r}, expected {expected}", operation="get", key=key
            )

    @contextlib.asynccontextmanager
    async def _request(self, kind: RequestKind, operation: str, key: str, seconds: float) -> AsyncIterator[_Request]:
        """Hold a permit, bound the time, translate errors, count. A TimeoutError of ours ends here."""
        permits = self._writes if kind.writes else self._reads
        with self.stats.wait(kind):
            await permits.acquire()
        try:
            with self.stats.request(kind):
                request = _Request()
                try:
                    async with asyncio.timeout(seconds):
                        yield request
                except TimeoutError as error:
                    raise timed_out(
                        operation=operation, key=key, store=self.name, seconds=seconds, writes=kind.writes
                    ) from error
                except CLOUD_ERRORS as error:
                    if request.is_local:
                        raise
                    raise translate(error, operation=operation, key=key, store=self.name, writes=kind.writes) from error
        finally:
            permits.release()


class _Request:
    """Tells apart, inside of one download, errors of the caller's file from errors of the store."""

    def __init__(self) -> None:
        self.is_local = False

    @contextlib.contextmanager
    def local_files(self) -> Iterator[None]:
        self.is_local = True
        yield
        self.is_local = False

    async def store_side(self, waited_for: Any) -> Any:
        self.is_local = False
        result = await waited_for
        self.is_local = True
        return result


def _checksum(attributes: Any) -> int | None:
    """Read the checksum that came with an upload; metadata of somebody else's that has another form is none."""
    text = attributes.get(CHECKSUM_METADATA)
    try:
        return None if text is None else int(text, 16)
    except ValueError:
        return None


def _quoted(etag: str | None) -> str | None:
    """Return an ETag in the form of HTTP: Azure's listings leave its quotes out."""
    return etag if etag is None or '"' in etag else f'"{etag}"'


def _just_below(path: str) -> str:
    """Return a key below `path` and above nearly everything that is below it: listings start *after* an offset."""
    before = chr(ord(path[-1]) - 1)
    # A path with an empty segment is refused by the library, and "." is the character before the slash.
    return path[:-1] + ("." if before == "/" else before) + "~"


def _write_chunk(file: BinaryIO, chunk: bytes, checksum: int) -> int:
    file.write(chunk)
    return crc32c(chunk, checksum)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _checksum_of_file(path: Path) -> tuple[int, int]:
    checksum = size = 0
    with path.open("rb") as file:
        while chunk := file.read(_STREAM_CHUNK_BYTES):
            checksum = crc32c(chunk, checksum)
            size += len(chunk)
    return checksum, size
