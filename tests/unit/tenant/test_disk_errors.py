"""An I/O error after which nothing may be acknowledged ends the process, a full disk not (remote-storage.md 2.5)."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from pageserver.errors import PageServerError, StoppedError, UnavailableError
from pageserver.remote import paths
from tests.unit.tenant.test_lifecycle import attach, follow_primary
from tests.unit.world import START, TENANT, World, store_of


class Ended(BaseException):
    """The process would have ended here."""


def end() -> None:
    raise Ended


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES])
async def test_a_flush_that_meets_a_broken_disk_ends_the_process(tmp_path: Path, number: int) -> None:
    ends: list[int] = []
    world = await World.start(tmp_path, end_process=lambda: ends.append(number))
    tenant = await attach(world)
    timeline = await follow_primary(tenant)
    store_of(timeline).ingest(START + 0x100)
    store_of(timeline).fail_flush = UnavailableError("fsync layer file", path="x", errno=number)
    with pytest.raises(PageServerError, match="fsync"):
        await timeline.freeze_and_flush()
    assert ends == [number]
    store_of(timeline).fail_flush = None
    await world.stop()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, None])
async def test_other_errors_are_met_again(tmp_path: Path, number: int | None) -> None:
    world = await World.start(tmp_path, end_process=end)
    tenant = await attach(world)
    timeline = await follow_primary(tenant)
    store_of(timeline).ingest(START + 0x100)
    store_of(timeline).fail_flush = UnavailableError("write layer file", path="x", errno=number)
    with pytest.raises(PageServerError, match="layer file"):
        await timeline.freeze_and_flush()
    store_of(timeline).fail_flush = None
    await timeline.freeze_and_flush()
    await world.stop()


async def test_a_configuration_that_cannot_be_written_ends_the_process_or_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Method: os.fsync fails. The old configuration stays what it was."""
    world = await World.start(tmp_path, end_process=end)
    await attach(world)
    before = paths.location_config_path(tmp_path, TENANT).read_bytes()
    number = errno.EDQUOT

    def fail(_: int) -> None:
        raise OSError(number, "made up")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="made up"):
            await attach(world, tenant_conf={"checkpoint_distance": 1 << 20})
        number = errno.EIO
        with pytest.raises(Ended):
            await attach(world, tenant_conf={"checkpoint_distance": 1 << 20})
    assert paths.location_config_path(tmp_path, TENANT).read_bytes() == before
    await world.stop()


async def test_who_waits_for_a_flush_is_told_when_the_timeline_breaks(tmp_path: Path) -> None:
    """Lost once: a loop that ended by a surprise left them waiting for ever."""
    world = await World.start(tmp_path)
    timeline = await follow_primary(await attach(world))
    store_of(timeline).ingest(timeline.last_record_lsn + 0x1000)
    store_of(timeline).fail_flush = RuntimeError("a surprise")
    for _ in range(2):
        with pytest.raises(StoppedError):
            await asyncio.wait_for(timeline.freeze_and_flush(), 10)
    await world.kill()
