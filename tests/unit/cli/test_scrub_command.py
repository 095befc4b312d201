"""`pagectl scrub` on a bucket that Neon wrote, whole and damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pageserver.cli.pagectl import main
from pageserver.config import init_workdir
from tests.unit.tenant.test_neon_bucket import TIMELINE, unpack
from tests.unit.world import TENANT


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return unpack(tmp_path / "bucket")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["scrub", *arguments])
    return result.exit_code, result.output


def run_json(bucket: Path, *arguments: str) -> tuple[int, Any]:
    status, output = run("--remote-storage", f"{{local_path='{bucket}'}}", "--json", *arguments)
    return status, json.loads(output)


def a_layer(bucket: Path, *, kind: str = "delta") -> Path:
    """Return the file of a layer that the index names."""
    timeline = bucket / "tenants" / str(TENANT) / "timelines" / str(TIMELINE)
    names = json.loads((timeline / "index_part.json-00000001").read_text())["layer_metadata"]
    wanted = [name for name in names if (len(name.split("__")[1]) > 16) == (kind == "delta")]
    return timeline / f"{max(wanted)}-00000001"


def test_neons_bucket_is_whole(bucket: Path, tmp_path: Path) -> None:
    """Goal: what Neon wrote passes, every layer decoded; the table says so too, and a server's directory will do."""
    before = {path: path.stat().st_mtime_ns for path in bucket.rglob("*")}
    status, report = run_json(bucket, "--deep", "--tenant", str(TENANT))
    assert (status, report["errors"], report["warnings"], report["orphans"]) == (0, [], [], [])
    assert (report["tenants"], report["timelines"], report["layers"], report["layers_read"]) == (1, 1, 16, 16)
    assert report["values_read"] == 275_598
    init_workdir(tmp_path / "work", overrides=[f"remote_storage={{local_path='{bucket}'}}"])
    status, output = run("-D", str(tmp_path / "work"), "--purge", "--min-age", "0s")
    assert status == 0
    assert [line.split() for line in output.splitlines() if line.startswith("errors")] == [["errors", "0"]]
    assert {path: path.stat().st_mtime_ns for path in bucket.rglob("*")} == before


@pytest.mark.parametrize("kind", ["delta", "image"])
def test_a_deep_scrub_finds_a_damaged_layer(bucket: Path, kind: str) -> None:
    """Goal: damage that no size tells of is found, whichever block it is in, and only in its layer."""
    path = a_layer(bucket, kind=kind)
    whole = path.read_bytes()
    for offset in (0, 8192, len(whole) - 8192):
        damaged = bytearray(whole)
        damaged[offset : offset + 64] = b"\xff" * 64
        path.write_bytes(damaged)
        status, report = run_json(bucket, "--deep")
        assert (status, len(report["errors"]), report["layers_read"]) == (1, 1, 15), offset
        assert report["errors"][0]["where"].endswith(path.name)
    assert run_json(bucket)[0] == 0, "the damage is only seen by who reads the layer"


def test_another_layers_bytes_and_a_missing_layer_are_errors(bucket: Path) -> None:
    path = a_layer(bucket)
    size = path.stat().st_size
    other = a_layer(bucket, kind="image").read_bytes()
    path.write_bytes((other + bytes(size))[:size])
    status, report = run_json(bucket, "--deep")
    assert (status, [one["where"].endswith(path.name) for one in report["errors"]]) == (1, [True])
    path.unlink()
    status, output = run("--remote-storage", f"remote_storage={{local_path='{bucket}'}}")
    assert status == 1
    assert "there is no such object" in output


def test_a_checksum_that_does_not_fit_is_an_error(bucket: Path) -> None:
    """Goal: where a store keeps checksums, a deep scrub compares them (standalone.md 5)."""
    path = a_layer(bucket)
    try:
        os.setxattr(path, "user.pageserver.crc32c", b"deadbeef")
    except OSError:
        pytest.skip("this file system keeps no attributes")
    status, report = run_json(bucket, "--deep")
    assert (status, len(report["errors"])) == (1, 1)
    assert "CRC-32C" in report["errors"][0]["message"]


def test_the_store_must_be_named_and_exist(tmp_path: Path) -> None:
    for arguments, message in (
        ([], "either --remote-storage or -D"),
        (["--remote-storage", "{local_path='/x'}", "-D", str(tmp_path)], "either --remote-storage or -D"),
        (["--remote-storage", "{local_path='/does/not/exist'}"], "there is no directory /does/not/exist"),
        (["--remote-storage", "{local_path="], "cannot parse override"),
        (["--remote-storage", "{}"], "remote_storage"),
        (["--remote-storage", f"{{local_path='{tmp_path}'}}", "--tenant", "xy"], "invalid tenant id"),
        (["--remote-storage", f"{{local_path='{tmp_path}'}}", "--tenant", "ab" * 16], "has nothing of tenant"),
        (["--remote-storage", f"{{local_path='{tmp_path}'}}", "--purge", "--min-age", "3"], "--min-age: "),
    ):
        status, output = run(*arguments)
        assert status in (1, 2), output
        assert message in output
        assert "Traceback" not in output
    init_workdir(tmp_path / "work")
    status, output = run("-D", str(tmp_path / "work"))
    assert (status, "has no [remote_storage]" in output) == (2, True)
