"""What happens to the files of a timeline's directory at a start (layer-files.md 2.4, 2.5)."""

from pathlib import Path

import pytest

from pageserver.ids import Generation
from pageserver.lsn import Lsn
from pageserver.remote import IndexPart, LayerEntry, TimelineMetadata
from pageserver.timeline.load import UnrecognizedFilesError, list_directory, plan_load, tidy_files
from pageserver.timeline.rolling import OpenLayerFacts, RollLimits, plan_roll

KEYS = "0" * 36 + "-" + "F" * 36
DELTA = f"{KEYS}__0000000001000000-0000000002000001"
FUTURE_DELTA = f"{KEYS}__0000000002000001-0000000003000001"
IMAGE = f"{KEYS}__0000000002000000"
FUTURE_IMAGE = f"{KEYS}__0000000002000008"


def index(*names: str) -> IndexPart:
    metadata = TimelineMetadata(Lsn(0x2000000), None, None, Lsn(0), Lsn(8), Lsn(8), 16)
    return IndexPart(metadata, {name: LayerEntry(10, Generation(3)) for name in names})


def test_each_file_meets_its_fate() -> None:
    files = {
        f"{DELTA}-v1-00000003": 10,
        f"{IMAGE}-v1-00000003": 11,
        f"{FUTURE_DELTA}-v1-00000003": 10,
        f"{DELTA}-v1-00000002": 10,
        f"{DELTA}-v1-00000003.1.temp_download": 10,
        f"{'0' * 36}-XXX__0000000001000000-0000000002000001.2.___temp": 5,
        "ephemeral-17": 5,
        "something.old": 5,
    }
    plan = plan_load(files, index(DELTA, IMAGE, FUTURE_DELTA, FUTURE_IMAGE))
    assert plan.resident == (DELTA,)
    assert plan.elsewhere == (IMAGE,)
    assert set(plan.from_the_future) == {FUTURE_DELTA, FUTURE_IMAGE}
    assert set(plan.files_to_remove) == set(files) - {f"{DELTA}-v1-00000003"}
    assert not plan.files_to_rename


def test_files_of_old_releases_have_no_generation_and_are_used() -> None:
    """remote-storage.md 2.4: right size, and nothing better here. Another size is no match, a newer name wins."""
    files = {DELTA: 10, f"{DELTA}-v1-00000003": 4, IMAGE: 9, FUTURE_DELTA: 10}
    plan = plan_load(files, index(DELTA, IMAGE, FUTURE_DELTA))
    assert (plan.resident, plan.elsewhere) == ((DELTA,), (IMAGE,))
    assert plan.files_to_rename == {DELTA: f"{DELTA}-v1-00000003"}
    assert set(plan.files_to_remove) == set(files) - {DELTA}
    both = plan_load({DELTA: 10, f"{DELTA}-v1-00000003": 10}, index(DELTA))
    assert (both.resident, both.files_to_remove, both.files_to_rename) == ((DELTA,), (DELTA,), {})


def test_renamed_files_replace_what_was_in_their_place(tmp_path: Path) -> None:
    files = {DELTA: b"0123456789", f"{DELTA}-v1-00000003": b"torn"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    tidy_files(tmp_path, plan_load(list_directory(tmp_path), index(DELTA)))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {f"{DELTA}-v1-00000003": files[DELTA]}


@pytest.mark.parametrize("name", ["metadata", "x.___uninit", "ephemeral-", "ephemeral-1x", "ephemeral-4294967296"])
def test_unknown_files_stop_the_load(name: str) -> None:
    with pytest.raises(UnrecognizedFilesError, match="total 1"):
        plan_load({name: 1}, index(DELTA))


@pytest.mark.parametrize(
    ("layer", "last", "reason"),
    [
        (OpenLayerFacts(0, Lsn(100), 999), 100, None),
        (OpenLayerFacts(50, Lsn(100), 1), 200, None),
        (OpenLayerFacts(1000, Lsn(100), 1), 200, "size"),
        (OpenLayerFacts(50, Lsn(100), 1), 1100, "lsn distance"),
        (OpenLayerFacts(50, Lsn(100), 600), 200, "age"),
    ],
)
def test_the_open_layer_rolls_by_size_distance_and_age(layer: OpenLayerFacts, last: int, reason: str | None) -> None:
    limits = RollLimits(checkpoint_distance=1000, checkpoint_timeout_seconds=600)
    assert plan_roll(layer, last_record_lsn=Lsn(last), limits=limits) == reason
