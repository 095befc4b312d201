"""A store that is a directory: one file per object.

Unlike Neon's (remote-storage.md 18), it syncs: an object is written to `<file>.<n>.___temp`, fsynced, renamed and its
directory fsynced, since with `local_path`, and even more so without any remote storage, it is the truth about all
timelines. A conditional create links the finished temporary file to its final name, which fails if the name is taken.
Readers therefore never see half an object.
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
from typing import BinaryIO

from pageserver.errors import RequestError
from pageserver.remote.storage import ObjectExistsError, ObjectNotFoundError, StoredObject

TEMPORARY_SUFFIX = ".___temp"


class LocalStore:
    """Objects below `root`, which is created if absent."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._counter = itertools.count(1)

    async def get(self, key: str) -> bytes:
        return await asyncio.to_thread(self._read, key)

    async def head(self, key: str) -> StoredObject:
        return await asyncio.to_thread(self._head, key)

    async def download(self, key: str, target: Path) -> int:
        return await asyncio.to_thread(self._download, key, target)

    async def put(self, key: str, content: bytes) -> None:
        await asyncio.to_thread(self._write, key, lambda file: _write_all(file, content), os.replace)

    async def put_if_absent(self, key: str, content: bytes) -> None:
        try:
            await asyncio.to_thread(self._write, key, lambda file: _write_all(file, content), _link_and_unlink)
        except FileExistsError as error:
            raise ObjectExistsError(key=key) from error

    async def upload(self, key: str, source: Path) -> None:
        def copy(file: BinaryIO) -> None:
            with source.open("rb") as reader:
                shutil.copyfileobj(reader, file, 1 << 20)

        await asyncio.to_thread(self._write, key, copy, os.replace)

    async def delete(self, keys: Iterable[str]) -> None:
        await asyncio.to_thread(self._delete, list(keys))

    async def list_objects(self, prefix: str) -> AsyncIterator[StoredObject]:
        for found in await asyncio.to_thread(lambda: sorted(self._walk(prefix), key=lambda item: item.key)):
            yield found

    async def list_directories(self, prefix: str) -> list[str]:
        assert prefix.endswith("/"), "a directory prefix ends with a slash"
        return await asyncio.to_thread(self._directories, prefix)

    def _path(self, key: str) -> Path:
        if key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
            raise RequestError(f"object key {key!r} is not a plain relative path", key=key)
        return self.root / key

    def _read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise ObjectNotFoundError(key=key) from error

    def _head(self, key: str) -> StoredObject:
        path = self._path(key)
        if not path.is_file():
            raise ObjectNotFoundError(key=key)
        return self._describe(path)

    def _download(self, key: str, target: Path) -> int:
        try:
            with self._path(key).open("rb") as reader, target.open("xb") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
                writer.flush()
                os.fsync(writer.fileno())
                return writer.tell()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise ObjectNotFoundError(key=key) from error

    def _write(self, key: str, fill: Callable[[BinaryIO], None], publish: Callable[[Path, Path], None]) -> None:
        path = self._path(key)
        make_directory_durable(path.parent, self.root)
        temporary = path.with_name(f"{path.name}.{os.getpid():x}-{next(self._counter):x}{TEMPORARY_SUFFIX}")
        try:
            with temporary.open("xb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            publish(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        sync_directory(path.parent)

    def _delete(self, keys: list[str]) -> None:
        parents = set()
        for key in keys:
            path = self._path(key)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
                parents.add(path.parent)
        for parent in parents:
            sync_directory(parent)

    def _walk(self, prefix: str) -> Iterator[StoredObject]:
        # Only the directory part of the prefix narrows the walk: `tenants/ab` also matches `tenants/abc/…`.
        start = self.root / prefix.rpartition("/")[0]
        for directory, _, names in os.walk(start):
            for name in names:
                path = Path(directory, name)
                if name.endswith(TEMPORARY_SUFFIX) or not str(path.relative_to(self.root)).startswith(prefix):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    yield self._describe(path)

    def _directories(self, prefix: str) -> list[str]:
        try:
            names = sorted(entry.name for entry in os.scandir(self.root / prefix) if entry.is_dir())
        except FileNotFoundError:
            return []
        # Directories are never removed, but one without objects below it is no prefix of any object.
        return [name for name in names if any(True for _ in self._walk(f"{prefix}{name}/"))]

    def _describe(self, path: Path) -> StoredObject:
        found = path.stat()
        return StoredObject(
            key=str(path.relative_to(self.root)),
            size_bytes=found.st_size,
            modified_at=datetime.fromtimestamp(found.st_mtime, UTC),
        )


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


def _link_and_unlink(temporary: Path, path: Path) -> None:
    os.link(temporary, path)
