"""Writing a restored data directory: parallel tar streams in, a directory that starts (or nothing) out.

Invariant: DIR appears complete and fsynced, by one rename, or not at all. So a half-written restore cannot be started.
Steps: (1) DIR must be absent or empty; (2) everything is written below a temporary sibling `.<name>.restore-<pid>`,
and mapped tablespaces below `<location>/.restore-<pid>`; (3) files and directories are fsynced; (4) tablespaces are
renamed into their locations; (5) the temporary directory is renamed to DIR; (6) the parent is fsynced. A failure
before step 5 removes what was made. Source: spec stock.md 3.4, 3.5.
"""

import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pageserver.errors import CorruptDataError, RequestError

COPY_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Tablespace:
    """A user tablespace of the restored cluster: its oid and where the source keeps it."""

    oid: int
    location: str


@dataclass(frozen=True, slots=True)
class Target:
    """Where a restore goes: the directory, and for tablespaces a mapping from the source's locations to new ones."""

    directory: Path
    tablespace_mapping: Mapping[str, Path] = field(default_factory=dict)


class RestoreTargetError(RequestError):
    """The target of a restore cannot be used."""


OpenPart = Callable[[int], AbstractContextManager[IO[bytes]]]


def restore(
    target: Target,
    *,
    parts: int,
    directories: list[str],
    tablespaces: list[Tablespace],
    open_part: OpenPart,
    on_bytes: Callable[[int], None],
) -> None:
    """Write the data directory that `parts` tar streams hold together.

    `open_part(i)` gives stream i as a file object; `on_bytes` hears how many bytes of file data were written, from
    several threads.
    Raises: RestoreTargetError (choose another target), CorruptDataError (a stream ended early or holds what it must
    not).
    """
    _check(target, tablespaces)
    staging = target.directory.parent / f".{target.directory.name}.restore-{os.getpid()}"
    homes = _tablespace_homes(target, staging, tablespaces)
    try:
        staging.mkdir(mode=0o700)
        for home in homes.values():
            home.staging.mkdir(parents=True, mode=0o700)
        for name in directories:
            _inside(staging, homes, name).mkdir(parents=True, exist_ok=True, mode=0o700)
        for tablespace in tablespaces:
            link = staging / "pg_tblspc" / str(tablespace.oid)
            link.parent.mkdir(exist_ok=True, mode=0o700)
            link.symlink_to(homes[tablespace.oid].final)
        given_up = threading.Event()

        def take(count: int) -> None:
            if given_up.is_set():
                raise CorruptDataError("the restore was given up")
            on_bytes(count)

        with ThreadPoolExecutor(max_workers=parts, thread_name_prefix="restore") as pool:
            try:
                extracting = [pool.submit(_extract, open_part, i, staging, homes, take) for i in range(parts)]
                for done in extracting:
                    done.result()
            except BaseException:
                given_up.set()  # or the other parts would be written to their end first
                raise
        _fsync_tree(staging)
        for home in homes.values():
            _fsync_tree(home.staging)
            home.publish()
        if target.directory.exists():
            target.directory.rmdir()
        staging.rename(target.directory)
        _fsync_directory(target.directory.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for home in homes.values():
            home.discard()
        raise


@dataclass(slots=True)
class _Home:
    """Where one tablespace's files are written, and where they end up."""

    staging: Path
    final: Path
    published: list[Path] = field(default_factory=list)

    def publish(self) -> None:
        """Move the files to their location; inside of the data directory they move with it."""
        if self.staging.name.startswith(".restore-"):
            for child in list(self.staging.iterdir()):
                child.rename(self.final / child.name)
                self.published.append(self.final / child.name)
            self.staging.rmdir()
            _fsync_directory(self.final)

    def discard(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)
        for path in self.published:
            shutil.rmtree(path, ignore_errors=True)


def _check(target: Target, tablespaces: list[Tablespace]) -> None:
    """Refuse a target before anything is made. Raises: RestoreTargetError."""
    directory = target.directory
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RestoreTargetError(
            f"{directory} exists and is not an empty directory", hint="name a directory that does not exist yet"
        )
    if not directory.parent.is_dir():
        raise RestoreTargetError(
            f"{directory.parent} is not a directory", hint="make the parent of the restored directory first"
        )
    locations = {tablespace.location for tablespace in tablespaces}
    for location, mapped in target.tablespace_mapping.items():
        if location not in locations:
            raise RestoreTargetError(
                f"no tablespace has the location {location!r} at this lsn", hint=f"locations are {sorted(locations)}"
            )
        if mapped.exists() and (not mapped.is_dir() or any(mapped.iterdir())):
            raise RestoreTargetError(f"tablespace location {mapped} is not an empty directory")


def _tablespace_homes(target: Target, staging: Path, tablespaces: list[Tablespace]) -> dict[int, _Home]:
    """Return where each tablespace goes: its mapping, else a place inside of the data directory."""
    homes = {}
    for tablespace in tablespaces:
        mapped = target.tablespace_mapping.get(tablespace.location)
        if mapped is None:
            inside = Path("tablespaces") / str(tablespace.oid)
            homes[tablespace.oid] = _Home(staging / inside, target.directory.absolute() / inside)
        else:
            homes[tablespace.oid] = _Home(mapped / f".restore-{os.getpid()}", mapped.absolute())
    return homes


def _inside(staging: Path, homes: Mapping[int, _Home], name: str) -> Path:
    """Return where member `name` is written. Raises: CorruptDataError if it would leave the directory."""
    parts = Path(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        raise CorruptDataError(f"member {name!r} of the restore stream leaves the data directory")
    if parts[0] == "pg_tblspc" and len(parts) > 1:
        return homes[int(parts[1])].staging.joinpath(*parts[2:])
    return staging.joinpath(*parts)


def _extract(
    open_part: OpenPart, part: int, staging: Path, homes: Mapping[int, _Home], on_bytes: Callable[[int], None]
) -> None:
    with open_part(part) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|", bufsize=COPY_CHUNK) as archive:
                for member in archive:
                    if not member.isfile():
                        raise CorruptDataError(f"member {member.name!r} of the restore stream is not a regular file")
                    source = archive.extractfile(member)
                    assert source is not None, "regular files have data"
                    _write(_inside(staging, homes, member.name), source, member.size, on_bytes)
        except tarfile.ReadError as error:
            raise CorruptDataError(f"restore stream {part} ended early: {error}") from error
        # The server ends a broken stream without the end-of-archive marker; reading on shows a late error of the
        # transport.
        while stream.read(COPY_CHUNK):
            pass


def _write(path: Path, source: IO[bytes], size: int, on_bytes: Callable[[int], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(path, "xb", opener=_private) as file:
        left = size
        while left:
            chunk = source.read(min(COPY_CHUNK, left))
            if not chunk:
                raise CorruptDataError(
                    f"restore stream ended inside of {path.name}: {left} of {size} bytes are missing"
                )
            file.write(chunk)
            left -= len(chunk)
            on_bytes(len(chunk))
        file.flush()
        os.fsync(file.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(root: Path) -> None:
    """Make every directory entry below `root` durable; files were synced when they were written."""
    for directory, _, _ in os.walk(root):
        _fsync_directory(Path(directory))


def give_to(user: str, roots: list[Path]) -> None:
    """Make `user` the owner of everything below `roots`: a PostgreSQL server refuses to run as root."""
    for root in roots:
        for path in [root, *root.rglob("*")]:
            if not path.is_symlink():
                shutil.chown(path, user)
