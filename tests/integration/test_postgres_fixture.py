"""The PostgreSQL fixture itself, on all majors: what the other integration tests lean on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.postgres.provision import MAJORS, MAJORS_WITH_HEADERS, ProvisionError, cache_folder, provision
from tests.postgres.server import ServerError

each_major = pytest.mark.parametrize("major", MAJORS)


@each_major
def test_a_server_starts_answers_survives_a_crash_and_stops_cleanly(major: int, make_server: MakeServer) -> None:
    """Goal: the whole life cycle. Method: write, kill -9, start, read, stop, look at what is left."""
    server = make_server(major, settings={"fsync": "on"})
    assert server.value("show server_version").startswith(str(major))
    server.sql("create table t as select generate_series(1, 1000) as a")
    server.crash()
    assert not server.is_running()
    server.start()
    assert server.value("select count(*) from t") == "1000"
    server.restart()
    assert server.psql("select sum(a) from t").strip() == "500500"
    server.stop()
    assert not (server.data_dir / "postmaster.pid").exists()


@each_major
@pytest.mark.parametrize("checksums", [False, True])
def test_checksums_are_as_asked(major: int, checksums: bool, make_server: MakeServer) -> None:
    server = make_server(major, checksums=checksums)
    assert server.value("show data_checksums") == ("on" if checksums else "off")


@each_major
def test_settings_override_the_quick_ones_and_replication_is_possible(major: int, make_server: MakeServer) -> None:
    server = make_server(major, settings={"shared_buffers": "32MB"})
    assert server.value("show shared_buffers") == "32MB"
    assert server.value("show wal_level") == "replica"
    assert server.value("show archive_mode") == "off"
    assert server.sql("select slot_name from pg_create_physical_replication_slot('s', true)") == [("s",)]
    assert int(server.value("show max_prepared_transactions")) > 0


def test_pgbench_and_a_server_that_cannot_start_tell_what_happened(make_server: MakeServer) -> None:
    server = make_server(15)
    server.pgbench("-i", "-s", "1", "-q")
    assert "tps" in server.pgbench("-c", "2", "-t", "20")
    with pytest.raises(ServerError, match="syntax error"):
        server.psql("selekt 1")
    server.stop()
    server.settings["shared_buffers"] = "much"
    with pytest.raises(ServerError, match="invalid value for parameter"):
        server.start()


def test_provisioning_again_does_nothing_and_finds_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Goal: idempotence, and clear words. Method: no progress line may be printed for what is there."""
    lines: list[str] = []
    try:
        for major in MAJORS_WITH_HEADERS:
            provision(major)
            found = provision(major, lines.append)
            assert found.include_server is not None
            assert (found.include_server / "access" / "xlogreader.h").exists()
    except ProvisionError as error:
        pytest.skip(str(error))
    assert lines == []
    with pytest.raises(ProvisionError, match="PostgreSQL 13 is not supported"):
        provision(13)
    monkeypatch.setenv("PAGESERVER_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
