"""Timelines that begin with initdb, started as real servers (tenants.md 9.4)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from pageserver.ids import TimelineId
from pageserver.lsn import Lsn
from tests.page_server import PageServerProcess
from tests.postgres.provision import Installation
from tests.postgres.server import PostgresServer, unprivileged_user

Installations = Callable[[int], Installation]

MAJORS = (14, 15, 16, 17, 18) if os.environ.get("PAGESERVER_MAJORS") == "all" else (16, 18)
"""Each takes half a minute: `make bootstrap` tries all of them."""


def settings_for(installation: Installation, major: int, bucket: Path) -> dict[str, str]:
    return {
        "remote_storage": f"{{local_path='{bucket}'}}",
        "pg_installations": f"{{{major}='{installation.bin.parent}'}}",
    }


def start_restored(
    server: PageServerProcess, installation: Installation, major: int, timeline: dict[str, Any], directory: Path
) -> PostgresServer:
    """Restore the end of a timeline, and start it as an unmodified server."""
    server.pagectl(
        *("restore", "--timeline", timeline["timeline_id"], "--lsn", timeline["last_record_lsn"]),
        *("--to", str(directory), "--run-as", unprivileged_user() or "postgres"),
    )
    restored = PostgresServer(major, directory, superuser="cloud_admin", installation=installation)
    restored.start()
    return restored


def system_identifier(server: PostgresServer) -> int:
    return int(server.value("SELECT system_identifier FROM pg_control_system()"))


@pytest.mark.parametrize("major", MAJORS)
def test_a_bootstrapped_timeline_is_a_cluster(
    postgres_installation: Installations, server_dir: Path, major: int
) -> None:
    """Goal: what initdb made can be started, is the same after a crash with an empty disk, and its archive gives the
    same cluster again.

    Method: bootstrap, kill the server, start another one on the bucket, restore there, start PostgreSQL, write; make
    another timeline of the archive and compare system identifiers.
    """
    installation = postgres_installation(major)
    settings = settings_for(installation, major, server_dir / "bucket")
    with PageServerProcess(server_dir / "one", settings=settings) as server:
        server.pagectl("tenant", "create")
        (tenant,) = server.api("GET", "/v1/tenant")
        path = f"/v1/tenant/{tenant['id']}/timeline"
        made = server.pagectl("timeline", "create", "--pg-version", str(major))
        assert (made["state"], made["pg_version"], made["flavour"]) == ("Active", major, "stock")
        assert Lsn.parse(made["last_record_lsn"]) > Lsn.parse(made["initdb_lsn"])
        assert made["prev_record_lsn"] == made["initdb_lsn"]
        assert made["disk_consistent_lsn"] == made["remote_consistent_lsn"] == made["last_record_lsn"]
        repeated = server.api("POST", path, {"new_timeline_id": made["timeline_id"], "pg_version": major})
        assert repeated["last_record_lsn"] == made["last_record_lsn"]
        left = server_dir / "one" / "tenants" / tenant["id"] / "timelines"
        assert [entry.name for entry in left.iterdir()] == [made["timeline_id"]]
        server.kill()
    with PageServerProcess(server_dir / "two", settings=settings) as server:
        server.pagectl("tenant", "create", tenant["id"])
        detail = server.pagectl("timeline", "detail", made["timeline_id"])
        assert (detail["last_record_lsn"], detail["prev_record_lsn"]) == (
            made["last_record_lsn"],
            made["prev_record_lsn"],
        )
        first = start_restored(server, installation, major, detail, server_dir / "restored")
        first.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
        first.sql("CREATE DATABASE d")
        assert first.value("SELECT sum(i) FROM t") == "500500"
        identifier = system_identifier(first)
        first.stop()

        server.pagectl("timeline", "preserve-initdb", made["timeline_id"])
        server.pagectl("timeline", "delete", "--yes", made["timeline_id"])
        server.wait_for(
            lambda: httpx.get(f"{server.url}{path}/{made['timeline_id']}").status_code == 404, 30, "the deletion"
        )
        again = server.pagectl("timeline", "create", "--pg-version", str(major), "--initdb-of", made["timeline_id"])
        assert (again["initdb_lsn"], again["last_record_lsn"]) == (made["initdb_lsn"], made["last_record_lsn"])
        second = start_restored(server, installation, major, again, server_dir / "again")
        assert system_identifier(second) == identifier
        second.stop()
        store = f"{{local_path='{server_dir / 'bucket'}'}}"
        report = server.pagectl("scrub", "--remote-storage", store, "--deep")
        assert (report["errors"], report["warnings"]) == ([], [])


def test_initdb_that_fails_leaves_nothing(
    postgres_installation: Installations, server_dir: Path, tmp_path: Path
) -> None:
    """Goal: a broken installation is an error that says what initdb said, and the id stays free. Method: an
    installation whose initdb complains; then a missing one; then the working one.
    """
    installation = postgres_installation(16)
    broken = server_dir / "broken"
    (broken / "bin").mkdir(parents=True)
    (broken / "bin" / "postgres").symlink_to(installation.bin / "postgres")
    (broken / "bin" / "initdb").write_text("#!/bin/sh\necho 'no room for a cluster here'\nexit 3\n")
    for program in (broken, broken / "bin", broken / "bin" / "initdb"):
        program.chmod(0o755)
    body = {"new_timeline_id": str(TimelineId.generate()), "pg_version": 16}
    with PageServerProcess(server_dir / "one") as server:
        server.pagectl("tenant", "create")
        (tenant,) = server.api("GET", "/v1/tenant")
        url = f"{server.url}/v1/tenant/{tenant['id']}/timeline"
        for settings, reason in (
            (f"{{16='{broken}'}}", "no room for a cluster here"),
            (f"{{16='{server_dir / 'nowhere'}'}}", "does not exist"),
        ):
            server.restart(more={"pg_installations": settings})
            answer = httpx.post(url, json=body, timeout=60)
            assert answer.status_code == 500
            assert reason in answer.json()["msg"]
            assert httpx.get(url).json() == []
            assert list((server_dir / "one" / "tenants" / tenant["id"] / "timelines").iterdir()) == []
        server.restart(more={"pg_installations": f"{{16='{installation.bin.parent}'}}"})
        assert httpx.post(url, json=body, timeout=60).status_code == 201


@pytest.mark.slow
def test_a_workdir_closed_to_others_is_no_obstacle(postgres_installation: Installations, tmp_path: Path) -> None:
    """Goal: as root, initdb runs as another user, who cannot get into a private working directory. Method: pytest's own
    directory, which is private.
    """
    installation = postgres_installation(16)
    settings = settings_for(installation, 16, tmp_path / "bucket")
    with PageServerProcess(tmp_path / "one", settings=settings) as server:
        server.pagectl("tenant", "create")
        made = server.pagectl("timeline", "create", "--pg-version", "16")
        assert made["state"] == "Active"


def test_a_bootstrapped_timeline_follows_the_server_that_was_made_of_it(
    postgres_installation: Installations, server_dir: Path
) -> None:
    """Goal: from nothing to a followed primary without a base backup. Method: bootstrap, restore, start, follow, and
    restore what the server wrote.
    """
    installation = postgres_installation(16)
    with PageServerProcess(
        server_dir / "one", settings=settings_for(installation, 16, server_dir / "bucket")
    ) as server:
        server.pagectl("tenant", "create")
        made = server.pagectl("timeline", "create", "--pg-version", "16", "--name", "main")
        primary = start_restored(server, installation, 16, made, server_dir / "primary")
        server.pagectl("timeline", "source", "set", "main", "--primary", primary.conninfo())
        primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
        end = Lsn.parse(primary.value("SELECT pg_switch_wal()"))

        def reached() -> bool:
            return Lsn.parse(server.pagectl("timeline", "detail", "main")["last_record_lsn"]) >= end

        server.wait_for(reached, 60, "the server's WAL")
        copy = start_restored(
            server, installation, 16, server.pagectl("timeline", "detail", "main"), server_dir / "copy"
        )
        assert copy.value("SELECT sum(i) FROM t") == "500500"
        assert system_identifier(copy) == system_identifier(primary)
        copy.stop()
        primary.stop("immediate")
