"""Every failpoint is a moment at which the tests here crash, or it is said why not."""

from __future__ import annotations

import re
from pathlib import Path

from tests.steps import test_creations, test_deletions, test_exits, test_moves, test_uploads

DOCUMENT = Path(__file__).parents[2] / "docs" / "failpoints.md"

CRASHED = (
    test_uploads.FLUSH_POINTS
    | test_uploads.STORE_POINTS
    | test_creations.CREATION_POINTS
    | test_deletions.DELETION_POINTS
    | test_moves.MANIFEST_POINTS
    | test_moves.ATTACH_POINTS
    | test_moves.DOWNLOAD_POINTS
    | set(test_exits.FLUSH_POINTS)
    | set(test_exits.INITDB_POINTS)
)
ELSEWHERE = {
    "before requests and questions, where nothing has begun": {
        "api-500",
        "api-503",
        "put-location-conf-handler",
        "get-utilization-http-handler",
        "find-lsn-for-timestamp-pausable",
        "wal-ingest-record-sleep",
    },
    "between our storage controller and us; both ask again": {
        "control-plane-client-re-attach",
        "control-plane-client-validate-sleep",
    },
    "RocksDB's own durability: tests/property, tests/unit/test_object_repository.py": {
        "before-timeline-gc",
        "gc_iteration_internal_after_getting_gc_timelines",
        "Timeline::find_gc_cutoffs-pausable",
    },
}


def test_every_failpoint_is_a_moment_of_a_crash() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert listed == CRASHED.union(*ELSEWHERE.values())
