"""The document of a WAL source: round trip, traits that others read, damage."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pageserver.lsn import MAX_LSN, Lsn
from pageserver.remote.source_document import HistoryGap, SourceDocument
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
    branch = SOURCE.branched(MAX_LSN)
    assert (branch.connection, branch.slot) == (None, None)
    assert branch.history == SOURCE.history


GAP = HistoryGap(Lsn(0x7000000), Lsn(0x9000028), Lsn(0x9000100))


def test_a_gap_is_in_force_when_an_index_names_its_images() -> None:
    """Goal: a resync that did not come to its end changes nothing (docs/decisions/0008)."""
    asked = replace(SOURCE, resync_from_lsn=GAP.from_lsn)
    planned = replace(asked, gaps=(GAP,))
    body = source_body(planned)
    assert parse_source(json.loads(json.dumps(body))) == planned
    before, behind = GAP.start_lsn + -8, GAP.start_lsn
    assert SourceDocument(body).gaps(before) == ()
    assert SourceDocument(body).gaps(behind) == (GAP,)
    assert planned.with_gaps_in_force(before) == asked
    assert [asked.is_resynced(behind), planned.is_resynced(before), planned.is_resynced(behind)] == [False, False, True]
    assert not replace(planned, resync_from_lsn=Lsn(0xA000000)).is_resynced(Lsn(0xA000000)), "of an earlier gap"
    assert (SOURCE.consistent_from, planned.consistent_from) == (Lsn(0x2000138), GAP.to_lsn)
    assert [GAP.contains(lsn) for lsn in (GAP.from_lsn, GAP.start_lsn, GAP.to_lsn)] == [False, True, False]


def test_a_branch_has_the_gaps_and_the_flavour_of_where_it_begins() -> None:
    source = replace(SOURCE, gaps=(GAP,), neon_until_lsn=Lsn(0x6500000), resync_from_lsn=Lsn(1))
    early, late = source.branched(Lsn(0x6000000)), source.branched(GAP.to_lsn)
    assert (early.flavour, early.neon_until_lsn, early.gaps) == (Flavour.NEON, None, ())
    assert (late.flavour, late.neon_until_lsn, late.gaps) == (Flavour.STOCK, Lsn(0x6500000), (GAP,))
    assert late.resync_from_lsn is None
    assert (early.pg_tli, early.history) == (2, SOURCE.history[:1])
    traits = SourceDocument(source_body(late)).traits
    assert [traits.flavour_at(lsn) for lsn in (Lsn(0x64FFFF8), Lsn(0x6500000))] == ["neon", "stock"]


def test_a_timeline_without_a_base_copy_of_ours_is_consistent() -> None:
    assert StoredSource(Flavour.STOCK, pg_version=16, neon_until_lsn=Lsn(8)).consistent_from == 0


def test_following_a_timeline_keeps_where_the_old_one_ended() -> None:
    following = SOURCE.with_next_timeline(4, Lsn(0x7000000))
    assert following.pg_tli == 4
    assert following.history[-1] == HistoryLine(3, Lsn(0x7000000))


@pytest.mark.parametrize(
    "damage", [{"version": 9}, {"flavour": "other"}, {"pg_tli": "x"}, {"backup_end_lsn": "zz"}, {"neon_until_lsn": "x"}]
)
def test_damage_is_reported(damage: dict[str, object]) -> None:
    with pytest.raises(SourceDocumentError):
        parse_source({**source_body(SOURCE), **damage})
