"""LOGICALMSG: files that Neon's compute keeps in the page server (spec wal.md 5.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pageserver.wal.keyspace_writer import KeyspaceWriter

if TYPE_CHECKING:
    from pageserver._core import AuxFilePut


def put_aux_file(writer: KeyspaceWriter, detail: AuxFilePut) -> None:
    """Write the file at once, even if its transaction rolls back later; empty content deletes it."""
    writer.put_aux_file(detail.path, detail.content)
