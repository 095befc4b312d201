"""Matching a timeline's directory with its index after a start (layer-files.md 2.4, 2.5; tenants.md 6.5).

The index is the truth, local files a cache of it. The plan is made from two listings and touches nothing; `tidy_files`
does what it says.

A file without a generation in its name is of an old release (remote-storage.md 2.4): it counts if its size is right,
and gets the name that ours have. Stricter than Neon: one of another generation than the index says does not count. The
timeline may have been deleted elsewhere and made anew under its id, with layers of the same names and sizes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pageserver.errors import CorruptDataError
from pageserver.remote import IndexPart, LayerName, LayerNameError, paths
from pageserver.remote.local_store import sync_directory

_EPHEMERAL = re.compile(r"ephemeral-(\d+)", re.ASCII)
_SHOWN_MAX = 10


class UnrecognizedFilesError(CorruptDataError):
    """A timeline's directory holds files that nobody of ours wrote: better not to touch anything."""

    def __init__(self, *, names: list[str]) -> None:
        shown = ", ".join(f'"{name}"' for name in names[:_SHOWN_MAX])
        super().__init__(
            f"unrecognized files in timeline dir (total {len(names)}), first {_SHOWN_MAX}: [{shown}]", names=names
        )


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to do with each file and each layer. Names of layers are logical, of files as they are in the directory.
    Layers `elsewhere` are brought when a read needs them. `files_to_rename` maps to the new names; what has those now
    is removed before.
    """

    resident: tuple[str, ...]
    elsewhere: tuple[str, ...]
    from_the_future: tuple[str, ...]
    files_to_remove: tuple[str, ...]
    files_to_rename: Mapping[str, str]


def plan_load(files: Mapping[str, int], index: IndexPart) -> LoadPlan:
    """Compare the files (name to size) of a timeline's directory with its index. Raises UnrecognizedFilesError."""
    future = {name for name in index.layers if LayerName.parse(name).is_from_the_future(index.disk_consistent_lsn)}
    wanted = {
        paths.local_layer_name(name, entry.generation): (name, entry.file_size)
        for name, entry in index.layers.items()
        if name not in future
    }
    old_names = {
        name: file
        for file, (name, size) in wanted.items()
        if file != name and files.get(name) == size and files.get(file) != size
    }
    resident: list[str] = []
    remove: list[str] = []
    unknown: list[str] = []
    for file, size in sorted(files.items()):
        # Temporaries first: the lenient rule for names would take some of them for layers (layer-files.md 2.4).
        if file.endswith(paths.LAYER_TEMPORARY_SUFFIXES) or _is_ephemeral(file):
            remove.append(file)
        elif file in wanted and wanted[file][1] == size:
            resident.append(wanted[file][0])
        elif file in old_names:
            resident.append(file)
        elif _is_layer(file):
            remove.append(file)
        else:
            unknown.append(file)
    if unknown:
        raise UnrecognizedFilesError(names=unknown)
    here = set(resident)
    return LoadPlan(
        resident=tuple(resident),
        elsewhere=tuple(name for name, _ in wanted.values() if name not in here),
        from_the_future=tuple(sorted(future)),
        files_to_remove=tuple(remove),
        files_to_rename=old_names,
    )


def list_directory(directory: Path) -> dict[str, int]:
    """Return names and sizes of all entries of a timeline's directory, which is created if absent."""
    directory.mkdir(parents=True, exist_ok=True)
    with os.scandir(directory) as entries:
        return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in entries}


def tidy_files(directory: Path, plan: LoadPlan) -> None:
    """Remove and rename what the plan says. What stays is never read before this is done."""
    for name in plan.files_to_remove:
        (directory / name).unlink(missing_ok=True)
    for name, new_name in plan.files_to_rename.items():
        (directory / name).rename(directory / new_name)
    if plan.files_to_remove or plan.files_to_rename:
        sync_directory(directory)


def _is_ephemeral(name: str) -> bool:
    """The number behind the name has 32 bits."""
    match = _EPHEMERAL.fullmatch(name)
    return match is not None and int(match[1]) <= 0xFFFF_FFFF


def _is_layer(name: str) -> bool:
    try:
        LayerName.parse(name)
    except LayerNameError:
        return False
    return True
