"""What all commands of `pagectl` have in common, and those for operators."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click
import httpx
import pytest
from click.testing import CliRunner
from rich.console import Console

from pageserver.cli.client import ApiClient, Session
from pageserver.cli.pagectl import main

TENANT, TIMELINE = "aa" * 16, "11" * 16
LOCATION = {"mode": "AttachedSingle", "generation": 3, "tenant_conf": {"gc_period": "1h"}}
CONFIG = {"tenant_specific_overrides": {"gc_period": "2h"}, "effective_config": {"gc_period": "2h", "gc_horizon": 1}}
KEYS = {"keys": [["00", "01"]], "sparse_keys": [["62", "63"]], "at_lsn": "0/200"}
DURABLE = {"last_record_lsn": "0/300", "disk_consistent_lsn": "0/200", "remote_consistent_lsn_visible": "0/200"}
T, TL = f"/v1/tenant/{TENANT}", f"/v1/tenant/{TENANT}/timeline/{TIMELINE}"

Request = tuple[str, str, Any]
#: Command, what it asks (method, path with query, body) with the answer, and a word of its table.
COMMANDS: list[tuple[list[str], list[tuple[Request, Any]], str]] = [
    (
        ["tenant", "attach", TENANT, "--generation", "3", "-c", "gc_period='1h'", "--lazy"],
        [
            (
                (
                    "PUT",
                    f"{T}/location_config?lazy=true",
                    {
                        "mode": "AttachedSingle",
                        "generation": 3,
                        "shard_number": 0,
                        "shard_count": 0,
                        "tenant_conf": {"gc_period": "1h"},
                    },
                ),
                {},
            ),
            (("GET", f"/v1/location_config/{TENANT}", None), LOCATION),
        ],
        "gc_period=1h",
    ),
    (
        ["tenant", "detach", TENANT],
        [(("PUT", f"{T}/location_config", {"mode": "Detached", "tenant_conf": {}}), None)],
        "detached",
    ),
    (
        ["tenant", "locations"],
        [(("GET", "/v1/location_config", None), {"tenant_shards": [[TENANT, LOCATION], ["bb" * 16, None]]})],
        "changing",
    ),
    (
        ["tenant", "config", TENANT, "--set", "gc_period='2h'", "--unset", "gc_horizon"],
        [
            (("PATCH", "/v1/tenant/config", {"tenant_id": TENANT, "gc_period": "2h", "gc_horizon": None}), None),
            (("GET", f"{T}/config", None), CONFIG),
        ],
        "server",
    ),
    (
        ["tenant", "scan", TENANT],
        [
            (
                ("GET", f"{T}/scan_remote_storage", None),
                {"shards": [{"tenant_shard_id": TENANT, "generation": 7, "stripe_size": None}]},
            )
        ],
        "7",
    ),
    (["tenant", "heatmap", TENANT], [(("POST", f"{T}/heatmap_upload", {}), None)], "uploaded"),
    (
        ["timeline", "checkpoint", "--tenant", TENANT, TIMELINE],
        [
            (("PUT", f"{TL}/checkpoint", None), None),
            (("GET", TL, None), {**DURABLE, "remote_consistent_lsn_visible": "0/100"}),
            (("GET", TL, None), DURABLE),
        ],
        "0/200    0/200",
    ),
    (
        ["timeline", "wait-lsn", "--tenant", TENANT, "--timeout", "1.5", TIMELINE, "0/200"],
        [(("POST", f"{T}/wait_lsn", {TIMELINE: "0/200", "timeout": {"secs": 1, "nanos": 500_000_000}}), None)],
        "reached",
    ),
    (
        ["timeline", "lsn-at", "--tenant", TENANT, TIMELINE, "2026-02-21T10:02:59+00:00"],
        [
            (
                ("GET", f"{TL}/get_lsn_by_timestamp?timestamp=2026-02-21T10:02:59.000000Z", None),
                {"lsn": "0/200", "kind": "present"},
            )
        ],
        "present",
    ),
    (
        ["timeline", "time-of", "--tenant", TENANT, TIMELINE, "0/200"],
        [(("GET", f"{TL}/get_timestamp_of_lsn?lsn=0/200", None), "2026-02-21T10:02:59Z")],
        "2026-02-21T10:02:59Z",
    ),
    (
        ["timeline", "keyspace", "--tenant", TENANT, "--lsn", "0/200", TIMELINE],
        [(("GET", f"{TL}/keyspace?at_lsn=0/200", None), KEYS)],
        "sparse",
    ),
    (
        ["deletions", "flush", "--execute"],
        [(("PUT", "/v1/deletion_queue/flush?execute=true", None), None)],
        "executed",
    ),
    (
        ["failpoint", "api-503", "off"],
        [(("PUT", "/v1/failpoints", [{"name": "api-503", "actions": "off"}]), None)],
        "api-503",
    ),
]


def leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_takes_json_and_says_what_it_does() -> None:
    found = dict(leaves(main))
    assert len(found) > 35
    for path, command in found.items():
        assert any("--json" in parameter.opts for parameter in command.params), path
        assert command.help, path


def test_every_command_is_in_the_manual() -> None:
    """docs/operations.md names each in code marks, from its first word on."""
    manual = (Path(__file__).parents[3] / "docs/operations.md").read_text()
    missing = [" ".join(path) for path, _ in leaves(main) if not re.search(rf"`{' '.join(path)}[` ]", manual)]
    assert missing == []


@pytest.mark.parametrize(("arguments", "exchange", "word"), COMMANDS, ids=[" ".join(one[0][:2]) for one in COMMANDS])
@pytest.mark.parametrize("as_json", [False, True])
def test_commands_ask_what_they_should(
    arguments: list[str], exchange: list[tuple[Request, Any]], word: str, as_json: bool
) -> None:
    asked: list[Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        path = unquote(str(request.url)).removeprefix("http://server")
        asked.append((request.method, path, json.loads(request.content) if request.content else None))
        return httpx.Response(200, text=json.dumps(exchange[len(asked) - 1][1]))

    client = ApiClient("http://server")
    client._client = httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer))
    session = Session(client, False, Console(width=200))
    group = click.Group(commands=main.commands)
    result = CliRunner().invoke(group, [*arguments, *(["--json"] if as_json else [])], obj=session)
    assert result.exit_code == 0, result.output
    assert asked == [request for request, _ in exchange]
    if as_json:
        json.loads(result.output)
    else:
        assert word in result.output


def test_waiting_in_vain_fails() -> None:
    client = ApiClient("http://server")
    transport = httpx.MockTransport(lambda request: httpx.Response(202, text="null"))
    client._client = httpx.Client(base_url="http://server", transport=transport)
    session = Session(client, False, Console(width=200))
    arguments = ["timeline", "wait-lsn", "--tenant", TENANT, "--timeout", "0", TIMELINE, "0/200"]
    result = CliRunner().invoke(click.Group(commands=main.commands), arguments, obj=session)
    assert (result.exit_code, "not reached within 0 s" in result.output) == (1, True)
    bad = CliRunner().invoke(click.Group(commands=main.commands), [*arguments[:-1], "x/y"], obj=session)
    assert (bad.exit_code, "invalid lsn" in bad.output) == (2, True)
