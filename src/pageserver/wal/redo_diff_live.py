"""The log of a live primary for the differential prover: streamed over physical replication into segment files.

Recording comes first, proving after: the primary is not slowed down by a slow witness, and a difference can be shown
with its record, read again from the files. No slot is made and nothing is left on the primary; WAL that it removes
while it is being streamed ends the recording with its error.

The recording begins with the segment that the primary is writing, so that segment headers are there; pages begin where
records make them (there is no base).
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from pageserver.lsn import WAL_SEGMENT_SIZE, Lsn
from pageserver.postgres.versions import postgres_version
from pageserver.postgres.wal_directory import find_log
from pageserver.postgres.wal_segment import segment_file_name
from pageserver.wal.primary import PrimaryConnection
from pageserver.wal.redo_diff import Log, first_record_of
from pageserver.wal.source_errors import SourceUnavailableError
from pageserver.wal.wal_stream import WalStream

_APPLICATION_NAME: Final = "pagectl redo-diff"
_RECEIVE_TIMEOUT_SECONDS: Final = 0.5
_STATUS_INTERVAL_SECONDS: Final = 5.0


def record_log(conninfo: str, folder: Path, *, seconds: float, end: Lsn | None) -> Log:
    """Record what the primary writes for `seconds`, or until the WAL reaches `end`, and return the log. Blocks.

    Raises: SourceRefusedError and its leaves, SourceUnavailableError (not reachable, or it wrote nothing).
    """
    with PrimaryConnection.connect(conninfo, application_name=_APPLICATION_NAME) as connection:
        facts = connection.read_facts()
        identity = facts.identity
        start = identity.flush_lsn.segment_start()
        if connection.start_replication(slot=None, start=start, pg_tli=identity.pg_tli) is not None:
            raise SourceUnavailableError("the primary has left its timeline", hint="try again")
        received = asyncio.run(
            _receive(connection, folder, start=start, pg_tli=identity.pg_tli, seconds=seconds, end=end)
        )
    if received == start:
        raise SourceUnavailableError(f"the primary sent no WAL within {seconds:g} s", hint="give it more --seconds")
    segments = find_log(folder, timeline_id=identity.pg_tli, start=start)
    return Log(
        version=postgres_version(facts.major),
        system_identifier=identity.system_identifier,
        hint_bits_logged=facts.data_checksums or facts.wal_log_hints,
        segments=tuple(segments),
        start=first_record_of(segments),
        stopped_at=None,
        pgdata=None,
        base=None,
    )


async def _receive(
    connection: PrimaryConnection, folder: Path, *, start: Lsn, pg_tli: int, seconds: float, end: Lsn | None
) -> Lsn:
    """Write the stream into segment files; what was not received is zeros. Return where it ends."""
    stream = WalStream(connection, start=start, now_microseconds=lambda: time.time_ns() // 1000)
    deadline = time.monotonic() + seconds
    told_at = time.monotonic()
    while (now := time.monotonic()) < deadline and (end is None or stream.received_lsn < end):
        at = stream.received_lsn
        received = await stream.receive(timeout_seconds=min(_RECEIVE_TIMEOUT_SECONDS, deadline - now))
        _write(folder, pg_tli, at, memoryview(received.wal))
        if received.reply_requested or now - told_at > _STATUS_INTERVAL_SECONDS:
            position = stream.received_lsn
            await stream.send_status(write=position, flush=position, apply=position)
            told_at = now
        if received.ended:
            break
    return stream.received_lsn


def _write(folder: Path, pg_tli: int, at: Lsn, data: memoryview) -> None:
    while data:
        offset = at % WAL_SEGMENT_SIZE
        piece, data = data[: WAL_SEGMENT_SIZE - offset], data[WAL_SEGMENT_SIZE - offset :]
        path = folder / segment_file_name(pg_tli, at.segment_number())
        with open(path, "r+b" if path.exists() else "w+b") as file:
            file.truncate(WAL_SEGMENT_SIZE)
            file.seek(offset)
            file.write(piece)
        at = at + len(piece)
