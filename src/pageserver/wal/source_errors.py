"""What can go wrong with a stock primary as a source of WAL, named by what its timeline should do.

| error | the timeline |
|---|---|
| SourceUnavailableError, SlotInUseError | keeps its data readable and tries again after a growing pause |
| SourceRefusedError and all below it | stops following; somebody must change the settings, the slot or the timeline |

Source: spec stock.md 1.1, wal-receiver.md 10.
"""

from __future__ import annotations

from typing import Final

from pageserver.errors import RequestError, UnavailableError
from pageserver.lsn import Lsn


class SourceUnavailableError(UnavailableError):
    """The primary cannot be reached, closed the connection, or answered nothing in time."""


class SlotInUseError(UnavailableError):
    """Another connection streams from our slot (55006), perhaps an earlier one of ours that the primary still holds."""


class SourceRefusedError(RequestError):
    """The primary, or its settings, cannot be a source. Trying again without a change is pointless."""


class OvertakenError(SourceRefusedError):
    """Another server has the tenant in a newer generation and uses the slot: it is left to it (standalone.md 3)."""


class SourceSettingError(SourceRefusedError):
    """A setting of the primary has a value with which it cannot be a source."""

    def __init__(self, *, setting: str, value: str, needed: str) -> None:
        super().__init__(
            f"the primary runs with {setting} = {value}, which cannot be followed",
            hint=f"{setting} must be {needed}",
            setting=setting,
            value=value,
        )
        self.setting = setting
        self.value = value


class SystemIdentifierError(SourceRefusedError):
    """The primary is another database cluster than the one that the timeline was made from."""

    def __init__(self, *, expected: int, got: int) -> None:
        super().__init__(
            f"the primary's system identifier is {got}, the timeline follows {expected}",
            hint="the connection leads to another cluster",
            expected=expected,
            got=got,
        )


class MajorVersionError(SourceRefusedError):
    """The primary's major version is not the timeline's, or none that we know."""


RESYNC_HINT: Final = (
    "`pagectl timeline resync` takes a new base backup and leaves a gap in the history between our last record and it"
)


class SlotLostError(SourceRefusedError):
    """WAL between our last record and what the primary still has will never come."""


class SlotMissingError(SlotLostError):
    """The replication slot is gone, so WAL that we need may be gone as well."""


class WalRemovedError(SlotLostError):
    """The primary no longer has WAL from where we must go on (58P01)."""


class PrimaryBehindError(SourceRefusedError):
    """The primary's WAL ends before ours: it was restored from an older state."""


class TimelineForkedError(SourceRefusedError):
    """The primary's history left ours at an LSN before our last record."""

    def __init__(self, *, pg_tli: int, next_tli: int, switch_lsn: Lsn, last_record_lsn: Lsn) -> None:
        super().__init__(
            f"the primary's timeline {pg_tli} ended at {switch_lsn} (next timeline {next_tli}), but WAL up to "
            f"{last_record_lsn} has been taken from it already",
            hint=f"branch the timeline at or below {switch_lsn} and follow the primary there, or import it anew",
            pg_tli=pg_tli,
            next_tli=next_tli,
            switch_lsn=switch_lsn,
            last_record_lsn=last_record_lsn,
        )


class UnknownTimelineError(SourceRefusedError):
    """The PostgreSQL timeline that we follow is not in the primary's history."""


class StreamGapError(SourceUnavailableError):
    """A frame does not begin where the one before ended; the connection is dropped and started anew."""

    def __init__(self, *, expected: Lsn, got: Lsn) -> None:
        super().__init__(f"WAL frame begins at {got}, expected {expected}", expected=expected, got=got)
