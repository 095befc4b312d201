"""A few seeds of each suite; `make survival` runs them at full length. What is lost or wrong is raised in the suites
themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.postgres.provision import ProvisionError
from tests.survival import faulty_store, full_disk, lose_machine, many_hands, split_brain, split_brain_servers
from tests.survival.full_disk import NoSmallDiskError

COMMON: Any = {"first_seed": 1, "major": 16, "say": print, "deep": False}


@pytest.mark.slow
@pytest.mark.torture
def test_a_lost_machine_loses_nothing_that_was_acknowledged(server_dir: Path) -> None:
    figures = provisioned(lose_machine.run, server_dir, seeds=5, kind="s3")
    assert figures["repetitions"] == 5
    assert min(figures["acknowledgements"]) >= lose_machine.ACKNOWLEDGEMENTS_MIN
    assert len(set(figures["kills_at"])) == 5


@pytest.mark.slow
def test_a_stale_server_makes_nothing_unreadable_for_the_newer_one(tmp_path: Path) -> None:
    figures = split_brain.run(tmp_path, seeds=12, kind="local", **COMMON)
    assert figures["interleavings"] == 12
    steps = figures["steps"]
    assert {"old ingest", "old compact", "old delete", "new ingest", "new compact", "new delete"} <= steps.keys()
    assert any("StaleDeletionError" in step for step in steps), "no deletion met a newer generation"


@pytest.mark.slow
@pytest.mark.torture
def test_a_stale_server_process_with_a_slot_of_its_own_does_no_harm(server_dir: Path) -> None:
    (figures,) = provisioned(split_brain_servers.run, server_dir, seeds=1, kind="s3")["runs"]
    assert {step.partition(" ")[0] for step in figures["steps"]} == {"stale", "newer"}


@pytest.mark.slow
@pytest.mark.torture
@pytest.mark.parametrize(
    ("trouble", "kind"), [("first-two", "gcs"), ("one-in-ten", "azure"), ("proxy", "s3")], ids=faulty_store.TROUBLES
)
def test_the_load_ends_clean_on_a_store_that_fails_all_the_time(trouble: str, kind: str, server_dir: Path) -> None:
    deep = kind == "s3"
    figures = provisioned(faulty_store.run, server_dir, seeds=1, kind=kind, deep=deep, trouble=trouble, seconds=8)
    (found,) = figures["runs"]
    assert found["acknowledgements"] > 0
    assert (found["scrub"]["layers_decoded"] > 0) == deep


@pytest.mark.slow
@pytest.mark.torture
def test_a_full_disk_stops_ingest_until_there_is_room(server_dir: Path) -> None:
    try:
        figures = provisioned(full_disk.run, server_dir, seeds=1, kind="local", deep=True)
    except NoSmallDiskError as error:
        pytest.skip(f"no small file system can be mounted here: {error}")
    assert [stall["killed"] for stall in figures["runs"][0]["stalls"]] == [False, True]


@pytest.mark.slow
@pytest.mark.torture
def test_changes_by_many_hands_hold_what_they_were_answered(server_dir: Path) -> None:
    figures = provisioned(many_hands.run, server_dir, seeds=1, kind="s3", seconds=15)
    (found,) = figures["runs"]
    assert found["answers"]["create 201"] > 0
    assert found["pages"] > 0


def provisioned(run: Any, folder: Path, **options: Any) -> dict[str, Any]:
    """Run a suite; skip, with the reason, where its PostgreSQL or its store cannot be had."""
    try:
        figures: dict[str, Any] = run(folder, **{**COMMON, **options})
    except ProvisionError as error:
        pytest.skip(str(error))
    return figures
