"""Finding PostgreSQL installations on this machine, by major version.

Where we look, in this order:

1. `pg_installations` (a key of ours): a table from major version to an installation's directory, `16 = "/opt/pg16"`;
2. `pg_distrib_dir` (Neon's key): `{pg_distrib_dir}/v16`, as Neon's builds lay it out;
3. Debian's place, `/usr/lib/postgresql/16`.

The first one that has `bin/postgres` counts, and must be of the version it is said to be: `postgres --version` is
asked. A setting that names a directory without a PostgreSQL is an error rather than a reason to look further.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pageserver.errors import UnavailableError

_DEBIAN = Path("/usr/lib/postgresql")
_ASK_TIMEOUT_SECONDS = 20.0


class NoInstallationError(UnavailableError):
    """There is no usable PostgreSQL of this major version here. Carries ``major``."""

    def __init__(self, major: int, reason: str) -> None:
        super().__init__(
            f"no postgresql {major}: {reason}",
            hint=f'set pg_installations = {{ {major} = "/path" }} to the directory that holds bin/postgres',
            major=major,
        )
        self.major = major


@dataclass(frozen=True, slots=True)
class Installation:
    """One PostgreSQL: ``folder`` holds bin, lib and share; ``version`` is what it says, such as ``16.14``."""

    major: int
    folder: Path
    version: str
    is_neon_layout: bool
    """Found under ``pg_distrib_dir``: needs ``lib`` in LD_LIBRARY_PATH, and may know ``--wal-redo``."""

    @property
    def bin(self) -> Path:
        """Folder of the programs."""
        return self.folder / "bin"

    @property
    def postgres(self) -> Path:
        """The server program."""
        return self.bin / "postgres"


def find_installation(
    major: int, *, pg_installations: Mapping[str, str], pg_distrib_dir: str | None = None
) -> Installation:
    """Return the installation of ``major``. Runs a program; call it in a thread. Raises: NoInstallationError."""
    if (named := pg_installations.get(str(major))) is not None:
        folder, is_neon_layout = Path(named), False
    elif pg_distrib_dir is not None and (Path(pg_distrib_dir) / f"v{major}" / "bin" / "postgres").exists():
        folder, is_neon_layout = Path(pg_distrib_dir) / f"v{major}", True
    else:
        folder, is_neon_layout = _DEBIAN / str(major), False
    program = folder / "bin" / "postgres"
    if not program.exists():
        raise NoInstallationError(major, f"{program} does not exist")
    version = _ask_version(major, program)
    if version.split(".")[0] != str(major):
        raise NoInstallationError(major, f"{program} is version {version}")
    return Installation(major=major, folder=folder.resolve(), version=version, is_neon_layout=is_neon_layout)


def _ask_version(major: int, program: Path) -> str:
    """Return the version that the program prints, such as ``16.14``; pre-releases look like ``19beta1``."""
    environment = {"LD_LIBRARY_PATH": str(program.parent.parent / "lib"), "LC_ALL": "C"}
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=_ASK_TIMEOUT_SECONDS, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoInstallationError(major, f"{program} cannot be run: {error}") from error
    found = re.search(r"\(PostgreSQL\) (\d+)([.\w]*)", done.stdout)
    if done.returncode != 0 or found is None:
        text = (done.stderr or done.stdout).strip()[:200]
        raise NoInstallationError(major, f"{program} --version says {text!r}")
    digits, rest = found.groups()
    return digits + rest
