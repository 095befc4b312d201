"""The WAL redo process when things go wrong: killed, stopped, fed with garbage, orphaned, tried to break out of."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pageserver._core import RedoPool
from pageserver.errors import CorruptDataError, RequestError, StoppedError, UnavailableError
from pageserver.postgres.redo_scratch import RedoCommand, RedoScratch
from tests.integration.test_redo_process import World, key_of, scratch, world  # noqa: F401 (fixtures)
from tests.postgres.provision import MAJORS_WITH_HEADERS, provision

with_headers = pytest.mark.parametrize("major", MAJORS_WITH_HEADERS)

BLOCK = (1663, 5, 16397, 0, 7)
LSN = 0x1234_5678


def make_record(rmid: int, info: int, main: bytes = b"", blocks: bytes = b"", data: bytes = b"") -> bytes:
    """Return a record; its CRC is not looked at here (ingest has done that)."""
    tail = blocks + (struct.pack("<BB", 0xFF, len(main)) if main else b"") + data + main
    return struct.pack("<IIQBBHI", 24 + len(tail), 5, 0, info, rmid, 0, 0) + tail


def full_page_image(page: bytes, block: tuple[int, int, int, int, int] = BLOCK) -> bytes:
    """Return an XLOG FPI record that makes ``block`` equal to ``page``."""
    spc, db, rel, fork, number = block
    head = struct.pack("<BBH", 0, 0x10 | fork, 0) + struct.pack("<HHB", 8192, 0, 0x02)
    return make_record(0, 0xB0, blocks=head + struct.pack("<IIII", spc, db, rel, number), data=page)


def some_page(seed: int) -> bytes:
    """Return a page with a valid header, an empty hole and noise as content."""
    content = random.Random(seed).randbytes(8192 - 24)
    return struct.pack("<QHHHHHHI", 0, 0, 0, 28, 28, 8192, 0x2004, 0) + content


def ask(pool: RedoPool, major: int, seed: int = 1, **changes: Any) -> bytes:
    """Ask for a page that is made by a full page image; ``changes`` go into the request."""
    record = full_page_image(some_page(seed))
    request: dict[str, Any] = {"key": key_of(BLOCK), "lsn": LSN, "pg_version": major, "hint_bits_logged": False}
    return pool.redo(**{**request, "base": None, "records": [(LSN, record)], **changes})


def expected(seed: int = 1) -> bytes:
    return struct.pack("<II", LSN >> 32, LSN & 0xFFFFFFFF) + some_page(seed)[8:]


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Return whether ``condition`` came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@with_headers
def test_a_killed_process_is_replaced_and_other_tenants_do_not_notice(major: int, world: World) -> None:  # noqa: F811
    pool, other = world.pool("one"), world.pool("two")
    assert not pool.is_running()
    assert ask(pool, major) == expected()
    assert ask(other, major, seed=2) == expected(2)
    pid, other_pid = pool.pid(), other.pid()
    assert pid is not None and other_pid is not None and pid != other_pid
    os.kill(pid, signal.SIGKILL)
    assert ask(pool, major) == expected()
    assert pool.pid() != pid and not is_alive(pid)
    assert other.pid() == other_pid
    assert ("retried walredo succeeded", {"n_attempts": 2}) in world.log


@with_headers
def test_a_stopped_process_times_out_and_is_replaced(major: int, world: World) -> None:  # noqa: F811
    pool = world.pool(timeout_seconds=2.0)
    assert ask(pool, major) == expected()
    pid = pool.pid()
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert ask(pool, major) == expected()
    assert pool.pid() != pid and not is_alive(pid)
    assert any("WAL redo timed out" in str(fields) for event, fields in world.log if event == "failed")


@with_headers
@pytest.mark.parametrize("stray", ["x", "garbage " * 1024, "\\0"], ids=["one byte", "a page", "a zero"])
def test_a_process_that_prints_garbage_is_replaced_and_other_tenants_do_not_notice(
    major: int,
    stray: str,
    world: World,  # noqa: F811
) -> None:
    """Goal: what is not the page is never returned. Method: one tenant's first process writes something to its standard
    output before it becomes a good one, so that every answer is shifted.
    """
    starts = 0

    def command(major: int, hint_bits_logged: bool) -> RedoCommand:
        nonlocal starts
        starts += 1
        made = world.scratch.command(major, hint_bits_logged)
        if starts > 1:
            return made
        return replace(made, argv=("/bin/sh", "-c", f"printf '{stray}'; exec \"$@\"", "sh", *made.argv))

    pool = RedoPool(tenant="one", timeout_seconds=30.0, command=command, log=world.note, metrics=world.metrics)
    world.pools.append(pool)
    other = world.pool("two")
    assert ask(other, major, seed=2) == expected(2)
    other_pid = other.pid()
    assert ask(pool, major) == expected()
    assert starts == 2
    assert any("not the page asked for" in str(fields) for event, fields in world.log if event == "failed")
    assert ask(other, major, seed=3) == expected(3) and other.pid() == other_pid


@with_headers
def test_a_process_that_prints_nothing_but_garbage_fails_the_request(major: int, world: World) -> None:  # noqa: F811
    """Goal: three tries, then an error that says so; the pool goes on, with no process left behind."""
    garbage = RedoCommand(argv=("/usr/bin/yes", "garbage"), env={}, uid=None, gid=None, scratch_template=None)
    pool = RedoPool(
        tenant="one", timeout_seconds=30.0, command=lambda *_: garbage, log=world.note, metrics=world.metrics
    )
    world.pools.append(pool)
    for _ in range(2):
        with pytest.raises(CorruptDataError, match="not the page asked for"):
            ask(pool, major)
        assert not pool.is_running() and world.live() == 0
    assert sum(event == "failed" for event, _ in world.log) == 6


def test_a_program_that_its_user_may_not_run_is_named(world: World, tmp_path: Path) -> None:  # noqa: F811
    program = tmp_path / "postgres"
    program.write_text("no program")
    command = RedoCommand(argv=(str(program),), env={}, uid=None, gid=None, scratch_template=None)
    pool = RedoPool(
        tenant="one", timeout_seconds=30.0, command=lambda *_: command, log=world.note, metrics=world.metrics
    )
    world.pools.append(pool)
    with pytest.raises(UnavailableError, match=f"starting {program}: Permission denied"):
        ask(pool, 16)


@with_headers
def test_records_that_cannot_be_replayed_are_refused_with_a_reason(major: int, world: World) -> None:  # noqa: F811
    """Goal: nothing but changes of the asked page is replayed. Method: one bad request each, a good one after it."""
    pool = world.pool()
    elsewhere = full_page_image(some_page(1), (1663, 5, 16397, 0, 8))
    no_block = struct.pack("<BBH", 0, 0, 0) + struct.pack("<IIII", 1663, 5, 16397, 7)
    cases = {
        "is not a change of pages": make_record(2, 0x20, b"x" * 20),
        "does not refer to block 7": elsewhere,
        "the first record does not make one": make_record(10, 0x10, b"\0" * 8, blocks=no_block),
        "could not decode the record": make_record(10, 0x00, blocks=b"\x00\xff\x03"),
        "mismatch between record": full_page_image(some_page(1)) + b"\0",
    }
    for reason, record in cases.items():
        with pytest.raises(CorruptDataError, match=reason):
            ask(pool, major, records=[(LSN, record)])
        assert not pool.is_running()
    assert ask(pool, major) == expected()
    with pytest.raises(RequestError, match="no records"):
        ask(pool, major, records=[])
    with pytest.raises(RequestError, match="invalid record"):
        ask(pool, major, key=bytes(18))
    with pytest.raises(RequestError, match="8200 bytes"):
        ask(pool, major, base=(1, bytes(8200)))
    assert pool.is_running(), "what is refused before it is sent costs no process"


@with_headers
def test_damaged_records_never_harm_more_than_their_request(major: int, world: World) -> None:  # noqa: F811
    """Goal: walredo.md 17.48. Method: flip bits of a record's headers; whatever happens, the next request is right."""
    pool = world.pool()
    record = full_page_image(some_page(1))
    dice = random.Random(4)
    for _ in range(12):
        damaged = bytearray(record)
        damaged[dice.randrange(16, 60)] ^= 1 << dice.randrange(8)
        try:
            assert len(ask(pool, major, records=[(LSN, bytes(damaged))])) == 8192
        except CorruptDataError:
            assert not pool.is_running()
        assert ask(pool, major) == expected()


@with_headers
def test_the_process_is_locked_in(major: int, world: World) -> None:  # noqa: F811
    """Goal: no privileges, no descriptors but its own, no further files, no system calls but the few, no traces."""
    pool = world.pool()
    segments = shared_memory_segments()
    ask(pool, major)
    pid = pool.pid()
    assert pid is not None
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Seccomp"].strip() == "2"
    assert status["NoNewPrivs"].strip() == "1"
    assert "0" not in status["Uid"].split()
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert "Max open files            0                    0" in limits
    targets = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    assert sum(target.startswith("pipe:") for target in targets) == 3
    files = [target for target in targets if not target.startswith("pipe:")]
    assert len(files) == 6 and all("/base/1/9999" in target for target in files), files
    folder = Path(files[0]).parents[2]
    pool.shutdown()
    assert not is_alive(pid)
    assert not folder.exists() or not any(folder.iterdir())
    assert shared_memory_segments() <= segments


def shared_memory_segments() -> set[str]:
    """Return the ids of System V segments that nobody is attached to."""
    rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[6] == "0"}


def test_no_process_outlives_its_server(world: World, tmp_path: Path) -> None:  # noqa: F811
    """Goal: kill -9 of the server ends its redo processes, even one that is stopped. Method: a server of ten lines."""
    script = tmp_path / "server.py"
    script.write_text(
        "import sys, time\n"
        "from pageserver._core import RedoPool\n"
        "from pageserver.postgres.redo_scratch import RedoScratch\n"
        "from tests.integration.test_redo_process_misbehaves import ask\n"
        "scratch = RedoScratch(pg_installations={'16': sys.argv[1]})\n"
        "pool = RedoPool(tenant='t', timeout_seconds=30.0, command=scratch.command)\n"
        "ask(pool, 16)\n"
        "print(pool.pid(), scratch.command(16, False).scratch_template.parent, flush=True)\n"
        "time.sleep(100)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", "."])}
    server = subprocess.Popen(
        [sys.executable, str(script), str(provision(16).folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert server.stdout is not None
    pid_text, folder = server.stdout.readline().split()
    assert Path(folder).exists()
    os.kill(int(pid_text), signal.SIGSTOP)
    server.kill()
    server.wait()
    server.stdout.close()
    assert wait_for(lambda: not is_alive(int(pid_text)))
    # What it left in memory is removed by the next server that makes a template; any server on this machine may be it.
    with_installation = {"16": str(provision(16).folder)}
    following = RedoScratch(pg_installations=with_installation)
    following.command(16, False)
    following.close()
    assert not Path(folder).exists()


def test_an_idle_process_is_stopped_and_a_closed_pool_says_so(world: World) -> None:  # noqa: F811
    pool = world.pool()
    assert pool.idle_seconds() is None and not pool.stop_if_idle(0.0)
    ask(pool, 16)
    assert not pool.stop_if_idle(180.0)
    assert pool.stop_if_idle(0.0)
    assert not pool.is_running()
    pool.shutdown()
    with pytest.raises(StoppedError, match="cancelled"):
        ask(pool, 16)


def test_a_version_without_extension_is_unavailable_and_says_why(world: World) -> None:  # noqa: F811
    with pytest.raises(UnavailableError, match="no postgresql 17"):
        ask(world.pool(), 17)
