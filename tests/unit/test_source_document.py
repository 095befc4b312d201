"""The document of a WAL source: round trip, traits that others read, damage."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pageserver.lsn import Lsn
from pageserver.wal.source_document import (
    Flavour,
    HistoryLine,
    SourceDocumentError,
    SourceState,
    StoredSource,
    parse_source,
    source_body,
)

SOURCE = StoredSource(
    flavour=Flavour.STOCK,
    pg_version=16,
    connection="host=db user=repl",
    slot="pageserver_11223344556677881122334455667788",
    system_identifier=7710566186982188578,
    pg_tli=3,
    history=(HistoryLine(1, Lsn(0x5000000)), HistoryLine(2, Lsn(0x6000060))),
    backup_start_lsn=Lsn(0x2000028),
    backup_end_lsn=Lsn(0x2000138),
    wal_log_hints=True,
)


def test_a_document_survives_json() -> None:
    assert parse_source(json.loads(json.dumps(source_body(SOURCE)))) == SOURCE


def test_the_store_finds_the_traits_that_it_needs() -> None:
    body = source_body(replace(SOURCE, state=SourceState.IMPORTING))
    assert (body["flavour"], body["state"], body["hint_bits_logged"]) == ("stock", "importing", True)


def test_a_branch_inherits_history_and_flavour_but_no_connection() -> None:
    branch = SOURCE.branched()
    assert (branch.connection, branch.slot) == (None, None)
    assert branch.history == SOURCE.history


def test_following_a_timeline_keeps_where_the_old_one_ended() -> None:
    following = SOURCE.with_next_timeline(4, Lsn(0x7000000))
    assert following.pg_tli == 4
    assert following.history[-1] == HistoryLine(3, Lsn(0x7000000))


@pytest.mark.parametrize("damage", [{"version": 9}, {"flavour": "other"}, {"pg_tli": "x"}, {"backup_end_lsn": "zz"}])
def test_damage_is_reported(damage: dict[str, object]) -> None:
    with pytest.raises(SourceDocumentError):
        parse_source({**source_body(SOURCE), **damage})
