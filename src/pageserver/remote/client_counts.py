"""What one timeline has asked of object storage, and what of that is done (metrics.md 3.10).

Uploads and deletions count as started when they are scheduled, so the difference to the finished ones is the length of
the queue with what runs. Whatever ends an operation, also a queue that stops, finishes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pageserver.remote.upload_operations import DeleteLayers, Operation, UploadIndex, UploadLayer

Call = tuple[str, str]
"""Kind of file, kind of operation."""


@dataclass(slots=True)
class Started:
    """Numbers of calls, or of bytes."""

    started: int = 0
    finished: int = 0


@dataclass(slots=True)
class ClientCounts:
    """Of one timeline. An entry is born with its first use."""

    calls: dict[Call, Started] = field(default_factory=dict)
    bytes: dict[Call, Started] = field(default_factory=dict)
    """Only uploads of layers have any."""

    def start(self, call: Call) -> None:
        self.calls.setdefault(call, Started()).started += 1

    def finish(self, call: Call) -> None:
        self.calls[call].finished += 1

    def schedule(self, operation: Operation) -> None:
        call = call_of(operation)
        if call is None:
            return
        self.start(call)
        if isinstance(operation, UploadLayer):
            self.bytes.setdefault(call, Started()).started += operation.file.entry.file_size

    def end(self, operation: Operation) -> None:
        call = call_of(operation)
        if call is None:
            return
        self.finish(call)
        if isinstance(operation, UploadLayer):
            self.bytes[call].finished += operation.file.entry.file_size


def call_of(operation: Operation) -> Call | None:
    """Return the labels of an operation; None for those that only order others."""
    match operation:
        case UploadLayer():
            return "layer", "upload"
        case UploadIndex():
            return "index", "upload"
        case DeleteLayers():
            return "layer", "delete"
        case _:
            return None
