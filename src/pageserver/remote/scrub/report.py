"""What a scrub found."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any


class Level(Enum):
    """An error is damage: something cannot be read, or breaks the rules of remote-storage.md 20. A warning may be
    harmless.
    """

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is not as it should be. `where` is a key, or a prefix if no single object is meant."""

    where: str
    message: str
    level: Level = field(compare=False)

    def to_json(self) -> dict[str, Any]:
        return {"level": self.level.value, "where": self.where, "message": self.message}


class OrphanKind(Enum):
    LAYER = "layer"
    INDEX = "index"
    MANIFEST = "manifest"
    SOURCE = "source"
    NAMES = "names"


@dataclass(frozen=True, slots=True)
class Orphan:
    """An object that nothing needs any more. `etag` and `modified_at` tell whether it is still the one that was
    judged.
    """

    kind: OrphanKind
    key: str
    size_bytes: int
    modified_at: datetime
    etag: str | None

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind.value,
            "key": self.key,
            "size": self.size_bytes,
            "modified_at": self.modified_at.isoformat(),
        }


@dataclass(slots=True)
class ScrubReport:
    """All of a bucket. `in_flight` are objects that no index names and that a server may be about to name; `relics` are
    prefixes of timelines without an index (a creation that is running or was given up). `layers_read` and
    `values_read` count what a deep scrub decoded.
    """

    tenants: int = 0
    shards: int = 0
    timelines: int = 0
    layers: int = 0
    layers_bytes: int = 0
    layers_read: int = 0
    values_read: int = 0
    findings: list[Finding] = field(default_factory=list)
    orphans: list[Orphan] = field(default_factory=list)
    in_flight: list[str] = field(default_factory=list)
    relics: list[str] = field(default_factory=list)
    purged: list[Orphan] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level is Level.ERROR]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.level is Level.WARNING]

    def add(self, other: ScrubReport) -> None:
        """Take over what was found in another part of the bucket."""
        self.tenants += other.tenants
        self.shards += other.shards
        self.timelines += other.timelines
        self.layers += other.layers
        self.layers_bytes += other.layers_bytes
        self.layers_read += other.layers_read
        self.values_read += other.values_read
        self.findings += other.findings
        self.orphans += other.orphans
        self.in_flight += other.in_flight
        self.relics += other.relics
        self.purged += other.purged

    def to_json(self) -> dict[str, Any]:
        return {
            "tenants": self.tenants,
            "shards": self.shards,
            "timelines": self.timelines,
            "layers": self.layers,
            "layers_bytes": self.layers_bytes,
            "layers_read": self.layers_read,
            "values_read": self.values_read,
            "errors": [finding.to_json() for finding in self.errors],
            "warnings": [finding.to_json() for finding in self.warnings],
            "orphans": [orphan.to_json() for orphan in self.orphans],
            "in_flight": self.in_flight,
            "relics": self.relics,
            "purged": [orphan.to_json() for orphan in self.purged],
        }
