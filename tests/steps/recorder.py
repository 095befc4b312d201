"""Writes down every step of an operation, and what a crash before or after it would leave.

A step is an object-store call, a rename, link, fsync, mkdir or removal below the server's working directory, or a
failpoint. Nothing is interrupted: at each step the recorder takes an image of the disk and of the bucket, together with
what the operation has promised so far, and lets it go on. A crash at that moment leaves exactly these images, and,
unlike an exception, it runs no `finally`.

    operation ──▶ os.rename, os.fsync, …  ─┐
              ──▶ store.put, …            ─┼─▶ Step(what, before or after, disk, bucket, promises)
              ──▶ failpoints.fail(…)      ─┘

fsync is not passed on to the kernel: the durable image knows what it would have done. Layers are written here by the
engine that tests use in place of the compiled one, which makes them durable in the same order (`tests/unit/world.py`);
the compiled one's own renames and fsyncs cannot be seen from Python, and `test_exits.py` ends real processes around
them.
"""

from __future__ import annotations

import asyncio
import copy
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import structlog

from pageserver.failpoints import Failpoints
from pageserver.remote import FetchedObject, LocalStore, StoredObject
from pageserver.remote.local_store import TEMPORARY_SUFFIX
from tests.steps.disk import Image, TrackedDisk

_BY_PATH = ("rename", "replace", "link", "unlink", "remove", "rmdir", "mkdir")


@dataclass(frozen=True)
class StoredBytes:
    """An object of a local store."""

    content: bytes
    modified_at_ns: int


@dataclass(frozen=True)
class Step:
    """A moment at which the server may die."""

    what: str
    durable: Image
    current: Image
    bucket: dict[str, StoredBytes]
    promises: dict[str, Any]


@dataclass
class Recorder:
    """Records between `start` and `stop`. `promises` belongs to the operation, which notes there what it was told."""

    disk: TrackedDisk
    bucket: Path | None
    promises: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _is_recording: bool = False
    _last: tuple[Any, ...] = ()

    def start(self) -> None:
        self._is_recording = True

    def stop(self) -> None:
        self.note("the end")
        self._is_recording = False

    def note(self, what: str) -> None:
        """Take the images, unless nothing has changed since the last ones."""
        with self._lock:
            if not self._is_recording:
                return
            durable, current = self.disk.durable(), self.disk.current()
            bucket = {} if self.bucket is None else read_bucket(self.bucket)
            promises = copy.deepcopy(self.promises)
            objects = {key: stored.content for key, stored in bucket.items()}
            seen = (durable.listing(), current.listing(), objects, promises)
            if seen != self._last:
                self._last = seen
                self.steps.append(Step(what, durable, current, bucket, promises))

    @contextmanager
    def around(self, what: str) -> Iterator[None]:
        """One step whose effect is complete at the end of the block. For the event loop's thread."""
        if self._is_recording:
            self.calls.append(what)
        self.note(f"before {what}")
        yield
        self.note(f"after {what}")

    @contextmanager
    def patched_disk(self) -> Iterator[None]:
        """Watch what the process does with files below the disk's root. Calls of different threads do not overlap."""
        originals = {name: getattr(os, name) for name in (*_BY_PATH, "fsync")}
        for name in _BY_PATH:
            setattr(os, name, self._watched(name, originals[name]))
        setattr(os, "fsync", self._watched_fsync)  # noqa: B010 - its own parameter has another name
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(os, name, original)

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            where = _full_path(path, options.get("dir_fd"))
            if not self.disk.contains(where):
                return original(path, *args, **options)
            names = [where, *(os.fspath(each) for each in args[:1] if not isinstance(each, int))]
            shown = " ".join(Path(each).name for each in names)
            with self._lock, self.around(f"{name} {shown}"):
                return original(path, *args, **options)

        return call

    def _watched_fsync(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        where = os.readlink(f"/proc/self/fd/{number}")
        if self.disk.contains(where):
            with self._lock, self.around(f"fsync {Path(where).name}"):
                self.disk.note_synced(number)


def _full_path(path: Any, dir_fd: int | None) -> str:
    text = os.fspath(path)
    return os.path.abspath(text) if dir_fd is None else f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{text}"


def read_bucket(root: Path) -> dict[str, StoredBytes]:
    """Return all objects of a local store by key."""
    return {
        str(path.relative_to(root)): StoredBytes(path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if not path.name.endswith(TEMPORARY_SUFFIX) and path.is_file()
    }


def write_bucket(objects: dict[str, StoredBytes], root: Path) -> None:
    """Make a local store with these objects, as old as they were: the scrubber goes by that."""
    root.mkdir(parents=True)
    for key, stored in objects.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(stored.content)
        os.utime(root / key, ns=(stored.modified_at_ns, stored.modified_at_ns))


class SteppingFailpoints(Failpoints):
    """Failpoints that do nothing but be noted."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(structlog.get_logger())
        self._recorder = recorder
        self.reached: set[str] = set()

    async def reach(self, name: str, *, unless: asyncio.Event | None = None) -> str | None:
        self.reached.add(name)
        self._recorder.note(f"at failpoint {name}")
        return None


class SteppingStore(LocalStore):
    """A local store whose calls are steps: each takes effect as a whole, at its end."""

    def __init__(self, root: Path, recorder: Recorder) -> None:
        super().__init__(root)
        self._recorder = recorder

    async def get(self, key: str) -> bytes:
        with self._recorder.around(f"get {key}"):
            return await super().get(key)

    async def fetch(self, key: str, **options: Any) -> FetchedObject | None:
        with self._recorder.around(f"fetch {key}"):
            return await super().fetch(key, **options)

    async def head(self, key: str) -> StoredObject:
        with self._recorder.around(f"head {key}"):
            return await super().head(key)

    async def download(self, key: str, target: Path) -> int:
        with self._recorder.around(f"download {key}"):
            return await super().download(key, target)

    async def put(self, key: str, content: bytes) -> None:
        with self._recorder.around(f"put {key}"):
            await super().put(key, content)

    async def put_if_absent(self, key: str, content: bytes) -> None:
        with self._recorder.around(f"create {key}"):
            await super().put_if_absent(key, content)

    async def upload(self, key: str, source: Path) -> None:
        with self._recorder.around(f"upload {key}"):
            await super().upload(key, source)

    async def delete(self, keys: Iterable[str]) -> None:
        """A bulk deletion is one call, not atomic and in no order: a crash may leave any of the objects."""
        for key in sorted(keys, key=lambda key: Random(key).random()):
            with self._recorder.around(f"delete {key}"):
                await super().delete([key])

    async def list_objects(self, prefix: str, **options: Any) -> AsyncIterator[StoredObject]:
        with self._recorder.around(f"list {prefix}"):
            found = [item async for item in super().list_objects(prefix, **options)]
        for item in found:
            yield item

    async def list_directories(self, prefix: str) -> list[str]:
        with self._recorder.around(f"list directories {prefix}"):
            return await super().list_directories(prefix)
