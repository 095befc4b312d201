"""`index_part.json`: real indices and the spec's examples survive parsing and writing (remote-storage.md 5)."""

import json
import tarfile
from pathlib import Path

import pytest
import zstandard

from pageserver.ids import TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import IndexDecodeError, IndexPart

VECTORS = Path(__file__).parents[4] / "shared" / "vectors"

WORKED_EXAMPLE = (
    '{"version":15,"archived_at":"2025-03-07T11:07:11.373105434","layer_metadata":{"000000000000000000000000000000000000-'
    'FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF__00000000014EF420-00000000015A7619":{"file_size":1015808,"generation":1,"shard":"0102"},'
    '"000000067F00004005000060F300039A4000-000000067F00004005000060F300039C0000__00000000015A7618":{"file_size":134422528,'
    '"generation":26,"shard":"0102"}},"disk_consistent_lsn":"0/15A7618","metadata_bytes":{"disk_consistent_lsn":"0/15A7618",'
    '"prev_record_lsn":"0/15A75E0","ancestor_timeline":null,"ancestor_lsn":"0/0","latest_gc_cutoff_lsn":"0/14EF420",'
    '"initdb_lsn":"0/14EF420","pg_version":16},"lineage":{"reparenting_history":["e1bfd8c633d713d279e6fcd2bcc15b6d"],'
    '"original_ancestor":["e2bfd8c633d713d279e6fcd2bcc15b6d","0/14EF420","2024-05-07T18:52:36.322426563"]},"gc_blocking":'
    '{"started_at":"2024-07-19T09:00:00.123","reasons":["Manual","DetachAncestor"]},"rel_size_migration":"legacy",'
    '"gc_compaction":{"last_completed_lsn":"0/15A7618"}}'
)

LEGACY = {
    "4a689e69004600040000000000000200010000000000000100011122334455667788112233445566778800000000000000000000000000000000"
    "000000000000000000000010": (0x200, 0x100, "11223344556677881122334455667788", 0, 16),
    "710b9fd20036000400000000016960e8010000000001696070000000000000000000000000000169607000000000016960700000000e": (
        0x16960E8,
        0x1696070,
        None,
        0x1696070,
        14,
    ),
    "e25819f1002e000400000000015a76180000000000000000000000000000014ef42000000000014ef42000000010": (
        0x15A7618,
        None,
        None,
        0x14EF420,
        16,
    ),
    "877158ea00420003000000000000020001000000000000010001112233445566778811223344556677880000000000000000"
    "00000000000000000000000000000000": (0x200, 0x100, "11223344556677881122334455667788", 0, 14),
}


def minimal(**more: object) -> dict[str, object]:
    return {"layer_metadata": {}, "disk_consistent_lsn": "0/16960E8", "metadata_bytes": metadata(), **more}


def metadata(**more: object) -> dict[str, object]:
    return {
        "disk_consistent_lsn": "0/16960E8",
        "prev_record_lsn": None,
        "ancestor_timeline": None,
        "ancestor_lsn": "0/0",
        "latest_gc_cutoff_lsn": "0/1696070",
        "initdb_lsn": "0/1696070",
        "pg_version": 14,
        **more,
    }


def decode(document: dict[str, object]) -> IndexPart:
    return IndexPart.decode(json.dumps(document).encode())


def test_the_worked_example_is_written_byte_for_byte() -> None:
    assert len(WORKED_EXAMPLE) == 976
    assert IndexPart.decode(WORKED_EXAMPLE.encode()).encode().decode() == WORKED_EXAMPLE


def test_the_captured_index_of_a_busy_timeline_survives() -> None:
    content = (VECTORS / "index-part" / "mixed_workload.json").read_bytes()
    index = IndexPart.decode(content)
    assert len(index.layers) == 1564
    assert sum(entry.file_size for entry in index.layers.values()) == 265_936_158_720
    assert str(index.disk_consistent_lsn) == "1BC/B5734CD8"
    assert json.loads(index.encode()) == json.loads(content)
    assert index.encode() == content.strip()


def test_the_index_in_neons_bucket_survives() -> None:
    with (VECTORS / "neon-pg16" / "bucket.tar.zst").open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file)
        with tarfile.open(fileobj=stream, mode="r|") as bucket:
            content = next(
                reader.read()
                for member in bucket
                if "index_part.json" in member.name and (reader := bucket.extractfile(member)) is not None
            )
    index = IndexPart.decode(content)
    assert index.encode() == content
    assert index.metadata.pg_version == 16
    assert all(entry.generation.number == 1 for entry in index.layers.values())


@pytest.mark.parametrize(("text", "expected"), LEGACY.items())
def test_metadata_as_512_numbers_is_read(text: str, expected: tuple[int, int | None, str | None, int, int]) -> None:
    content = bytes.fromhex(text).ljust(512, b"\0")
    index = decode(minimal(metadata_bytes=list(content)))
    ancestor = index.metadata.ancestor_timeline
    assert (
        index.metadata.disk_consistent_lsn,
        index.metadata.prev_record_lsn,
        None if ancestor is None else str(ancestor),
        index.metadata.initdb_lsn,
        index.metadata.pg_version,
    ) == expected
    damaged = bytearray(content)
    damaged[12] ^= 1
    with pytest.raises(IndexDecodeError, match="checksum mismatch"):
        decode(minimal(metadata_bytes=list(damaged)))


def test_old_and_new_keys_are_accepted_as_the_version_history_says() -> None:
    document = minimal(
        version=2,
        timeline_layers=["x"],
        missing_layers=[],
        deleted_at="2023-07-31T09:00:00.123000",
        last_aux_file_policy="V2",
    )
    document["metadata"] = document.pop("metadata_bytes")
    index = decode(document)
    assert (index.version, index.deleted_at, index.last_aux_file_policy) == (2, "2023-07-31T09:00:00.123", "v2")
    written = json.loads(index.encode())
    assert "timeline_layers" not in written
    assert "metadata" not in written
    assert written["lineage"] == {}


def test_numbers_beyond_doubles_are_exact() -> None:
    name = (
        "000000000000000000000000000000000000-FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF__00000000014EF420-00000000015A7619"
    )
    index = decode(minimal(layer_metadata={name: {"file_size": 9007199254741001}}))
    assert index.layers[name].file_size == 9007199254741001


@pytest.mark.parametrize(
    "broken",
    [
        minimal(layer_metadata=None),
        minimal(layer_metadata={"junk": {"file_size": 1}}),
        minimal(disk_consistent_lsn=5),
        minimal(disk_consistent_lsn="0/xyz"),
        minimal(rel_size_migration="perhaps"),
        minimal(metadata={}),
        minimal(metadata_bytes=[0] * 511),
        minimal(gc_blocking={"started_at": "2024-07-19T09:00:00", "reasons": ["Whim"]}),
        minimal(archived_at="2024-13-19T09:00:00"),
        minimal(lineage={"original_ancestor": ["11" * 16, "0/8", "yesterday"]}),
    ],
)
def test_a_damaged_index_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(IndexDecodeError):
        decode(broken)


def test_a_repeated_key_is_refused() -> None:
    with pytest.raises(IndexDecodeError, match="duplicate field"):
        IndexPart.decode(b'{"version":1,"version":2}')


def test_a_root_without_layers_is_not_uploaded() -> None:
    index = decode(minimal())
    with pytest.raises(IndexDecodeError, match="no ancestor and no layers"):
        index.check_before_upload()
    branch = metadata(ancestor_timeline=str(TimelineId(bytes(16))), ancestor_lsn=str(Lsn(8)))
    decode(minimal(metadata_bytes=branch)).check_before_upload()
