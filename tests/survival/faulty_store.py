"""A store that fails all the time: the load goes on, the page server is killed and its machine lost meanwhile, and at
the end nothing is lost or wrong.

| trouble | what fails |
|---|---|
| `first-two` | every operation twice before it works (`test_remote_failures` 3, probability 100) |
| `one-in-ten` | every operation once, then one attempt of ten, up to a hundred times (100, 10) |
| `proxy` | one request of four, at random, between server and store: see below |

The first two are remote-storage.md 19. The proxy answers 500 or resets the connection, before the store heard of a
request or after it did it; breaks off answers in the middle; answers never, or slowly.

The troubles are in the way of everything that a server asks of the store, its start and its claims included, from the
first request to the last. Only `pagectl scrub` looks at the bucket itself.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pageserver.lsn import Lsn
from tests.stores.fault_proxy import Fault, FaultProxy, ProxiedRequest
from tests.survival.bucket import Bucket, each_seed
from tests.survival.follower import Follower, FollowerPlan, Say

TROUBLES: Final = ("first-two", "one-in-ten", "proxy")
_SIMULATED: Final = {
    "first-two": {"test_remote_failures": "3", "test_remote_failures_probability": "100"},
    "one-in-ten": {"test_remote_failures": "100", "test_remote_failures_probability": "10"},
}
_FAULTS: Final = {
    Fault.ERROR_BEFORE: 4,
    Fault.ERROR_AFTER: 4,
    Fault.RESET_BEFORE: 3,
    Fault.RESET_AFTER: 3,
    Fault.TRUNCATED: 3,
    Fault.SLOW: 3,
    Fault.HANGS: 1,
}
_FAULT_PROBABILITY: Final = 0.25
_TIMEOUT: Final = "timeout='4s'"
_CHECKPOINT_DISTANCE: Final = 4 << 20
"""Larger than in the other suites: every layer costs pauses."""


class RandomFaults:
    """Chooses what befalls a request, from a seed, and counts it.

    The first faults are one of each kind, in any order: a rare kind might not come in a short load otherwise.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"faults {seed}")
        self._first = self._rng.sample(list(_FAULTS), len(_FAULTS))
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()

    def choose(self, request: ProxiedRequest) -> Fault:
        with self._lock:
            fault = Fault.NONE
            if self._rng.random() < _FAULT_PROBABILITY:
                fault = self._first.pop() if self._first else self._any()
            self.counts[fault.name] += 1
        return fault

    def _any(self) -> Fault:
        (fault,) = self._rng.choices(list(_FAULTS), list(_FAULTS.values()))
        return fault


def run(
    folder: Path,
    *,
    seeds: int,
    kind: str,
    first_seed: int,
    major: int | None,
    say: Say,
    deep: bool,
    trouble: str,
    seconds: float,
) -> dict[str, Any]:
    """Run `seeds` loads, each `seconds` long, with one kind of trouble; return figures. Raises AssertionError, and what
    the servers raise.
    """

    def run_one(place: Path, bucket: Bucket, seed: int) -> dict[str, Any]:
        return _run_one(place, bucket, trouble, seed, seconds, major or 16, say)

    numbers = range(first_seed, first_seed + seeds)
    return {"trouble": trouble, "runs": each_seed(folder, run_one, seeds=numbers, kind=kind, deep=deep, say=say)}


def _run_one(
    folder: Path, bucket: Bucket, trouble: str, seed: int, seconds: float, major: int, say: Say
) -> dict[str, Any]:
    faults = RandomFaults(seed)
    with _in_the_way(bucket, trouble, faults) as remote_storage:
        plan = FollowerPlan(
            major=major,
            seed=seed,
            checkpoint_distance=_CHECKPOINT_DISTANCE,
            remote_storage=remote_storage,
            settings=_SIMULATED.get(trouble, {}),
        )
        with Follower(folder, plan, bucket, say) as follower:
            follower.begin()
            _load_and_kills(follower, seconds)
            last = follower.hold()
            with follower.load.paused():
                follower.wait_until_acknowledged(Lsn.parse(last.lsn))
                chosen = follower.rng.choice(follower.moments)
                follower.check_restored(Lsn.parse(chosen.lsn), chosen)
            follower.end()
            found = {"acknowledgements": follower.acknowledgements.count, "verify": follower.verified}
            if trouble in _SIMULATED:
                simulated = sum(
                    log.read_text(errors="replace").count("simulated failure of remote operation")
                    for log in folder.glob("machine-*.log")
                )
                assert simulated > 0, "nothing failed"
                found["failures_logged"] = simulated
            else:
                assert all(faults.counts[fault.name] > 0 for fault in _FAULTS), faults.counts
                found["requests"] = dict(sorted(faults.counts.items()))
    return found


@contextmanager
def _in_the_way(bucket: Bucket, trouble: str, faults: RandomFaults) -> Iterator[str]:
    """Yield `[remote_storage]` of the servers."""
    if trouble in _SIMULATED:
        yield bucket.settings()
        return
    assert bucket.service is not None, "a directory is reached without requests"
    with FaultProxy(bucket.service.port) as proxy:
        proxy.choose = faults.choose
        yield bucket.settings(through=proxy.endpoint(urlsplit(bucket.service.endpoint).path), more=_TIMEOUT)


def _load_and_kills(follower: Follower, seconds: float) -> None:
    """Moments anywhere; one kill with a restart on the same disk, and one that takes the disk along."""
    rng = follower.rng
    events = [
        *((rng.uniform(0, seconds), "moment") for _ in range(3)),
        (rng.uniform(0, seconds / 2), "kill"),
        (rng.uniform(seconds / 2, seconds), "lose"),
        (seconds, "end"),
    ]
    now = 0.0
    for at, event in sorted(events):
        follower.load.run_for(at - now)
        now = at
        match event:
            case "moment":
                follower.hold()
            case "kill":
                follower.say("kill -9")
                follower.restart()
            case "lose":
                acknowledged = follower.lose_machine()
                found = follower.attach_new_machine()
                assert Lsn.parse(found["disk_consistent_lsn"]) >= acknowledged
                follower.say(f"machine lost at {acknowledged}, another one attached")
