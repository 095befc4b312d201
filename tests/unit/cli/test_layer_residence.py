"""`pagectl layer map`, `download`, `evict` and `tenant generations`: what they send, print, and refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tests.unit.cli.test_pagectl import ONE_TENANT, ROOT, TENANT, Answer, Terminal

ONE = f"/v1/tenant/{TENANT}/timeline/{ROOT}"
NAMES = [f"{'0' * 36}-{'F' * 36}__{number:016X}" for number in (1, 2)]
LAYERS = {
    "in_memory_layers": [{"kind": "Open", "lsn_start": "0/30"}],
    "historic_layers": [
        {"kind": "Image", "layer_file_name": NAMES[1], "layer_file_size": 1024, "lsn_start": "0/2", "remote": True},
        {"kind": "Image", "layer_file_name": NAMES[0], "layer_file_size": 2048, "lsn_start": "0/1", "remote": False},
    ],
}


def status(state: str, successful: int, failed: int = 0) -> dict[str, object]:
    return {
        "task_id": "1",
        "state": state,
        "total_layer_count": 2,
        "successful_download_count": successful,
        "failed_download_count": failed,
    }


def test_the_map_says_where_each_layer_is() -> None:
    terminal = Terminal({**ONE_TENANT, ("GET", f"{ONE}/layer"): (200, LAYERS)})
    code, text = terminal.run("layer", "map", "--timeline", ROOT)
    title, _, first, second, third, *_ = text.splitlines()
    assert code == 0
    assert title.strip() == "2 layers, 3.0 KiB; on disk 1, 2.0 KiB"
    assert [line.split()[1] for line in (first, second, third)] == ["disk", "remote", "memory"]
    assert NAMES[0] in first
    assert json.loads(terminal.run("layer", "map", "--timeline", ROOT, as_json=True)[1]) == LAYERS


def test_layers_are_evicted_and_downloaded_one_by_one() -> None:
    terminal = Terminal(
        {
            **ONE_TENANT,
            ("DELETE", f"{ONE}/layer/{NAMES[0]}"): (200, None),
            ("DELETE", f"{ONE}/layer/{NAMES[1]}"): (304, None),
            ("DELETE", f"{ONE}/layer/x"): (400, "Layer x not found"),
            ("GET", f"{ONE}/layer/{NAMES[0]}"): (200, None),
        }
    )
    code, text = terminal.run("layer", "evict", "--timeline", ROOT, *NAMES, as_json=True)
    assert code == 0
    assert [one["outcome"] for one in json.loads(text)] == ["evicted", "unchanged"]
    code, text = terminal.run("layer", "evict", "--timeline", ROOT, "x", NAMES[0])
    assert (code, "refused: Layer x not found" in text, "1 of 2 layers were refused" in text) == (1, True, True)
    assert terminal.asked[-1][:2] == ("DELETE", f"{ONE}/layer/{NAMES[0]}"), "one refusal does not stop the others"
    code, text = terminal.run("layer", "download", "--timeline", ROOT, NAMES[0])
    assert (code, "downloaded" in text) == (0, True)
    for nonsense in (["--all", NAMES[0]], []):
        assert terminal.run("layer", "download", "--timeline", ROOT, *nonsense)[0] == 2


def test_all_layers_are_downloaded_by_a_task_that_is_followed() -> None:
    steps: Iterator[Answer] = iter([(200, status("Running", 1)), (200, status("Completed", 2))])
    task = f"{ONE}/download_remote_layers"
    terminal = Terminal({**ONE_TENANT, ("POST", task): (202, status("Running", 0)), ("GET", task): lambda: next(steps)})
    code, text = terminal.run("layer", "download", "--timeline", ROOT, "--all", "--concurrency", "3", as_json=True)
    assert (code, json.loads(text)) == (0, status("Completed", 2))
    assert ("POST", task, {"max_concurrent_downloads": 3}) in terminal.asked


def test_a_task_that_runs_is_joined_and_a_failure_is_one() -> None:
    task = f"{ONE}/download_remote_layers"
    answers: dict[tuple[str, str], Answer] = {
        ("POST", task): (409, status("Running", 0)),
        ("GET", task): (200, status("Completed", 1, failed=1)),
    }
    code, text = Terminal({**ONE_TENANT, **answers}).run("layer", "download", "--timeline", ROOT, "--all")
    assert (code, "not all layers were downloaded" in text) == (1, True)


def test_claims_are_shown_with_what_a_controller_must_start_with() -> None:
    claims = [
        {"generation": 3, "node_id": 7, "instance": "i", "host": "alpha", "claimed_at": "2026-01-01T00:00:00Z"},
        {"generation": 2, "node_id": None, "instance": None, "host": None, "claimed_at": None},
    ]
    record = {"claims": claims, "claims_total": 2, "highest_claim": 3, "highest_object": 9, "next_generation": 10}
    terminal = Terminal({**ONE_TENANT, ("GET", f"/v1/tenant/{TENANT}/generations"): (200, record)})
    code, text = terminal.run("tenant", "generations")
    title, _, first, second, *_ = text.splitlines()
    assert code == 0
    assert title.strip() == "2 claims, the highest 3; highest of an object 9; next 10"
    assert first.split() == ["3", "7", "alpha", "2026-01-01T00:00:00Z", "i"]
    assert second.split() == ["2", "?", "?", "?", "?"]
    assert json.loads(terminal.run("tenant", "generations", TENANT, as_json=True)[1]) == record
