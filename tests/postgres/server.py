"""A real PostgreSQL server for a test: initdb, start, stop, crash, SQL, client programs.

    with PostgresServer(16, tmp_path / "primary", settings={"max_prepared_transactions": "10"}) as server:
        server.sql("create table t (a int)")
        server.pgbench("-i", "-s", "1")
        server.crash(); server.start()

A server listens on loopback and a free port, trusts everybody, has `wal_level = replica`, replication slots, and
settings that make tests quick (`fsync = off` among them); every one can be overridden. PostgreSQL refuses to run as
root, so when we are root everything that touches the data directory runs as an unprivileged user. WAL is never
archived.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import psycopg

from tests.ports import free_port
from tests.postgres.provision import Installation, provision

QUICK_SETTINGS: Mapping[str, str] = {
    "fsync": "off",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "max_prepared_transactions": "20",
    "max_connections": "60",
    "shared_buffers": "64MB",
    "wal_level": "replica",
    "archive_mode": "off",
    "logging_collector": "off",
    "log_min_messages": "warning",
    "timezone": "UTC",
}
"""What a test server gets unless the test says otherwise."""

StopMode = Literal["smart", "fast", "immediate"]

_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_START_TIMEOUT_SECONDS = 60.0


class ServerError(Exception):
    """The server did not do what was asked; the text ends with the last lines of its log."""


def unprivileged_user() -> str | None:
    """Return the user that servers run as when we are root (`postgres`, or `nobody`); None when we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            pwd.getpwnam(name)
            return name
    raise ServerError("we are root and there is neither a user 'postgres' nor 'nobody' to run PostgreSQL as")


class PostgresServer:
    """One data directory and, while started, its postmaster. Not thread-safe."""

    def __init__(
        self,
        major: int,
        data_dir: Path,
        *,
        checksums: bool = False,
        settings: Mapping[str, str] | None = None,
        user: str | None = None,
        superuser: str = "postgres",
        installation: Installation | None = None,
        port: int | None = None,
    ) -> None:
        """Describe a server; nothing happens before `initdb` or `start`.

        `user` is the system user (default: ours, or an unprivileged one when we are root); `superuser` the database
        role.
        """
        self.installation = installation or provision(major)
        self.major = major
        self.data_dir = data_dir
        self.checksums = checksums
        self.settings: dict[str, str] = {**QUICK_SETTINGS, **(settings or {})}
        self.superuser = superuser
        self.port = port or free_port()
        self.log = data_dir.with_name(data_dir.name + ".log")
        self._user = user if user is not None else unprivileged_user()
        self._process: subprocess.Popen[bytes] | None = None

    # Life cycle -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> PostgresServer:
        if not (self.data_dir / "PG_VERSION").exists():
            self.initdb()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_running():
            self.stop("immediate" if kind else "fast")

    def initdb(self, *options: str) -> None:
        """Make the data directory. Settings go to postgresql.conf at every start, not here."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._own(self.data_dir)
        self.data_dir.chmod(0o700)
        command = [str(self.installation.bin / "initdb"), "-D", str(self.data_dir), "-U", self.superuser, "-A", "trust"]
        command += ["--no-sync", "-E", "UTF8", "--locale=C", *options]
        if self.checksums:
            command.append("--data-checksums")
        elif self.major >= 18:
            command.append("--no-data-checksums")
        self._run(command)

    def start(self, *, wait: bool = True) -> None:
        """Start the postmaster; with `wait`, return when it answers. Raises: ServerError, with the end of the log."""
        assert not self.is_running(), "the server is running already"
        self._write_settings()
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [str(self.installation.bin / "postgres"), "-D", str(self.data_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=self._environment(),
                start_new_session=True,
                user=self._user,
                group=self._group(),
                extra_groups=[] if self._user else None,
            )
        atexit.register(self._kill)
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout_seconds: float = _START_TIMEOUT_SECONDS) -> None:
        """Return when connections are accepted. Raises: ServerError if the server ends, or after the time-out."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            if not self.is_running():
                raise ServerError(f"PostgreSQL {self.major} did not start{self._log_end()}")
            try:
                psycopg.connect(self.conninfo(), connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise ServerError(f"no connection within {timeout_seconds} s: {error}{self._log_end()}") from error
            time.sleep(0.05)

    def stop(self, mode: StopMode = "fast", timeout_seconds: float = 120.0) -> None:
        """Stop the server. `smart` and `fast` end with a shutdown checkpoint, `immediate` does not."""
        assert self._process is not None, "the server was not started"
        if self._process.poll() is None:
            self._process.send_signal(_STOP_SIGNALS[mode])
        try:
            self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            self._kill()
            raise ServerError(f"no {mode} stop within {timeout_seconds} s{self._log_end()}") from error
        self._forget()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop, then start again with the current `settings`."""
        self.stop(mode)
        self.start()

    def crash(self) -> None:
        """Kill -9 the postmaster and all its children, as a power cut would (the operating system's cache survives)."""
        assert self.is_running(), "the server is not running"
        self._kill()
        self._forget()

    def is_running(self) -> bool:
        """Say whether the postmaster that we started is alive."""
        return self._process is not None and self._process.poll() is None

    def remove(self) -> None:
        """Stop if need be and delete the data directory and the log."""
        if self.is_running():
            self.stop("immediate")
        shutil.rmtree(self.data_dir, ignore_errors=True)
        self.log.unlink(missing_ok=True)

    # Use ------------------------------------------------------------------------------------------------------------

    def conninfo(self, dbname: str = "postgres", **more: str) -> str:
        """Return a libpq connection string; further parameters as keywords."""
        parameters = {"host": "127.0.0.1", "port": str(self.port), "user": self.superuser, "dbname": dbname, **more}
        return psycopg.conninfo.make_conninfo("", **parameters)

    def connect(self, dbname: str = "postgres", *, autocommit: bool = True) -> psycopg.Connection[tuple[object, ...]]:
        """Open a connection; the caller closes it."""
        return psycopg.connect(self.conninfo(dbname), autocommit=autocommit)

    def sql(
        self, query: str, parameters: Sequence[object] | None = None, dbname: str = "postgres"
    ) -> list[tuple[object, ...]]:
        """Run one statement, or without parameters several, outside of a transaction; return the last one's rows."""
        with self.connect(dbname) as connection:
            cursor = connection.execute(query.encode(), parameters)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, parameters: Sequence[object] | None = None, dbname: str = "postgres") -> str:
        """Run a statement that gives one value and return its text."""
        ((value,),) = self.sql(query, parameters, dbname)
        return str(value)

    def program(
        self,
        name: str,
        *arguments: str,
        dbname: str | None = None,
        check: bool = True,
        timeout_seconds: float = 600.0,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a client program (psql, pgbench, pg_amcheck, pg_checksums, pg_waldump …) as the server's user.

        It connects to this server unless told otherwise. Raises: ServerError with its stderr if it fails and `check`
        is set.
        """
        environment = {**self._environment(), "PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": self.superuser}
        environment["PGDATABASE"] = dbname or "postgres"
        return self._run(
            [str(self.tool(name)), *arguments],
            environment=environment,
            check=check,
            timeout=timeout_seconds,
            stdin=stdin,
        )

    def tool(self, name: str) -> Path:
        """Return the path of a program: the server's own installation first, then the client tools."""
        for folder in (self.installation.bin, self.installation.tools):
            if (folder / name).exists():
                return folder / name
        raise ServerError(f"there is no {name} for PostgreSQL {self.major}")

    def psql(self, script: str, dbname: str = "postgres") -> str:
        """Run a script through psql, stopping at the first error. Return what it printed, unaligned."""
        command = ("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-")
        return self.program("psql", *command, dbname=dbname, stdin=script).stdout

    def pgbench(self, *arguments: str, dbname: str = "postgres") -> str:
        """Run pgbench with these arguments; return what it printed."""
        return self.program("pgbench", *arguments, dbname=dbname).stdout

    def log_text(self) -> str:
        """Return the server's log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # Private --------------------------------------------------------------------------------------------------------

    def _write_settings(self) -> None:
        """Rewrite the file of our settings; postgresql.conf includes it last, so ours win."""
        fixed = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": ""}
        lines = [f"{name} = '{value}'\n" for name, value in {**self.settings, **fixed}.items()]
        ours = self.data_dir / "test.conf"
        ours.write_text("".join(lines))
        main = self.data_dir / "postgresql.conf"
        text = main.read_text() if main.exists() else ""
        if "include_if_exists = 'test.conf'" not in text:
            main.write_text(text + "\ninclude_if_exists = 'test.conf'\n")
        hba = self.data_dir / "pg_hba.conf"
        rules = "host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n"
        if not hba.exists():
            hba.write_text(rules)
        for path in (ours, main, hba):
            self._own(path)

    def _own(self, path: Path) -> None:
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(path, entry.pw_uid, entry.pw_gid)

    def _group(self) -> int | None:
        return None if self._user is None else pwd.getpwnam(self._user).pw_gid

    @staticmethod
    def _environment() -> dict[str, str]:
        """Return a clean environment: no PG* variables of ours may leak into a server or a client."""
        return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}

    def _run(
        self,
        command: list[str],
        *,
        environment: dict[str, str] | None = None,
        check: bool = True,
        timeout: float = 600.0,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            input=stdin or "",
            cwd="/",
            env=environment or self._environment(),
            timeout=timeout,
            user=self._user,
            group=self._group(),
            extra_groups=[] if self._user else None,
        )
        if check and done.returncode != 0:
            raise ServerError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
        return done

    def _kill(self) -> None:
        """SIGKILL the postmaster and its children, and wait until all are gone."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        # SIGSTOP first: a stopped postmaster cannot start further children while we collect them.
        process.send_signal(signal.SIGSTOP)
        family = _children(process.pid)
        process.kill()
        process.wait()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while any(_is_alive(pid) for pid in family) and time.monotonic() < deadline:
            time.sleep(0.01)

    def _forget(self) -> None:
        self._process = None
        atexit.unregister(self._kill)

    def _log_end(self) -> str:
        lines = self.log_text().splitlines()[-15:]
        return "".join(f"\n    {line}" for line in lines)


def _children(pid: int) -> list[int]:
    """Return the process ids whose parent is `pid`."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The command name may hold blanks and parentheses; the fields after the last parenthesis are regular.
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return found


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False
