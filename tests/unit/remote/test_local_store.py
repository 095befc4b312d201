"""The store on disk, and what is built on its conditional create: generations (standalone.md 1, remote-storage.md
4.4).
"""

import asyncio
import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from pageserver.ids import Generation, TenantId, TenantShardId
from pageserver.remote import (
    GenerationClaim,
    LocalStore,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreUnavailableError,
    claim_generation,
    find_generationed,
)
from pageserver.remote.generations import (
    GenerationTakenError,
    InvalidStoreError,
    is_newest_generation,
    probe_store,
)
from pageserver.remote.storage import ObjectChecksumError

SHARD = TenantShardId(TenantId(bytes(range(16))))


def claim(instance: str = "a") -> GenerationClaim:
    return GenerationClaim(node_id=1, instance=instance, host="h", claimed_at="2026-01-01T00:00:00Z")


def leftovers(directory: Path) -> list[Path]:
    return list(directory.rglob("*___temp"))


async def test_objects_are_put_listed_and_deleted(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "bucket")
    await store.put("tenants/a/x", b"1")
    await store.put("tenants/a/x", b"22")
    await store.put("tenants/ab/y", b"3")
    assert await store.get("tenants/a/x") == b"22"
    assert [item.key async for item in store.list_objects("tenants/a")] == ["tenants/a/x", "tenants/ab/y"]
    assert [item.size_bytes async for item in store.list_objects("tenants/a/")] == [2]
    assert await store.list_directories("tenants/") == ["a", "ab"]
    assert await store.list_directories("none/") == []
    await store.delete(["tenants/a/x", "tenants/a/x", "absent"])
    with pytest.raises(ObjectNotFoundError):
        await store.get("tenants/a/x")
    assert not leftovers(tmp_path)


async def test_files_are_uploaded_and_downloaded(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "bucket")
    (tmp_path / "layer").write_bytes(b"x" * 3_000_000)
    await store.upload("a/layer-00000001", tmp_path / "layer")
    assert await store.download("a/layer-00000001", tmp_path / "copy") == 3_000_000
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "layer").read_bytes()
    assert (await store.head("a/layer-00000001")).size_bytes == 3_000_000


async def test_what_was_cancelled_does_not_happen_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: who ends a task and deletes its objects does not find them again. Method: cancel while a thread writes,
    which goes on; a download that was cancelled leaves no file.
    """
    store = LocalStore(tmp_path / "bucket")
    await store.put("source", b"content")
    fsync, loop = os.fsync, asyncio.get_running_loop()
    is_writing, may_go_on = asyncio.Event(), threading.Event()

    def slow_fsync(descriptor: int) -> None:
        loop.call_soon_threadsafe(is_writing.set)
        assert may_go_on.wait(5)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow_fsync)
    for work in (
        store.put("a", b"late"),
        store.put_if_absent("b", b"late"),
        store.copy("source", "c"),
        store.download("source", tmp_path / "downloaded"),
    ):
        is_writing.clear()
        may_go_on.clear()
        task = asyncio.ensure_future(work)
        await is_writing.wait()
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await store.delete(["a", "b", "c"])
    await asyncio.sleep(0.1)
    assert [item.key async for item in store.list_objects("")] == ["source"]
    assert not (tmp_path / "downloaded").exists()
    assert leftovers(tmp_path) == []


async def test_exactly_one_conditional_create_wins(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    results = await asyncio.gather(*(store.put_if_absent("k", b"%d" % i) for i in range(20)), return_exceptions=True)
    assert sum(result is None for result in results) == 1
    assert sum(isinstance(result, ObjectExistsError) for result in results) == 19


async def test_claims_are_unique_and_above_everything(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    await store.put(f"tenants/{SHARD}/timelines/{SHARD}/index_part.json-00000007", b"{}")
    claimed = await asyncio.gather(*(claim_generation(store, SHARD, claim(str(i))) for i in range(5)))
    assert sorted(generation.number or 0 for generation in claimed) == [8, 9, 10, 11, 12]
    assert (await claim_generation(store, SHARD, claim(), wanted=20)).number == 20
    with pytest.raises(GenerationTakenError):
        await claim_generation(store, SHARD, claim(), wanted=15)
    assert await is_newest_generation(store, SHARD, Generation(20))
    assert not await is_newest_generation(store, SHARD, Generation(12))


async def test_a_store_without_our_claim_vouches_for_nothing(tmp_path: Path) -> None:
    """Goal: what goes into another directory than we attached from is not acknowledged."""
    store = LocalStore(tmp_path)
    assert (await claim_generation(store, SHARD, claim())).number == 1
    assert await is_newest_generation(store, SHARD, Generation(1))
    shutil.rmtree(tmp_path / "generations")
    assert not await is_newest_generation(store, SHARD, Generation(1))


async def test_a_directory_that_is_gone_is_no_absence_of_objects(tmp_path: Path) -> None:
    """Goal: a file system that is unmounted while a server runs looks neither empty nor is it written beside."""
    root = tmp_path / "mount" / "bucket"
    store = LocalStore(root)
    with pytest.raises(ObjectNotFoundError):
        await store.get("a/b")
    await store.put("a/b", b"1")
    (tmp_path / "mount").rename(tmp_path / "unmounted")
    (tmp_path / "mount").mkdir()
    for attempt in (
        lambda: store.get("a/b"),
        lambda: store.put("a/c", b"2"),
        lambda: store.delete(["a/b"]),
        lambda: store.list_directories("a/"),
        lambda: anext(aiter(store.list_objects("a/")), None),
    ):
        with pytest.raises(StoreUnavailableError, match="is gone"):
            await attempt()
    assert list((tmp_path / "mount").iterdir()) == []
    (tmp_path / "mount").rmdir()
    (tmp_path / "unmounted").rename(tmp_path / "mount")
    assert await store.get("a/b") == b"1"


async def test_a_directory_that_cannot_be_listed_is_not_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: an I/O error while claims or indices are listed is no answer that there are none."""
    store = LocalStore(tmp_path)
    await store.put("a/b/c", b"1")
    scandir = os.scandir

    def fail(path: str | Path) -> object:
        if str(path).endswith("b"):
            raise OSError(errno.EIO, "cannot read the directory")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(StoreUnavailableError, match="cannot read the directory"):
        _ = [item async for item in store.list_objects("a/")]


async def test_a_generation_below_an_object_is_taken_and_0_is_a_generation(tmp_path: Path) -> None:
    """Goal: nobody attaches below what somebody wrote. What he acknowledged there would be hidden by the objects above
    it at the next start, whose claim goes above them.
    """
    store = LocalStore(tmp_path)
    assert (await claim_generation(store, SHARD, claim(), wanted=0)).number == 0
    with pytest.raises(GenerationTakenError):
        await claim_generation(store, SHARD, claim("other"), wanted=0)
    await store.put(f"tenants/{SHARD}/timelines/{SHARD}/index_part.json-00000007", b"{}")
    with pytest.raises(GenerationTakenError, match="highest known is 00000007"):
        await claim_generation(store, SHARD, claim(), wanted=6)
    assert (await claim_generation(store, SHARD, claim(), wanted=7)).number == 7
    assert (await claim_generation(store, SHARD, claim())).number == 8


async def test_a_store_that_overwrites_is_refused(tmp_path: Path) -> None:
    """Goal: the start-up probe passes on our store and finds one that does not keep the promise."""

    class Overwriting(LocalStore):
        async def put_if_absent(self, key: str, content: bytes) -> None:
            await self.put(key, content)

    await probe_store(LocalStore(tmp_path), "a")
    assert [item.key async for item in LocalStore(tmp_path).list_objects("")] == []
    with pytest.raises(InvalidStoreError, match="conditional create"):
        await probe_store(Overwriting(tmp_path), "b")


@pytest.mark.parametrize(
    ("present", "mine", "expected"),
    [([None], 5, None), ([None, 1], 5, 1), ([None, 1, 10], 5, 1), ([None, 1, 4, 5, 10], 5, 5), ([4], 5, 4)],
)
async def test_the_newest_object_not_above_mine_is_found(
    tmp_path: Path, present: list[int | None], mine: int, expected: int | None
) -> None:
    """The unit-test facts of remote-storage.md 4.4."""
    store = LocalStore(tmp_path)
    for number in present:
        await store.put("t/index_part.json" + Generation(number).suffix(), str(number).encode())
    content, found = await find_generationed(store, "t/index_part.json", Generation(mine))
    assert (content.decode(), found.number) == (str(expected), expected)


async def test_nothing_to_find_is_not_found(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    await store.put("t/index_part.json-00000009", b"later generations are invisible")
    with pytest.raises(ObjectNotFoundError):
        await find_generationed(store, "t/index_part.json", Generation(5))


async def test_damage_in_an_uploaded_file_is_found(tmp_path: Path) -> None:
    """standalone.md 5. File systems without extended attributes have no place for the checksum."""
    store = LocalStore(tmp_path / "bucket")
    (tmp_path / "layer").write_bytes(b"x" * 100_000)
    await store.upload("t/layer", tmp_path / "layer")
    if (await store.head("t/layer")).crc32c is None:
        pytest.skip("no extended attributes here")
    with (tmp_path / "bucket" / "t" / "layer").open("r+b") as file:
        file.seek(50_000)
        file.write(b"y")
    with pytest.raises(ObjectChecksumError, match="t/layer is damaged"):
        await store.download("t/layer", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    await store.put("t/layer", b"replaced")
    assert (await store.head("t/layer")).crc32c is None, "another content has no checksum of the old one"


async def test_trouble_with_the_store_and_with_our_own_file_are_told_apart(tmp_path: Path) -> None:
    """Goal: what may work later is retried; what is wrong with the caller's file is not."""
    (tmp_path / "file").write_bytes(b"x")
    broken = LocalStore(tmp_path / "file")
    with pytest.raises(StoreUnavailableError, match="cannot put a/b"):
        await broken.put("a/b", b"")
    with pytest.raises(StoreUnavailableError):
        await broken.upload("a/b", tmp_path / "file")
    store = LocalStore(tmp_path / "bucket")
    with pytest.raises(FileNotFoundError):
        await store.upload("a/b", tmp_path / "none")
    await store.upload("a/b", tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        await store.download("a/b", tmp_path / "no directory" / "copy")
    with pytest.raises(FileExistsError):
        await store.download("a/b", tmp_path / "file")
    assert not leftovers(tmp_path)
