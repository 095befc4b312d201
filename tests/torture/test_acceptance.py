"""Acceptance 2, 3 and 4 of issue 3, on every major: the load, verify, restores, kills of the page server.

One combination at full length, the others shortened; `python -m tests.torture` runs any other, at any length.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.postgres.provision import Installation
from tests.torture.acceptance import Combination, run
from tests.torture.actors import INDEX_KINDS

FULL = Combination(16, checksums=True, moments=10, restores=3, kills=10, seed=16, pause_seconds=0.01)
LIGHT: Any = {"scale": 1, "seconds": 8, "pause_seconds": 0.03}
SHORT = (
    Combination(14, checksums=True, full_page_writes=False, moments=1, kills=2, seed=14, **LIGHT),
    Combination(15, checksums=False, full_page_writes=True, moments=1, seed=15, **LIGHT),
    Combination(17, checksums=False, full_page_writes=False, moments=2, kills=3, seed=17, **LIGHT),
    Combination(18, checksums=True, full_page_writes=True, moments=1, seed=18, **LIGHT),
)


@pytest.mark.torture
@pytest.mark.slow
@pytest.mark.parametrize("combination", [FULL, *SHORT], ids=str)
def test_what_the_page_server_keeps_of_a_tortured_primary_is_what_it_had(
    combination: Combination, postgres_installation: Callable[[int], Installation], server_dir: Path
) -> None:
    """Goal: nothing that PostgreSQL can log is lost or wrong, at the end or at any moment, however often we are killed.

    Method: see `acceptance.py`; whatever differs is raised there.
    """
    summary = run(combination, server_dir, postgres_installation(combination.major), print)
    assert summary.kills == combination.kills
    assert len(summary.import_kills) == (2 if combination.kills else 0)
    assert summary.verify["kinds"].keys() >= {"heap", "btree", "visibility map", "two-phase file", *INDEX_KINDS}
    assert len(summary.restores) == (combination.moments if combination.restores is None else combination.restores)
    assert all(steps > 0 for steps, _ in summary.steps.values()), summary.steps
