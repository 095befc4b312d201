"""Which LSN a base backup is of, and what it says about the record before (page-service.md 6.2, 6.10)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageserver.errors import RequestError
from pageserver.lsn import Lsn
from pageserver.serve.backups import backup_point
from pageserver.timeline import Timeline
from tests.unit.tenant.test_lifecycle import attach, follow_primary
from tests.unit.world import BRANCH, ROOT, START, World, store_of


def said(timeline: Timeline, lsn: int | None = None, prev: int | None = None) -> tuple[int, str]:
    point = backup_point(
        timeline, lsn=None if lsn is None else Lsn(lsn), provided_prev_lsn=None if prev is None else Lsn(prev)
    )
    return int(point.lsn), point.prev_lsn.text


async def test_the_previous_record_is_known_only_at_the_end(tmp_path: Path) -> None:
    world = await World.start(tmp_path)
    tenant = await attach(world)
    root = await follow_primary(tenant)
    first, last = START + 0x200, START + 0x300
    store_of(root).ingest(first)
    store_of(root).ingest(last)
    known = f"PREV LSN: {first}"
    assert said(root) == (last, known)
    assert said(root, last) == (last, known)
    assert said(root, first) == (first, "PREV LSN: invalid")
    assert said(root, first, prev=0x2000100) == (first, "PREV LSN: 0/2000100")
    with pytest.raises(RequestError, match=f"backup_prev {first} != provided_prev_lsn 0/10"):
        said(root, last, prev=0x10)
    await tenant.create_branch(BRANCH, ROOT, first)
    branch = tenant.get_timeline(BRANCH)
    assert said(branch) == (first.aligned(), "PREV LSN: none")
    await world.stop()
