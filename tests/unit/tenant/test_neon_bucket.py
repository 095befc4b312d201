"""A bucket that Neon's page server wrote can be attached (standalone.md 1; remote-storage.md 13)."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import zstandard

from pageserver.ids import TimelineId
from pageserver.lsn import Lsn
from pageserver.mgmt.models import LocationConfigBody
from tests.unit.world import TENANT, World, store_of

VECTOR = Path(__file__).parents[4] / "shared" / "vectors" / "neon-pg16"
TIMELINE = TimelineId.parse("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa01")


def unpack(target: Path) -> Path:
    with (VECTOR / "bucket.tar.zst").open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file)
        with tarfile.open(fileobj=stream, mode="r|") as bucket:
            bucket.extractall(target, filter="data")
    return target


async def test_neons_bucket_is_attached_in_the_next_generation(tmp_path: Path) -> None:
    """Goal: what Neon loads from its bucket is what we load.

    The index names seven image layers one past its consistent LSN; Neon drops them at a start, as its own answers show.
    Everything else in the bucket stays as it is.
    """
    bucket = unpack(tmp_path / "bucket")
    before = {path: path.stat().st_mtime_ns for path in bucket.rglob("*") if path.is_file()}
    (tmp_path / "work").mkdir()
    world = await World.start(tmp_path / "work", bucket=bucket)
    request = LocationConfigBody.model_validate({"mode": "AttachedSingle", "tenant_conf": {}})
    await world.manager.put_location(TENANT, request.to_request(claims_generations=True), flush_seconds=None)
    tenant = world.manager.get(TENANT)
    await tenant.wait_active(10)
    assert tenant.generation.number == 2
    timeline = tenant.get_timeline(TIMELINE)
    info = timeline.detail().to_json()
    captured = json.loads((VECTOR / "http" / "timeline.json").read_text())
    for key in (
        "last_record_lsn",
        "prev_record_lsn",
        "applied_gc_cutoff_lsn",
        "disk_consistent_lsn",
        "remote_consistent_lsn_visible",
        "initdb_lsn",
        "current_physical_size",
        "pitr_history_size",
        "pg_version",
        "state",
        "ancestor_lsn",
    ):
        assert info[key] == captured[key], key
    assert timeline.flavour == "neon"
    assert sorted(store_of(timeline).named) == sorted(timeline.remote.index.layers)
    assert store_of(timeline).parameters.next_open_layer_at == Lsn(0x4CF6E01)
    layers = json.loads((VECTOR / "http" / "layers.json").read_text())["historic_layers"]
    assert sorted(store_of(timeline).named) == sorted(layer["layer_file_name"] for layer in layers)
    await timeline.remote.wait_completion()
    await world.resources.deletions.flush_execute()
    after = {path: path.stat().st_mtime_ns for path in bucket.rglob("*") if path.is_file()}
    assert {path.name for path in set(after) - set(before)} == {"00000002.json", "index_part.json-00000002"}
    gone = {path.name for path in set(before) - set(after)}
    assert len(gone) == 7
    assert all(name.endswith("__0000000004CF6E01-00000001") for name in gone)
    assert all(after[path] == before[path] for path in set(after) & set(before))
    await world.stop()
