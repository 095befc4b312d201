"""Names of a tenant's timelines: unique, durable, kept by shard zero (standalone.md 4).

    request ─▶ checked against what is in memory ─▶ document put under our generation ─▶ is that still the newest? ─▶
    in memory, answered

Invariants
- What was answered is in the store, and a server that attaches later reads it: it claims its generation first and reads
  the names afterwards, and whoever wrote after that claim finds out before it answers.
- What a server that was overtaken still wrote is never read: whoever attaches and finds names puts them under its own
  generation at once.
- A timeline's names go before its last object does. Names of timelines that do not exist (a bucket that travelled in
  time may have some) are not shown, and left out of the next document.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pageserver.errors import ConflictError, NotFoundError, PageServerError
from pageserver.ids import Generation, IdParseError, TenantShardId, TimelineId
from pageserver.remote.names import NO_NAMES, NamesDecodeError, check_name, read_names, write_names
from pageserver.tenant.deletion import holds_newest_generation
from pageserver.tenant.loading import insist
from pageserver.tenant.owned import run_owned
from pageserver.tenant.resources import TenantResources
from pageserver.tenant.tasks import TaskScope
from pageserver.tenant.tenant_errors import FencedError, TimelineNotFoundError

T = TypeVar("T")
Change = Callable[[dict[str, TimelineId]], None]


class NameTakenError(ConflictError):
    """409: another timeline has this name."""

    def __init__(self, *, name: str, timeline_id: TimelineId) -> None:
        super().__init__(f"timeline {timeline_id} is called {name!r} already", name=name, timeline_id=timeline_id)


class NameNotFoundError(NotFoundError):
    """404: no timeline of this tenant is called so."""

    def __init__(self, *, name: str) -> None:
        super().__init__(f"no timeline is called {name!r}", name=name)


class StaleNamesError(FencedError):
    """Another server has the tenant in a newer generation, and with it the names."""

    def __init__(self, *, shard: TenantShardId, generation: Generation) -> None:
        super().__init__("names are changed there", shard=shard, generation=generation)


class TenantNames:
    """The names of one attached tenant; those of a shard other than zero are always empty."""

    def __init__(
        self,
        resources: TenantResources,
        shard: TenantShardId,
        generation: Generation,
        *,
        is_known: Callable[[TimelineId], bool],
        tasks: TaskScope,
        log: Any,
    ) -> None:
        """`is_known` says whether the tenant has a timeline, in any state."""
        self._resources = resources
        self._shard = shard
        self._generation = generation
        self._is_known = is_known
        self._tasks = tasks
        self._log = log
        self._names: Mapping[str, TimelineId] = NO_NAMES
        self._problem: NamesDecodeError | None = None
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Read the names at attach. A damaged document is reported and kept; the tenant is served without names."""
        if not self._shard.is_shard_zero():
            return
        storage, tenant_id = self._resources.storage, self._shard.tenant_id
        try:
            found = await insist(lambda: read_names(storage, tenant_id, self._generation), self._resources)
        except NamesDecodeError as error:
            self._log.error("names of timelines cannot be read", error=str(error))
            self._problem = error
            return
        if found is None:
            return
        self._names, written_in = found
        if written_in != self._generation:
            await insist(lambda: write_names(storage, tenant_id, self._generation, self._names), self._resources)

    # Looking

    def all(self) -> dict[str, TimelineId]:
        """Return all names of timelines that exist, in order. Raises NamesDecodeError."""
        self._check_readable()
        return {name: self._names[name] for name in sorted(self._names) if self._is_known(self._names[name])}

    def of(self, timeline_id: TimelineId) -> list[str]:
        """Return what a timeline is called, in order."""
        return sorted(name for name, owner in self._names.items() if owner == timeline_id)

    def get(self, name: str) -> TimelineId:
        """Return the timeline of a name. Raises NameNotFoundError, NamesDecodeError."""
        found = self.all().get(name)
        if found is None:
            raise NameNotFoundError(name=name)
        return found

    def resolve(self, text: str) -> TimelineId:
        """Return the timeline that a name or an id means; an id need not exist. Raises NameNotFoundError."""
        try:
            return TimelineId.parse(text)
        except IdParseError:
            return self.get(text)

    def check_free(self, name: str, timeline_id: TimelineId) -> None:
        """Raise InvalidNameError, or NameTakenError if the name is another timeline's."""
        self._check_readable()
        owner = self._names.get(check_name(name))
        if owner is not None and owner != timeline_id and self._is_known(owner):
            raise NameTakenError(name=name, timeline_id=owner)

    # Changing; durable when these return, and may be repeated

    async def give(self, name: str, timeline_id: TimelineId) -> None:
        """Call a timeline so. Raises InvalidNameError, NameTakenError, TimelineNotFoundError, StaleNamesError."""

        def change(names: dict[str, TimelineId]) -> None:
            self.check_free(name, timeline_id)
            if not self._is_known(timeline_id):
                raise TimelineNotFoundError(shard=self._shard, timeline_id=timeline_id)
            names[name] = timeline_id

        await self._change(change, f"name {name}")

    async def rename(self, old: str, new: str) -> TimelineId:
        """Call a timeline otherwise, and return it. Raises InvalidNameError, NameNotFoundError, NameTakenError,
        StaleNamesError.
        """

        def change(names: dict[str, TimelineId]) -> None:
            timeline_id = self.get(old)
            self.check_free(new, timeline_id)
            del names[old]
            names[new] = timeline_id

        await self._change(change, f"rename {old}")
        return self.get(new)

    async def remove(self, name: str) -> None:
        """Take a name away; the timeline stays. Raises NameNotFoundError, StaleNamesError."""

        def change(names: dict[str, TimelineId]) -> None:
            self.get(name)
            del names[name]

        await self._change(change, f"unname {name}")

    async def forget(self, timeline_id: TimelineId) -> None:
        """Remove the names of a timeline that is being deleted. One that cannot be removed is never shown again."""

        def change(names: dict[str, TimelineId]) -> None:
            for name in self.of(timeline_id):
                del names[name]

        if not self.of(timeline_id):
            return
        try:
            await self._store(change)
        except PageServerError as error:
            self._log.warning("names of a deleted timeline stay", timeline=str(timeline_id), error=str(error))

    # Private

    def _check_readable(self) -> None:
        if self._problem is not None:
            raise self._problem

    async def _change(self, change: Change, name: str) -> None:
        await run_owned(self._tasks, self._store(change), name=name)

    async def _store(self, change: Change) -> None:
        self._check_readable()
        async with self._changing:
            before = self.all()
            names = dict(before)
            change(names)
            if names == before:
                return
            await self._check_newest()
            await write_names(self._resources.storage, self._shard.tenant_id, self._generation, names)
            await self._check_newest()
            self._names = names

    async def _check_newest(self) -> None:
        if not await holds_newest_generation(self._resources, self._shard, self._generation):
            raise StaleNamesError(shard=self._shard, generation=self._generation)
