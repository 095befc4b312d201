"""A store that is a directory: one file per object.

Unlike Neon's (remote-storage.md 18), it syncs: an object is written to `<file>.<n>.___temp`, fsynced, renamed and its
directory fsynced, since with `local_path`, and even more so without any remote storage, it is the truth about all
timelines. A conditional create links the finished temporary file to its final name, which fails if the name is taken.
Readers therefore never see half an object.

An uploaded file's CRC-32C is kept in the extended attribute `user.pageserver.crc32c` of the object's file, where the
file system has such: a file beside it, as Neon writes for metadata, would be listed as an object by other tools.
ETags are modification times in milliseconds, as Neon's are.

An OSError of the store's own directory (no permission, no space, an I/O error) is a StoreUnavailableError; one of the
caller's local file stays what it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pageserver._core import crc32c
from pageserver.remote.storage import (
    FetchedObject,
    ObjectChecksumError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoredObject,
    StoreUnavailableError,
    check_key,
)

TEMPORARY_SUFFIX = ".___temp"
_CHECKSUM_ATTRIBUTE = "user.pageserver.crc32c"
_CHUNK_BYTES = 1 << 20
_T = TypeVar("_T")


async def _to_the_end(function: Callable[..., _T], *arguments: Any) -> _T:
    """Run something in a thread. Cancellation: takes effect when the thread is done, which nobody can stop: what it
    writes would appear later, when whoever owned it has gone, and perhaps has been deleted.
    """
    running = asyncio.ensure_future(asyncio.to_thread(function, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        running.exception()  # Nobody hears of it any more, which is no news for the log.
        raise


class LocalStore:
    """Objects below `root`, which is created by the first write. Once it was there, its absence means that a file
    system is not mounted any more, and nothing about the objects.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._counter = itertools.count(1)
        self._has_seen_root = False

    async def get(self, key: str) -> bytes:
        return await asyncio.to_thread(self._read, key)

    async def fetch(
        self, key: str, *, start: int = 0, end: int | None = None, unless_etag: str | None = None
    ) -> FetchedObject | None:
        assert start >= 0 and (end is None or end > start), "a range must not be empty"
        return await asyncio.to_thread(self._fetch, key, start, end, unless_etag)

    async def head(self, key: str) -> StoredObject:
        return await asyncio.to_thread(self._head, key)

    async def download(self, key: str, target: Path) -> int:
        made: list[Path] = []

        def download() -> int:
            size = self._download(key, target)
            made.append(target)
            return size

        try:
            return await _to_the_end(download)
        except asyncio.CancelledError:
            for path in made:
                path.unlink(missing_ok=True)
            raise

    async def put(self, key: str, content: bytes) -> None:
        await _to_the_end(self._write, key, lambda file: _write_all(file, content), os.replace)

    async def put_if_absent(self, key: str, content: bytes) -> None:
        await _to_the_end(self._write, key, lambda file: _write_all(file, content), os.link)

    async def upload(self, key: str, source: Path) -> None:
        await _to_the_end(self._upload, key, source)

    async def copy(self, source_key: str, target_key: str) -> None:
        await _to_the_end(self._copy, source_key, target_key)

    async def delete(self, keys: Iterable[str]) -> None:
        await _to_the_end(self._delete, list(keys))

    async def list_objects(
        self, prefix: str, *, start_after: str | None = None, max_keys: int | None = None
    ) -> AsyncIterator[StoredObject]:
        def walk() -> list[StoredObject]:
            with _as_unavailable("list", prefix):
                found = (item for item in self._walk(prefix) if start_after is None or item.key > start_after)
                return sorted(found, key=lambda item: item.key)[:max_keys]

        for item in await asyncio.to_thread(walk):
            yield item

    async def list_directories(self, prefix: str) -> list[str]:
        assert prefix.endswith("/"), "a directory prefix ends with a slash"
        return await asyncio.to_thread(self._directories, prefix)

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    @contextlib.contextmanager
    def _open(self, operation: str, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        with _as_unavailable(operation, key):
            try:
                file = path.open("rb")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
                self._check_root(operation, key)
                raise ObjectNotFoundError(key=key) from error
        with file:
            yield file

    def _read(self, key: str) -> bytes:
        with self._open("get", key) as file, _as_unavailable("get", key):
            return file.read()

    def _fetch(self, key: str, start: int, end: int | None, unless_etag: str | None) -> FetchedObject | None:
        with self._open("get", key) as file, _as_unavailable("get", key):
            description = _describe(key, file.fileno(), _read_checksum(file))
            if description.etag == unless_etag:
                return None
            assert start == 0 or start < description.size_bytes, "a range starts inside of the object"
            file.seek(start)
            return FetchedObject(description, file.read(-1 if end is None else end - start))

    def _head(self, key: str) -> StoredObject:
        with self._open("head", key) as file, _as_unavailable("head", key):
            return _describe(key, file.fileno(), _read_checksum(file))

    def _download(self, key: str, target: Path) -> int:
        with self._open("download", key) as reader, new_file(target) as writer:
            checksum = 0
            while chunk := _read_chunk(reader, "download", key):
                writer.write(chunk)
                checksum = crc32c(chunk, checksum)
            expected = _read_checksum(reader)
            if expected is not None and expected != checksum:
                raise ObjectChecksumError(key=key, expected=expected, got=checksum)
            return writer.tell()

    def _upload(self, key: str, source: Path) -> None:
        with source.open("rb") as reader:

            def copy(file: BinaryIO) -> None:
                checksum = 0
                while chunk := reader.read(_CHUNK_BYTES):
                    file.write(chunk)
                    checksum = crc32c(chunk, checksum)
                _write_checksum(file, checksum)

            self._write(key, copy, os.replace)

    def _copy(self, source_key: str, target_key: str) -> None:
        with self._open("copy", source_key) as reader:

            def copy(file: BinaryIO) -> None:
                shutil.copyfileobj(reader, file, _CHUNK_BYTES)
                checksum = _read_checksum(reader)
                if checksum is not None:
                    _write_checksum(file, checksum)

            self._write(target_key, copy, os.replace)

    def _check_root(self, operation: str, key: str) -> None:
        if self.root.is_dir():
            self._has_seen_root = True
        elif self._has_seen_root:
            raise StoreUnavailableError(
                f"cannot {operation} {key}: the directory {self.root} is gone",
                operation=operation,
                key=key,
                hint="is its file system mounted?",
            )

    def _write(self, key: str, fill: Callable[[BinaryIO], None], publish: Callable[[Path, Path], None]) -> None:
        path = self._path(key)
        self._check_root("put", key)
        with _as_unavailable("put", key):
            make_directory_durable(path.parent, self.root)
            self._has_seen_root = True
            temporary = path.with_name(f"{path.name}.{os.getpid():x}-{next(self._counter):x}{TEMPORARY_SUFFIX}")
            try:
                with temporary.open("xb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    publish(temporary, path)
                except FileExistsError as error:
                    raise ObjectExistsError(key=key) from error
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
            sync_directory(path.parent)

    def _delete(self, keys: list[str]) -> None:
        parents = set()
        for key in keys:
            path = self._path(key)
            self._check_root("delete", key)
            with _as_unavailable("delete", key), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
                parents.add(path.parent)
        for parent in parents:
            with _as_unavailable("delete", str(parent)):
                sync_directory(parent)

    def _walk(self, prefix: str) -> Iterator[StoredObject]:
        # Only the directory part of the prefix narrows the walk: `tenants/ab` also matches `tenants/abc/…`.
        start = self.root / prefix.rpartition("/")[0]
        self._check_root("list", prefix)
        for directory, _, names in os.walk(start, onerror=_raise_unless_absent):
            for name in names:
                path = Path(directory, name)
                key = str(path.relative_to(self.root))
                if name.endswith(TEMPORARY_SUFFIX) or not key.startswith(prefix):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    yield _describe(key, path, None)

    def _directories(self, prefix: str) -> list[str]:
        self._check_root("list", prefix)
        with _as_unavailable("list", prefix):
            try:
                names = sorted(entry.name for entry in os.scandir(self.root / prefix) if entry.is_dir())
            except (FileNotFoundError, NotADirectoryError):
                return []
            # Directories are never removed, but one without objects below it is no prefix of any object.
            return [name for name in names if any(True for _ in self._walk(f"{prefix}{name}/"))]


def _describe(key: str, path: Path | int, checksum: int | None) -> StoredObject:
    found = os.stat(path)
    return StoredObject(
        key=key,
        size_bytes=found.st_size,
        modified_at=datetime.fromtimestamp(found.st_mtime, UTC),
        etag=str(found.st_mtime_ns // 1_000_000),
        crc32c=checksum,
    )


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[BinaryIO]:
    """Create a file, fsync it at the end, and remove it if anything goes wrong. Raises FileExistsError, OSError."""
    with target.open("xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _raise_unless_absent(error: OSError) -> None:
    """A directory that went meanwhile has no objects; one that cannot be read may have any."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error


@contextlib.contextmanager
def _as_unavailable(operation: str, key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(f"cannot {operation} {key}: {error}", operation=operation, key=key) from error


def _read_chunk(file: BinaryIO, operation: str, key: str) -> bytes:
    with _as_unavailable(operation, key):
        return file.read(_CHUNK_BYTES)


def _write_checksum(file: BinaryIO, checksum: int) -> None:
    """Keep a checksum, if the file system has a place for it."""
    with contextlib.suppress(OSError):
        os.setxattr(file.fileno(), _CHECKSUM_ATTRIBUTE, b"%08x" % checksum)


def _read_checksum(file: BinaryIO) -> int | None:
    try:
        return int(os.getxattr(file.fileno(), _CHECKSUM_ATTRIBUTE), 16)
    except (OSError, ValueError):
        return None


def sync_directory(directory: Path) -> None:
    """Make what was created, renamed or removed in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory_durable(directory: Path, above: Path) -> None:
    """Create a directory and its parents up to `above`, each of them durable."""
    if directory.is_dir():
        return
    if directory != above:
        make_directory_durable(directory.parent, above)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)
    else:
        directory.mkdir(parents=True, exist_ok=True)
        sync_directory(directory.parent)


def overwrite_durably(path: Path, content: bytes) -> None:
    """Replace a small file so that a crash leaves the old or the new content (remote-storage.md 2.5, "crash-safe
    overwrite").
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:
        _write_all(file, content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def _write_all(file: BinaryIO, content: bytes) -> None:
    file.write(content)
