"""Two servers, one slot: the one that is stale gives it up (standalone.md 3)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog

from pageserver.errors import UnavailableError
from pageserver.lsn import Lsn
from pageserver.wal import receiver as receiver_module
from pageserver.wal.receiver import WalReceiver
from pageserver.wal.source_document import Flavour, StoredSource
from pageserver.wal.source_errors import OvertakenError, SlotInUseError
from tests.unit.remote.fakes import QuickClock, until


async def no_save(_: StoredSource) -> None:
    raise AssertionError("nothing changes")


def receiver_that_meets_a_used_slot(
    answers: Sequence[bool | Exception], monkeypatch: pytest.MonkeyPatch
) -> tuple[WalReceiver, list[bool | Exception]]:
    """Return a receiver whose primary always says 55006; `answers` say in turn whether it was overtaken."""
    left = list(answers)

    async def is_overtaken() -> bool:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def follow(_: WalReceiver) -> None:
        raise SlotInUseError("replication slot is active for PID 1 (SQLSTATE 55006)")

    monkeypatch.setattr(receiver_module.WalReceiver, "_follow", follow)
    source = StoredSource(flavour=Flavour.STOCK, pg_version=16, connection="host=primary", slot="ours", pg_tli=1)
    receiver = WalReceiver(
        cast("Any", SimpleNamespace(last_record_lsn=Lsn(8), durable_lsn=Lsn(8), pg_version=16)),
        source,
        save=no_save,
        new_applier=lambda _: cast("Any", None),
        application_name="test",
        connect_timeout_seconds=1,
        clock=QuickClock(),
        log=structlog.get_logger(),
        is_overtaken=is_overtaken,
    )
    return receiver, left


async def test_a_stale_server_leaves_the_slot_to_the_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver, left = receiver_that_meets_a_used_slot([False, UnavailableError("away"), True], monkeypatch)
    with pytest.raises(OvertakenError, match="another server has taken over"):
        await receiver.run()
    assert left == []
    assert "taken over" in (receiver.status().error or "")


async def test_the_newer_server_waits_until_the_old_walsender_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    receiver, left = receiver_that_meets_a_used_slot([False] * 100, monkeypatch)
    running = asyncio.ensure_future(receiver.run())
    await until(lambda: len(left) < 95)
    assert receiver.status().error is None
    running.cancel()
    await asyncio.wait({running})
