"""A disk that loses what was not synced.

`TrackedDisk` watches one directory of the real file system while a test's server works in it, and knows at each moment
two images of it:

    current    what the kernel would show: this is what a killed process leaves
    durable    what fsync has made certain: this is the least that a power failure leaves

A file's content is durable as it was at its last fsync; a directory's entries (names, and which file or directory each
one is) are durable as they were at the directory's last fsync. So a file that was renamed into place and synced is
still lost if its directory was not, and a file whose directory was synced and itself was not is there and empty.
Between the two images lies everything that a kernel may have written early on its own: `mixed` picks for each file and
each directory one of the two.

Inodes are kept alive by a second link (files) or a descriptor (directories), so that a number never means two things.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

_link = os.link
"""The kernel's, whatever a test puts in its place."""

_NUMBER = re.compile(r"\.[0-9a-f-]+(?=\.___temp$)")


@dataclass(frozen=True)
class Image:
    """Directories and files by inode; `root` is the inode of the top directory. Never changed once made."""

    root: int
    directories: dict[int, dict[str, int]]
    contents: dict[int, bytes]

    def write(self, target: Path) -> None:
        """Make real files of it below `target`, a new directory."""
        target.mkdir(parents=True)
        for path, inode in self.walk():
            if inode in self.directories:
                (target / path).mkdir()
            else:
                (target / path).write_bytes(self.contents.get(inode, b""))

    def walk(self) -> list[tuple[str, int]]:
        """Return relative paths and inodes, parents first."""
        found: list[tuple[str, int]] = []
        waiting = [("", self.root)]
        while waiting:
            prefix, directory = waiting.pop()
            for name, inode in sorted(self.directories.get(directory, {}).items()):
                found.append((prefix + name, inode))
                if inode in self.directories:
                    waiting.append((f"{prefix}{name}/", inode))
        return found

    def listing(self) -> tuple[tuple[str, bytes | None], ...]:
        """Return what is seen: paths and contents, None for a directory. Two images are equal if these are."""
        return tuple(
            (path, None if inode in self.directories else self.contents.get(inode, b"")) for path, inode in self.walk()
        )


@dataclass
class TrackedDisk:
    """The tracked directory is `root`; `graveyard` is a directory beside it on the same file system."""

    root: Path
    graveyard: Path
    _directories: dict[int, dict[str, int]] = field(default_factory=dict)
    _contents: dict[int, bytes] = field(default_factory=dict)
    _held: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graveyard.mkdir(parents=True, exist_ok=True)
        self.sync_everything()

    def close(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)

    def contains(self, path: str) -> bool:
        return path == str(self.root) or path.startswith(f"{self.root}/")

    def sync_everything(self) -> None:
        """What is there now counts as durable, as after `sync(2)`."""
        image = self.current()
        self._directories = {inode: dict(entries) for inode, entries in image.directories.items()}
        self._contents = dict(image.contents)

    def note_synced(self, descriptor: int) -> None:
        """Take note of an fsync of a file or directory below the root."""
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            self._hold(found.st_ino, path)
            self._directories[found.st_ino] = self._entries(path)
        else:
            self._contents[found.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def durable(self) -> Image:
        """Return what a power failure leaves at least."""
        directories = {inode: dict(entries) for inode, entries in self._directories.items()}
        # A directory that was created and never synced is there, if its parent was, and empty.
        for entries in self._directories.values():
            for inode in entries.values():
                if inode in self._held:
                    directories.setdefault(inode, {})
        return Image(self._root_inode(), directories, dict(self._contents))

    def current(self) -> Image:
        """Return what is there."""
        directories: dict[int, dict[str, int]] = {}
        contents: dict[int, bytes] = {}
        waiting = [self.root]
        while waiting:
            path = waiting.pop()
            inode = path.stat().st_ino
            self._hold(inode, path)
            directories[inode] = self._entries(path)
            for name, child in directories[inode].items():
                below = path / name
                if child in self._held:
                    waiting.append(below)
                else:
                    contents[child] = below.read_bytes()
        return Image(self._root_inode(), directories, contents)

    def _root_inode(self) -> int:
        return self.root.stat().st_ino

    def _entries(self, path: Path) -> dict[str, int]:
        entries: dict[str, int] = {}
        for entry in os.scandir(path):
            entries[entry.name] = entry.inode()
            self._hold(entry.inode(), Path(entry.path))
        return entries

    def _hold(self, inode: int, path: Path) -> None:
        if path.is_dir():
            if inode not in self._held:
                self._held[inode] = os.open(path, os.O_PATH)
        elif not (self.graveyard / str(inode)).exists():
            _link(path, self.graveyard / str(inode))


def mixed(durable: Image, current: Image, seed: str) -> Image:
    """Return one of the many images that a power failure may leave: of what was not synced, some was written.

    Which, follows from the seed and the names, without the numbers that make temporary names unique: those count what
    the process has written before, and the same seed must give the same image in every run.
    """
    names = {inode: _NUMBER.sub("", path) for path, inode in (*durable.walk(), *current.walk())}

    def was_written(inode: int) -> bool:
        return Random(f"{seed} {names.get(inode, '')}").random() < 0.5

    directories = dict(durable.directories)
    for inode, entries in current.directories.items():
        if inode not in directories or was_written(inode):
            directories[inode] = entries
    contents = dict(durable.contents)
    for inode, content in current.contents.items():
        if was_written(inode):
            contents[inode] = content
    return Image(durable.root, directories, contents)
