"""Where a timeline's WAL comes from, kept beside its index (standalone.md 3).

The document's model belongs to the room `wal`; this file stores and finds it, and reads the few traits that opening a
timeline needs. A timeline without a document is of Neon's flavour.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pageserver.errors import CorruptDataError
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.lsn import INVALID_LSN, Lsn, LsnParseError
from pageserver.remote import paths
from pageserver.remote.generations import find_generationed, generation_of_key
from pageserver.remote.storage import ObjectNotFoundError, ObjectStorage

Flavour = Literal["neon", "stock"]


@dataclass(frozen=True, slots=True)
class SourceTraits:
    """What the engine must know about the pages of a timeline before it reads the first one."""

    flavour: Flavour = "neon"
    data_checksums: bool = False
    hint_bits_logged: bool = False
    neon_until_lsn: Lsn = INVALID_LSN
    """Records that end at or below are Neon's, also on a timeline that has become stock (docs/decisions/0008)."""

    def flavour_at(self, lsn: Lsn) -> Flavour:
        """Return whose WAL made the state at `lsn`. Where a primary took over, it is the primary's."""
        return "neon" if lsn < self.neon_until_lsn else self.flavour

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> SourceTraits:
        """Read the traits' keys of a document: `flavour`, `data_checksums`, `hint_bits_logged`, `neon_until_lsn`."""
        flavour = document.get("flavour", "neon")
        if flavour not in ("neon", "stock"):
            raise CorruptDataError(f"unknown flavour {flavour!r} in a source document", flavour=flavour)
        return cls(
            flavour=flavour,
            data_checksums=bool(document.get("data_checksums", False)),
            hint_bits_logged=bool(document.get("hint_bits_logged", False)),
            neon_until_lsn=_lsn(document.get("neon_until_lsn")),
        )


@dataclass(frozen=True, slots=True)
class HistoryGap:
    """A stretch that was never received: the state at `from_lsn` and from `to_lsn` on can be read, nothing between.

    The images of the base backup that ended it lie at `start_lsn`.
    """

    from_lsn: Lsn
    start_lsn: Lsn
    to_lsn: Lsn

    def contains(self, lsn: Lsn) -> bool:
        return self.from_lsn < lsn < self.to_lsn

    def to_json(self) -> dict[str, str]:
        return {"from_lsn": str(self.from_lsn), "start_lsn": str(self.start_lsn), "to_lsn": str(self.to_lsn)}

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> HistoryGap:
        """Raises: CorruptDataError."""
        try:
            return cls(*(Lsn.parse(body[name]) for name in ("from_lsn", "start_lsn", "to_lsn")))
        except (KeyError, TypeError, LsnParseError) as error:
            raise CorruptDataError(f"a gap in a source document does not decode: {error!r}") from error


@dataclass(frozen=True, slots=True)
class SourceDocument:
    """A stored document: its JSON object, and the traits in it."""

    body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def traits(self) -> SourceTraits:
        return SourceTraits.of(self.body)

    def gaps(self, disk_consistent_lsn: Lsn) -> tuple[HistoryGap, ...]:
        """Return the gaps in force, oldest first: those whose images the index of that LSN names (decision 0008)."""
        found = (HistoryGap.of(each) for each in self.body.get("gaps", ()))
        return tuple(gap for gap in found if gap.start_lsn <= disk_consistent_lsn)

    @property
    def is_importing(self) -> bool:
        """Return whether the timeline's base copy is not yet complete, so that the import must run (again)."""
        return self.body.get("state") == "importing"

    @property
    def is_of_base_backup(self) -> bool:
        """Return whether the timeline began with a base backup, of a primary or from a file."""
        return self.is_importing or self.body.get("backup_start_lsn") is not None

    @property
    def is_read_only(self) -> bool:
        """Return whether the timeline takes no WAL, from nobody."""
        return bool(self.body.get("read_only", False))


def _lsn(value: object) -> Lsn:
    try:
        return INVALID_LSN if value is None else Lsn.parse(str(value))
    except LsnParseError as error:
        raise CorruptDataError(f"a position in a source document does not decode: {error}") from error


async def read_source_document(
    storage: ObjectStorage, shard: TenantShardId, timeline_id: TimelineId, generation: Generation
) -> SourceDocument | None:
    """Return the newest document not above `generation`, or None if the timeline has none. Raises CorruptDataError."""
    key = paths.source_base_key(shard, timeline_id)
    try:
        content, _ = await find_generationed(storage, key, generation)
    except ObjectNotFoundError:
        return None
    try:
        body = json.loads(content)
    except ValueError as error:
        raise CorruptDataError(f"source document {key} does not decode: {error}", key=key) from error
    if not isinstance(body, dict):
        raise CorruptDataError(f"source document {key} is not a JSON object", key=key)
    return SourceDocument(body)


async def write_source_document(
    storage: ObjectStorage,
    shard: TenantShardId,
    timeline_id: TimelineId,
    generation: Generation,
    document: SourceDocument,
) -> None:
    """Store the document under this generation; durable when this returns."""
    content = json.dumps(dict(document.body), separators=(",", ":")).encode()
    await storage.put(paths.source_base_key(shard, timeline_id) + generation.suffix(), content)


async def delete_source_documents(
    storage: ObjectStorage, shard: TenantShardId, timeline_id: TimelineId, *, not_above: Generation
) -> None:
    """Remove the document in all generations up to `not_above`, when its timeline is deleted."""
    base = paths.source_base_key(shard, timeline_id)
    await storage.delete(
        [item.key async for item in storage.list_objects(base) if generation_of_key(item.key) <= not_above]
    )
