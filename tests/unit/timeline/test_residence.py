"""A layer leaves the disk only if it can come back; all of them can be brought, one task at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import structlog

from pageserver.errors import StoppedError, UnavailableError
from pageserver.ids import Generation, ShardIdentity
from pageserver.lsn import Lsn
from pageserver.remote import IndexPart, LayerEntry, TimelineMetadata
from pageserver.remote.source_document import SourceTraits
from pageserver.timeline import (
    DownloadCounts,
    DownloadTaskRunsError,
    DownloadTaskState,
    EvictionRefusedError,
    LayerDownloads,
    LayerNotFoundError,
    StoreParameters,
)
from pageserver.timeline.residence import LayerResidence, check_may_evict
from tests.unit.world import ROOT, START, TENANT, FakeStore, eventually

NAMES = [f"{'0' * 36}-{'F' * 36}__{number:016X}" for number in range(1, 6)]
METADATA = TimelineMetadata(START, None, None, Lsn(0), START, START, 16)


def index_of(*names: str, generation: int = 1) -> IndexPart:
    return IndexPart(METADATA, layers={name: LayerEntry(3, Generation(generation)) for name in names})


class Source:
    """A bucket, and the indices: brings three bytes once `go` is set, and fails for the layers in `lost`."""

    def __init__(self, store: FakeStore, index: IndexPart) -> None:
        self.index = index
        self.clean_index = index
        self.lost: set[str] = set()
        self.running = 0
        self.running_max = 0
        self.go = asyncio.Event()
        self._store = store

    async def download_layer(self, name: str, entry: LayerEntry, temporary_number: int) -> Path:
        self.running += 1
        self.running_max = max(self.running, self.running_max)
        try:
            await self.go.wait()
            await asyncio.sleep(0)
        finally:
            self.running -= 1
        if name in self.lost:
            raise UnavailableError(f"{name} could not be downloaded")
        self._store.paths[name].write_bytes(bytes(3))
        return self._store.paths[name]


def make(directory: Path, *, stores_layers: bool = True) -> tuple[LayerResidence, Source, FakeStore]:
    """Five layers that are named by the index everywhere; their files are on this disk."""
    store = FakeStore(
        StoreParameters(
            directory=directory,
            shard=TENANT,
            identity=ShardIdentity.unsharded(),
            timeline_id=ROOT,
            pg_version=16,
            traits=SourceTraits("stock"),
            last_record_lsn=START,
            prev_record_lsn=Lsn(0),
            disk_consistent_lsn=START,
            gc_cutoff_lsn=START,
            next_open_layer_at=START,
            ancestor=None,
            ancestor_lsn=Lsn(0),
            redo=None,
            download=(lambda _name: None) if stores_layers else None,
        )
    )
    for name in NAMES:
        (directory / name).write_bytes(bytes(3))
    store.add_layers([(name, directory / name, 3) for name in NAMES])
    source = Source(store, index_of(*NAMES))
    downloads = LayerDownloads(source, directory, DownloadCounts()) if stores_layers else None
    log = structlog.get_logger()
    return LayerResidence(store, source, downloads, shard=TENANT, timeline_id=ROOT, log=log), source, store


@pytest.mark.parametrize(
    ("wanted", "uploaded", "may"),
    [
        (index_of(NAMES[0]), index_of(NAMES[0]), True),
        (index_of(NAMES[0]), index_of(), False),
        (index_of(), index_of(NAMES[0]), False),
        (index_of(NAMES[0], generation=2), index_of(NAMES[0], generation=1), False),
    ],
)
def test_a_layer_may_be_evicted_only_if_the_uploaded_index_names_the_same_object(
    wanted: IndexPart, uploaded: IndexPart, may: bool
) -> None:
    if may:
        check_may_evict(NAMES[0], wanted=wanted, uploaded=uploaded, has_remote_storage=True)
    else:
        with pytest.raises(EvictionRefusedError, match="does not name it yet"):
            check_may_evict(NAMES[0], wanted=wanted, uploaded=uploaded, has_remote_storage=True)
    with pytest.raises(EvictionRefusedError, match="only copy"):
        check_may_evict(NAMES[0], wanted=wanted, uploaded=uploaded, has_remote_storage=False)


async def test_a_layer_goes_and_comes_back(tmp_path: Path) -> None:
    residence, source, _ = make(tmp_path)
    source.go.set()
    assert not await residence.download(NAMES[0])
    assert await residence.evict(NAMES[0])
    assert not (tmp_path / NAMES[0]).exists()
    assert not await residence.evict(NAMES[0])
    assert await residence.download(NAMES[0])
    assert (tmp_path / NAMES[0]).exists()
    for ask in (residence.evict, residence.download):
        with pytest.raises(LayerNotFoundError, match=f"^Layer {TENANT}/{ROOT}/unknown not found$"):
            await ask("unknown")


async def test_a_layer_that_is_nowhere_else_stays(tmp_path: Path) -> None:
    residence, _, _ = make(tmp_path, stores_layers=False)
    with pytest.raises(EvictionRefusedError, match="only copy"):
        await residence.evict(NAMES[0])
    residence, source, _ = make(tmp_path)
    source.clean_index = index_of()
    with pytest.raises(EvictionRefusedError, match="does not name it yet"):
        await residence.evict(NAMES[0])
    assert (tmp_path / NAMES[0]).exists()


async def test_all_layers_are_brought_by_one_task_that_goes_on_when_one_is_lost(tmp_path: Path) -> None:
    residence, source, _ = make(tmp_path)
    for name in NAMES[1:]:
        await residence.evict(name)
    source.lost.add(NAMES[2])
    assert residence.download_task is None
    status = await residence.start_downloading_all(2)
    assert (status.total, status.state) == (4, DownloadTaskState.RUNNING)
    with pytest.raises(DownloadTaskRunsError) as refusal:
        await residence.start_downloading_all(2)
    assert refusal.value.status is status
    source.go.set()
    await until_not_running(residence)
    assert status.to_json() == {
        "task_id": "1",
        "state": "Completed",
        "total_layer_count": 4,
        "successful_download_count": 3,
        "failed_download_count": 1,
    }
    assert source.running_max == 2
    source.lost.clear()
    again = await residence.start_downloading_all(7)
    await until_not_running(residence)
    assert (again.task_id, again.total, again.successful) == ("2", 1, 1)


@pytest.mark.parametrize("has_begun", [False, True])
async def test_closing_stops_the_task_and_says_so(tmp_path: Path, has_begun: bool) -> None:
    residence, source, _ = make(tmp_path)
    await residence.evict(NAMES[0])
    status = await residence.start_downloading_all(1)
    if has_begun:
        await asyncio.sleep(0.01)
        assert source.running == 1
    await residence.close()
    assert status.state is DownloadTaskState.SHUT_DOWN
    assert (status.successful, status.failed) == (0, 0)
    with pytest.raises(StoppedError):
        await residence.start_downloading_all(1)
    source.go.set()


async def until_not_running(residence: LayerResidence) -> None:
    async def is_done() -> bool:
        return residence.download_task is not None and residence.download_task.state is not DownloadTaskState.RUNNING

    await eventually(is_done)
