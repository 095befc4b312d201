"""`tenant-manifest-<generation>.json`: which timelines of a shard are offloaded (remote-storage.md 6).

It spares loading their indices and protects their branch points; it proves nothing: an entry without objects is
dropped. It is put whole, under our generation, and only if it says something new, so the newest one may be of a much
older generation than the shard.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from typing import Any

from pageserver.clock import Clock
from pageserver.errors import CorruptDataError, PageServerError
from pageserver.failpoints import Failpoints
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.lsn import Lsn
from pageserver.remote import paths
from pageserver.remote.generations import find_generationed
from pageserver.remote.json_fields import optional_lsn, optional_timestamp, parse_object, required, required_uint
from pageserver.remote.retry import pause_seconds, single_attempts
from pageserver.remote.storage import ObjectNotFoundError, ObjectStorage

MANIFEST_VERSION = 2
_RETRIES_MAX = 10


class ManifestDecodeError(CorruptDataError):
    """A manifest does not decode: the tenant cannot be attached safely."""


@dataclass(frozen=True, slots=True)
class OffloadedTimeline:
    """An archived timeline that is not loaded. Losing `ancestor_retain_lsn` loses its data to the parent's gc."""

    timeline_id: TimelineId
    ancestor_timeline_id: TimelineId | None
    ancestor_retain_lsn: Lsn | None
    archived_at: str

    @classmethod
    def decode(cls, value: object) -> OffloadedTimeline:
        fields = parse_object(value, "offloaded timeline")
        ancestor = fields.get("ancestor_timeline_id")
        archived_at = optional_timestamp(fields, "archived_at")
        if archived_at is None:
            raise ValueError("missing field `archived_at`")
        return cls(
            timeline_id=TimelineId.parse(str(required(fields, "timeline_id"))),
            ancestor_timeline_id=None if ancestor is None else TimelineId.parse(str(ancestor)),
            ancestor_retain_lsn=optional_lsn(fields, "ancestor_retain_lsn"),
            archived_at=archived_at,
        )

    def encode(self) -> dict[str, Any]:
        return {
            "timeline_id": str(self.timeline_id),
            "ancestor_timeline_id": None if self.ancestor_timeline_id is None else str(self.ancestor_timeline_id),
            "ancestor_retain_lsn": None if self.ancestor_retain_lsn is None else str(self.ancestor_retain_lsn),
            "archived_at": self.archived_at,
        }


@dataclass(frozen=True, slots=True)
class TenantManifest:
    """One manifest. `stripe_size` is advice for whoever has to rebuild a controller's database."""

    offloaded_timelines: tuple[OffloadedTimeline, ...] = ()
    stripe_size: int | None = None
    version: int = MANIFEST_VERSION

    @classmethod
    def decode(cls, content: bytes) -> TenantManifest:
        """Read a manifest of any version. Raises ManifestDecodeError."""
        try:
            fields = parse_object(json.loads(content), "the manifest")
            entries = fields.get("offloaded_timelines", [])
            if not isinstance(entries, list):
                raise ValueError("offloaded_timelines is not an array")
            return cls(
                offloaded_timelines=tuple(map(OffloadedTimeline.decode, entries)),
                stripe_size=None
                if fields.get("stripe_size") is None
                else required_uint(fields, "stripe_size", bits=32),
                version=required_uint(fields, "version", bits=64),
            )
        except (PageServerError, ValueError, TypeError) as error:
            raise ManifestDecodeError(f"tenant manifest is malformed: {error}") from error

    def encode(self) -> bytes:
        """Write the manifest: compact, timelines in the order of their ids."""
        document: dict[str, Any] = {"version": self.version}
        if self.stripe_size is not None:
            document["stripe_size"] = self.stripe_size
        ordered = sorted(self.offloaded_timelines, key=lambda entry: entry.timeline_id)
        document["offloaded_timelines"] = [entry.encode() for entry in ordered]
        return json.dumps(document, separators=(",", ":")).encode()

    def says_the_same(self, other: TenantManifest) -> bool:
        """Compare all but the version."""
        return replace(self, version=MANIFEST_VERSION).encode() == replace(other, version=MANIFEST_VERSION).encode()


class ManifestKeeper:
    """Reads and writes the manifest of one attached shard."""

    def __init__(
        self,
        storage: ObjectStorage,
        shard: TenantShardId,
        generation: Generation,
        *,
        clock: Clock,
        log: Any,
        failpoints: Failpoints | None = None,
    ) -> None:
        self._storage = storage
        self._shard = shard
        self._generation = generation
        self._clock = clock
        self._log = log
        self._lock = asyncio.Lock()
        self._known: TenantManifest | None = None
        self._failpoints = failpoints or Failpoints.off()

    async def read(self) -> TenantManifest | None:
        """Return the newest manifest not above our generation, or None. Raises ManifestDecodeError."""
        base = paths.manifest_base_key(self._shard)
        try:
            content, _ = await find_generationed(self._storage, base, self._generation, extension=".json")
        except ObjectNotFoundError:
            return None
        self._known = TenantManifest.decode(content)
        return self._known

    async def upload(self, manifest: TenantManifest) -> bool:
        """Upload under our generation if this says something new; return whether it did. Raises what the last of 11
        attempts raised.
        """
        async with self._lock:
            if self._known is not None and self._known.says_the_same(manifest):
                return False
            key = paths.manifest_key(self._shard, self._generation)
            # Until it is known what the store has: an attempt that failed may have landed all the same.
            self._known = None
            for failures in range(_RETRIES_MAX + 1):
                try:
                    await self._failpoints.fail("before-upload-manifest")
                    await self._failpoints.pause("before-upload-manifest-pausable")
                    await single_attempts(self._storage).put(key, manifest.encode())
                    break
                except PageServerError as error:
                    if failures == _RETRIES_MAX:
                        raise
                    self._log.info(f"uploading the tenant manifest failed, will retry (attempt {failures}): {error}")
                    await self._clock.sleep(pause_seconds(failures))
            self._known = manifest
            return True
