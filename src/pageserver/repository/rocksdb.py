"""Objects in RocksDB. One database for each tenant; its own log makes writes atomic and a crash leave a prefix.

Keys, so that the versions of a key lie together with the newest first, and those of a timeline too:

    "v" timeline(16) key(18) ~lsn(8)   value           an object; ~lsn is 2^64 - 1 - LSN, big-endian
    "u" timeline(16) key(18) ~lsn(8)   nothing         the object is unfinished
    "t" timeline(16)                   JSON            the timeline's record
    "f"                                "1"             version of this format

RocksDB checks the checksums of what it reads. After a failed write (a full disk, say) it may refuse all later ones
until it is opened again; reads go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rocksdict import DbClosedError, Options, Rdict, RdictIter, WriteBatch

from pageserver.errors import CorruptDataError, StoppedError, UnavailableError
from pageserver.repository.object_store import MAX_LSN, Changes, TimelineRecord

_FORMAT = b"1"
_ID_SIZE = 16
_KEY_SIZE = 18
_LSN_SIZE = 8
_OBJECT_SIZE = 1 + _ID_SIZE + _KEY_SIZE + _LSN_SIZE
_KEPT_LOGS = 2
_WRITE_BUFFER_BYTES = 16 << 20


class RocksView:
    """One moment of the database, for one thread: all reads go through one iterator, which sees what was there when it
    was made. (A snapshot of the library would be the usual way, but its iterators see later writes: rocksdict 0.3.29.)

    Nothing keeps the iterator once the view is closed: a forgotten one would keep the database locked.
    """

    def __init__(self, iterator: RdictIter) -> None:
        self._iterator: RdictIter | None = iterator

    def close(self) -> None:
        self._iterator = None

    def versions(self, timeline_id: bytes, key: bytes, max_lsn: int) -> Iterator[tuple[int, bytes]]:
        prefix = b"v" + timeline_id + key
        for name, value in self._walk(prefix + _inverted(max_lsn)):
            if not name.startswith(prefix):
                return
            yield _lsn_of(name), value

    def entries(self, timeline_id: bytes, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, int, bytes]]:
        prefix = b"v" + timeline_id
        for name, value in self._walk(prefix + start):
            key = name[1 + _ID_SIZE : -_LSN_SIZE]
            if not name.startswith(prefix) or (end is not None and key >= end):
                return
            yield key, _lsn_of(name), value

    def with_prefix(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield names and values of everything whose name begins so."""
        for name, value in self._walk(prefix):
            if not name.startswith(prefix):
                return
            yield name, value

    def _walk(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield what is at and behind a name. Another walk over the same view ends this one."""
        found = self._step(start)
        while found is not None:
            yield found
            found = self._step(None)

    def _step(self, start: bytes | None) -> tuple[bytes, bytes] | None:
        assert self._iterator is not None, "the view was closed"
        with _told():
            if start is None:
                self._iterator.next()
            else:
                self._iterator.seek(start)
            if self._iterator.valid():
                return self._iterator.key(), self._iterator.value()
            self._iterator.status()
            return None


class RocksObjectStore:
    """`ObjectStore` over the database in `directory`, which is created if it is not there.

    Raises: UnavailableError (another process has it open, the disk fails), CorruptDataError (another format, damage).
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
        options.set_keep_log_file_num(_KEPT_LOGS)
        options.set_paranoid_checks(True)
        with _told():
            self._database = Rdict(str(directory), options)
        try:
            self._check_format()
        except BaseException:
            self._database.close()
            raise

    @contextlib.contextmanager
    def view(self) -> Iterator[RocksView]:
        with _told():
            view = RocksView(self._database.iter())
        try:
            yield view
        finally:
            view.close()

    def write(self, changes: Changes) -> None:
        batch = WriteBatch(raw_mode=True)
        for timeline_id, key, lsn, value in changes.puts:
            batch.put(_object_name(timeline_id, key, lsn), value)
        for timeline_id, key, lsn in changes.unlinks:
            batch.delete(_object_name(timeline_id, key, lsn))
        for timeline_id in changes.finished:
            batch.delete_range(b"u" + timeline_id, b"u" + _after(timeline_id))
        for timeline_id, key, lsn in changes.unfinished:
            batch.put(b"u" + _object_name(timeline_id, key, lsn)[1:], b"")
        for record in changes.records:
            batch.put(b"t" + record.timeline_id, record.encode())
        with _told():
            self._database.write(batch)

    def sync(self) -> None:
        with _told():
            self._database.flush_wal(True)

    def records(self) -> list[TimelineRecord]:
        with self.view() as view:
            return [TimelineRecord.decode(value) for _, value in view.with_prefix(b"t")]

    def unfinished(self, timeline_id: bytes) -> list[tuple[bytes, int]]:
        with self.view() as view:
            names = [name for name, _ in view.with_prefix(b"u" + timeline_id)]
        return [(name[1 + _ID_SIZE : -_LSN_SIZE], _lsn_of(name)) for name in names]

    def drop_timeline(self, timeline_id: bytes) -> None:
        batch = WriteBatch(raw_mode=True)
        batch.delete(b"t" + timeline_id)
        for kind in (b"v", b"u"):
            batch.delete_range(kind + timeline_id, kind + _after(timeline_id))
        with _told():
            self._database.write(batch)
        self.sync()

    def size_bytes(self) -> int:
        with _told():
            return int(self._database.property_int_value("rocksdb.total-sst-files-size") or 0)

    def close(self) -> None:
        """Close the database; what was written is durable afterwards."""
        with contextlib.suppress(StoppedError), _told():
            self._database.flush_wal(True)
            self._database.close()

    def _check_format(self) -> None:
        with _told():
            found = self._database.get(b"f")
        if found is None:
            with _told():
                self._database.put(b"f", _FORMAT)
        elif found != _FORMAT:
            raise CorruptDataError(
                f"{self.directory} holds a repository of format {found!r}, this release knows {_FORMAT!r}",
                path=str(self.directory),
            )


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn the library's errors into ours: it raises bare `Exception` with RocksDB's text."""
    try:
        yield
    except DbClosedError as error:
        raise StoppedError("the repository is closed") from error
    except Exception as error:
        text = str(error)
        if text.startswith("Corruption"):
            raise CorruptDataError(f"rocksdb: {text}") from error
        raise UnavailableError(f"rocksdb: {text}") from error


def _object_name(timeline_id: bytes, key: bytes, lsn: int) -> bytes:
    name = b"v" + timeline_id + key + _inverted(lsn)
    assert len(name) == _OBJECT_SIZE, "ids have 16 bytes, keys 18"
    return name


def _inverted(lsn: int) -> bytes:
    return (MAX_LSN - lsn).to_bytes(_LSN_SIZE, "big")


def _lsn_of(name: bytes) -> int:
    return MAX_LSN - int.from_bytes(name[-_LSN_SIZE:], "big")


def _after(timeline_id: bytes) -> bytes:
    """Return what sorts behind everything that begins with this id."""
    return timeline_id + b"\xff" * (_KEY_SIZE + _LSN_SIZE + 1)
