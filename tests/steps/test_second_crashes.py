"""A server that starts after a crash and crashes again: what a start does by itself is made of steps, too.

Each run takes some moments of the first crash, by a seed; `PAGESERVER_STEPS=all` takes all of them (some minutes).
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from tests.steps import test_creations, test_deletions, test_moves, test_uploads
from tests.steps.scenario import Promises, Restart, Scenario, crash_everywhere, record, record_recovery
from tests.unit.world import World


async def check_uploads(world: World, promises: Promises, restart: Restart) -> None:
    """A list of deletions that two starts in a row did not get to is two generations old, and dropped: garbage for the
    scrubber (remote-storage.md 11.6).
    """
    await test_uploads.check(world, {key: value for key, value in promises.items() if key != "listed"}, restart)


SCENARIOS = {
    "uploads": Scenario(test_uploads.prepare, test_uploads.upload_and_delete, check_uploads, leaks_max=4),
    "a primary": Scenario(
        test_creations.attach_only, test_creations.create_from_primary, test_creations.check_primary, leaks_max=3
    ),
    "initdb": Scenario(
        test_creations.attach_only, test_creations.create_with_initdb, test_creations.check_initdb, leaks_max=3
    ),
    "a branch": Scenario(test_creations.prepare_root, test_creations.branch, test_creations.check_branch, leaks_max=3),
    "a deletion": Scenario(test_deletions.prepare, test_deletions.delete_branch, test_deletions.check_branch_is_gone),
    "an offload": Scenario(test_deletions.prepare, test_moves.offload_and_return, test_moves.check_branch_can_return),
}
MOMENTS = 3


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_crash_while_starting_after_a_crash(tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    steps = (await record(scenario, tmp_path / "whole")).steps
    if os.environ.get("PAGESERVER_STEPS") != "all":
        seed = os.environ.get("PAGESERVER_SEED", "1")
        print(f"PAGESERVER_SEED={seed}")
        steps = Random(f"{seed} {name}").sample(steps, MOMENTS)
    for number, step in enumerate(steps):
        restart = (Restart.KILLED, Restart.POWER)[number % 2]
        try:
            recording = await record_recovery(scenario, step, restart, tmp_path / f"{number}-recovery")
            assert recording.calls
            await crash_everywhere(scenario, recording, tmp_path / f"{number}-crashes")
        except BaseException as error:
            error.add_note(f"after a first crash at {step.what}, restarted {restart.value}")
            raise
