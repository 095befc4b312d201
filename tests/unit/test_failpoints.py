"""The grammar of failpoints, and what happens where one is reached (http-api.md 11)."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from random import Random

import pytest
import structlog

from pageserver.config import InvalidSettingError, ServerConfig, parse_settings
from pageserver.failpoints import (
    FailpointError,
    FailpointPanicError,
    Failpoints,
    FailpointsOffError,
    FailpointSyntaxError,
    Task,
    Term,
    parse_actions,
    parse_environment,
)
from pageserver.server import open_failpoints

ROOT = Path(__file__).parents[2]


def registry() -> Failpoints:
    return Failpoints(structlog.get_logger(), random=Random(1))


def test_actions_are_read_as_specified() -> None:
    assert parse_actions("return") == [Term(Task.RETURN)]
    assert parse_actions("20%3*print(here)->1*off -> sleep(10)") == [
        Term(Task.PRINT, "here", 20.0, 3),
        Term(Task.OFF, left=1),
        Term(Task.SLEEP, "10"),
    ]
    assert parse_actions("0.5%exit") == [Term(Task.EXIT, percent=0.5)]
    for task in ("off", "return", "panic", "print", "pause", "yield", "delay(1)", "exit", "return(5)"):
        assert len(parse_actions(task)) == 1


@pytest.mark.parametrize(
    "actions", ["", "fly", "1*", "->", "return->", "101%off", "sleep", "sleep(x)", "-1*off", "Off"]
)
def test_bad_actions_are_refused(actions: str) -> None:
    with pytest.raises(FailpointSyntaxError, match=re.escape(f"failpoint actions {actions!r}")):
        parse_actions(actions)


def test_the_environment_names_several() -> None:
    assert parse_environment("a=return; b=1*off->exit;") == [("a", "return"), ("b", "1*off->exit")]
    assert parse_environment("") == []
    with pytest.raises(FailpointSyntaxError):
        parse_environment("a")


async def test_counts_are_used_up_and_the_next_term_follows() -> None:
    failpoints = registry()
    failpoints.configure("x", "2*off->1*return(7)->1*panic")
    assert [await failpoints.reach("x") for _ in range(3)] == [None, None, "7"]
    with pytest.raises(FailpointPanicError):
        await failpoints.reach("x")
    assert await failpoints.reach("x") is None, "all terms are used up"
    assert await failpoints.reach("never configured") is None


async def test_percentages_hit_now_and_then() -> None:
    failpoints = registry()
    failpoints.configure("x", "25%return")
    hits = sum([await failpoints.reach("x") is not None for _ in range(1000)])
    assert 200 < hits < 300


async def test_return_means_what_the_point_is_made_for() -> None:
    failpoints = registry()
    failpoints.configure("x", "return")
    with pytest.raises(FailpointError, match=r"^failpoint: x$"):
        await failpoints.fail("x", text="failpoint: {}")
    await failpoints.pause("x")
    with pytest.raises(FailpointSyntaxError):
        await failpoints.sleep("x")
    failpoints.configure("x", "return(1)")
    await failpoints.sleep("x")


async def test_a_pause_ends_by_configuration_or_by_shutdown() -> None:
    failpoints = registry()
    failpoints.configure("x", "pause")
    paused = asyncio.ensure_future(failpoints.pause("x"))
    await asyncio.sleep(0)
    failpoints.configure("x", "pause")
    await paused
    stop = asyncio.Event()
    paused = asyncio.ensure_future(failpoints.pause("x", unless=stop))
    await asyncio.sleep(0)
    assert not paused.done()
    stop.set()
    await paused
    paused = asyncio.ensure_future(failpoints.pause("x"))
    await asyncio.sleep(0)
    paused.cancel()
    with pytest.raises(asyncio.CancelledError):
        await paused


async def test_exit_ends_the_process_with_code_1() -> None:
    ended: list[int] = []
    failpoints = Failpoints(structlog.get_logger(), end_process=ended.append)
    failpoints.configure("x", "1*off->exit")
    await failpoints.pause("x")
    assert ended == []
    await failpoints.pause("x")
    assert ended == [1]


async def test_what_is_off_takes_no_configuration() -> None:
    failpoints = Failpoints.off()
    with pytest.raises(FailpointsOffError):
        failpoints.configure("x", "return")
    await failpoints.fail("x")


async def test_the_environment_needs_the_setting(tmp_path: Path) -> None:
    def config(**settings: object) -> ServerConfig:
        return ServerConfig(workdir=tmp_path, node_id=1, settings=parse_settings(dict(settings)))

    log = structlog.get_logger()
    assert not open_failpoints(config(), {}, log).is_enabled
    with pytest.raises(InvalidSettingError, match="testing_apis"):
        open_failpoints(config(), {"FAILPOINTS": "a=return"}, log)
    with pytest.raises(InvalidSettingError, match="fly"):
        open_failpoints(config(testing_apis=True), {"FAILPOINTS": "a=fly"}, log)
    failpoints = open_failpoints(config(testing_apis=True), {"FAILPOINTS": "a=return"}, log)
    with pytest.raises(FailpointError):
        await failpoints.fail("a")


def test_the_document_lists_every_failpoint_in_the_code() -> None:
    """Goal: nobody hunts for a name. Method: compare the table's names with those that the code reaches."""
    calls = re.compile(r"(?:failpoints\.(?:fail|pause|sleep)|_pause)\(\s*\"([^\"]+)\"")
    placed = {name for path in (ROOT / "src").rglob("*.py") for name in calls.findall(path.read_text(encoding="utf-8"))}
    rows = [line for line in (ROOT / "docs" / "failpoints.md").read_text().splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert len(placed) > 30
    assert placed == listed
