"""`heatmap-v1.json`: which layers a shard uses, for a secondary that keeps a cache warm (remote-storage.md 7;
tenants.md 17).

It has no generation: the last writer wins. It may name layers that are still in the upload queue; a reader takes a
missing object as "skip".
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from pageserver.errors import CorruptDataError, PageServerError
from pageserver.ids import TimelineId
from pageserver.remote.index_part import LayerEntry
from pageserver.remote.json_fields import parse_object, required, required_uint
from pageserver.remote.layer_name import LayerName


class HeatmapDecodeError(CorruptDataError):
    """A heatmap does not decode. It is a hint: go on without."""


@dataclass(frozen=True, slots=True)
class HeatmapLayer:
    """`access_time` in whole seconds since 1970."""

    name: str
    metadata: LayerEntry
    access_time: int
    cold: bool = False

    @classmethod
    def decode(cls, value: object) -> HeatmapLayer:
        fields = parse_object(value, "heatmap layer")
        return cls(
            name=str(LayerName.parse(str(required(fields, "name")))),
            metadata=LayerEntry.decode(required(fields, "metadata")),
            access_time=required_uint(fields, "access_time", bits=64),
            cold=fields.get("cold", False) is True,
        )

    def encode(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "metadata": self.metadata.encode(),
            "access_time": self.access_time,
            "cold": self.cold,
        }


@dataclass(frozen=True, slots=True)
class HeatmapTimeline:
    timeline_id: TimelineId
    layers: tuple[HeatmapLayer, ...]


@dataclass(frozen=True, slots=True)
class Heatmap:
    """One heatmap; `upload_period_ms` is a hint for how often to look."""

    generation: int
    timelines: tuple[HeatmapTimeline, ...]
    upload_period_ms: int | None

    @classmethod
    def decode(cls, content: bytes) -> Heatmap:
        """Raises HeatmapDecodeError."""
        try:
            fields = parse_object(json.loads(content), "the heatmap")
            return cls(
                generation=required_uint(fields, "generation", bits=32),
                timelines=tuple(_decode_timeline(value) for value in required(fields, "timelines")),
                upload_period_ms=None
                if fields.get("upload_period_ms") is None
                else required_uint(fields, "upload_period_ms", bits=128),
            )
        except (PageServerError, ValueError, TypeError) as error:
            raise HeatmapDecodeError(f"heatmap does not decode: {error}") from error

    def encode(self) -> bytes:
        document = {
            "generation": self.generation,
            "timelines": [
                {
                    "timeline_id": str(timeline.timeline_id),
                    "layers": [layer.encode() for layer in timeline.layers],
                }
                for timeline in self.timelines
            ],
            "upload_period_ms": self.upload_period_ms,
        }
        return json.dumps(document, separators=(",", ":")).encode()

    def hot_bytes(self) -> int:
        return sum(
            layer.metadata.file_size for timeline in self.timelines for layer in timeline.layers if not layer.cold
        )

    def digests(self) -> HeatmapDigests:
        """Return what two heatmaps are compared by."""
        timeless = replace(
            self,
            timelines=tuple(
                replace(timeline, layers=tuple(replace(layer, access_time=0) for layer in timeline.layers))
                for timeline in self.timelines
            ),
        )
        return HeatmapDigests(_md5(self.encode()), _md5(timeless.encode()))


@dataclass(frozen=True, slots=True)
class HeatmapDigests:
    """MD5 of a heatmap's bytes, and of those with all access times 0."""

    whole: str
    timeless: str


def is_worth_uploading(heatmap: Heatmap, last: HeatmapDigests | None, *, checkpoint_distance: int) -> bool:
    """Return whether anything changed that a secondary should hear of: for a small tenant, access times alone do not
    count.
    """
    if last is None:
        return True
    now = heatmap.digests()
    if now.whole == last.whole:
        return False
    return not (heatmap.hot_bytes() < checkpoint_distance and now.timeless == last.timeless)


def _decode_timeline(value: object) -> HeatmapTimeline:
    fields = parse_object(value, "heatmap timeline")
    return HeatmapTimeline(
        timeline_id=TimelineId.parse(str(required(fields, "timeline_id"))),
        layers=tuple(map(HeatmapLayer.decode, required(fields, "layers"))),
    )


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
