"""How initdb is called, what becomes of one that fails or hangs, and where it works (tenants.md 9.4)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pageserver.postgres.initdb import Initdb, InitdbError, is_neon

#: Writes what it was called with into the directory that it is asked to make.
RECORDS = """#!/bin/sh
echo "$@" > "$2/arguments"
env > "$2/environment"
id -u > "$2/user"
mkdir "$2/base"
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a directory that every user can pass through."""
    with TemporaryDirectory(prefix="pageserver-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def install(folder: Path, major: int, script: str) -> Path:
    """Make an installation whose programs are scripts."""
    (folder / "bin").mkdir(parents=True)
    for name, text in (("postgres", f"#!/bin/sh\necho 'postgres (PostgreSQL) {major}.1'\n"), ("initdb", script)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return folder


def maker(folder: Path, major: int, script: str, *, timeout_seconds: float = 20.0) -> Initdb:
    return Initdb(
        pg_installations={str(major): str(install(folder / f"pg{major}", major, script))},
        pg_distrib_dir=None,
        superuser="cloud_admin",
        locale="C.UTF-8",
        timeout_seconds=timeout_seconds,
    )


PROVIDERS = [(14, None), (15, "libc"), (16, "libc"), (17, "builtin"), (18, "builtin")]


@pytest.mark.parametrize(("major", "provider"), PROVIDERS)
def test_initdb_is_called_as_specified(folder: Path, major: int, provider: str | None) -> None:
    (folder / "tenants").mkdir(mode=0o755)
    target = folder / "tenants" / "new"
    installation = maker(folder, major, RECORDS).make(target, major)
    assert (installation.major, is_neon(installation)) == (major, False)
    options = "--encoding utf8 --locale C.UTF-8 --no-instructions --no-sync"
    more = "" if provider is None else f" --locale-provider {provider}"
    assert (target / "arguments").read_text().strip() == f"--pgdata {target} --username cloud_admin {options}{more}"
    variables = {line.split("=")[0] for line in (target / "environment").read_text().splitlines()}
    assert variables - {"PWD", "SHLVL", "_", "OLDPWD"} == {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}
    assert target.stat().st_mode & 0o777 == 0o700
    if os.geteuid() == 0:
        assert int((target / "user").read_text()) not in (0, -1)


def test_a_directory_that_others_cannot_reach_is_filled_all_the_same(folder: Path) -> None:
    (folder / "closed" / "tenants").mkdir(parents=True)
    (folder / "closed").chmod(0o700)
    target = folder / "closed" / "tenants" / "new"
    maker(folder, 16, RECORDS).make(target, 16)
    assert (target / "base").is_dir()
    if os.geteuid() == 0:
        assert int((target / "user").read_text()) != 0


def test_what_initdb_says_is_the_error(folder: Path) -> None:
    failing = maker(folder, 16, "#!/bin/sh\necho 'no locale for you' >&2\nexit 1\n")
    with pytest.raises(InitdbError, match=r"initdb of postgresql 16.1 failed \(1\): no locale for you"):
        failing.make(folder / "new", 16)
    with pytest.raises(InitdbError, match=r"initdb cannot run: no postgresql 18"):
        Initdb(pg_installations={"18": str(folder / "nowhere")}, pg_distrib_dir=None, superuser="a", locale="C").make(
            folder / "other", 18
        )


def test_one_that_hangs_is_killed_with_its_children(folder: Path) -> None:
    """Goal: no process is left behind. Method: initdb starts a child, tells its number, and waits."""
    script = f'#!/bin/sh\nsleep 60 &\necho $! > "{folder}/shared/child"\nwait\n'
    (folder / "shared").mkdir()
    (folder / "shared").chmod(0o777)
    hanging = maker(folder, 16, script, timeout_seconds=0.5)
    with pytest.raises(InitdbError, match=r"did not end within 0.5 s"):
        hanging.make(folder / "new", 16)
    child = int((folder / "shared" / "child").read_text())
    deadline = time.monotonic() + 5
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_neons_installation_is_known_by_its_extension(folder: Path) -> None:
    made = maker(folder, 16, RECORDS)
    control = folder / "pg16" / "share" / "postgresql" / "extension" / "neon.control"
    control.parent.mkdir(parents=True)
    control.touch()
    assert is_neon(made.find(16))
