"""Running `initdb`: a new cluster's data directory, made by the installation of its major version (tenants.md 9.4).

PostgreSQL refuses to run as root. If we are root, initdb runs as an unprivileged user; where that user cannot get to
the wanted directory (one of its parents is closed to others), it works in a directory of its own and the result is
copied.

A run is never cut short: whoever stops waiting for it leaves a thread that ends by itself. Only one that does not end
within `TIMEOUT_SECONDS` is killed, with everything that it has started.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from pageserver.errors import InternalError, UnavailableError
from pageserver.postgres.installation import Installation, find_installation
from pageserver.postgres.redo_scratch import Identity

CONCURRENCY: Final = 8
"""Runs at once in one server (tenants.md 1.4)."""
TIMEOUT_SECONDS: Final = 600.0
_SHOWN_CHARACTERS: Final = 2000
_NEON_EXTENSION: Final = "neon.control"


class InitdbError(InternalError):
    """No data directory was made; the text says what initdb said."""


class Initdb:
    """Makes data directories. `make` blocks: hand it to `executor`, whose threads are the limit of runs at once."""

    def __init__(
        self,
        *,
        pg_installations: Mapping[str, str],
        pg_distrib_dir: str | None,
        superuser: str,
        locale: str,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self.executor = ThreadPoolExecutor(max_workers=CONCURRENCY, thread_name_prefix="initdb")
        self._pg_installations = dict(pg_installations)
        self._pg_distrib_dir = pg_distrib_dir
        self._superuser = superuser
        self._locale = locale
        self._timeout_seconds = timeout_seconds

    def make(self, directory: Path, major: int) -> Installation:
        """Make a data directory, and return what made it. The parent of `directory` must exist.

        Raises InitdbError (no installation, or initdb failed); OSError.
        """
        try:
            installation = self.find(major)
            identity = Identity.unprivileged()
        except UnavailableError as error:
            raise InitdbError(f"initdb cannot run: {error}", major=major) from error
        if identity.uid is None or _can_pass(directory.parent, identity):
            self._run(installation, directory, identity)
            return installation
        with tempfile.TemporaryDirectory(prefix="pageserver-initdb-") as elsewhere:
            Path(elsewhere).chmod(0o711)
            self._run(installation, Path(elsewhere) / "data", identity)
            shutil.copytree(Path(elsewhere) / "data", directory)
        return installation

    def find(self, major: int) -> Installation:
        """Return the installation of a major version. Raises NoInstallationError."""
        return find_installation(major, pg_installations=self._pg_installations, pg_distrib_dir=self._pg_distrib_dir)

    def close(self) -> None:
        """Wait for what runs; take nothing more."""
        self.executor.shutdown(cancel_futures=True)

    def _run(self, installation: Installation, directory: Path, identity: Identity) -> None:
        directory.mkdir(mode=0o700)
        if identity.uid is not None:
            os.chown(directory, identity.uid, -1 if identity.gid is None else identity.gid)
        lib = str(installation.folder / "lib")
        try:
            process = subprocess.Popen(
                self._command(installation, directory),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={"LD_LIBRARY_PATH": lib, "DYLD_LIBRARY_PATH": lib},
                cwd="/",
                user=identity.uid,
                group=identity.gid,
                extra_groups=None if identity.uid is None else [],
                start_new_session=True,
            )
        except OSError as error:
            raise InitdbError(f"initdb of postgresql {installation.version} cannot be run: {error}") from error
        with process:
            try:
                said, _ = process.communicate(timeout=self._timeout_seconds)
            except subprocess.TimeoutExpired as error:
                os.killpg(process.pid, signal.SIGKILL)
                raise InitdbError(
                    f"initdb of postgresql {installation.version} did not end within {self._timeout_seconds:g} s"
                ) from error
        if process.returncode != 0:
            text = said.decode(errors="replace").strip()[-_SHOWN_CHARACTERS:]
            raise InitdbError(f"initdb of postgresql {installation.version} failed ({process.returncode}): {text}")

    def _command(self, installation: Installation, directory: Path) -> list[str]:
        command = [
            *(str(installation.bin / "initdb"), "--pgdata", str(directory), "--username", self._superuser),
            *("--encoding", "utf8", "--locale", self._locale, "--no-instructions", "--no-sync"),
        ]
        if installation.major >= 17:
            command += ["--locale-provider", "builtin"]
        elif installation.major >= 15:
            command += ["--locale-provider", "libc"]
        return command


def is_neon(installation: Installation) -> bool:
    """Return whether the installation is Neon's PostgreSQL: then what it writes is of Neon's flavour."""
    return any((installation.folder / "share").glob(f"**/extension/{_NEON_EXTENSION}"))


def _can_pass(directory: Path, identity: Identity) -> bool:
    """Return whether the user may pass through a directory and all of its parents."""
    for place in (directory.absolute(), *directory.absolute().parents):
        found = place.stat()
        bit = 0o100 if found.st_uid == identity.uid else 0o010 if found.st_gid == identity.gid else 0o001
        if not found.st_mode & bit:
            return False
    return True
