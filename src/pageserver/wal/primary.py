"""A replication connection to an unmodified PostgreSQL primary, over libpq as psycopg's `pq` layer gives it.

Commands (`PrimaryConnection`) block and belong into a worker thread; they wait on the socket themselves, so that
`close` from any thread ends them and the GIL is free meanwhile. `start_replication` turns the connection into a stream
of WAL, which `wal_stream.py` drives from the event loop.

    connect ─▶ IDENTIFY_SYSTEM, SHOW … ─▶ CREATE_REPLICATION_SLOT ─▶ BASE_BACKUP (base_backup_stream.py)
                                      └─▶ START_REPLICATION ─▶ WalStream

Passwords come from where libpq looks for them (PGPASSWORD, a passfile, a service file): what we store has none.
Source: PostgreSQL manual, "Streaming Replication Protocol"; spec wal-receiver.md 10.1, stock.md 1.1.
"""

from __future__ import annotations

import os
import re
import select
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

from psycopg import Error as PsycopgError
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pageserver.lsn import WAL_SEGMENT_SIZE, Lsn
from pageserver.wal.primary_connect import LoginError, log_in
from pageserver.wal.source_errors import (
    RESYNC_HINT,
    MajorVersionError,
    PrimaryBehindError,
    SlotInUseError,
    SlotMissingError,
    SourceRefusedError,
    SourceSettingError,
    SourceUnavailableError,
    UnknownTimelineError,
    WalRemovedError,
)

SUPPORTED_MAJORS: Final = range(14, 19)
SLOT_NAME_BYTES_MAX: Final = 63
_SECRETS: Final = ("password", "sslpassword", "oauth_client_secret")
_COMMAND_TIMEOUT_SECONDS: Final = 60.0
_TCP_USER_TIMEOUT_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class SystemIdentity:
    """Answer of IDENTIFY_SYSTEM. `flush_lsn` is the end of the WAL that may be streamed."""

    system_identifier: int
    pg_tli: int
    flush_lsn: Lsn


@dataclass(frozen=True, slots=True)
class PrimaryFacts:
    """What must be known of a primary before anything is copied from it."""

    identity: SystemIdentity
    server_version: int
    """As libpq gives it: 160014 is 16.14."""
    data_checksums: bool
    wal_log_hints: bool

    @property
    def major(self) -> int:
        return self.server_version // 10000


@dataclass(frozen=True, slots=True)
class SlotState:
    """Answer of READ_REPLICATION_SLOT. `restart_lsn` is none if the slot reserves no WAL (or lost it)."""

    restart_lsn: Lsn | None
    restart_tli: int | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of text columns; null is none."""

    columns: tuple[str | None, ...]

    def text(self, index: int) -> str:
        """Return a column that cannot be null. Raises: SourceRefusedError (the server speaks another protocol)."""
        value = self.columns[index] if index < len(self.columns) else None
        if value is None:
            raise SourceRefusedError(f"the primary's answer has no column {index + 1}")
        return value


def check_conninfo(conninfo: str) -> str:
    """Return the connection string as it may be stored.

    Raises: SourceRefusedError (it does not parse, or holds a secret).
    """
    if "\0" in conninfo:
        raise SourceRefusedError("the connection string holds a zero byte, behind which libpq would not read")
    parameters = _parse_conninfo(conninfo)
    for name in _SECRETS:
        if parameters.get(name):
            raise SourceRefusedError(
                f"the connection string holds a {name}, and it is stored beside the timeline's data",
                hint="put the password into PGPASSWORD, a passfile or a service file of the page server",
            )
    parameters.pop("replication", None)
    return make_conninfo("", **parameters)


def _parse_conninfo(conninfo: str) -> dict[str, Any]:
    try:
        return conninfo_to_dict(conninfo)
    except PsycopgError as error:
        raise SourceRefusedError(f"the connection string does not parse: {str(error).strip()}") from error


class PrimaryConnection:
    """One replication connection. Methods block; call them from one worker thread at a time, `close` from any."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self.pgconn = pgconn
        self._wake_read, self._wake_write = os.pipe()
        self._closing = threading.Event()
        self._busy = threading.Lock()

    @classmethod
    def connect(
        cls,
        conninfo: str,
        *,
        application_name: str,
        timeout_seconds: float = 10.0,
        given_up: threading.Event | None = None,
    ) -> PrimaryConnection:
        """Log in with `replication=true`, unless nobody waits for it any more.

        Raises: SourceSettingError, SourceRefusedError (the server is there but does not let us replicate);
        SourceUnavailableError (not reachable now, or the login failed for a reason that may pass).
        """
        parameters = _parse_conninfo(conninfo)
        parameters.update(
            replication="true",
            dbname="replication",  # ignored by the server, and what a passfile calls replication connections
            application_name=application_name,
            client_encoding="UTF8",
        )
        parameters.setdefault("tcp_user_timeout", str(_TCP_USER_TIMEOUT_MS))
        try:
            pgconn = log_in(parameters, timeout_seconds=timeout_seconds, given_up=given_up)
        except LoginError as error:
            raise _explain_refused_login(conninfo, error, timeout_seconds=timeout_seconds) from None
        pgconn.nonblocking = 1
        return cls(pgconn)

    @property
    def server_version(self) -> int:
        """As libpq gives it: 160014 is 16.14."""
        return self.pgconn.server_version

    @property
    def major(self) -> int:
        return self.server_version // 10000

    def close(self) -> None:
        """Close the connection; a command that waits in another thread ends with SourceUnavailableError."""
        if self._closing.is_set():
            return
        self._closing.set()
        os.write(self._wake_write, b"x")
        with self._busy:
            self.pgconn.finish()
            os.close(self._wake_read)
            os.close(self._wake_write)

    def __enter__(self) -> PrimaryConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Commands.

    def identify_system(self) -> SystemIdentity:
        row = self._one_row("IDENTIFY_SYSTEM")
        return SystemIdentity(int(row.text(0)), int(row.text(1)), Lsn.parse(row.text(2)))

    def show(self, setting: str) -> str:
        return self._one_row(f"SHOW {setting}").text(0)

    def read_facts(self) -> PrimaryFacts:
        """Read and check what a source must have (spec stock.md 1.1).

        Raises: SourceSettingError naming the setting and its value; MajorVersionError.
        """
        if self.major not in SUPPORTED_MAJORS:
            raise MajorVersionError(
                f"the primary is PostgreSQL {self.major}",
                hint=f"versions {SUPPORTED_MAJORS.start} to {SUPPORTED_MAJORS.stop - 1} can be followed",
            )
        segment_size = self.show("wal_segment_size")
        if segment_size != f"{WAL_SEGMENT_SIZE >> 20}MB":
            raise SourceSettingError(setting="wal_segment_size", value=segment_size, needed="16MB")
        wal_level = self.show("wal_level")
        if wal_level == "minimal":
            raise SourceSettingError(setting="wal_level", value=wal_level, needed="replica or logical")
        block_size = self.show("block_size")
        if block_size != "8192":
            raise SourceSettingError(setting="block_size", value=block_size, needed="8192")
        return PrimaryFacts(
            identity=self.identify_system(),
            server_version=self.server_version,
            data_checksums=self.show("data_checksums") == "on",
            wal_log_hints=self.show("wal_log_hints") == "on",
        )

    def create_physical_slot(self, name: str) -> bool:
        """Create a physical slot that reserves WAL from now on. An existing one is kept; returns whether it is new."""
        try:
            self.execute(f"CREATE_REPLICATION_SLOT {_slot_name(name)} PHYSICAL RESERVE_WAL")
        except _SlotExistsError:
            return False
        return True

    def read_slot(self, name: str) -> SlotState | None:
        """Return the state of a physical slot, none if it is gone. Only servers from 15 on know the command."""
        row = self._one_row(f"READ_REPLICATION_SLOT {_slot_name(name)}")
        if row.columns[0] is None:
            return None
        lsn, tli = row.columns[1], row.columns[2]
        return SlotState(None if lsn is None else Lsn.parse(lsn), None if tli is None else int(tli))

    def drop_slot(self, name: str) -> bool:
        """Drop the slot. Returns: whether there was one. Raises: SlotInUseError."""
        try:
            self.execute(f"DROP_REPLICATION_SLOT {_slot_name(name)}")
        except SlotMissingError:
            return False
        return True

    def timeline_history(self, pg_tli: int) -> str:
        """Return the text of the history file; timeline 1 has none and gives an empty text."""
        return "" if pg_tli == 1 else self._one_row(f"TIMELINE_HISTORY {pg_tli}").text(1)

    def start_replication(self, *, slot: str | None, start: Lsn, pg_tli: int) -> Row | None:
        """Begin streaming at `start`.

        Returns: none once the connection is in COPY BOTH; a row (next timeline, its start) if `start` is the very end
        of a timeline that the server has left (nothing is streamed then).
        """
        with_slot = "" if slot is None else f"SLOT {_slot_name(slot)} "
        results = self.execute(f"START_REPLICATION {with_slot}PHYSICAL {start} TIMELINE {pg_tli}")
        if results[-1].status == pq.ExecStatus.COPY_BOTH:
            return None
        for result in results:
            if result.status == pq.ExecStatus.TUPLES_OK and result.ntuples:
                return row_of(result, 0)
        raise SourceRefusedError("the primary answered START_REPLICATION with neither a stream nor a next timeline")

    # What follows waits on the socket.

    def execute(self, command: str, *, timeout_seconds: float = _COMMAND_TIMEOUT_SECONDS) -> list[pq.abc.PGresult]:
        """Send a simple query and return its results up to its end, or up to the first that opens a COPY."""
        self.send(command)
        results = []
        while (result := self.next_result(timeout_seconds=timeout_seconds)) is not None:
            results.append(result)
            if result.status in (pq.ExecStatus.COPY_BOTH, pq.ExecStatus.COPY_OUT):
                break
        return results

    def send(self, command: str) -> None:
        with self._busy:
            self._check_open()
            try:
                self.pgconn.send_query(command.encode())
            except PsycopgError as error:
                raise SourceUnavailableError(f"connection to the primary is lost: {_clean_text(error)}") from error
            self._flush()

    def next_result(self, *, timeout_seconds: float = _COMMAND_TIMEOUT_SECONDS) -> pq.abc.PGresult | None:
        """Return the next result of the running command, none at its end.

        Raises: SourceUnavailableError, and what `error_of_result` makes of an error of the server.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._busy:
            self._check_open()
            result = self._get_result(deadline)
            if result is not None and result.status == pq.ExecStatus.FATAL_ERROR:
                error = error_of_result(result)
                # The server says that it is ready again before the connection takes another command.
                while self.pgconn.status == pq.ConnStatus.OK and self._get_result(deadline) is not None:
                    pass
                raise error
        return result

    def _get_result(self, deadline: float) -> pq.abc.PGresult | None:
        try:
            while self.pgconn.is_busy():
                self._wait(select.POLLIN, deadline)
                self.pgconn.consume_input()
            return self.pgconn.get_result()
        except PsycopgError as error:
            raise SourceUnavailableError(f"connection to the primary is lost: {_clean_text(error)}") from error

    def next_copy_data(self, *, timeout_seconds: float) -> memoryview | None:
        """Return the payload of the next CopyData of a COPY OUT, none at its end (call `next_result` then)."""
        deadline = time.monotonic() + timeout_seconds
        with self._busy:
            self._check_open()
            try:
                while True:
                    length, data = self.pgconn.get_copy_data(1)
                    if length > 0:
                        return data
                    if length == -1:
                        return None
                    self._wait(select.POLLIN, deadline)
                    self.pgconn.consume_input()
            except PsycopgError as error:
                raise SourceUnavailableError(f"connection to the primary is lost: {_clean_text(error)}") from error

    def put_copy_data(self, message: bytes) -> None:
        """Send one small CopyData of a COPY BOTH."""
        with self._busy:
            self._check_open()
            try:
                while self.pgconn.put_copy_data(message) == 0:
                    self._flush()
            except PsycopgError as error:
                raise SourceUnavailableError(f"connection to the primary is lost: {_clean_text(error)}") from error
            self._flush()

    def _one_row(self, command: str) -> Row:
        for result in self.execute(command):
            if result.status == pq.ExecStatus.TUPLES_OK and result.ntuples == 1:
                return row_of(result, 0)
        raise SourceRefusedError(f"the primary answered {command} with something else than one row")

    def _flush(self) -> None:
        deadline = time.monotonic() + _COMMAND_TIMEOUT_SECONDS
        while self.pgconn.flush():
            self._wait(select.POLLIN | select.POLLOUT, deadline)
            self.pgconn.consume_input()

    def _wait(self, events: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(self.pgconn.socket, events)
        poll.register(self._wake_read, select.POLLIN)
        left = deadline - time.monotonic()
        ready = poll.poll(max(0.0, left) * 1000) if left > 0 else []
        self._check_open()
        if not ready:
            raise SourceUnavailableError("the primary did not answer in time")

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise SourceUnavailableError("the connection to the primary was closed by us")


class _SlotExistsError(SourceRefusedError):
    """42710: there is a slot of that name."""


def row_of(result: pq.abc.PGresult, row: int) -> Row:
    """Return one row of a result as text."""
    values = (result.get_value(row, column) for column in range(result.nfields))
    return Row(tuple(None if value is None else value.decode("utf-8", "replace") for value in values))


def error_of_result(result: pq.abc.PGresult) -> SourceRefusedError | SourceUnavailableError | SlotInUseError:
    """Turn an ErrorResponse into the error that says what to do (spec wal-receiver.md 10.2)."""
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    raw = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
    message = raw.decode("utf-8", "replace")
    text = f"{message.strip()} (SQLSTATE {state or 'unknown'})"
    if state == "55006":
        return SlotInUseError(text, hint="the primary may still hold an earlier connection; this passes")
    if state == "42710":
        return _SlotExistsError(text)
    if state == "42704":
        return SlotMissingError(text, hint=RESYNC_HINT)
    if state == "58P01" and "WAL segment" in message:
        return WalRemovedError(text, hint=RESYNC_HINT)
    if "ahead of the WAL flush position" in message:
        return PrimaryBehindError(text, hint="the primary was restored from an older state: import it anew")
    if "is not in this server's history" in message or state == "58P01":
        return UnknownTimelineError(text, hint="the primary descends from another history: import it anew")
    if "invalidated" in message or "can no longer get changes from" in message or "can no longer access" in message:
        return WalRemovedError(f"the slot lost its WAL (max_slot_wal_keep_size): {text}", hint=RESYNC_HINT)
    if state[:2] in ("57", "53", "08", ""):
        return SourceUnavailableError(text)
    return SourceRefusedError(text)


def quote_literal(text: str) -> str:
    """Quote for the replication grammar, whose strings know doubled quotes only."""
    return "'" + text.replace("'", "''") + "'"


def _slot_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9_]+", name) or len(name) > SLOT_NAME_BYTES_MAX:
        raise SourceRefusedError(f"{name!r} cannot be the name of a replication slot")
    return name


def _explain_refused_login(
    conninfo: str, error: LoginError, *, timeout_seconds: float
) -> SourceRefusedError | SourceUnavailableError:
    """Find out over an ordinary connection why a replication login failed (spec stock.md 1.1)."""
    message = str(error)
    if error.is_silent:
        return SourceUnavailableError(f"cannot connect to the primary: {message}")
    parameters = _parse_conninfo(conninfo)
    parameters.setdefault("dbname", "postgres")
    try:
        pgconn = log_in(parameters, timeout_seconds=timeout_seconds)
    except LoginError:
        needs_password = "no password supplied" in message or "password authentication failed" in message
        hint = "PGPASSFILE or ~/.pgpass of the page server's user, not of pagectl's" if needs_password else None
        return SourceUnavailableError(f"cannot connect to the primary: {message}", hint=hint)
    try:
        result = pgconn.exec_(
            b"SELECT current_setting('wal_level'), current_setting('max_wal_senders'), "
            b"rolreplication OR rolsuper, rolname FROM pg_roles WHERE rolname = current_user"
        )
        if result.status != pq.ExecStatus.TUPLES_OK or result.ntuples != 1:
            return SourceUnavailableError(f"cannot connect to the primary: {message}")
        wal_level, senders, may_replicate, role = (row_of(result, 0).text(column) for column in range(4))
    finally:
        pgconn.finish()
    if wal_level == "minimal":
        return SourceRefusedError(
            f"the primary runs with wal_level = minimal and max_wal_senders = {senders}, which cannot be followed",
            hint="set wal_level to replica or logical and max_wal_senders to at least 2, then restart the primary",
            wal_level=wal_level,
            max_wal_senders=senders,
        )
    if senders == "0":
        return SourceSettingError(setting="max_wal_senders", value=senders, needed="at least 2")
    if may_replicate != "t":
        return SourceRefusedError(
            f"the role {role} has no right to replicate: {message}", hint=f"ALTER ROLE {role} REPLICATION", role=role
        )
    if "pg_hba.conf" in message:
        return SourceRefusedError(
            f"the primary does not accept replication connections of {role} from here: {message}",
            hint='add a line for the database "replication" to pg_hba.conf',
        )
    return SourceUnavailableError(f"cannot connect to the primary for replication: {message}")


def _clean_text(error: Exception) -> str:
    return " ".join(str(error).split())
