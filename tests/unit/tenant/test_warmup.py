"""The queue of lazy attaches, and what clients are told while a shard waits or changes hands (tenants.md 6.2, 3.3)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pageserver.ids import TenantId, TenantShardId
from pageserver.mgmt.models import LocationConfigBody
from pageserver.remote import LocalStore, paths
from pageserver.tenant.state import TenantStatus
from pageserver.turns import TurnQueue
from tests.unit.world import World, eventually


async def test_permits_are_few_and_those_who_are_asked_for_need_none() -> None:
    queue = TurnQueue(2)
    inside: list[int] = []
    leave, wanted = asyncio.Event(), [asyncio.Event() for _ in range(4)]

    async def attach(number: int) -> None:
        async with queue.turn(wanted[number]):
            inside.append(number)
            await leave.wait()

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(attach(number))
        await settle()
        assert inside == [0, 1]
        wanted[3].set()
        await settle()
        assert inside == [0, 1, 3]
        leave.set()
    assert inside == [0, 1, 3, 2]


@pytest.mark.parametrize("moment", range(4))
async def test_no_permit_is_lost_when_a_waiting_attach_is_cancelled(moment: int) -> None:
    """Cancelled before, while and after a permit becomes free."""
    queue = TurnQueue(1)
    never = asyncio.Event()
    leave = asyncio.Event()

    async def attach(until: asyncio.Event) -> None:
        async with queue.turn(never):
            await until.wait()

    first = asyncio.create_task(attach(leave))
    await settle()
    second = asyncio.create_task(attach(asyncio.Event()))
    await settle()
    leave.set()
    for _ in range(moment):
        await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    async with asyncio.timeout(5), queue.turn(never):
        pass


async def test_an_attach_that_fails_gives_its_permit_back() -> None:
    queue = TurnQueue(1)
    with pytest.raises(OSError, match="broken"):
        async with queue.turn(asyncio.Event()):
            raise OSError("broken")
    async with asyncio.timeout(5), queue.turn(asyncio.Event()):
        pass


class SlowStore(LocalStore):
    """Lists nothing of one tenant until it is told to."""

    def __init__(self, root: Path, held: TenantShardId) -> None:
        super().__init__(root)
        self.held = paths.tenant_prefix(held)
        self.go = asyncio.Event()
        self.is_held = asyncio.Event()

    async def list_directories(self, prefix: str) -> list[str]:
        if prefix.startswith(self.held):
            self.is_held.set()
            await self.go.wait()
        return await super().list_directories(prefix)


async def test_a_tenant_that_somebody_needs_attaches_before_its_turn(tmp_path: Path) -> None:
    """Goal: a request does not wait behind idle tenants. Method: one permit, held by a tenant whose store is slow."""
    shards = [TenantShardId.unsharded(TenantId(bytes([number]) * 16)) for number in range(4)]
    store = SlowStore(tmp_path / "bucket", shards[0])
    world = await World.start(tmp_path, bucket=store.root, storage=store, concurrent_tenant_warmup=1)
    await put(world, shards[0], lazy=True)
    await store.is_held.wait()
    for shard in shards[1:]:
        await put(world, shard, lazy=True)
    await settle()
    states = [world.manager.get(shard).state.status for shard in shards]
    assert states == [TenantStatus.ATTACHING] * 4
    assert world.pages.tenants == set(shards), "the page service knows whom it has to wait for"

    await world.manager.get(shards[2]).wait_active(5)
    world.manager.hurry(shards[3])
    await eventually(lambda: is_active(world, shards[3]))
    assert world.manager.get(shards[1]).state.status is TenantStatus.ATTACHING
    store.go.set()
    await eventually(lambda: is_active(world, shards[1]))
    assert not world.pages.in_transition
    await world.stop()


async def test_an_attach_is_eager_unless_it_is_asked_to_be_lazy(tmp_path: Path) -> None:
    shards = [TenantShardId.unsharded(TenantId(bytes([number]) * 16)) for number in range(2)]
    store = SlowStore(tmp_path / "bucket", shards[0])
    world = await World.start(tmp_path, bucket=store.root, storage=store, concurrent_tenant_warmup=1)
    await put(world, shards[0], lazy=True)
    await store.is_held.wait()
    await put(world, shards[1], lazy=False)
    await eventually(lambda: is_active(world, shards[1]))
    store.go.set()
    await world.stop()


async def put(world: World, shard: TenantShardId, *, lazy: bool) -> None:
    body = LocationConfigBody.model_validate({"mode": "AttachedSingle", "tenant_conf": {}})
    request = body.to_request(claims_generations=True)
    await world.manager.put_location(shard, request, flush_seconds=None, lazy=lazy)


async def is_active(world: World, shard: TenantShardId) -> bool:
    return world.manager.get(shard).state.status is TenantStatus.ACTIVE


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
