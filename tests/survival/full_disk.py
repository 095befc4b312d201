"""A full disk: ingest stops with a clear report, goes on by itself when there is room, and nothing is lost.

The page server's working directory is a small file system of its own, the bucket is elsewhere. Under the torture load a
file of ours fills what is left, at a random time. Then:

1. the timeline says why (`ingest_stalled`, in `pagectl timeline detail` too), the log has an error that names the file,
   `pageserver_ingest_stalled` is 1; the process lives on and answers;
2. the second time, the server is killed while the disk is full, and started again on it;
3. the file goes: ingest goes on without any help, and the report is gone;

and at the end `verify` is clean, a moment is restored, the bucket is whole.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from pageserver.lsn import Lsn
from tests.page_server import PageServerProcess
from tests.survival.bucket import Bucket, each_seed
from tests.survival.follower import WAIT_SECONDS, Follower, FollowerPlan, Say

_DISK_BYTES: Final = 1 << 30
_CHECKPOINT_DISTANCE: Final = 4 << 20
_FILLER: Final = "filler"
_FULL_SECONDS: Final = 3.0
_CHUNK_BYTES: Final = 1 << 20


class NoSmallDiskError(Exception):
    """Here no file system can be mounted."""


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[None]:
    """Mount an empty file system of this size. Raises NoSmallDiskError, with the reason."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError as error:
        raise NoSmallDiskError(str(error)) from error
    if done.returncode != 0:
        raise NoSmallDiskError(f"mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], timeout=60, check=True)


def run(
    folder: Path, *, seeds: int, kind: str, first_seed: int, major: int | None, say: Say, deep: bool
) -> dict[str, Any]:
    """Run `seeds` loads in each of which the disk is full twice; return figures. Raises NoSmallDiskError,
    AssertionError, and what the servers raise.
    """

    def run_one(place: Path, bucket: Bucket, seed: int) -> dict[str, Any]:
        with small_disk(place / "disk", _DISK_BYTES):
            return _run_one(place, bucket, seed, major or 16, say)

    numbers = range(first_seed, first_seed + seeds)
    return {"runs": each_seed(folder, run_one, seeds=numbers, kind=kind, deep=deep, say=say)}


def _run_one(folder: Path, bucket: Bucket, seed: int, major: int, say: Say) -> dict[str, Any]:
    disk = folder / "disk"
    plan = FollowerPlan(
        major=major,
        seed=seed,
        checkpoint_distance=_CHECKPOINT_DISTANCE,
        # No memory for values beyond the least: the open layer lies in a file too.
        settings={"open_layer_memory_bytes": "0"},
        new_machine=lambda workdir, settings: _OnSmallDisk(disk / workdir.name, settings, workdir.with_suffix(".log")),
    )
    with Follower(folder, plan, bucket, say) as follower:
        follower.begin()
        stalls = [_fill_and_free(follower, disk, kill=bool(number)) for number in range(2)]
        last = follower.hold()
        with follower.load.paused():
            follower.wait_until_followed()
            follower.check_restored(Lsn.parse(last.lsn), last)
        follower.end()
    return {"stalls": stalls, "verify": follower.verified}


class _OnSmallDisk(PageServerProcess):
    """Its log lies beside the disk, to be read when that is full."""

    def __init__(self, workdir: Path, settings: dict[str, str], log_path: Path) -> None:
        super().__init__(workdir, settings=settings)
        self.log_path = log_path


def _fill_and_free(follower: Follower, disk: Path, *, kill: bool) -> dict[str, Any]:
    """Fill the disk, see that the server says so, with `kill` end it and start it again on the full disk; make room,
    and see that it goes on.
    """
    follower.load.run_for(follower.rng.uniform(0.5, 4.0))
    moment = follower.hold()
    with ThreadPoolExecutor(1) as pool, ExitStack() as full:
        full.enter_context(_full(follower, disk))
        reason, stood = _wait_for_report(follower)
        follower.say(f"full: {reason}")
        # A failed flush leaves room for a moment, so a little WAL may still be taken, and the report be gone, now and
        # then.
        follower.wait_for(lambda: _is_stalled(follower), "the gauge of stalled ingest")
        follower.load.run_for(_FULL_SECONDS)
        assert follower.machine.is_running()
        _expect_in_log(follower, 0, "flush failed", "could not ingest")
        starting: Future[None] | None = None
        if kill:
            follower.machine.kill()
            seen = follower.machine.log_path.stat().st_size
            starting = pool.submit(follower.machine.start)
            _expect_in_log(follower, seen, "a location config cannot be written, will retry", "flush failed", "ready")
        full.close()
        if starting is not None:
            starting.result(WAIT_SECONDS)
    with follower.load.paused():
        followed = follower.wait_until_followed()
        assert followed > stood, "the load went on"
        follower.wait_for(lambda: not follower.detail().get("ingest_stalled"), "the end of the report")
    assert not _is_stalled(follower)
    return {"reason": reason.rpartition("/")[2], "moment": moment.lsn, "followed": str(followed), "killed": kill}


def _expect_in_log(follower: Follower, start: int, *texts: str) -> None:
    """Wait until one of the texts is in the log behind `start`."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        log = follower.machine.log_path.read_bytes()[start:].decode(errors="replace")
        if any(text in log for text in texts):
            return
        assert time.monotonic() < deadline, f"none of {texts} in the log: {log[-4000:]}"
        follower.load.run_for(0.1)


def _wait_for_report(follower: Follower) -> tuple[str, Lsn]:
    """Wait until the timeline says why it stands still, under load; return that, and how far it is."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        shown = follower.machine.pagectl("timeline", "detail", follower.timeline)
        reason = shown["ingest_stalled"]
        if reason and "No space left on device" in reason:
            return str(reason), Lsn.parse(shown["last_record_lsn"])
        follower.load.run_for(0.1)
        assert time.monotonic() < deadline, f"no report of a full disk: {shown}\n{follower.machine.log_end()}"


def _is_stalled(follower: Follower) -> bool:
    (stalled,) = (
        value
        for name, value in follower.machine.metrics().items()
        if name.startswith("pageserver_ingest_stalled{") and follower.timeline in name
    )
    return stalled == 1


@contextmanager
def _full(follower: Follower, disk: Path) -> Iterator[None]:
    """Fill the disk with a file of ours until the block is left."""
    filler = disk / _FILLER
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(_CHUNK_BYTES))
    room = os.statvfs(disk)
    follower.say(f"disk filled, {room.f_bavail * room.f_frsize} bytes are left")
    try:
        yield
    finally:
        filler.unlink()
