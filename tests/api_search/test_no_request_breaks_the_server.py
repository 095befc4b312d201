"""A short search for requests that the management API cannot stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api_search.world import search, searched_server
from tests.conftest import MakeServer


@pytest.mark.slow
def test_answers_are_as_documented_whatever_is_asked(make_server: MakeServer, server_dir: Path) -> None:
    """Goal: no undocumented answer, no 500 that the specification does not prescribe, no wrong value taken for a right
    one. Method: cases at the borders of every schema, and some made-up ones with a fixed seed.
    """
    primary = make_server(16, "primary")
    with searched_server(primary, server_dir) as target:
        done = search(target, examples=3, seed=1, timeout_seconds=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert target.server.is_running(), target.server.log_end()
