"""One suite over all kinds of stores: a local directory, S3 (versitygw), Azure (azurite), GCS (a stub of ours)."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pageserver import _core
from pageserver.errors import RequestError
from pageserver.ids import Generation, TenantId, TenantShardId
from pageserver.remote import (
    GenerationClaim,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectStorage,
    claim_generation,
    delete_prefix,
    find_generationed,
)
from pageserver.remote.generations import is_newest_generation, probe_store
from tests.stores.conftest import Bucket

SHARD = TenantShardId(TenantId(bytes(range(16))))


async def keys(
    store: ObjectStorage, prefix: str, *, start_after: str | None = None, max_keys: int | None = None
) -> list[str]:
    return [item.key async for item in store.list_objects(prefix, start_after=start_after, max_keys=max_keys)]


def has_attributes(directory: Path) -> bool:
    """Return whether files here have extended attributes: a directory keeps checksums there."""
    (directory / "probe").touch()
    try:
        os.setxattr(directory / "probe", "user.probe", b"1")
    except OSError:
        return False
    return True


async def test_objects_are_replaced_read_and_described(bucket: Bucket) -> None:
    store = bucket.open()
    before = datetime.now(UTC) - timedelta(minutes=5)
    await store.put("tenants/a/x", b"one")
    await store.put("tenants/a/x", b"content")
    await store.put("tenants/a/empty", b"")
    assert await store.get("tenants/a/x") == b"content"
    assert await store.get("tenants/a/empty") == b""
    found = await store.head("tenants/a/x")
    assert (found.key, found.size_bytes, found.crc32c) == ("tenants/a/x", 7, None)
    assert before < found.modified_at < datetime.now(UTC) + timedelta(minutes=5)


async def test_ranges_are_half_open_and_clamped(bucket: Bucket) -> None:
    store = bucket.open()
    await store.put("a/b", b"0123456789")
    for start, end, expected in (
        (2, 5, b"234"),
        (7, None, b"789"),
        (7, 100, b"789"),
        (0, 1, b"0"),
        (0, None, b"0123456789"),
    ):
        fetched = await store.fetch("a/b", start=start, end=end)
        assert fetched is not None
        assert (fetched.content, fetched.description.size_bytes) == (expected, 10)
    for start, end in ((3, 3), (4, 2), (-1, 2)):
        with pytest.raises(AssertionError):
            await store.fetch("a/b", start=start, end=end)


async def test_an_object_that_did_not_change_is_not_sent_again(bucket: Bucket) -> None:
    store = bucket.open()
    await store.put("a/heatmap", b"1")
    first = await store.fetch("a/heatmap")
    assert first is not None and first.description.etag is not None
    assert await store.fetch("a/heatmap", unless_etag=first.description.etag) is None
    listed = [item async for item in store.list_objects("a/")]
    assert [item.etag for item in listed] == [first.description.etag]
    await asyncio.sleep(0.01)  # a local file's ETag is its time in milliseconds
    await store.put("a/heatmap", b"2")
    second = await store.fetch("a/heatmap", unless_etag=first.description.etag)
    assert second is not None and second.content == b"2"


async def test_absent_objects_are_told_as_such(bucket: Bucket, tmp_path: Path) -> None:
    store = bucket.open()
    await store.put("a/b", b"")
    for key in ("none", "a/none", "a"):
        with pytest.raises(ObjectNotFoundError):
            await store.get(key)
        with pytest.raises(ObjectNotFoundError):
            await store.head(key)
        with pytest.raises(ObjectNotFoundError):
            await store.download(key, tmp_path / "x")
        with pytest.raises(ObjectNotFoundError):
            await store.copy(key, "c/d")
    assert not (tmp_path / "x").exists()
    assert await keys(store, "nothing/") == []
    assert await store.list_directories("nothing/") == []


async def test_keys_that_are_no_plain_paths_are_refused(bucket: Bucket) -> None:
    store = bucket.open()
    for key in ("/", "/a", "a//b", "a/../b", "a/", "."):
        with pytest.raises(RequestError):
            await store.put(key, b"")


@pytest.mark.parametrize("size", [0, 1_000_003, 20 << 20])
async def test_files_go_up_and_down_with_their_checksum(bucket: Bucket, tmp_path: Path, size: int) -> None:
    """Goal: one request or several parts, the same content and checksum. 20 MiB are three parts of 8 MiB."""
    store = bucket.open()
    content = os.urandom(size)
    checksum = _core.crc32c(content) if bucket.kind != "local" or has_attributes(tmp_path) else None
    (tmp_path / "layer").write_bytes(content)
    await store.upload("t/layer-00000001", tmp_path / "layer")
    assert await store.download("t/layer-00000001", tmp_path / "copy") == size
    assert (tmp_path / "copy").read_bytes() == content
    found = await store.head("t/layer-00000001")
    assert (found.size_bytes, found.crc32c) == (size, checksum)
    await store.copy("t/layer-00000001", "t/preserved")
    copied = await store.head("t/preserved")
    assert (copied.size_bytes, copied.crc32c) == (size, checksum)
    with pytest.raises(FileExistsError):
        await store.download("t/preserved", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content, "a file that was there is not touched"


async def test_a_file_that_is_not_there_is_not_an_absent_object(bucket: Bucket, tmp_path: Path) -> None:
    """The upload queue drops layers that were deleted meanwhile: it must know them from a missing bucket."""
    store = bucket.open()
    with pytest.raises(FileNotFoundError):
        await store.upload("t/layer", tmp_path / "vanished")
    assert await keys(store, "") == []


async def test_exactly_one_conditional_create_wins(bucket: Bucket) -> None:
    store = bucket.open()
    outcomes = await asyncio.gather(*(store.put_if_absent("k/k", b"%d" % i) for i in range(12)), return_exceptions=True)
    winners = [i for i, outcome in enumerate(outcomes) if outcome is None]
    assert len(winners) == 1
    assert all(isinstance(outcome, ObjectExistsError) for outcome in outcomes if outcome is not None)
    assert await store.get("k/k") == b"%d" % winners[0]


async def test_prefixes_are_plain_strings_and_keys_come_in_order(bucket: Bucket) -> None:
    """Goal: what remote-storage.md 17 asks of listings, which is not what the libraries do."""
    store = bucket.open()
    names = ["A", "_x", "a-b", "a.b", "a/b", "a/c/d", "ab", "a0", "0", "zz/y"]
    for name in names:
        await store.put(f"l/{name}", name.encode())
    await store.put("lx/y", b"")
    await store.put("index_part.json-00000001", b"")
    everything = sorted(f"l/{name}" for name in names)
    assert await keys(store, "l/") == everything
    assert await keys(store, "l") == [*everything, "lx/y"]
    assert await keys(store, "") == ["index_part.json-00000001", *everything, "lx/y"]
    for prefix in ("l/a", "l/a/", "l/a/c", "l/0", "l/zz", "l/a.", "l/a-b", "index_part.json", "i", "l/b"):
        expected = [key for key in ["index_part.json-00000001", *everything] if key.startswith(prefix)]
        assert await keys(store, prefix) == expected, prefix
        assert await keys(store, prefix, max_keys=1) == expected[:1]
        assert await keys(store, prefix, start_after="l/a.b") == [key for key in expected if key > "l/a.b"]
    assert await store.list_directories("l/") == ["a", "zz"]
    assert [item.size_bytes async for item in store.list_objects("l/a/")] == [3, 5]
    assert all([item.key == (await store.head(item.key)).key async for item in store.list_objects("l/z")])


async def test_many_objects_are_listed_in_pages_and_deleted_in_bulk(bucket: Bucket) -> None:
    """Goal: more than a page of a listing (1000) and more than a bulk deletion (S3 1000, Azure 256) takes."""
    store = bucket.open()
    count = 1005 if bucket.kind in ("s3", "gcs") else 300
    wanted = [f"t/{i:05}" for i in range(count)]
    for start in range(0, count, 50):
        await asyncio.gather(*(store.put(key, b"x") for key in wanted[start : start + 50]))
    await store.put("t2/other", b"")
    assert await keys(store, "t/") == wanted
    assert await keys(store, "t/", start_after=wanted[1], max_keys=3) == wanted[2:5]
    await store.delete(wanted[:3])
    assert await delete_prefix(store, "t/") == count - 3
    assert await keys(store, "") == ["t2/other"]


async def test_absent_keys_do_not_hinder_a_deletion(bucket: Bucket) -> None:
    store = bucket.open()
    for name in ("a", "b", "c"):
        await store.put(f"d/{name}", b"")
    await store.delete(["d/none", "d/a", "d/none2", "d/b", "d/a"])
    await store.delete(["d/none"])
    await store.delete([])
    assert await keys(store, "d/") == ["d/c"]


async def test_generations_are_claimed_and_looked_up(bucket: Bucket) -> None:
    """standalone.md 1: the probe passes, concurrent claims are unique, the newest index not above ours is found."""
    store = bucket.open()
    await probe_store(store, "instance")
    assert await keys(store, "") == [], "the probe cleans up"
    claims = [GenerationClaim(node_id=1, instance=str(i), host="h", claimed_at="now") for i in range(4)]
    claimed = await asyncio.gather(*(claim_generation(store, SHARD, claim) for claim in claims))
    assert sorted(generation.number or 0 for generation in claimed) == [1, 2, 3, 4]
    assert await is_newest_generation(store, SHARD, Generation(4))
    assert not await is_newest_generation(store, SHARD, Generation(3))
    for number in (1, 9):
        await store.put(f"tenants/t/index_part.json-{number:08x}", b"%d" % number)
    content, found = await find_generationed(store, "tenants/t/index_part.json", Generation(6))
    assert (content, found) == (b"1", Generation(1))


async def test_no_more_requests_than_permits_run_at_once(bucket: Bucket) -> None:
    """Goal: two permits are enough for any number of callers, and a listing that nobody goes on with holds none."""
    if bucket.kind == "local":
        pytest.skip("a directory has no permits (remote-storage.md 16)")
    store = bucket.open(concurrency_limit=2)
    await asyncio.gather(*(store.put(f"p/{i}", b"") for i in range(20)))
    paused = [aiter(store.list_objects("p/")) for _ in range(4)]
    assert [(await anext(listing)).key for listing in paused] == ["p/0"] * 4
    assert await asyncio.gather(*(store.get(f"p/{i}") for i in range(20))) == [b""] * 20
