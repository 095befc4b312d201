"""What Neon's page server answered about a stock PostgreSQL 16's history, against ours (`vectors/neon-pg16`)."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from pageserver.errors import CorruptDataError
from pageserver.keyspace.key import RelTag, SlruKind
from pageserver.keyspace.time_search import find_lsn_for_timestamp, to_postgres_time
from pageserver.lsn import Lsn
from pageserver.wal.tar_stream import Closing
from tests.compat.imported import Imported, import_timeline
from tests.compat.vectors import unpack, vector

BASE, BACKUP_END, TIP = Lsn(0x2000028), Lsn(0x2000100), Lsn(0x4CF6E00)
SLRUS = {
    "clog": SlruKind.CLOG,
    "multixact_members": SlruKind.MULTIXACT_MEMBERS,
    "multixact_offsets": SlruKind.MULTIXACT_OFFSETS,
}


@pytest.fixture(scope="module")
def timeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Imported]:
    with tarfile.open(fileobj=io.BytesIO(unpack("neon-pg16/source.tar.zst"))) as source:
        base, wal = (source.extractfile(name) for name in ("base.tar", "wal.tar"))
        assert base is not None and wal is not None
        base_tar, wal_tar = base.read(), wal.read()
    imported = import_timeline(
        base_tar,
        tmp_path_factory.mktemp("pg16"),
        start=BASE,
        flavour="stock",
        tolerant_until=BACKUP_END,
        closing=Closing.ZERO_BLOCKS,
    )
    with tarfile.open(fileobj=io.BytesIO(wal_tar)) as segments:
        names = sorted(member.name for member in segments.getmembers() if member.name[-24:] >= f"{1:08X}{0:08X}{2:08X}")
        log = b"".join(file.read() for name in names if (file := segments.extractfile(name)) is not None)
    imported.take(log[BASE % (16 << 20) : TIP - 0x2000000])
    yield imported
    imported.store.shutdown()


def questions(ask: str) -> list[dict[str, Any]]:
    lines = vector("neon-pg16/metadata.jsonl").read_text().splitlines()
    return [question for line in lines if (question := json.loads(line))["ask"] == ask]


def relation(question: dict[str, Any]) -> RelTag:
    return RelTag.parse(question["rel"]).with_fork(question["fork"])


def test_the_history_is_taken_to_its_end(timeline: Imported) -> None:
    assert timeline.store.last_record_lsn == TIP


def test_existence(timeline: Imported) -> None:
    for question in questions("exists"):
        exists = timeline.snapshot(Lsn.parse(question["lsn"])).relation_exists(relation(question))
        assert exists == question["exists"], question


def test_sizes(timeline: Imported) -> None:
    for question in questions("nblocks"):
        snapshot = timeline.snapshot(Lsn.parse(question["lsn"]))
        if "error" in question:
            with pytest.raises(CorruptDataError):
                snapshot.relation_size(relation(question))
        else:
            assert snapshot.relation_size(relation(question)) == question["blocks"], question


def test_database_sizes(timeline: Imported) -> None:
    for question in questions("dbsize"):
        snapshot = timeline.snapshot(Lsn.parse(question["lsn"]))
        exists = (1663, question["db"]) in snapshot.databases()
        assert exists == ("error" not in question), question
        if exists:
            assert snapshot.database_size(1663, question["db"]) == question["bytes"], question


def test_slru_segments(timeline: Imported) -> None:
    for question in questions("slru"):
        snapshot = timeline.snapshot(Lsn.parse(question["lsn"]))
        segment = snapshot.slru_segment(SLRUS[question["slru"]], question["segment"])
        assert len(segment) == 8192 * question["blocks"], question
        assert hashlib.sha256(segment).hexdigest() == question["sha256"], question


def test_positions_of_moments(timeline: Imported) -> None:
    for question in questions("lsn_by_timestamp"):
        wanted = to_postgres_time(datetime.fromisoformat(question["timestamp"]))
        found = find_lsn_for_timestamp(timeline.store, wanted, min_lsn=BASE, last_record_lsn=TIP)
        assert (type(found).__name__.lower(), str(found.lsn)) == (question["kind"], question["lsn"]), question
