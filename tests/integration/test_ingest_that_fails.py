"""Ingest that fails anywhere goes on from its last commit, and nothing of what it left makes a difference."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pageserver import _core
from pageserver.errors import CorruptDataError, UnavailableError
from pageserver.keyspace.key import Key
from pageserver.keyspace.snapshot import Snapshot
from pageserver.lsn import Lsn
from pageserver.postgres.wal_segment import segment_file_name
from pageserver.wal.ingest import IngestStep, WalApplier
from pageserver.wal.source_document import Flavour
from tests.integration.following import Followed
from tests.integration.test_following import end_of_wal
from tests.postgres.server import PostgresServer
from tests.torture.acceptance import empty_directory_for_server
from tests.torture.workload import SERVER_SETTINGS, PgbenchLoad, TortureLoad


class _Failing:
    """A `WalIngest` of whose calls one fails, before it does anything or after.

    `only_large`: of those that copy more than a few blocks. What a record has stored before its end is found only by
    those who fail that late.
    """

    def __init__(self, ingest: _core.WalIngest, *, at_call: int, only_large: bool, gets_through: bool) -> None:
        object.__setattr__(self, "_inner", ingest)
        object.__setattr__(self, "_calls_left", [at_call])
        object.__setattr__(self, "_only_large", only_large)
        object.__setattr__(self, "_gets_through", gets_through)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._counted(name, found) if callable(found) else found

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            is_large = name == "copy_relation" and arguments[2] > 50
            self._calls_left[0] -= is_large or not self._only_large
            if self._calls_left[0] != 0 or (self._only_large and not is_large):
                return call(*arguments)
            if self._gets_through:
                call(*arguments)
            raise UnavailableError(f"{name}: the disk is full, say")

        return counted


class _Failures:
    """Makes ingests that fail: the more often at one place, the later, or a long record would never end; and every
    other time among large copies.
    """

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._make = _core.WalIngest
        self._start_lsn = 0
        self._stuck = 0

    def make(self, store: Any, *, start_lsn: int, **settings: Any) -> Any:
        self._stuck = self._stuck + 1 if start_lsn == self._start_lsn else 0
        self._start_lsn = start_lsn
        only_large = self._stuck % 2 == 1
        gets_through = self._rng.random() < 0.5
        at_call = self._rng.randrange(25, 45) if only_large else self._rng.randrange(1, 200 << min(self._stuck, 10))
        ingest = self._make(store, start_lsn=start_lsn, **settings)
        return _Failing(ingest, at_call=at_call, only_large=only_large, gets_through=gets_through)


@pytest.mark.torture
@pytest.mark.parametrize("major", [15, 17])
def test_a_history_whose_ingest_fails_all_the_time_is_the_same_history(
    major: int, make_server: Callable[..., PostgresServer], server_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: wherever ingest breaks off, the record that it broke off in finds the state before it.

    Method: the WAL of a torture load is taken by appliers that fail at seeded calls and are replaced from the last
    commit on; then every page is compared with the stopped server's, and the size that was counted with all relations.
    """
    server = make_server(major, settings=SERVER_SETTINGS)
    space = empty_directory_for_server(server_dir / "space")
    with TortureLoad(server, seed=major, pgbench=PgbenchLoad(scale=1, clients=2), tablespace=space) as load:
        load.prepare()
        load.start()
        load.run_for(1)
        timeline = Followed(server, server_dir / "timeline")
        load.run_for(3)
        load.stop()
    # More than one commit takes: what is copied is stored in parts.
    server.sql("CREATE DATABASE wide")
    with server.connect("wide") as connection:
        for number in range(40):
            connection.execute(
                f"CREATE TABLE t{number} AS SELECT i, repeat('x', 900) AS filler FROM generate_series(1, 1000) i"
            )
    server.sql("CREATE DATABASE copied TEMPLATE wide STRATEGY file_copy")
    server.sql("DROP DATABASE wide")
    server.stop()
    monkeypatch.setattr(_core, "WalIngest", _Failures(major).make)
    try:
        before = Snapshot(timeline.store, timeline.last_record_lsn, major).logical_size()
        failures, grown_bytes = take_all(timeline, server)
        assert failures > 5
        assert before + grown_bytes == Snapshot(timeline.store, timeline.last_record_lsn, major).logical_size()
        report = timeline.compare(timeline.last_record_lsn)
        facts = report.to_json()
        assert report.total("missing") == report.total("extra") == report.total("different") == 0, facts
    finally:
        timeline.close()


def take_all(timeline: Followed, server: PostgresServer) -> tuple[int, int]:
    """Ingest the stopped server's WAL. Returns how often ingest failed, and by how much all relations grew."""
    grown: list[int] = []
    consistent_from, failures = timeline.source.backup_end_lsn, 0
    end = end_of_wal(server)
    while timeline.last_record_lsn < end:
        start = timeline.last_record_lsn.normalised()
        applier = WalApplier(
            timeline.store,
            start=start,
            checkpoint=timeline.store.get(Key.checkpoint(), timeline.last_record_lsn),
            system_identifier=timeline.source.system_identifier,
            check_prev=True,
            consistent_from=consistent_from,
            backup_start=timeline.source.backup_start_lsn,
            checkpoint_distance=16 << 20,
            pg_version=server.major,
            flavour=Flavour.STOCK,
            note_growth=lambda _lsn, grown_bytes: grown.append(grown_bytes),
        )
        try:
            for wal in pieces_from(server, timeline.source.pg_tli, start):
                step = applier.take(wal)
                while step is IngestStep.ROLL:
                    timeline.flush()
                    step = applier.go_on()
        except UnavailableError:
            failures += 1
            timeline.flush()  # what a timeline does that stops, or that is resynchronised
        except CorruptDataError:
            assert timeline.last_record_lsn >= end, "behind the last record there may be anything"
    return failures, sum(grown)


def pieces_from(server: PostgresServer, pg_tli: int, start: Lsn) -> Iterator[bytes]:
    """Yield the log from `start` to the end of its last segment, in pieces of at most 1 MiB."""
    end, at = end_of_wal(server), start
    while at <= end:
        with (server.data_dir / "pg_wal" / segment_file_name(pg_tli, at.segment_number())).open("rb") as segment:
            segment.seek(at - at.segment_start())
            while wal := segment.read(1 << 20):
                yield wal
                at = at + len(wal)
