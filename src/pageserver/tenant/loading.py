"""Finding and opening a tenant's timelines at attach (tenants.md 6.3, 6.4; remote-storage.md 13).

An index is what makes a timeline exist. What cannot be read or opened is Broken alone, together with the branches that
need it: the rest is served. Only what puts the whole attach in doubt breaks the tenant: an index that may be outdated,
a manifest that does not decode, files in a timeline's directory that nobody of ours wrote, an index that blocks garbage
collection for no reason.

Whatever ends a load early, a failure or the end of the tenant, closes what it has opened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from pageserver.errors import PageServerError, UnavailableError
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.remote import IndexPart, ObjectNotFoundError, paths
from pageserver.remote.generations import IndexOutdatedError, find_index
from pageserver.remote.retry import pause_seconds
from pageserver.remote.source_document import SourceDocument, read_source_document
from pageserver.remote.tenant_manifest import ManifestKeeper, OffloadedTimeline
from pageserver.remote.tombstones import list_sources
from pageserver.tenant.opening import TimelineOpener, check_gc_blocking, remove_tree
from pageserver.tenant.resources import TenantResources
from pageserver.timeline import Timeline
from pageserver.timeline.load import UnrecognizedFilesError

_READS_MAX = 32
_T = TypeVar("_T")


@dataclass(slots=True)
class LoadOutcome:
    """What an attach found. `broken` maps to the reason, `importing` to the document that says how to begin again."""

    loaded: list[Timeline] = field(default_factory=list)
    broken: dict[TimelineId, str] = field(default_factory=dict)
    importing: dict[TimelineId, SourceDocument] = field(default_factory=dict)
    deleted: list[TimelineId] = field(default_factory=list)
    buried: set[TimelineId] = field(default_factory=set)
    offloaded: list[OffloadedTimeline] = field(default_factory=list)


@dataclass(slots=True)
class _Found:
    indices: dict[TimelineId, IndexPart] = field(default_factory=dict)
    marked: dict[TimelineId, IndexPart] = field(default_factory=dict)
    documents: dict[TimelineId, SourceDocument] = field(default_factory=dict)


async def load_timelines(
    resources: TenantResources,
    opener: TimelineOpener,
    keeper: ManifestKeeper,
    shard: TenantShardId,
    generation: Generation,
) -> LoadOutcome:
    """Open everything that exists, ancestors first, and remove local directories that nothing names.

    Raises ManifestDecodeError, IndexOutdatedError, UnrecognizedFilesError, and CorruptDataError if an index blocks
    collection for no reason, which is the whole tenant's (5.6): then the tenant is Broken.
    """
    manifest = await insist(keeper.read, resources)
    outcome = LoadOutcome(offloaded=[] if manifest is None else list(manifest.offloaded_timelines))
    started = resources.clock.monotonic_seconds()
    found = await _read_documents(resources, shard, generation, outcome)
    preloaded = resources.clock.monotonic_seconds()
    resources.counts.preload_seconds.observe(preloaded - started)
    _keep_ancestors(found, outcome, resources)
    for timeline_id, index in found.indices.items():
        check_gc_blocking(timeline_id, index)
    try:
        await _open_all(opener, found, outcome)
        keep = {*found.indices, *outcome.broken, *outcome.importing, *outcome.deleted}
        await asyncio.to_thread(_purge, paths.timelines_directory(resources.workdir, shard), keep, resources)
        await opener.keep_only(keep)
    except BaseException:
        for timeline in reversed(outcome.loaded):
            await timeline.close()
        raise
    resources.counts.attach_seconds.observe(resources.clock.monotonic_seconds() - preloaded)
    return outcome


async def _open_all(opener: TimelineOpener, found: _Found, outcome: LoadOutcome) -> None:
    """Open what was found; what fails alone goes to `outcome.broken`."""
    loaded: dict[TimelineId, Timeline] = {}
    for timeline_id in ancestors_first(found.indices, outcome.broken):
        index = found.indices[timeline_id]
        ancestor_id = index.metadata.ancestor_timeline
        try:
            timeline = await opener.load(
                timeline_id,
                index,
                found.documents.get(timeline_id),
                None if ancestor_id is None else loaded[ancestor_id],
            )
        except UnrecognizedFilesError:
            raise
        except KeyError:
            outcome.broken[timeline_id] = f"its ancestor {ancestor_id} could not be loaded"
        except (PageServerError, OSError) as error:
            outcome.broken[timeline_id] = str(error)
        else:
            loaded[timeline_id] = timeline
            outcome.loaded.append(timeline)


def _keep_ancestors(found: _Found, outcome: LoadOutcome, resources: TenantResources) -> None:
    """Ignore the mark of a deletion on a timeline that has branches: a server that had been overtaken set it, without
    knowing of them, and crashed before it took it back (`deletion`). The next index says so too.
    """
    while doomed := {
        ancestor
        for ancestor in (
            *(index.metadata.ancestor_timeline for index in found.indices.values()),
            *(record.ancestor_timeline_id for record in outcome.offloaded),
        )
        if ancestor is not None and ancestor in found.marked
    }:
        for timeline_id in doomed:
            resources.log.error(
                "a timeline is marked as deleted, but has branches: it is kept", timeline=str(timeline_id)
            )
            found.indices[timeline_id] = replace(found.marked.pop(timeline_id), deleted_at=None)
            outcome.deleted.remove(timeline_id)


def ancestors_first(indices: dict[TimelineId, IndexPart], broken: dict[TimelineId, str]) -> list[TimelineId]:
    """Return the ids in an order in which each comes after its ancestor. Those whose ancestor is nowhere go to
    `broken`.
    """
    order: list[TimelineId] = []
    placed: set[TimelineId] = set()
    waiting = sorted(indices)
    while waiting:
        ready = [
            timeline_id
            for timeline_id in waiting
            if (ancestor := indices[timeline_id].metadata.ancestor_timeline) is None or ancestor in placed
        ]
        if not ready:
            for timeline_id in waiting:
                broken[timeline_id] = "could not load timeline because its ancestor is missing"
            break
        order += ready
        placed.update(ready)
        waiting = [timeline_id for timeline_id in waiting if timeline_id not in placed]
    return order


async def _read_documents(
    resources: TenantResources, shard: TenantShardId, generation: Generation, outcome: LoadOutcome
) -> _Found:
    """Read all documents and indices, several at once. Raises IndexOutdatedError: then the whole tenant is in doubt."""
    found = _Found()
    permits = asyncio.Semaphore(_READS_MAX)

    def forget(timeline_id: TimelineId) -> None:
        outcome.importing.pop(timeline_id, None)
        if timeline_id not in outcome.deleted:
            outcome.deleted.append(timeline_id)

    async def read_document(timeline_id: TimelineId) -> None:
        async with permits:
            document = await insist(
                lambda: read_source_document(resources.storage, shard, timeline_id, generation), resources
            )
        if document is not None:
            found.documents[timeline_id] = document
            if document.is_importing:
                outcome.importing[timeline_id] = document

    async def read_index(timeline_id: TimelineId) -> None:
        async with permits:
            content, written = await insist(
                lambda: find_index(resources.storage, shard, timeline_id, generation, now=resources.clock.now()),
                resources,
            )
        if sources.is_over(timeline_id, written):
            resources.log.warning(
                "a deleted timeline's index was written again; the deletion is repeated", timeline=str(timeline_id)
            )
            forget(timeline_id)
            return
        index = IndexPart.decode(content)
        if index.deleted_at is not None:
            outcome.deleted.append(timeline_id)
            found.marked[timeline_id] = index
            outcome.importing.pop(timeline_id, None)
        elif timeline_id not in outcome.importing and timeline_id not in outcome.broken:
            found.indices[timeline_id] = index

    async def read(work: Callable[[TimelineId], Awaitable[None]], timeline_id: TimelineId) -> None:
        try:
            await work(timeline_id)
        except IndexOutdatedError as error:
            resources.log.error(
                "Found a newer index while loading an old one",
                timeline=str(timeline_id),
                found=str(error.facts["found"]),
                newest=str(error.facts["newest"]),
            )
            raise
        except ObjectNotFoundError:
            return
        except PageServerError as error:
            outcome.broken[timeline_id] = str(error)

    await resources.failpoints.fail("storage-sync-list-remote-timelines", text="{}")
    ids = await _list_ids(resources, paths.timelines_prefix(shard))
    offloaded = {entry.timeline_id for entry in outcome.offloaded}
    outcome.offloaded = [entry for entry in outcome.offloaded if entry.timeline_id in ids]
    sources = await list_sources(resources.storage, shard, generation)
    outcome.buried = {timeline_id for timeline_id, written in sources.tombstones.items() if written == generation}
    for timeline_id, written in sources.documents.items():
        if sources.is_over(timeline_id, written):
            forget(timeline_id)
    for work, wanted in (
        (read_document, [timeline_id for timeline_id in sources.documents if timeline_id not in outcome.deleted]),
        (read_index, [timeline_id for timeline_id in ids if timeline_id not in offloaded]),
    ):
        results = await asyncio.gather(
            *(read(work, timeline_id) for timeline_id in wanted if timeline_id not in offloaded),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
    return found


async def insist(work: Callable[[], Awaitable[_T]], resources: TenantResources) -> _T:
    """Repeat a read while the store is away: an outage is no reason to call a timeline broken (4.4)."""
    failures = 0
    while True:
        try:
            return await work()
        except UnavailableError as error:
            resources.log.warning("reading from the store failed, will retry", attempt=failures, error=str(error))
            await resources.clock.sleep(pause_seconds(failures))
            failures += 1


async def _list_ids(resources: TenantResources, prefix: str) -> list[TimelineId]:
    ids = []
    for name in await resources.storage.list_directories(prefix):
        try:
            ids.append(TimelineId.parse(name))
        except PageServerError:
            resources.log.warning("Unexpected non timeline key", key=f"{prefix}{name}")
    return ids


def _purge(directory: Path, keep: set[TimelineId], resources: TenantResources) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(directory.iterdir()):
        if path.name.endswith(paths.DIRECTORY_TEMPORARY_SUFFIX):
            if path.is_dir():
                remove_tree(path)
            else:
                path.unlink()
            continue
        try:
            timeline_id = TimelineId.parse(path.name)
        except PageServerError:
            resources.log.warning("Unparseable directory in timelines directory, ignoring", path=str(path))
            continue
        if timeline_id not in keep:
            resources.log.info("removing a timeline directory without an index", timeline=str(timeline_id))
            remove_tree(path)
