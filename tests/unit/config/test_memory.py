"""Budgets of memory: a setting, or a share of what the process may use."""

from pathlib import Path

import pytest

from pageserver.config import ServerSettings, client_page_cache_bytes, open_layer_memory_bytes
from pageserver.config.memory import usable_memory_bytes


def test_a_setting_wins_over_the_share() -> None:
    assert client_page_cache_bytes(ServerSettings(client_page_cache_bytes=12345)) == 12345
    assert client_page_cache_bytes(ServerSettings()) == usable_memory_bytes() // 8
    assert open_layer_memory_bytes(ServerSettings(open_layer_memory_bytes=0)) == 0
    assert 0 < open_layer_memory_bytes(ServerSettings()) <= 256 << 20


@pytest.mark.parametrize(("text", "expected"), [("1048576\n", 1 << 20), ("max\n", None), (None, None)])
def test_a_containers_limit_counts_if_it_is_lower(tmp_path: Path, text: str | None, expected: int | None) -> None:
    limit = tmp_path / "memory.max"
    whole = usable_memory_bytes(tmp_path / "none")
    if text is not None:
        limit.write_text(text)
    assert usable_memory_bytes(limit) == (whole if expected is None else expected)
