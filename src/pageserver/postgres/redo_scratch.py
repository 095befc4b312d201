"""What a WAL redo process is started with: our extension, a scratch data directory, a command line (design.md 6).

An unmodified PostgreSQL needs a data directory even to replay WAL into pages that it never writes. `RedoScratch` makes
one template for each major version, once per server, in memory where there is room; the engine gives every process its
own copy and removes it with the process. The template is made by `initdb` and then stripped to what a backend reads
until the extension takes it over, so that a copy takes about 2 MB and a few milliseconds:

    template-16/  global/ (shared catalogs)   base/1/ (template1, without what start-up does not read)
                  pg_wal/ (one 1 MiB segment)   pg_xact/ …   walredo.so   all other directories, empty

The stripped template is tried with a ping before anybody relies on it; should a minor release read more than we kept,
the unstripped one is used.

PostgreSQL refuses to run as root. If we are root, template and processes belong to an unprivileged user.

Instead of all this another program may be taken that speaks the same protocol, Neon's `postgres --wal-redo`
(walredo.md 2): the one that ``redo_programs`` names for a major, or the one in ``pg_distrib_dir`` if it answers as
such. It needs no data directory and locks itself in.

Directories of servers that were killed are found by their lock file, and removed when the next server starts or makes
its first template.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from pageserver.errors import UnavailableError
from pageserver.postgres.control_file import ControlFile
from pageserver.postgres.installation import Installation, find_installation

EXTENSION_FOLDER: Final = Path(__file__).parent / "walredo"
"""Where `make build` puts the extension: `walredo-{major}.so` for each major it found headers of."""

MEMORY_LIMIT_MB: Final = 256
"""Address space of a process beyond what PostgreSQL itself has mapped when it starts."""

_SHARED_MEMORY: Final = Path("/dev/shm")
_SHARED_MEMORY_FREE_MIN_BYTES: Final = 256 * 1024 * 1024
_PREFIX: Final = "pageserver-redo-"
_LOCK: Final = "server.lock"
_INITDB_TIMEOUT_SECONDS: Final = 120.0
_PING_TIMEOUT_SECONDS: Final = 20.0
_PAGE_SIZE: Final = 8192
_PING: Final = b"H\0\0\0\4"
_NOBODY: Final = "0" * 32
"""The tenant for which a program is tried."""

#: Settings of every process. Nothing is ever flushed, nobody connects, and few buffers suffice: a record has 33 blocks.
_SETTINGS: Final[Mapping[str, str]] = {
    "shared_buffers": "1MB",
    "wal_buffers": "64kB",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "5",
    "max_wal_senders": "0",
    "max_worker_processes": "0",
    "max_locks_per_transaction": "10",
    "max_prepared_transactions": "0",
    "huge_pages": "off",
    # A segment in /dev/shm would outlive a killed process; a file in the scratch directory does not.
    "dynamic_shared_memory_type": "mmap",
    "shared_memory_type": "mmap",
    "log_min_messages": "warning",
    "log_timezone": "UTC",
    "timezone": "UTC",
}

#: Files of template1 that a backend reads until the extension takes over; see `_strip`.
#: They build the relation cache, which no start finds ready: pg_class, pg_attribute, and what nailed relations need.
_KEPT_IN_DATABASE: Final = frozenset(
    {"PG_VERSION", "pg_filenode.map"}
    | {str(oid) for oid in (1249, 1259, 2601, 2603, 2610, 2616, 2655, 2659, 2662, 2679, 2687)}
)
_WAL_SEGMENT_SIZE: Final = 1024 * 1024


class RedoUnavailableError(UnavailableError):
    """Records of this major version that the engine does not know cannot be replayed here. Carries ``major``."""

    def __init__(self, major: int, reason: str, hint: str | None = None) -> None:
        super().__init__(f"no wal redo process for postgresql {major}: {reason}", hint=hint, major=major)
        self.major = major


@dataclass(frozen=True, slots=True)
class RedoCommand:
    """How to start a process; the engine replaces ``{scratch}`` and ``{tenant}`` in the arguments."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    uid: int | None
    gid: int | None
    scratch_template: Path | None
    knows_neon_records: bool = False
    """Heap records in the layouts of Neon's computes (walredo.md 8.1)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The user that PostgreSQL runs as; None for our own."""

    uid: int | None
    gid: int | None

    @staticmethod
    def unprivileged(name: str | None = None) -> Identity:
        """Return ``name``, or `postgres` or `nobody` if we are root, or ourselves. Raises: UnavailableError."""
        if name is None and os.geteuid() != 0:
            return Identity(None, None)
        for candidate in (name,) if name is not None else ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(candidate)
                if entry.pw_uid != 0:
                    return Identity(entry.pw_uid, entry.pw_gid)
        raise UnavailableError(
            f"no unprivileged user {name or 'postgres or nobody'} to run postgresql as", hint="create one"
        )


class RedoScratch:
    """The templates of one server. Thread-safe; its calls may take seconds (initdb), so call it in a thread."""

    def __init__(
        self,
        *,
        pg_installations: Mapping[str, str],
        pg_distrib_dir: str | None = None,
        redo_programs: Mapping[str, str] | None = None,
        extension_folder: Path = EXTENSION_FOLDER,
        fallback_root: Path | None = None,
        user: str | None = None,
    ) -> None:
        """Prepare; nothing is made yet. ``fallback_root`` is used where /dev/shm has no room (default: the temporary
        directory).
        """
        self._pg_installations = dict(pg_installations)
        self._pg_distrib_dir = pg_distrib_dir
        self._redo_programs = dict(redo_programs or {})
        self._extension_folder = extension_folder
        self._fallback_root = fallback_root
        self._user = user
        self._lock = threading.Lock()
        self._root: Path | None = None
        self._root_lock: IO[str] | None = None
        self._templates: dict[int, tuple[Installation, Path]] = {}
        self._others: dict[int, RedoCommand | None] = {}
        self._closed = False

    def command(self, major: int, hint_bits_logged: bool) -> RedoCommand:
        """Return how to start processes for ``major``, making the template if this is the first call for it.

        ``hint_bits_logged``: the source has data checksums or wal_log_hints, so HEAP2_VISIBLE sets the heap page's LSN.
        Raises: RedoUnavailableError.
        """
        identity = Identity.unprivileged(self._user)
        with self._lock:
            if self._closed:
                raise RedoUnavailableError(major, "the server is shutting down")
            if major not in self._others:
                self._others[major] = self._find_other(major, identity)
            if (other := self._others[major]) is not None:
                return other
            if major not in self._templates:
                self._templates[major] = self._make(major, identity)
            installation, template = self._templates[major]
        return _command(installation, template, identity, hint_bits_logged=hint_bits_logged)

    def remove_leftovers(self) -> None:
        """Remove what servers left behind that were killed."""
        for parent in {_SHARED_MEMORY, self._fallback_root or Path(tempfile.gettempdir())}:
            _remove_abandoned(parent)

    def close(self) -> None:
        """Remove everything. The processes must have been stopped."""
        with self._lock:
            self._closed = True
            self._templates.clear()
            if self._root is not None:
                shutil.rmtree(self._root, ignore_errors=True)
            if self._root_lock is not None:
                self._root_lock.close()

    def _find_other(self, major: int, identity: Identity) -> RedoCommand | None:
        """Return the command of a program with a redo mode of its own; None if there is none for ``major``.

        Raises: RedoUnavailableError for a program that is named in the settings but cannot be run.
        """
        named = self._redo_programs.get(str(major))
        if named is not None:
            if not os.access(named, os.X_OK):
                raise RedoUnavailableError(major, f"redo_programs names {named}, which is not a program")
            return _other_command(Path(named), identity)
        if str(major) in self._pg_installations or self._pg_distrib_dir is None:
            return None
        program = Path(self._pg_distrib_dir) / f"v{major}" / "bin" / "postgres"
        if not program.exists():
            return None
        # An unmodified server may be laid out like Neon's; it refuses the option.
        command = _other_command(program, identity)
        return command if _answers_ping(command) else None

    def _make(self, major: int, identity: Identity) -> tuple[Installation, Path]:
        installation = find_installation(
            major, pg_installations=self._pg_installations, pg_distrib_dir=self._pg_distrib_dir
        )
        extension = self._extension_folder / f"walredo-{major}.so"
        if not extension.exists():
            raise RedoUnavailableError(
                major,
                f"{extension} is not built",
                hint="`make build` builds it for each version whose headers it finds",
            )
        template = self._open_root() / f"template-{major}"
        try:
            _make_template(installation, extension, template, identity)
        except BaseException:
            shutil.rmtree(template, ignore_errors=True)
            raise
        return installation, template

    def _open_root(self) -> Path:
        if self._root is None:
            parent = _choose_parent(self._fallback_root)
            _remove_abandoned(parent)
            while self._root is None:
                root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
                # The unprivileged user must be able to pass, not to look around.
                root.chmod(0o711)
                lock = open(root / _LOCK, "w")  # noqa: SIM115 (held as long as the server lives)
                fcntl.flock(lock, fcntl.LOCK_EX)
                if (root / _LOCK).exists():
                    self._root, self._root_lock = root, lock
                else:
                    # Another server has started right now, and took the directory for an abandoned one.
                    lock.close()
        return self._root


def _choose_parent(fallback: Path | None) -> Path:
    """Return the directory for scratch files: memory if there is room, for they are small and short-lived."""
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(_SHARED_MEMORY).free
        if os.access(_SHARED_MEMORY, os.W_OK) and free >= _SHARED_MEMORY_FREE_MIN_BYTES:
            return _SHARED_MEMORY
    return fallback if fallback is not None else Path(tempfile.gettempdir())


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories of servers that are gone: nobody holds their lock file."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), open(folder / _LOCK, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _make_template(installation: Installation, extension: Path, template: Path, identity: Identity) -> None:
    template.mkdir(mode=0o700)
    if identity.uid is not None:
        os.chown(template, identity.uid, -1 if identity.gid is None else identity.gid)
    initdb = [
        *(installation.bin / "initdb", "-D", template, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"),
        *("--no-sync", "--no-instructions", "--wal-segsize=1"),
    ]
    if installation.major >= 18:
        # With checksums HEAP2_VISIBLE would set the heap page's LSN whatever the source does.
        initdb.append("--no-data-checksums")
    _run(installation, [str(word) for word in initdb], identity)
    shutil.copyfile(extension, template / "walredo.so")
    (template / "walredo.so").chmod(0o755)
    if identity.uid is not None:
        os.chown(template / "walredo.so", identity.uid, -1 if identity.gid is None else identity.gid)

    # A try leaves the state of a crash behind, so it is made on a copy: every process shall start from a clean
    # shutdown.
    whole = template.with_name(template.name + "-whole")
    trial = template.with_name(template.name + "-trial")
    _copy_tree(template, whole)
    try:
        _strip(template)
        _copy_tree(template, trial)
        try:
            _ping(installation, trial, identity)
        except RedoUnavailableError:
            shutil.rmtree(trial)
            _copy_tree(whole, trial)
            _ping(installation, trial, identity)
            shutil.rmtree(template)
            whole.rename(template)
    finally:
        for folder in (whole, trial):
            shutil.rmtree(folder, ignore_errors=True)


def _strip(template: Path) -> None:
    """Remove what start-up does not read: other databases, most catalogs, WAL but for the last checkpoint's segment."""
    for database in (template / "base").iterdir():
        if database.name != "1":
            shutil.rmtree(database)
    for path in (template / "base" / "1").iterdir():
        if path.name not in _KEPT_IN_DATABASE:
            path.unlink()
    for path in (template / "global").glob("*_*m"):
        path.unlink()
    control = ControlFile((template / "global" / "pg_control").read_bytes())
    segment = f"00000001{control.check_point >> 32:08X}{(control.check_point & 0xFFFFFFFF) // _WAL_SEGMENT_SIZE:08X}"
    for path in (template / "pg_wal").iterdir():
        if path.is_file() and path.name != segment:
            path.unlink()
    # All settings come by the command line, but the file must be there.
    (template / "postgresql.conf").write_text("")


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a directory with its owners."""

    def copy(one: str, other: str) -> None:
        shutil.copy2(one, other)
        _copy_owner(Path(one), Path(other))

    shutil.copytree(source, target, copy_function=copy)
    for folder in [source, *(path for path in source.rglob("*") if path.is_dir())]:
        _copy_owner(folder, target / folder.relative_to(source))


def _copy_owner(source: Path, target: Path) -> None:
    found = source.stat()
    os.chown(target, found.st_uid, found.st_gid)


def _command(installation: Installation, template: Path, identity: Identity, *, hint_bits_logged: bool) -> RedoCommand:
    settings = {
        **_SETTINGS,
        "wal_log_hints": "on" if hint_bits_logged else "off",
        "session_preload_libraries": "{scratch}/walredo.so",
        "walredo.memory_limit": f"{MEMORY_LIMIT_MB}MB",
    }
    if installation.major >= 18:
        settings["io_method"] = "sync"
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    environment = {"LC_ALL": "C", "TZ": "UTC"}
    if installation.is_neon_layout:
        environment["LD_LIBRARY_PATH"] = str(installation.folder / "lib")
    return RedoCommand(
        argv=(str(installation.postgres), "--single", "-D", "{scratch}", *options, "template1"),
        env=environment,
        uid=identity.uid,
        gid=identity.gid,
        scratch_template=template,
    )


def _other_command(program: Path, identity: Identity) -> RedoCommand:
    """Return how to start a program with Neon's `--wal-redo`: arguments and environment of walredo.md 2."""
    library = str(program.parent.parent / "lib")
    return RedoCommand(
        argv=(str(program), "--wal-redo", "--tenant-shard-id", "{tenant}"),
        env={
            "LD_LIBRARY_PATH": library,
            "DYLD_LIBRARY_PATH": library,
            "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", ""),
            "UBSAN_OPTIONS": os.environ.get("UBSAN_OPTIONS", ""),
        },
        uid=identity.uid,
        gid=identity.gid,
        scratch_template=None,
        knows_neon_records=True,
    )


def _answers_ping(command: RedoCommand) -> bool:
    """Say whether a program that needs no data directory answers a ping with a page of zeros."""
    argv = [word.replace("{tenant}", _NOBODY) for word in command.argv]
    try:
        done = subprocess.run(
            argv,
            input=_PING,
            capture_output=True,
            timeout=_PING_TIMEOUT_SECONDS,
            env=dict(command.env),
            user=command.uid,
            group=command.gid,
            extra_groups=None if command.uid is None else [],
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout == bytes(_PAGE_SIZE)


def _ping(installation: Installation, folder: Path, identity: Identity) -> None:
    """Start a process right in ``folder`` and ask it for a page of zeros. Raises: RedoUnavailableError."""
    command = _command(installation, folder, identity, hint_bits_logged=False)
    argv = [word.replace("{scratch}", str(folder)) for word in command.argv]
    done = _run_process(installation, argv, identity, _PING, _PING_TIMEOUT_SECONDS)
    if done.returncode != 0 or done.stdout != bytes(_PAGE_SIZE):
        text = done.stderr.decode(errors="replace").strip().replace("\n", " / ")
        raise RedoUnavailableError(installation.major, f"it does not answer: {text[-500:] or done.returncode}")


def _run(installation: Installation, argv: list[str], identity: Identity) -> None:
    done = _run_process(installation, argv, identity, b"", _INITDB_TIMEOUT_SECONDS)
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip().replace("\n", " / ")
        hint = None
        if "Permission denied" in text or done.returncode == 126:
            hint = "we run as root, and the user that postgresql runs as must be able to reach the installation"
        raise RedoUnavailableError(installation.major, f"{Path(argv[0]).name} failed: {text[-500:]}", hint=hint)


def _run_process(
    installation: Installation, argv: list[str], identity: Identity, stdin: bytes, timeout_seconds: float
) -> subprocess.CompletedProcess[bytes]:
    environment = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}
    if installation.is_neon_layout:
        environment["LD_LIBRARY_PATH"] = str(installation.folder / "lib")
    try:
        return subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            timeout=timeout_seconds,
            cwd="/",
            env=environment,
            user=identity.uid,
            group=identity.gid,
            extra_groups=None if identity.uid is None else [],
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RedoUnavailableError(installation.major, f"{argv[0]} cannot be run: {error}") from error
