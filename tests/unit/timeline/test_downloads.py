"""Layers are brought once for all who wait, whole or not at all."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest
import structlog

from pageserver.disk_errors import DiskGuard
from pageserver.errors import CorruptDataError, InternalError, StoppedError, UnavailableError
from pageserver.ids import Generation
from pageserver.lsn import Lsn
from pageserver.remote import IndexPart, LayerEntry, TimelineMetadata
from pageserver.timeline import DownloadCounts, LayerDownloads

NAME = "000000000000000000000000000000000000-FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF__0000000001000000"


class Source:
    """A source that brings files when it is told to."""

    def __init__(self, directory: Path, index: IndexPart) -> None:
        self.index = index
        self.calls = 0
        self.called = asyncio.Event()
        self.go = asyncio.Event()
        self.failure: Exception | None = None
        self._directory = directory

    async def download_layer(self, name: str, entry: LayerEntry, temporary_number: int) -> Path:
        self.calls += 1
        self.called.set()
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        target = self._directory / name
        target.write_bytes(bytes(entry.file_size))
        return target


def make(directory: Path) -> tuple[Source, LayerDownloads, DownloadCounts]:
    start = Lsn(0x1000000)
    metadata = TimelineMetadata(start, None, None, Lsn(0), start, start, 16)
    index = IndexPart(metadata, layers={NAME: LayerEntry(3, Generation(1))})
    source, counts = Source(directory, index), DownloadCounts()
    return source, LayerDownloads(source, directory, counts), counts


async def test_many_threads_wait_for_one_download(tmp_path: Path) -> None:
    source, downloads, counts = make(tmp_path)
    waiting = [asyncio.create_task(asyncio.to_thread(downloads.fetch, NAME)) for _ in range(5)]
    await asyncio.sleep(0.05)
    source.go.set()
    await asyncio.gather(*waiting)
    assert (source.calls, counts) == (1, DownloadCounts(1, 3))
    assert (tmp_path / NAME).stat().st_size == 3


async def test_a_failure_reaches_all_who_wait_and_the_next_one_tries_again(tmp_path: Path) -> None:
    source, downloads, counts = make(tmp_path)
    source.failure = CorruptDataError("wrong size")
    waiting = [asyncio.create_task(asyncio.to_thread(downloads.fetch, NAME)) for _ in range(2)]
    await asyncio.sleep(0.05)
    source.go.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(result) for result in results] == ["wrong size"] * 2
    source.failure = None
    await asyncio.to_thread(downloads.fetch, NAME)
    assert (source.calls, counts.layers) == (2, 1)


@pytest.mark.parametrize(("number", "ends"), [(errno.EIO, True), (errno.ENOSPC, False)])
async def test_a_disk_that_cannot_be_trusted_ends_the_process(tmp_path: Path, number: int, ends: bool) -> None:
    """remote-storage.md 2.5: after a failed write or fsync of a downloaded layer; a full disk is no such error."""
    source, _, counts = make(tmp_path)
    ended: list[int] = []
    guard = DiskGuard(structlog.get_logger(), end_process=lambda: ended.append(1))
    downloads = LayerDownloads(source, tmp_path, counts, disk=guard)
    source.failure = OSError(number, "of the disk")
    source.go.set()
    with pytest.raises(OSError, match="of the disk"):
        await downloads.download(NAME)
    assert bool(ended) is ends


async def test_who_gives_up_does_not_stop_the_others(tmp_path: Path) -> None:
    source, downloads, _ = make(tmp_path)
    first, second = (asyncio.create_task(downloads.download(NAME)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0.01)
    source.go.set()
    await second
    assert first.cancelled()
    assert source.calls == 1


async def test_closing_tells_everybody_who_waits(tmp_path: Path) -> None:
    source, downloads, _ = make(tmp_path)
    waiting = asyncio.create_task(asyncio.to_thread(downloads.fetch, NAME))
    await source.called.wait()
    await downloads.close()
    with pytest.raises(StoppedError):
        await waiting
    with pytest.raises(StoppedError):
        await asyncio.to_thread(downloads.fetch, NAME)


async def test_a_layer_that_the_index_does_not_name_and_a_call_on_the_loop_are_refused(tmp_path: Path) -> None:
    _, downloads, _ = make(tmp_path)
    with pytest.raises(UnavailableError, match="no longer part"):
        await asyncio.to_thread(downloads.fetch, NAME.replace("01000000", "02000000"))
    with pytest.raises(InternalError, match="event loop"):
        downloads.fetch(NAME)
