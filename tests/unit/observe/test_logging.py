"""Logging never stops the one who logs."""

from __future__ import annotations

import io

from pageserver.observe.logging import PatientStream


class FullDisk(io.StringIO):
    """Takes nothing while it is full."""

    is_full = True

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(text)

    def flush(self) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")


def test_a_line_that_cannot_be_written_is_lost_and_nothing_else() -> None:
    disk = FullDisk()
    stream = PatientStream(disk)
    print("lost", file=stream, flush=True)
    disk.is_full = False
    print("kept", file=stream, flush=True)
    assert disk.getvalue() == "kept\n"
