"""Finding PostgreSQL by major version: which setting wins, and what is said when nothing fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageserver.postgres.installation import NoInstallationError, find_installation
from pageserver.postgres.redo_scratch import RedoScratch, RedoUnavailableError


def fake_postgres(folder: Path, says: str) -> Path:
    """Make an installation whose `postgres --version` says so."""
    program = folder / "bin" / "postgres"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    return folder


def test_our_own_setting_wins_over_neons(tmp_path: Path) -> None:
    ours = fake_postgres(tmp_path / "ours", "echo 'postgres (PostgreSQL) 16.14 (Debian 16.14-1)'")
    fake_postgres(tmp_path / "neon" / "v16", "echo 'postgres (PostgreSQL) 16.9'")
    fake_postgres(tmp_path / "neon" / "v17", "echo 'postgres (PostgreSQL) 17beta2'")
    found = find_installation(16, pg_installations={"16": str(ours)}, pg_distrib_dir=str(tmp_path / "neon"))
    assert (found.folder, found.version, found.is_neon_layout) == (ours, "16.14", False)
    found = find_installation(16, pg_installations={}, pg_distrib_dir=str(tmp_path / "neon"))
    assert (found.version, found.is_neon_layout) == ("16.9", True)
    with pytest.raises(NoInstallationError, match="is version 17beta2"):
        find_installation(17, pg_installations={}, pg_distrib_dir=str(tmp_path / "neon"))


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("echo 'postgres (PostgreSQL) 15.2'", "is version 15.2"),
        ("echo nonsense", "says 'nonsense'"),
        ("echo broken >&2; exit 3", "says 'broken'"),
    ],
)
def test_a_wrong_program_is_named_with_what_it_says(tmp_path: Path, says: str, reason: str) -> None:
    folder = fake_postgres(tmp_path / "x", says)
    with pytest.raises(NoInstallationError, match=reason) as caught:
        find_installation(16, pg_installations={"16": str(folder)})
    assert "HINT: set pg_installations" in str(caught.value)


def test_a_named_directory_without_postgres_is_an_error_rather_than_a_reason_to_look_further(tmp_path: Path) -> None:
    fake_postgres(tmp_path / "neon" / "v16", "echo 'postgres (PostgreSQL) 16.9'")
    with pytest.raises(NoInstallationError, match="does not exist"):
        find_installation(16, pg_installations={"16": str(tmp_path)}, pg_distrib_dir=str(tmp_path / "neon"))


ANSWERS_A_PING = 'if [ "$1" = --wal-redo ]; then cat > /dev/null; head -c 8192 /dev/zero; exit 0; fi\n'


def test_neons_redo_process_is_started_as_neon_does(server_dir: Path) -> None:
    """Goal: walredo.md 17.4 and 17.5: the command line, and an environment of exactly four variables; for a program
    that the settings name, and for one in `pg_distrib_dir` that answers as such.
    """
    folder = fake_postgres(server_dir / "neon" / "v15", ANSWERS_A_PING + "echo 'postgres (PostgreSQL) 15.13'")
    named = RedoScratch(pg_installations={}, redo_programs={"15": str(folder / "bin" / "postgres")})
    found = RedoScratch(pg_installations={}, pg_distrib_dir=str(server_dir / "neon"))
    for command in (named.command(15, False), found.command(15, True)):
        assert command.argv == (str(folder / "bin" / "postgres"), "--wal-redo", "--tenant-shard-id", "{tenant}")
        assert set(command.env) == {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "ASAN_OPTIONS", "UBSAN_OPTIONS"}
        assert command.env["LD_LIBRARY_PATH"] == str(folder / "lib")
        assert command.scratch_template is None
        assert command.knows_neon_records
    with pytest.raises(RedoUnavailableError, match="redo_programs names /nowhere/postgres, which is not a program"):
        RedoScratch(pg_installations={}, redo_programs={"16": "/nowhere/postgres"}).command(16, False)


def test_an_unmodified_server_in_neons_place_gets_our_extension(tmp_path: Path) -> None:
    folder = fake_postgres(tmp_path / "v16", "echo 'postgres (PostgreSQL) 16.14'")
    scratch = RedoScratch(pg_installations={}, pg_distrib_dir=str(tmp_path), extension_folder=tmp_path)
    with pytest.raises(RedoUnavailableError, match=r"walredo-16.so is not built"):
        scratch.command(16, False)
    assert folder.exists()


def test_an_extension_that_is_not_built_is_said_to_be_so(tmp_path: Path) -> None:
    folder = fake_postgres(tmp_path / "x", "echo 'postgres (PostgreSQL) 16.14'")
    scratch = RedoScratch(pg_installations={"16": str(folder)}, extension_folder=tmp_path, user="nobody")
    with pytest.raises(RedoUnavailableError, match=r"walredo-16.so is not built; HINT: `make build`"):
        scratch.command(16, False)
    scratch.close()
    with pytest.raises(RedoUnavailableError, match="shutting down"):
        scratch.command(16, False)
