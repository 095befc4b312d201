"""What an upload queue may do, and which operation may overtake which (remote-storage.md 9.2 to 9.4).

    candidate \\ other │ UploadLayer    DeleteLayers   UploadIndex          Barrier, Shutdown
    ───────────────────┼────────────────────────────────────────────────────────────────────
    UploadLayer        │ other file     not listed     A and it: no mention       never
    DeleteLayers       │ not listed     always         A and it: no mention       never
    UploadIndex        │ A and c: no m. A and c: no m. never                      never
    Barrier, Shutdown  │ never          never          never                      never

`A` is the index that is active at the other's place: the one in the store, replaced by each upload of an index that
lies before. Why: an index appears only after all layers that it names; a file is neither changed nor removed while the
active index names it; indices land in order. The same file = same name, shard and generation.

Everything here is pure: what to start next is a function of what runs, what waits, and the index in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from pageserver.remote.index_part import IndexPart, LayerEntry


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One layer object: two are the same if name, shard and generation are. The size is only carried along."""

    name: str
    entry: LayerEntry

    def is_same(self, other: LayerFile) -> bool:
        return self.name == other.name and is_same_object(self.entry, other.entry)

    def is_named_by(self, index: IndexPart) -> bool:
        entry = index.layers.get(self.name)
        return entry is not None and is_same_object(entry, self.entry)


@dataclass(frozen=True, slots=True, eq=False)
class UploadLayer:
    file: LayerFile

    def __str__(self) -> str:
        return f"UploadLayer({self.file.name}, size={self.file.entry.file_size})"


@dataclass(frozen=True, slots=True, eq=False)
class UploadIndex:
    """A full copy of what shall be true, taken when it was scheduled."""

    index: IndexPart

    def __str__(self) -> str:
        return f"UploadMetadata(lsn: {self.index.disk_consistent_lsn})"


@dataclass(frozen=True, slots=True, eq=False)
class DeleteLayers:
    files: tuple[LayerFile, ...]

    def __str__(self) -> str:
        return f"Delete({len(self.files)} layers)"


@dataclass(frozen=True, slots=True, eq=False)
class Barrier:
    """Completes when everything before it has."""

    reached: asyncio.Future[None]

    def __str__(self) -> str:
        return "Barrier"


@dataclass(frozen=True, slots=True, eq=False)
class Shutdown:
    """Stays at the head for ever: nothing starts after it."""

    def __str__(self) -> str:
        return "Shutdown"


Operation = UploadLayer | UploadIndex | DeleteLayers | Barrier | Shutdown


@dataclass(frozen=True, slots=True)
class Choice:
    """What to take from the queue next. `coalesced` are indices that need not be uploaded, since `operation` is newer
    and adjacent; all of them leave the queue. `position` is where `operation` and they were.
    """

    operation: Operation
    position: int
    coalesced: tuple[UploadIndex, ...] = field(default=())


def is_same_object(left: LayerEntry, right: LayerEntry) -> bool:
    return left.shard == right.shard and left.generation == right.generation


def may_bypass(candidate: Operation, other: Operation, active: IndexPart) -> bool:
    """Return whether `candidate` may start while `other`, before it or running, is unfinished."""
    match candidate, other:
        case UploadLayer(file), UploadLayer(other_file):
            return not file.is_same(other_file)
        case UploadLayer(file), DeleteLayers(files):
            return not any(file.is_same(other_file) for other_file in files)
        case UploadLayer(file), UploadIndex(index):
            return not (file.is_named_by(index) or file.is_named_by(active))
        case DeleteLayers(files), UploadLayer(other_file):
            return not any(file.is_same(other_file) for file in files)
        case DeleteLayers(), DeleteLayers():
            return True
        case DeleteLayers(files), UploadIndex(index):
            return not any(file.is_named_by(index) or file.is_named_by(active) for file in files)
        case UploadIndex(index), UploadLayer(file):
            return not (file.is_named_by(index) or file.is_named_by(active))
        case UploadIndex(index), DeleteLayers(files):
            return not any(file.is_named_by(index) or file.is_named_by(active) for file in files)
        case _:
            return False


@dataclass(frozen=True, slots=True)
class UploadPolicy:
    """How an upload queue works: at most `limit` operations at once (0: any number). Without `reorders` only the head
    may start, without `coalesces` every index is uploaded: switches for finding errors (9.4).
    """

    limit: int = 100
    reorders: bool = True
    coalesces: bool = True

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, limit: int) -> UploadPolicy:
        """Read Neon's two environment variables."""

        def is_set(name: str) -> bool:
            return environment.get(name, "").lower() == "true"

        return cls(
            limit,
            reorders=not is_set("DISABLE_UPLOAD_QUEUE_REORDERING"),
            coalesces=not is_set("DISABLE_UPLOAD_QUEUE_INDEX_COALESCING"),
        )


def choose_next(
    running: Iterable[Operation],
    queued: Sequence[Operation],
    clean: IndexPart,
    policy: UploadPolicy = UploadPolicy(),
) -> Choice | None:
    """Return what may start now, or None; the limit is the caller's to keep.

    Scans front to back and takes the first that may overtake everything before it. A barrier or shutdown that is not
    ready ends the scan; a ready shutdown is returned, and is the caller's to leave where it is.
    """
    running = list(running)
    for position, candidate in enumerate(queued):
        if _is_ready(candidate, running, islice(queued, position), clean):
            if not policy.coalesces:
                return Choice(candidate, position)
            return _with_newer_indices(candidate, position, running, queued, clean)
        if not policy.reorders or isinstance(candidate, Barrier | Shutdown):
            return None
    return None


def _is_ready(
    candidate: Operation, running: Sequence[Operation], before: Iterable[Operation], clean: IndexPart
) -> bool:
    active = clean
    for other in chain(running, before):
        if not may_bypass(candidate, other, active):
            return False
        if isinstance(other, UploadIndex):
            active = other.index
    return True


def _with_newer_indices(
    candidate: Operation, position: int, running: Sequence[Operation], queued: Sequence[Operation], clean: IndexPart
) -> Choice:
    """Replace an index by the directly adjacent newer ones, as far as they are ready in its place."""
    coalesced: list[UploadIndex] = []
    following = position + 1
    while isinstance(candidate, UploadIndex) and following < len(queued):
        newer = queued[following]
        if not isinstance(newer, UploadIndex) or not _is_ready(newer, running, islice(queued, position), clean):
            break
        coalesced.append(candidate)
        candidate, following = newer, following + 1
    return Choice(candidate, position, tuple(coalesced))
