"""What a primary says about our replication slot, over an ordinary connection; and dropping one that may be in use.

A replication connection cannot ask: it knows one position of a slot only, and not even that before 15. The view
`pg_replication_slots` is open to every role. Everything here blocks.
Source: PostgreSQL manual, "pg_replication_slots"; spec standalone.md 3.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pageserver.lsn import Lsn
from pageserver.wal.primary import PrimaryConnection
from pageserver.wal.source_errors import SlotInUseError, SourceUnavailableError

_DROP_SECONDS_MAX: Final = 10.0
_DROP_PAUSE_SECONDS: Final = 0.1
_QUERY: Final = """
    SELECT restart_lsn::text, active, wal_status, safe_wal_size,
           pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
                           restart_lsn)::bigint,
           current_setting('max_slot_wal_keep_size')
    FROM pg_replication_slots WHERE slot_name = %s
"""


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """A slot as its server sees it; sizes in bytes. `restart_lsn` is none if no WAL is kept for it."""

    restart_lsn: Lsn | None
    is_active: bool
    wal_status: str | None
    """`reserved`, `extended`, `unreserved` (in danger) or `lost`."""
    safe_wal_size: int | None
    """WAL that may still be written before the slot is in danger of being lost; none where there is no limit."""
    retained_bytes: int | None
    keep_size_max: str
    """The setting max_slot_wal_keep_size; -1 is without limit."""

    def to_json(self) -> dict[str, Any]:
        return {
            "restart_lsn": None if self.restart_lsn is None else str(self.restart_lsn),
            "active": self.is_active,
            "wal_status": self.wal_status,
            "safe_wal_size": self.safe_wal_size,
            "retained_bytes": self.retained_bytes,
            "max_slot_wal_keep_size": self.keep_size_max,
        }


def read_slot_facts(conninfo: str, slot: str, *, timeout_seconds: float) -> SlotFacts | None:
    """Ask for a slot; none if there is none of that name. Raises: SourceUnavailableError."""
    parameters = conninfo_to_dict(conninfo)
    parameters.setdefault("dbname", "postgres")
    parameters["connect_timeout"] = str(max(2, round(timeout_seconds)))
    try:
        with psycopg.connect(make_conninfo("", **parameters), autocommit=True) as connection:
            connection.execute(f"SET statement_timeout = {round(timeout_seconds * 1000)}".encode())
            row = connection.execute(_QUERY, (slot,)).fetchone()
    except psycopg.Error as error:
        reason = " ".join(str(error).split())
        raise SourceUnavailableError(f"the primary cannot be asked about the slot: {reason}") from error
    if row is None:
        return None
    restart_lsn, is_active, wal_status, safe_wal_size, retained_bytes, keep_size_max = row
    return SlotFacts(
        restart_lsn=None if restart_lsn is None else Lsn.parse(restart_lsn),
        is_active=is_active,
        wal_status=wal_status,
        safe_wal_size=safe_wal_size,
        retained_bytes=retained_bytes,
        keep_size_max=keep_size_max,
    )


def drop_slot_patiently(connection: PrimaryConnection, slot: str) -> bool:
    """Drop a slot of which our own last connection may not have let go yet. Returns: whether there was one.

    Raises: SlotInUseError, after 10 seconds.
    """
    deadline = time.monotonic() + _DROP_SECONDS_MAX
    while True:
        try:
            return connection.drop_slot(slot)
        except SlotInUseError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_DROP_PAUSE_SECONDS)
