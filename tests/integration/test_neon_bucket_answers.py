"""The layers that Neon wrote, opened by our engine, give Neon's answers: every page, every size, every moment."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from pageserver.config import ServerSettings
from pageserver.errors import PageServerError
from pageserver.ids import ShardIdentity
from pageserver.keyspace.collect import collect_keyspace
from pageserver.keyspace.directories import decode_size
from pageserver.keyspace.key import DEFAULT_TABLESPACE, MAIN_FORK, Key, RelTag, SlruKind
from pageserver.keyspace.time_search import Future, NoData, Past, Present, find_lsn_for_timestamp, to_postgres_time
from pageserver.lsn import Lsn
from pageserver.mgmt.timeline_routes import parse_timestamp
from pageserver.timeline import Timeline
from pageserver.timeline.core_engine import CoreEngine
from tests.unit.tenant.test_lifecycle import attach
from tests.unit.tenant.test_neon_bucket import TIMELINE, VECTOR, unpack
from tests.unit.world import World

_SLRU_KINDS = {
    "clog": SlruKind.CLOG,
    "multixact_offsets": SlruKind.MULTIXACT_OFFSETS,
    "multixact_members": SlruKind.MULTIXACT_MEMBERS,
}
_TIME_KINDS = {Present: "present", Past: "past", Future: "future", NoData: "nodata"}


def questions(name: str) -> Iterator[dict[str, Any]]:
    with (VECTOR / name).open() as file:
        for line in file:
            yield json.loads(line)


async def open_bucket(directory: Path) -> tuple[World, Timeline]:
    (directory / "work").mkdir()
    engine = CoreEngine(ServerSettings(), structlog.get_logger())
    world = await World.start(directory / "work", bucket=unpack(directory / "bucket"), engine=engine)
    tenant = await attach(world)
    return world, tenant.get_timeline(TIMELINE)


async def test_all_pages_are_neons_byte_for_byte(tmp_path: Path) -> None:
    world, timeline = await open_bucket(tmp_path)
    different = []
    for number, page in enumerate(questions("pages.jsonl")):
        key = Key.relation_block(RelTag.parse(page["rel"]).with_fork(page["fork"]), page["block"])
        content = await asyncio.to_thread(timeline.store.get, bytes(key), int(Lsn.parse(page["lsn"])))
        if hashlib.sha256(content).hexdigest() != page["sha256"]:
            different.append((number, page))
    assert not different
    await world.stop()


async def test_all_metadata_are_neons(tmp_path: Path) -> None:
    """An `error` in the vector stands for any error."""
    world, timeline = await open_bucket(tmp_path)
    for question in questions("metadata.jsonl"):
        if "error" in question:
            with pytest.raises(PageServerError):
                await asyncio.to_thread(answer, timeline, question)
        else:
            given = await asyncio.to_thread(answer, timeline, question)
            assert given == {key: question[key] for key in given}, question
    await world.stop()


async def test_the_collected_keyspace_is_neons(tmp_path: Path) -> None:
    """keyspace.md 8.1, 8.3: all ranges, their order and their joints."""
    world, timeline = await open_bucket(tmp_path)
    expected = json.loads((VECTOR / "http" / "keyspace.json").read_text())
    snapshot = timeline.snapshot(Lsn.parse(expected["at_lsn"]))
    collected = await asyncio.to_thread(collect_keyspace, snapshot, ShardIdentity.unsharded())
    assert len(expected["keys"]) > 1000
    assert collected.to_json() == expected
    await world.stop()


async def test_the_logical_size_is_neons(tmp_path: Path) -> None:
    world, timeline = await open_bucket(tmp_path)
    expected = json.loads((VECTOR / "http" / "timeline.json").read_text())
    assert expected["current_logical_size_is_accurate"]
    await timeline.size_calculation.hurry()
    info = timeline.detail()
    assert info.current_logical_size == expected["current_logical_size"]
    assert info.current_logical_size_is_accurate
    await world.stop()


def answer(timeline: Timeline, question: dict[str, Any]) -> dict[str, Any]:
    if question["ask"] == "lsn_by_timestamp":
        found = find_lsn_for_timestamp(
            timeline.store,
            to_postgres_time(parse_timestamp(question["timestamp"])),
            min_lsn=timeline.gc_cutoff_lsn,
            last_record_lsn=timeline.last_record_lsn,
        )
        return {"lsn": str(found.lsn), "kind": _TIME_KINDS[type(found)]}
    snapshot = timeline.snapshot(Lsn.parse(question["lsn"]))
    match question["ask"]:
        case "exists":
            return {"exists": snapshot.relation_exists(RelTag.parse(question["rel"]).with_fork(question["fork"]))}
        case "nblocks":
            # Also for a relation that was dropped: its size key outlives it, and Neon answers with that.
            rel = RelTag.parse(question["rel"]).with_fork(question["fork"])
            size = snapshot.relation_size(rel, allow_missing=rel.forknum == MAIN_FORK)
            if size is None:
                size = decode_size(timeline.store.get(bytes(Key.relation_size(rel)), snapshot.lsn))
            return {"blocks": size}
        case "dbsize":
            snapshot.relmap(DEFAULT_TABLESPACE, question["db"])
            return {"bytes": snapshot.database_size(DEFAULT_TABLESPACE, question["db"])}
        case "slru":
            pages = timeline.store.slru_segment(_SLRU_KINDS[question["slru"]], question["segment"], snapshot.lsn)
            return {"blocks": len(pages) // 8192, "sha256": hashlib.sha256(pages).hexdigest()}
        case other:
            raise AssertionError(f"unknown question {other}")
