"""Lose the machine: SIGKILL at any moment, the disk gone, another machine attaches what is in the bucket.

For each repetition: at least `ACKNOWLEDGEMENTS_MIN` acknowledgements and one barrier, a kill at a random time after
them, then on the new machine:

1. the timeline has everything that was acknowledged, before any WAL has come;
2. WAL resumes from the slot, and all of it arrives;
3. the highest acknowledged flush LSN is restored and starts;
4. a barrier at or below it is restored, and has its checksums and its prepared transactions.

One primary serves `REPETITIONS_MAX` repetitions; then it is stopped cleanly, `verify` is clean, and so is the bucket.
The next one is of the next major version, unless one is asked for.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from pageserver.lsn import Lsn
from tests.postgres.provision import MAJORS
from tests.survival.bucket import open_bucket, scrub_clean
from tests.survival.follower import Follower, FollowerPlan, Say

ACKNOWLEDGEMENTS_MIN: Final = 10
REPETITIONS_MAX: Final = 10
_LATER_SECONDS_MAX: Final = 1.5
"""How long after the last acknowledgement that was waited for a kill may come: over a few more of them."""


def run(
    folder: Path, *, seeds: int, kind: str, first_seed: int, major: int | None, say: Say, deep: bool
) -> dict[str, Any]:
    """Run `seeds` repetitions; return figures. Raises AssertionError, and what the servers raise."""
    figures: dict[str, Any] = {"repetitions": 0, "acknowledgements": [], "kills_at": [], "groups": []}
    while (done := figures["repetitions"]) < seeds:
        group = folder / f"group-{done}"
        group.mkdir()
        group.chmod(0o755)
        with open_bucket(kind, group) as bucket:
            chosen = major or MAJORS[done // REPETITIONS_MAX % len(MAJORS)]
            plan = FollowerPlan(major=chosen, seed=first_seed + done)
            with Follower(group, plan, bucket, say) as follower:
                follower.begin()
                for number in range(done, min(done + REPETITIONS_MAX, seeds)):
                    say(f"repetition {number}")
                    _repeat(follower, figures)
                follower.end()
            figures["groups"].append(
                {"major": chosen, "verify": follower.verified, "scrub": scrub_clean(bucket, deep=deep)}
            )
            say(f"scrub: {figures['groups'][-1]['scrub']}")
    return figures


def _repeat(follower: Follower, figures: dict[str, Any]) -> None:
    rng, began = follower.rng, follower.acknowledgements.count
    follower.wait_for_acknowledgements(began + rng.randint(1, ACKNOWLEDGEMENTS_MIN - 3))
    moment = follower.hold()
    follower.wait_for_acknowledgements(began + ACKNOWLEDGEMENTS_MIN)
    follower.wait_until_acknowledged(Lsn.parse(moment.lsn))
    follower.load.run_for(rng.uniform(0.0, _LATER_SECONDS_MAX))
    acknowledgements = follower.acknowledgements.count - began
    acknowledged = follower.lose_machine()
    assert acknowledgements >= ACKNOWLEDGEMENTS_MIN
    at = time.monotonic()
    found = follower.attach_new_machine()
    assert Lsn.parse(found["disk_consistent_lsn"]) >= acknowledged, f"{acknowledged} was acknowledged, {found} is there"
    attached = time.monotonic()
    # The load rests meanwhile: on a busy machine it would be faster than everything else.
    with follower.load.paused():
        end = follower.wait_until_followed()
        followed = time.monotonic()
        follower.check_restored(acknowledged)
        durable = [moment for moment in follower.moments if Lsn.parse(moment.lsn) <= acknowledged]
        chosen = durable[-1] if rng.random() < 0.7 else rng.choice(durable)
        follower.check_restored(Lsn.parse(chosen.lsn), chosen)
    follower.say(
        f"  {acknowledgements} acknowledgements, killed at {acknowledged}, attached in {attached - at:.1f} s,"
        f" {end} followed in {followed - attached:.1f} s, restored it and {chosen.lsn} in"
        f" {time.monotonic() - followed:.1f} s"
    )
    figures["repetitions"] += 1
    figures["acknowledgements"].append(acknowledgements)
    figures["kills_at"].append(str(acknowledged))
