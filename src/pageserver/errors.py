"""The few kinds of errors, named by what the caller should do; leaves live next to the code that raises them.

    PageServerError
      RequestError         change the request
        NotFoundError        the thing asked for is not there
        ConflictError        it is there already, or busy in another way
        PreconditionFailedError   the state of the thing does not allow it (yet)
        NotBuiltError        this release cannot do it
      UnavailableError     retry later
        LsnTimeoutError      the WAL asked for did not arrive in time
      StoppedError         shut down, detached or fenced: go elsewhere
      CorruptDataError     stop using this object, keep the evidence
        MissingKeyError      a key that the directories promise has no value
      InternalError        our bug

An error carries facts as fields (``error.facts``, for logs and answers) and builds its text from them: a lower-case
fact, then a hint. The Rust core raises these same classes (``crates/pagecore-py/src/errors.rs``), which is why the
leaves it needs live here. This module imports nothing else of ours.
"""

from __future__ import annotations

from typing import Any


class PageServerError(Exception):
    """Root of all errors of ours; raised only as one of the kinds below.

    ``message`` is the fact, ``hint`` what to do about it, ``facts`` the fields by name.
    """

    message: str
    hint: str | None
    facts: dict[str, Any]

    def __init__(self, message: str, *, hint: str | None = None, **facts: Any) -> None:
        super().__init__(message if hint is None else f"{message}; HINT: {hint}")
        self.message = message
        self.hint = hint
        self.facts = facts


class RequestError(PageServerError):
    """The request cannot be fulfilled as it stands: change it."""


class NotFoundError(RequestError):
    """What the request names does not exist here."""


class ConflictError(RequestError):
    """What the request wants to make or change is there already, or is being changed by somebody else."""


class PreconditionFailedError(RequestError):
    """The request is well-formed, but the state of what it names does not allow it."""


class NotBuiltError(RequestError):
    """The specification has it, this release does not. ``what`` is a noun."""

    def __init__(self, what: str, **facts: Any) -> None:
        super().__init__(f"{what} is not implemented yet", **facts)


class UnavailableError(PageServerError):
    """Not now: retrying the same request later may work."""


class LsnTimeoutError(UnavailableError):
    """WAL up to ``lsn`` did not arrive in time; ``last_record_lsn`` is how far it got."""

    def __init__(self, *, lsn: int, last_record_lsn: int, timeout_seconds: float | None = None) -> None:
        within = "" if timeout_seconds is None else f" within {timeout_seconds:g} s"
        super().__init__(
            f"wal up to {_lsn(lsn)} did not arrive{within}; last record lsn is {_lsn(last_record_lsn)}",
            lsn=lsn,
            last_record_lsn=last_record_lsn,
        )
        self.lsn = lsn
        self.last_record_lsn = last_record_lsn


class StoppedError(PageServerError):
    """The owner of the data was shut down, detached, or fenced by a newer generation: go elsewhere."""


class CorruptDataError(PageServerError):
    """Bytes that came from disk, network or WAL are not what they must be: stop using the object, keep it as
    evidence.
    """


class MissingKeyError(CorruptDataError):
    """No value for ``key`` (18 bytes) at ``lsn``, though the key must exist; ``detail`` says how the search went."""

    def __init__(self, *, key: bytes, lsn: int, detail: str | None = None) -> None:
        more = "" if detail is None else f": {detail}"
        super().__init__(f"could not find data for key {key.hex().upper()} at lsn {_lsn(lsn)}{more}", key=key, lsn=lsn)
        self.key = key
        self.lsn = lsn


class InternalError(PageServerError):
    """A belief about our own code was wrong. The smallest owner of the broken state stops."""


def _lsn(value: int) -> str:
    """Return the text of an LSN; ``lsn.Lsn`` cannot be imported here, since it raises our errors."""
    return f"{value >> 32:X}/{value & 0xFFFF_FFFF:X}"
