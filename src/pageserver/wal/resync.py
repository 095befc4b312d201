"""A new base backup for a timeline that exists, after its slot was lost: its history gets a gap (docs/decisions/0008).

    slot made anew ─▶ BASE_BACKUP ─▶ image layers over the whole key space at the start LSN ─▶ document with the gap
                                                    ─▶ index, which puts the gap in force ─▶ document without the wish

Invariant: from the backup's start on the timeline is what an import would be; no search from above looks below it.
A kill before the index leaves the history as it was, and the resync begins again; behind it only the document is put
right.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from pageserver import _core
from pageserver.postgres.control_file import ControlFile
from pageserver.remote.source_document import HistoryGap
from pageserver.tenant.source_slot import SourceSlot
from pageserver.timeline.timeline import Timeline
from pageserver.wal.primary import PrimaryConnection, PrimaryFacts
from pageserver.wal.primary_import import PrimaryImport, TakenBackup, check_control_file, write_images
from pageserver.wal.source_document import HistoryLine, StoredSource, source_body
from pageserver.wal.source_errors import OvertakenError, PrimaryBehindError
from pageserver.wal.takeover import check_history, history_up_to


class PrimaryResync(PrimaryImport):
    """One attempt to resynchronise a slot's timeline."""

    _history: tuple[HistoryLine, ...] = ()

    async def run(self) -> StoredSource:
        """Resynchronise, and return what was stored. The slot that goes must be ours: not that of a newer server.

        Raises: OvertakenError. Cancellation: safe; the next attempt begins from nothing.
        """
        if await self._slot.is_overtaken():
            raise OvertakenError("another server has taken over this timeline and its replication slot")
        return await super().run()

    @property
    def _timeline(self) -> Timeline:
        assert self._slot.timeline is not None, "only a timeline that is open is resynchronised"
        return self._slot.timeline

    def _before_copy(self, connection: PrimaryConnection, facts: PrimaryFacts) -> None:
        """Make room for a new slot: one that was invalidated cannot be used again, and nothing is lost with another."""
        check_history(
            connection,
            facts.identity,
            pg_tli=self._source.pg_tli,
            last_record_lsn=self._timeline.last_record_lsn,
        )
        self._history = history_up_to(connection, facts.identity.pg_tli)
        connection.drop_slot(self._slot_name)

    async def _make_timeline(self, backup: TakenBackup) -> StoredSource:
        timeline = self._timeline
        control = ControlFile(backup.directory.control_file)
        check_control_file(
            control, system_identifier=self._source.system_identifier, pg_version=self._source.pg_version
        )
        last, start = timeline.last_record_lsn, backup.start.lsn.normalised()
        if start <= last:
            raise PrimaryBehindError(
                f"the primary's base backup begins at {start}, our last record ends at {last}",
                hint="the primary was restored from an older state: import it anew",
            )
        gap = HistoryGap(last, start, backup.end.lsn)
        source = self._source.with_gaps_in_force(timeline.disk_consistent_lsn)
        source = replace(
            source,
            pg_tli=backup.start.pg_tli,
            history=tuple(line for line in self._history if line.pg_tli < backup.start.pg_tli),
            data_checksums=control.has_data_checksums,
            wal_log_hints=control.wal_log_hints != 0,
            resync_from_lsn=last,
            gaps=(*source.gaps, gap),
        )
        written = await write_images(
            timeline,
            backup.directory,
            lsn=start,
            compression=self._compression,
            report=self._report,
            whole_key_space=True,
        )
        try:
            await self._slot.save_document(source_body(source))
        except BaseException:
            store = cast("_core.TimelineStore", timeline.store)
            store.remove_layers([layer.name for layer in written], delete_files=True)
            raise
        timeline.tell_gaps(planned=[gap])
        timeline.tell_traits()
        await timeline.resume_at(start, written)
        return await finish_resync(self._slot, source)


async def finish_resync(slot: SourceSlot, source: StoredSource) -> StoredSource:
    """Put down that the resync is done; the index names its images already."""
    finished = replace(source, resync_from_lsn=None)
    await slot.save_document(source_body(finished))
    assert slot.timeline is not None, "only a timeline that is open is resynchronised"
    slot.timeline.tell_gaps()
    return finished
