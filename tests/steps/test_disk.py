"""The simulated disk loses what a real one may lose, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pageserver.remote.local_store import overwrite_durably, sync_directory
from tests.steps.disk import Image, TrackedDisk, mixed
from tests.steps.recorder import Recorder


@pytest.fixture
def disk(tmp_path: Path) -> TrackedDisk:
    root = tmp_path / "disk"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    return TrackedDisk(root, tmp_path / "graveyard")


def seen(image: Image) -> dict[str, bytes | None]:
    return dict(image.listing())


def test_what_was_there_is_durable_and_what_comes_is_not(disk: TrackedDisk) -> None:
    (disk.root / "new").write_bytes(b"new")
    (disk.root / "old").unlink()
    assert seen(disk.current()) == {"new": b"new"}
    assert seen(disk.durable()) == {"old": b"old"}
    disk.sync_everything()
    assert seen(disk.durable()) == {"new": b"new"}


def test_a_file_needs_its_own_fsync_and_its_directory_s(disk: TrackedDisk, tmp_path: Path) -> None:
    with Recorder(disk, None).patched_disk():
        with (disk.root / "new").open("xb") as file:
            file.write(b"content")
            file.flush()
            os.fsync(file.fileno())
        assert seen(disk.durable()) == {"old": b"old"}, "nothing names it yet"
        sync_directory(disk.root)
        assert seen(disk.durable()) == {"old": b"old", "new": b"content"}
        (disk.root / "unsynced").write_bytes(b"content")
        sync_directory(disk.root)
    assert seen(disk.durable())["unsynced"] == b"", "a name without content"


def test_a_rename_is_lost_until_the_directory_is_synced(disk: TrackedDisk) -> None:
    with Recorder(disk, None).patched_disk():
        (disk.root / "old").rename(disk.root / "renamed")
        assert seen(disk.durable()) == {"old": b"old"}
        sync_directory(disk.root)
        assert seen(disk.durable()) == {"renamed": b"old"}


def test_a_number_that_is_used_again_is_not_the_same_file(disk: TrackedDisk) -> None:
    for content in (b"1", b"2", b"3"):
        with Recorder(disk, None).patched_disk():
            (disk.root / "old").unlink()
            (disk.root / "old").write_bytes(content)
            disk.current()
    assert seen(disk.durable()) == {"old": b"old"}


def test_an_overwrite_leaves_the_old_or_the_new_at_every_step(disk: TrackedDisk, tmp_path: Path) -> None:
    """Goal: conformance 3 of remote-storage.md, under power failures. Method: look at all images of all steps."""
    recorder = Recorder(disk, None)
    with recorder.patched_disk():
        recorder.start()
        overwrite_durably(disk.root / "old", b"new")
        recorder.stop()
    found = set()
    for number, step in enumerate(recorder.steps):
        images = [step.current, step.durable]
        images += [mixed(step.durable, step.current, f"{number} {seed}") for seed in range(20)]
        for seed, image in enumerate(images):
            image.write(tmp_path / f"{number}-{seed}")
            found.add((tmp_path / f"{number}-{seed}" / "old").read_bytes())
    assert found == {b"old", b"new"}
    assert [call.split()[0] for call in recorder.calls] == ["unlink", "fsync", "replace", "fsync"]
    assert seen(recorder.steps[-1].durable)["old"] == b"new"
