"""Pieces of the receiver that need no server: status bytes, pauses, errors."""

from __future__ import annotations

from pageserver.lsn import Lsn
from pageserver.wal.receiver import ReceiverPhase, ReceiverState, RetryPauses
from pageserver.wal.wal_stream import encode_status


def test_a_status_update_has_the_bytes_of_the_spec() -> None:
    """The example of spec wal-receiver.md 10.3."""
    unix_microseconds = 0x000303BD3D337EEC + 946_684_800_000_000
    message = encode_status(
        write=Lsn(0x300C718),
        flush=Lsn(0),
        apply=Lsn(0x300C718),
        unix_microseconds=unix_microseconds,
        reply_requested=True,
    )
    assert message.hex() == "72000000000300c7180000000000000000000000000300c718000303bd3d337eec01"


def test_pauses_grow_to_a_bound_and_are_forgotten() -> None:
    pauses = RetryPauses()
    seen = [pauses.after_attempt(lasted_seconds=0.0) for _ in range(20)]
    assert seen[:3] == [0.1, 0.1 * 1.5, 0.1 * 1.5 * 1.5]
    assert max(seen) == seen[-1] == 15.0
    pauses.forget()
    assert pauses.after_attempt(lasted_seconds=0.0) == 0.1


def test_pauses_count_from_the_start_of_an_attempt() -> None:
    pauses = RetryPauses()
    assert pauses.after_attempt(lasted_seconds=60.0) == 0.0


def test_the_status_line_names_what_stopped_it() -> None:
    assert "slot is gone" in ReceiverState(phase=ReceiverPhase.REFUSED, error="slot is gone").text()
    streaming = ReceiverState(phase=ReceiverPhase.STREAMING, received_lsn=Lsn(16), server_end_lsn=Lsn(32))
    assert streaming.text().endswith("commit|streaming Lsn: 0/20|0/10")
