"""The deletion queue: files, flush kinds, validation, recovery (remote-storage.md 11)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import structlog

from pageserver.ids import Generation, TenantId, TenantShardId
from pageserver.lsn import Lsn
from pageserver.remote import LocalStore, paths
from pageserver.remote.deletion_list import DeletionDirectory, DeletionList, DeletionListError
from pageserver.remote.deletion_queue import DeletionQueue, DeletionQueueStoppedError
from pageserver.remote.validation import VisibleLsn
from tests.unit.remote.fakes import SHARD, TIMELINE, FakeValidator, QuickClock, deletion_queue, until

LAYER = f"{'0' * 36}-{'F' * 36}__00000000016B59D8-00000000016B5A51"
EXAMPLE = (
    '{"version":1,"sequence":1,"tenants":{"ad6c1a56f5680419d3a16ff55d97ec3c":{"timelines":'
    '{"be322c834ed9e709e63b5c9698691910":["foo"]},"generation":123}},"size":1}'
)


class World:
    """A store with objects, and the queue that deletes them."""

    def __init__(self, directory: Path, newest: int = 1) -> None:
        self.workdir = directory
        self.store = LocalStore(directory / "bucket")
        self.validator = FakeValidator({SHARD: newest})

    async def put(self, *names: str) -> None:
        for name in names:
            await self.store.put(paths.timeline_prefix(SHARD, TIMELINE) + name, b"layer")

    async def there(self) -> set[str]:
        prefix = paths.timeline_prefix(SHARD, TIMELINE)
        return {item.key.removeprefix(prefix) async for item in self.store.list_objects(prefix)}

    def files(self) -> list[str]:
        directory = self.workdir / "deletion"
        return sorted(os.listdir(directory)) if directory.is_dir() else []

    def start(self, attached: int | None = 1, **options: object) -> DeletionQueue:
        return deletion_queue(self.workdir, self.store, self.validator, attached=attached, **options)


def test_lists_and_headers_have_the_specified_bytes(tmp_path: Path) -> None:
    deletions = DeletionList(1)
    assert deletions.push(SHARD, TIMELINE, Generation(123), ["foo"])
    assert deletions.encode() == EXAMPLE.encode()
    assert len(EXAMPLE) == 158
    assert DeletionList.decode(EXAMPLE.encode()) == deletions
    assert not deletions.push(SHARD, TIMELINE, Generation(124), ["bar"]), "never two generations of a shard"
    deletions.is_validated = True
    assert deletions.encode().endswith(b'"size":1,"validated":true}')
    assert DeletionList.decode(deletions.encode()).is_validated
    directory = DeletionDirectory(tmp_path)
    directory.prepare()
    assert directory.read_header() == 0
    directory.write_header(7)
    written = (tmp_path / "deletion" / "header-01").read_bytes()
    assert written.hex() == "7b2276657273696f6e223a312c2276616c6964617465645f73657175656e6365223a377d"
    assert directory.read_header() == 7


@pytest.mark.parametrize(
    "damage",
    [
        ('"version":1', '"version":2'),
        ('["foo"]', '["../foo"]'),
        ('["foo"]', '"foo"'),
        ('"generation":123', '"generation":-1'),
        ("be322c", "xe322c"),
        (EXAMPLE, "[]"),
        (EXAMPLE, "{"),
    ],
)
def test_damaged_lists_are_refused(damage: tuple[str, str]) -> None:
    with pytest.raises(DeletionListError):
        DeletionList.decode(EXAMPLE.replace(*damage).encode())


async def test_each_flush_does_what_it_says(tmp_path: Path) -> None:
    """Goal: 11.5. Method: look at files and objects after a push, a flush, a flush with execution, and another one."""
    world = World(tmp_path)
    await world.put("foo-00000001", "bar-00000001")
    queue = world.start()
    queue.push_layers(SHARD, TIMELINE, Generation(1), ["foo-00000001"])
    await asyncio.sleep(0.05)
    assert world.files() == []
    await queue.flush()
    assert world.files() == ["0000000000000001-01.list"]
    assert await world.there() == {"foo-00000001", "bar-00000001"}
    await queue.flush_execute()
    assert world.files() == ["header-01"]
    assert await world.there() == {"bar-00000001"}
    await queue.flush_execute()
    assert world.files() == ["header-01"]
    assert (queue.counters.submitted, queue.counters.executed, queue.counters.dropped) == (1, 1, 0)
    await queue.close()


async def test_two_generations_of_a_shard_are_two_lists(tmp_path: Path) -> None:
    world = World(tmp_path, newest=2)
    await world.put("old-00000001", "new-00000002")
    queue = world.start(attached=2)
    queue.push_layers(SHARD, TIMELINE, Generation(1), ["old-00000001"])
    queue.push_layers(SHARD, TIMELINE, Generation(2), ["new-00000002"])
    await queue.flush()
    assert world.files() == ["0000000000000001-01.list", "0000000000000002-01.list"]
    await queue.flush_execute()
    assert await world.there() == {"old-00000001"}, "what was decided in a stale generation is dropped"
    assert queue.counters.dropped == 1
    await queue.close()


async def test_what_nobody_vouches_for_is_not_deleted(tmp_path: Path) -> None:
    """A shard that is missing in the answer is as stale as one that is denied."""
    for newest in ({SHARD: 5}, {TenantShardId(TenantId(bytes(16))): 1}):
        world = World(tmp_path / str(len(newest)) / str(newest.get(SHARD)))
        world.workdir.mkdir(parents=True)
        world.validator.newest = newest
        await world.put("foo-00000001")
        queue = world.start()
        queue.push_layers(SHARD, TIMELINE, Generation(1), ["foo-00000001"])
        slot = VisibleLsn(Lsn(8))
        queue.push_lsn(SHARD, TIMELINE, Generation(1), Lsn(16), slot)
        await queue.flush_execute()
        assert await world.there() == {"foo-00000001"}
        assert slot.value == 8
        assert queue.counters.dropped_lsn_updates == 1
        assert world.validator.stale == [(SHARD, Generation(1))]
        await queue.close()


async def test_lsns_become_visible_after_validation_only(tmp_path: Path) -> None:
    world = World(tmp_path)
    queue = world.start()
    slot = VisibleLsn(Lsn(8))
    queue.push_lsn(SHARD, TIMELINE, Generation(1), Lsn(16), slot)
    await asyncio.sleep(0.05)
    assert slot.value == 8
    queue.hurry_lsns()
    await until(lambda: slot.value == 16)
    queue.push_lsn(SHARD, TIMELINE, Generation(1), Lsn(12), slot)
    await queue.flush_execute()
    assert slot.value == 16, "it never goes back"
    await queue.close()


async def test_where_asking_is_cheap_lsns_are_validated_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.validator.answers_at_once = True
    queue = world.start()
    slot = VisibleLsn()
    for lsn in (8, 16, 24):
        queue.push_lsn(SHARD, TIMELINE, Generation(1), Lsn(lsn), slot)
    await until(lambda: slot.value == 24)
    await queue.close()


async def test_an_update_of_another_generation_clears_the_shards_updates(tmp_path: Path) -> None:
    world = World(tmp_path, newest=2)
    queue = world.start()
    old, new = VisibleLsn(), VisibleLsn()
    queue.push_lsn(SHARD, TIMELINE, Generation(1), Lsn(16), old)
    queue.push_lsn(SHARD, TIMELINE, Generation(2), Lsn(24), new)
    await queue.flush_execute()
    assert (old.value, new.value) == (0, 24)
    await queue.close()


async def test_immediate_deletions_need_nobodys_word(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.validator.is_away = True
    await world.put("foo-00000001")
    queue = world.start()
    await queue.push_immediate([paths.timeline_prefix(SHARD, TIMELINE) + "foo-00000001"])
    await queue.flush_immediate()
    assert await world.there() == set()
    assert world.validator.asked == []
    await queue.close()


async def test_idle_workers_execute_by_themselves(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.put("foo-00000001")
    queue = world.start(idle_seconds=0.02)
    queue.push_layers(SHARD, TIMELINE, Generation(1), ["foo-00000001"])
    await until(lambda: world.files() == ["header-01"])
    assert await world.there() == set()
    await queue.close()


async def test_the_queue_waits_for_a_controller_and_stops_without_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.validator.is_away = True
    await world.put("foo-00000001")
    queue = world.start()
    queue.push_layers(SHARD, TIMELINE, Generation(1), ["foo-00000001"])
    executing = asyncio.ensure_future(queue.flush_execute())
    await until(lambda: len(world.validator.asked) > 3)
    assert await world.there() == {"foo-00000001"}
    await asyncio.wait_for(queue.close(), 1)
    with pytest.raises(DeletionQueueStoppedError):
        await executing
    assert world.files() == ["0000000000000001-01.list"], "the next start goes on from here"


@pytest.mark.parametrize(
    ("list_generation", "attached", "newest", "deleted"),
    [
        (6, 7, 7, True),  # kept: the generation before ours is as good as ours
        (7, 7, 7, True),  # the same generation
        (5, 7, 7, False),  # older: somebody may have been attached in between
        (6, 8, 8, False),
        (6, None, 7, False),  # lost, and not validated before
    ],
)
async def test_recovery_takes_over_what_is_surely_ours(
    tmp_path: Path, list_generation: int, attached: int | None, newest: int, deleted: bool
) -> None:
    world = World(tmp_path, newest=newest)
    await world.put("foo-00000001")
    left = DeletionList(3)
    left.push(SHARD, TIMELINE, Generation(list_generation), ["foo-00000001"])
    write_left(tmp_path, left)
    queue = world.start(attached=attached)
    await queue.flush_execute()
    assert await world.there() == (set() if deleted else {"foo-00000001"})
    assert world.files() == ["header-01"]
    queue.push_layers(SHARD, TIMELINE, Generation(newest), ["bar"])
    await queue.flush()
    assert world.files() == ["0000000000000004-01.list", "header-01"]
    await queue.close()

    again = world.start(attached=attached)
    await again.flush_execute()
    assert world.files() == ["header-01"]
    await again.close()


@pytest.mark.parametrize("how", ["header", "list"])
async def test_what_was_validated_before_is_executed_even_if_the_tenant_is_lost(tmp_path: Path, how: str) -> None:
    world = World(tmp_path, newest=99)
    await world.put("foo-00000001")
    left = DeletionList(3, is_validated=how == "list")
    left.push(SHARD, TIMELINE, Generation(6), ["foo-00000001"])
    write_left(tmp_path, left)
    if how == "header":
        DeletionDirectory(tmp_path).write_header(3)
    queue = world.start(attached=None)
    await queue.flush_execute()
    assert await world.there() == set()
    assert world.validator.asked == []
    await queue.close()


async def test_recovery_survives_garbage(tmp_path: Path) -> None:
    world = World(tmp_path)
    directory = tmp_path / "deletion"
    directory.mkdir()
    (directory / "header-01").write_bytes(b"{")
    (directory / "0000000000000009-01.list").write_bytes(b"{")
    (directory / "0000000000000008-01.list.tmp").write_bytes(b"half")
    (directory / "notes.txt").write_bytes(b"mine")
    await world.put("foo-00000001")
    queue = world.start()
    queue.push_layers(SHARD, TIMELINE, Generation(1), ["foo-00000001"])
    await queue.flush()
    assert world.files() == [
        "0000000000000009-01.list",
        "000000000000000a-01.list",
        "header-01",
        "notes.txt",
    ]
    await queue.flush_execute()
    assert await world.there() == set()
    await queue.close()


async def test_a_header_never_covers_a_list_that_says_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: 11.4, step 4: what was dropped as stale is not executed after a restart either.

    Method: let the rewriting of the trimmed list fail, then look at the header, and start again.
    """
    other = TenantShardId(TenantId(bytes.fromhex("bb" * 16)))
    world = World(tmp_path, newest=5)
    world.validator.newest[other] = 1
    await world.put("foo-00000001")
    queue = world.start()
    queue.push_layers(SHARD, TIMELINE, Generation(1), ["foo-00000001"])
    queue.push_layers(other, TIMELINE, Generation(1), ["bar-00000001"])
    await queue.flush()

    def fail(self: DeletionDirectory, deletions: DeletionList) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(DeletionDirectory, "write_list", fail)
        await queue.flush_execute()
    queue.push_layers(other, TIMELINE, Generation(1), ["more-00000001"])
    await queue.flush_execute()
    assert "header-01" not in world.files()
    assert await world.there() == {"foo-00000001"}
    await queue.close()


async def test_a_list_that_cannot_be_written_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    await world.put("foo-00000001")
    queue = world.start()
    original, failures = DeletionDirectory.write_list, [2]

    def fail_twice(self: DeletionDirectory, deletions: DeletionList) -> None:
        if failures[0]:
            failures[0] -= 1
            raise OSError(28, "No space left on device")
        original(self, deletions)

    monkeypatch.setattr(DeletionDirectory, "write_list", fail_twice)
    queue.push_layers(SHARD, TIMELINE, Generation(1), ["foo-00000001"])
    await queue.flush_execute()
    assert failures == [0]
    assert await world.there() == set()
    await queue.close()


async def test_failing_deletes_are_repeated_in_batches(tmp_path: Path) -> None:
    class Failing(LocalStore):
        def __init__(self, root: Path) -> None:
            super().__init__(root)
            self.batches: list[int] = []

        async def delete(self, keys):  # type: ignore[no-untyped-def]
            keys = list(keys)
            self.batches.append(len(keys))
            if len(self.batches) % 2:
                raise OSError("flaky")
            await super().delete(keys)

    store = Failing(tmp_path / "bucket")
    queue = deletion_queue(tmp_path, store, FakeValidator())
    await queue.push_immediate(f"tenants/{number}" for number in range(2500))
    await queue.flush_immediate()
    assert store.batches == [1000, 1000, 1000, 1000, 500, 500]
    assert queue.counters.remote_errors == 3
    await queue.close()


async def test_nothing_is_pushed_before_recovery(tmp_path: Path) -> None:
    """A push before the old lists were read would reuse their sequence numbers: the worker ends, and says so."""
    queue = DeletionQueue(
        tmp_path,
        storage=LocalStore(tmp_path / "bucket"),
        validator=FakeValidator(),
        clock=QuickClock(),
        log=structlog.get_logger(),
    )
    queue.start()
    queue.push_layers(SHARD, TIMELINE, Generation(1), ["foo"])
    with pytest.raises(DeletionQueueStoppedError):
        await queue.flush()
    assert queue.counters.unexpected_errors == 1
    await queue.close()


def write_left(workdir: Path, left: DeletionList) -> None:
    directory = DeletionDirectory(workdir)
    directory.prepare()
    directory.write_list(left)
