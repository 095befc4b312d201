"""Tenant manifests and heatmaps: Neon's bytes, both ways, and when they are uploaded (remote-storage.md 6, 7)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from pageserver.errors import UnavailableError
from pageserver.ids import Generation, TenantId, TenantShardId, TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import LocalStore, paths
from pageserver.remote.heatmap import Heatmap, HeatmapDecodeError, is_worth_uploading
from pageserver.remote.tenant_manifest import ManifestDecodeError, ManifestKeeper, OffloadedTimeline, TenantManifest
from tests.unit.remote.fakes import SHARD, TIMELINE, QuickClock

EMPTY = '{"version":2,"stripe_size":2048,"offloaded_timelines":[]}'
OFFLOADED = (
    '{"version":2,"stripe_size":2048,"offloaded_timelines":[{"timeline_id":"5c4df612fd159e63c1b7853fe94d97da",'
    '"ancestor_timeline_id":null,"ancestor_retain_lsn":null,"archived_at":"2025-03-07T11:07:11.373105434"},'
    '{"timeline_id":"f3def5823ad7080d2ea538d8e12163fa","ancestor_timeline_id":"5c4df612fd159e63c1b7853fe94d97da",'
    '"ancestor_retain_lsn":"0/1F79038","archived_at":"2025-03-05T11:10:22.257901390"}]}'
)
HEATMAP = (
    '{"generation":3,"timelines":[{"timeline_id":"3ffd1bf1d1e4f0a5d5e9a4b9e5bbd6f1","layers":[{"name":'
    '"000000000000000000000000000000000000-FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF__0000000001696070","metadata":'
    '{"file_size":25600000,"generation":3},"access_time":1700000000,"cold":false}]}],"upload_period_ms":60000}'
)


@pytest.mark.parametrize("text", [EMPTY, OFFLOADED])
def test_manifests_survive_a_round_trip(text: str) -> None:
    assert TenantManifest.decode(text.encode()).encode() == text.encode()


def test_old_manifests_are_read_and_written_in_the_order_of_ids() -> None:
    for text in ('{"version":0}', '{"version":1,"offloaded_timelines":[],"new_key":{"a":1}}'):
        assert TenantManifest.decode(text.encode()).offloaded_timelines == ()
    later, earlier = (
        OffloadedTimeline(TimelineId(bytes([n] * 16)), None, Lsn(8), "2025-01-01T00:00:00") for n in (2, 1)
    )
    assert TenantManifest((later, earlier)) != TenantManifest((earlier, later))
    assert TenantManifest((later, earlier)).encode() == TenantManifest((earlier, later)).encode()
    without = (
        '{"version":2,"offloaded_timelines":[{"timeline_id":"5c4df612fd159e63c1b7853fe94d97da",'
        '"archived_at":"2025-01-01T00:00:00"}]}'
    )
    assert TenantManifest.decode(without.encode()).offloaded_timelines[0].ancestor_retain_lsn is None


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "{",
        '{"version":2,"offloaded_timelines":{}}',
        '{"version":2,"offloaded_timelines":[{"timeline_id":"5c"}]}',
        '{"version":2,"offloaded_timelines":[{"timeline_id":"5c4df612fd159e63c1b7853fe94d97da"}]}',
        '{"version":2,"stripe_size":-1,"offloaded_timelines":[]}',
    ],
)
def test_damaged_manifests_are_refused(text: str) -> None:
    with pytest.raises(ManifestDecodeError):
        TenantManifest.decode(text.encode())


class FlakyStore(LocalStore):
    """Fails the next `failures` puts."""

    failures = 0
    puts = 0

    async def put(self, key: str, content: bytes) -> None:
        self.puts += 1
        if self.failures:
            self.failures -= 1
            raise UnavailableError("not now")
        await super().put(key, content)


def keeper(store: LocalStore, generation: int) -> ManifestKeeper:
    return ManifestKeeper(store, SHARD, Generation(generation), clock=QuickClock(), log=structlog.get_logger())


async def test_a_manifest_goes_out_under_our_generation_if_it_says_something_new(tmp_path: Path) -> None:
    store = FlakyStore(tmp_path)
    first = keeper(store, 1)
    assert await first.read() is None
    store.failures = 10
    assert await first.upload(TenantManifest.decode(EMPTY.encode()))
    assert store.puts == 11
    assert await store.get(paths.manifest_key(SHARD, Generation(1))) == EMPTY.encode()

    later = keeper(store, 7)
    known = await later.read()
    assert known is not None
    assert not await later.upload(replace(known, version=1)), "the version does not count"
    assert await later.upload(TenantManifest.decode(OFFLOADED.encode()))
    assert await store.get(paths.manifest_key(SHARD, Generation(7))) == OFFLOADED.encode()
    assert await keeper(store, 6).read() == known, "a later generation is invisible to an earlier one"
    store.failures = 11
    with pytest.raises(UnavailableError):
        await later.upload(TenantManifest.decode(EMPTY.encode()))


async def test_a_manifest_whose_fate_is_unknown_is_written_again(tmp_path: Path) -> None:
    """Goal: a timeline that came back is not offloaded at the next start. Method: puts that land and report failure."""

    class Doubtful(LocalStore):
        fails = False

        async def put(self, key: str, content: bytes) -> None:
            await super().put(key, content)
            if self.fails:
                raise UnavailableError("outcome unknown")

    store = Doubtful(tmp_path)
    ours = keeper(store, 1)
    before = TenantManifest(stripe_size=2048)
    assert await ours.upload(before)
    store.fails = True
    record = OffloadedTimeline(TIMELINE, None, None, "2025-01-01T00:00:00")
    with pytest.raises(UnavailableError):
        await ours.upload(replace(before, offloaded_timelines=(record,)))
    store.fails = False
    assert await ours.upload(before)
    assert await store.get(paths.manifest_key(SHARD, Generation(1))) == before.encode()


def test_keys_are_neons() -> None:
    sharded = TenantShardId.parse(f"{SHARD.tenant_id}-0104")
    tenant = "tenants/ad6c1a56f5680419d3a16ff55d97ec3c"
    timeline = "timelines/be322c834ed9e709e63b5c9698691910"
    assert paths.manifest_key(sharded, Generation(3)) == f"{tenant}-0104/tenant-manifest-00000003.json"
    assert paths.manifest_key(SHARD, Generation(None)) == f"{tenant}/tenant-manifest.json"
    assert paths.heatmap_key(sharded) == f"{tenant}-0104/heatmap-v1.json"
    assert paths.initdb_key(TenantId(SHARD.tenant_id.raw), TIMELINE) == f"{tenant}/{timeline}/initdb.tar.zst"
    assert paths.preserved_initdb_key(SHARD.tenant_id, TIMELINE) == f"{tenant}/{timeline}/initdb-preserved.tar.zst"


def test_a_heatmap_has_neons_bytes() -> None:
    heatmap = Heatmap.decode(HEATMAP.encode())
    assert heatmap.encode() == HEATMAP.encode()
    assert len(HEATMAP) == 307
    assert heatmap.digests().whole == "d0e248c66a18b8a5a472b4979f0a9b64"
    assert heatmap.hot_bytes() == 25_600_000
    older = HEATMAP.replace(',"cold":false', "").replace(',"upload_period_ms":60000', "")
    assert Heatmap.decode(older.encode()).upload_period_ms is None
    assert hashlib.md5(HEATMAP.encode()).hexdigest() == heatmap.digests().whole
    for damage in ("{}", "{", HEATMAP.replace("25600000", '"x"'), HEATMAP.replace("__0000000001696070", "")):
        with pytest.raises(HeatmapDecodeError):
            Heatmap.decode(damage.encode())


def test_a_heatmap_is_uploaded_only_if_somebody_gains_from_it() -> None:
    heatmap = Heatmap.decode(HEATMAP.encode())
    touched = Heatmap.decode(HEATMAP.replace("1700000000", "1700000001").encode())
    grown = Heatmap.decode(HEATMAP.replace("25600000", "25600001").encode())
    assert is_worth_uploading(heatmap, None, checkpoint_distance=0)
    assert not is_worth_uploading(heatmap, heatmap.digests(), checkpoint_distance=0)
    assert is_worth_uploading(touched, heatmap.digests(), checkpoint_distance=25_600_000)
    assert not is_worth_uploading(touched, heatmap.digests(), checkpoint_distance=25_600_001)
    assert is_worth_uploading(grown, heatmap.digests(), checkpoint_distance=1 << 40)
