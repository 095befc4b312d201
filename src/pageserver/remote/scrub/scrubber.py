"""Looks at a bucket, tenant by tenant, and deletes orphans if it is told to.

One look at a tenant, in this order, since servers go on writing:
1. list everything below the tenant, its source documents and its names;
2. read the newest index of every timeline, with the time at which it was written;
3. list the claims, last: who claims later than that reads an index at least as new as ours (see `orphans`);
4. judge. Whatever seems missing is asked for by its key, and then the index is read again: only if it is still the
   same one has the layer really gone.

A purge takes a second look and deletes what was an orphan both times, is old enough, and was not written anew.
Nothing below `generations/` is ever deleted: claims fence servers that were overtaken.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from pageserver.clock import Clock
from pageserver.errors import PageServerError
from pageserver.ids import Generation, IdParseError, TenantId, TenantShardId, TimelineId
from pageserver.remote import paths
from pageserver.remote.generations import generation_of_key
from pageserver.remote.index_part import IndexDecodeError, IndexPart, LayerEntry
from pageserver.remote.names import NamesDecodeError, decode_names
from pageserver.remote.scrub.deep import check_layer_object
from pageserver.remote.scrub.inventory import ShardInventory, StoredTimeline, TenantInventory, take_inventory
from pageserver.remote.scrub.judge import Suspect, find_suspects, judge_index, judge_manifest
from pageserver.remote.scrub.orphans import KnownIndices, find_leftovers
from pageserver.remote.scrub.report import Finding, Level, Orphan, ScrubReport
from pageserver.remote.source_document import read_source_document
from pageserver.remote.storage import DELETE_CHUNK, ObjectNotFoundError, ObjectStorage, StoredObject
from pageserver.remote.tenant_manifest import ManifestDecodeError, TenantManifest

_READS_MAX = 16
_DEEP_READS_MAX = 3
_LOOKS_MAX = 3


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a scrub is: `done` of `total` tenants, or layers of one tenant."""

    what: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class ReadIndex:
    """An index as it was read: `index` is None if it does not decode, and then `problem` says why."""

    key: str
    content: bytes
    index: IndexPart | None
    problem: str | None = None


@dataclass(slots=True)
class Look:
    """One look at a tenant. `newest` and `before` are by the timeline's prefix."""

    inventory: TenantInventory
    listed: dict[str, StoredObject]
    newest: dict[str, ReadIndex] = field(default_factory=dict)
    before: dict[str, ReadIndex] = field(default_factory=dict)
    importing: set[str] = field(default_factory=set)

    def known(self, timeline: StoredTimeline) -> KnownIndices:
        newest, before = self.newest.get(timeline.prefix), self.before.get(timeline.prefix)
        return KnownIndices(
            None if newest is None else newest.index,
            None if before is None else before.index,
            timeline.prefix in self.importing,
        )

    def knows_all_indices(self) -> bool:
        return all(read.index is not None for read in (*self.newest.values(), *self.before.values()))


class Scrubber:
    """Scrubs one bucket. `deep` downloads and decodes every layer as well."""

    def __init__(
        self,
        storage: ObjectStorage,
        *,
        clock: Clock,
        deep: bool = False,
        on_progress: Callable[[Progress], None] = lambda _progress: None,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._deep = deep
        self._on_progress = on_progress
        self._counter = itertools.count(1)

    async def tenants(self) -> list[TenantId]:
        """Return the tenants that have objects."""
        found = set()
        for name in await self._storage.list_directories("tenants/"):
            try:
                found.add(TenantShardId.parse(name).tenant_id)
            except IdParseError:
                continue
        return sorted(found)

    async def scrub(self, tenants: Iterable[TenantId], *, purge_min_age: timedelta | None = None) -> ScrubReport:
        """Look at tenants; with `purge_min_age`, delete orphans at least as old as that.

        Raises StoreUnavailableError if the bucket cannot be listed. Cancellation: safe, nothing is left half done.
        """
        report = ScrubReport()
        wanted = list(tenants)
        with _scratch(self._deep) as scratch:
            for number, tenant_id in enumerate(wanted):
                self._on_progress(Progress(f"tenant {tenant_id}", number, len(wanted)))
                part = await self._scrub_tenant(tenant_id, scratch)
                if purge_min_age is not None:
                    await self._purge(tenant_id, part, purge_min_age)
                report.add(part)
        return report

    async def _scrub_tenant(self, tenant_id: TenantId, scratch: Path | None) -> ScrubReport:
        look = await self._look_at(tenant_id)
        report = ScrubReport(tenants=1)
        report.findings += [Finding(key, "unknown key", Level.WARNING) for key in look.inventory.unknown]
        for shard in look.inventory.analysed():
            report.shards += 1
            for timeline in shard.timelines.values():
                await self._scrub_timeline(timeline, look, report, scratch)
            report.findings += await self._check_manifest(shard)
        report.findings += await self._check_names(look.inventory)
        self._list_leftovers(look, report)
        return report

    async def _scrub_timeline(
        self, timeline: StoredTimeline, look: Look, report: ScrubReport, scratch: Path | None
    ) -> None:
        if timeline.is_buried:
            return
        report.timelines += 1
        read = look.newest.get(timeline.prefix)
        if read is None:
            report.relics.append(timeline.prefix)
            return
        if read.index is None:
            report.findings.append(Finding(read.key, read.problem or "", Level.ERROR))
            return
        if read.index.deleted_at is not None:
            return
        report.layers += len(read.index.layers)
        report.layers_bytes += sum(entry.file_size for entry in read.index.layers.values())
        report.findings += judge_index(read.content, read.index, read.key)
        missed = await self._find_missing(timeline, read, look.listed)
        report.findings += missed
        if scratch is not None:
            known_bad = {finding.where for finding in missed}
            await self._read_layers(timeline, read, report, scratch, known_bad)

    async def _find_missing(
        self, timeline: StoredTimeline, read: ReadIndex, listed: dict[str, StoredObject]
    ) -> list[Finding]:
        missing: list[Suspect] = []
        for _ in range(_LOOKS_MAX):
            assert read.index is not None, "the caller and the loop end where it does not decode"
            suspects = list(find_suspects(read.index, _layer_keys(timeline, read.index), listed))
            missing = [one for one in [await self._ask_for(suspect) for suspect in suspects] if one is not None]
            if not missing:
                return []
            again = await self._reread(timeline)
            if again is None or again.index is None or again.index.deleted_at is not None:
                return [] if again is None or again.index else [Finding(again.key, again.problem or "", Level.ERROR)]
            if (again.key, again.content) == (read.key, read.content):
                return [one.finding(Level.ERROR) for one in missing]
            read = again
        return [one.finding(Level.WARNING) for one in missing]

    async def _ask_for(self, suspect: Suspect) -> Suspect | None:
        """Ask for an object by its key; return what is still wrong with it."""
        try:
            size = (await self._storage.head(suspect.key)).size_bytes
        except ObjectNotFoundError:
            return Suspect(suspect.key, suspect.name, suspect.size_bytes, None)
        if size == suspect.size_bytes:
            return None
        return Suspect(suspect.key, suspect.name, suspect.size_bytes, size)

    async def _read_layers(
        self, timeline: StoredTimeline, read: ReadIndex, report: ScrubReport, scratch: Path, known_bad: set[str]
    ) -> None:
        assert read.index is not None, "the caller returns where it does not decode"
        keys = _layer_keys(timeline, read.index)
        permits = asyncio.Semaphore(_DEEP_READS_MAX)
        total = len(keys)

        async def read_one(name: str, entry: LayerEntry) -> None:
            async with permits:
                try:
                    values = await check_layer_object(
                        self._storage,
                        keys[name],
                        tenant_id=timeline.shard.tenant_id,
                        name=name,
                        size_bytes=entry.file_size,
                        target=scratch / f"layer-{next(self._counter)}",
                    )
                    report.values_read += values
                    report.layers_read += 1
                except ObjectNotFoundError:
                    report.findings.extend(await self._find_missing(timeline, read, {}))
                except PageServerError as error:
                    report.findings.append(Finding(keys[name], str(error), Level.ERROR))
            self._on_progress(Progress(f"layers of timeline {timeline.timeline_id}", report.layers_read, total))

        wanted = [(name, entry) for name, entry in read.index.layers.items() if keys[name] not in known_bad]
        await _run_all(read_one(name, entry) for name, entry in wanted)

    async def _check_manifest(self, shard: ShardInventory) -> list[Finding]:
        """Compare the newest manifest with the indices. They are two objects: what is wrong must be so twice."""
        generation = max(shard.manifests, default=None)
        if generation is None:
            return []
        key = shard.manifests[generation].key
        found: list[Finding] | None = None
        for _ in range(2):
            try:
                manifest = TenantManifest.decode(await self._storage.get(key))
            except ObjectNotFoundError:
                return []
            except ManifestDecodeError as error:
                return [Finding(key, str(error), Level.ERROR)]
            indices: dict[TimelineId, IndexPart] = {}
            for entry in manifest.offloaded_timelines:
                timeline = StoredTimeline(shard.shard, entry.timeline_id)
                read = await self._reread(timeline)
                if read is not None and read.index is not None:
                    indices[entry.timeline_id] = read.index
            again = judge_manifest(manifest, indices, key)
            found = again if found is None else [one for one in found if one in again]
            if not found:
                return []
        return found or []

    async def _check_names(self, inventory: TenantInventory) -> list[Finding]:
        """Read the newest names: damaged ones are not shown, and cannot be changed."""
        if not inventory.names:
            return []
        key = inventory.names[max(inventory.names)].key
        try:
            decode_names(await self._storage.get(key))
        except ObjectNotFoundError:
            return []
        except NamesDecodeError as error:
            return [Finding(key, str(error), Level.ERROR)]
        return []

    async def _purge(self, tenant_id: TenantId, report: ScrubReport, min_age: timedelta) -> None:
        oldest_kept = self._clock.now() - min_age
        aged = [orphan for orphan in report.orphans if orphan.modified_at <= oldest_kept]
        for start in range(0, len(aged), DELETE_CHUNK):
            chunk = aged[start : start + DELETE_CHUNK]
            again = ScrubReport()
            self._list_leftovers(await self._look_at(tenant_id), again)
            still = set(again.orphans)
            doomed: list[Orphan] = [orphan for orphan in chunk if orphan in still]
            assert all(orphan.key.startswith(("tenants/", "sources/", "names/")) for orphan in doomed), "claims stay"
            await self._storage.delete([orphan.key for orphan in doomed])
            report.purged += doomed
        gone = set(report.purged)
        report.orphans = [orphan for orphan in report.orphans if orphan not in gone]

    def _list_leftovers(self, look: Look, report: ScrubReport) -> None:
        timelines = [one for shard in look.inventory.shards.values() for one in shard.timelines.values()]
        known = {timeline.prefix: look.known(timeline) for timeline in timelines}
        found = find_leftovers(look.inventory, known, knows_all_indices=look.knows_all_indices())
        report.orphans += sorted(found.orphans, key=lambda orphan: orphan.key)
        report.in_flight += sorted(found.in_flight)

    async def _look_at(self, tenant_id: TenantId) -> Look:
        listed: dict[str, StoredObject] = {}
        for top in ("tenants", "sources", "names"):
            listed |= {item.key: item async for item in self._storage.list_objects(f"{top}/{tenant_id}")}
        inventory = take_inventory(listed.values())
        look = Look(inventory, listed)
        permits = asyncio.Semaphore(_READS_MAX)

        async def read(shard: ShardInventory, timeline: StoredTimeline) -> None:
            async with permits:
                await self._read_timeline(look, shard, timeline)

        shards = inventory.shards.values()
        await _run_all(read(shard, timeline) for shard in shards for timeline in shard.timelines.values())
        async for item in self._storage.list_objects(f"generations/{tenant_id}"):
            claimed = take_inventory([item])
            for one in claimed.shards.values():
                known = inventory.shards.setdefault(one.shard, one)
                known.claims |= one.claims
                known.note(one.newest_generation)
        return look

    async def _read_timeline(self, look: Look, shard: ShardInventory, timeline: StoredTimeline) -> None:
        """Read what the judgement of a timeline needs: its indices, and whether an import of it is under way."""
        newest = await self._reread(timeline)
        if newest is None:
            document = await read_source_document(
                self._storage, shard.shard, timeline.timeline_id, Generation(0xFFFF_FFFF)
            )
            if document is not None and document.is_importing:
                look.importing.add(timeline.prefix)
            return
        look.newest[timeline.prefix] = newest
        if (earlier := timeline.index_before()) is not None:
            before = await self._fetch_index(timeline, earlier)
            if before is not None:
                look.before[timeline.prefix] = before

    async def _reread(self, timeline: StoredTimeline) -> ReadIndex | None:
        """List and read the newest index, None if there is none; `timeline` learns what was listed."""
        for _ in range(_LOOKS_MAX):
            base = paths.index_base_key(timeline.shard, timeline.timeline_id)
            timeline.indices = {
                generation: item
                async for item in self._storage.list_objects(base)
                if base + (generation := generation_of_key(item.key)).suffix() == item.key
            }
            newest = timeline.newest_index()
            if newest is None:
                return None
            read = await self._fetch_index(timeline, newest)
            if read is not None:
                return read
        return None

    async def _fetch_index(self, timeline: StoredTimeline, generation: Generation) -> ReadIndex | None:
        """Read one index, None if it has gone. Its time is that of what was read, not of what was listed."""
        key = timeline.indices[generation].key
        try:
            fetched = await self._storage.fetch(key)
        except ObjectNotFoundError:
            return None
        except PageServerError as error:
            return ReadIndex(key, b"", None, f"failed to download index_part.json: {error}")
        assert fetched is not None, "only a fetch with an etag comes back empty"
        timeline.indices[generation] = fetched.description
        try:
            return ReadIndex(key, fetched.content, IndexPart.decode(fetched.content))
        except IndexDecodeError as error:
            return ReadIndex(key, fetched.content, None, f"index_part.json body parsing error: {error.reason}")


async def _run_all(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Do all of it at once. The first failure ends the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one, name="scrub")
    except* PageServerError as errors:
        raise _first(errors) from errors


def _first(errors: BaseExceptionGroup[PageServerError]) -> PageServerError:
    for error in errors.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    raise AssertionError("a group has members")


def _layer_keys(timeline: StoredTimeline, index: IndexPart) -> dict[str, str]:
    tenant_id, timeline_id = timeline.shard.tenant_id, timeline.timeline_id
    return {
        name: paths.layer_key(tenant_id, entry.shard, timeline_id, name, entry.generation)
        for name, entry in index.layers.items()
    }


@contextmanager
def _scratch(deep: bool) -> Iterator[Path | None]:
    """Give a directory for downloads, if there are any."""
    if not deep:
        yield None
        return
    with TemporaryDirectory(prefix="pageserver-scrub-") as directory:
        yield Path(directory)
