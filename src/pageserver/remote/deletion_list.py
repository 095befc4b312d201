"""The files of the deletion queue (remote-storage.md 11.2, 11.3): lists of objects to delete, and the header that says
which lists passed validation.

    deletion/header-01                    {"version":1,"validated_sequence":7}
    deletion/<sequence %016x>-01.list     {"version":1,"sequence":…,"tenants":{…},"size":…}

Both are small and overwritten crash-safely. A list never mixes two generations of a shard, since it is validated for
one.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pageserver.errors import CorruptDataError, PageServerError
from pageserver.ids import Generation, TenantShardId, TimelineId
from pageserver.remote import paths
from pageserver.remote.json_fields import parse_object, required, required_uint
from pageserver.remote.local_store import sync_directory

DIRECTORY = "deletion"
TEMPORARY_SUFFIX = ".tmp"
_VERSION = 1
_HEADER_NAME = "header-01"
_LIST_NAME = re.compile(r"([0-9A-Za-z]{16})-([0-9A-Za-z]{2})\.list")


class DeletionListError(CorruptDataError):
    """A list or header does not decode. What it named stays in the store; the scrubber finds it."""


@dataclass(slots=True)
class ShardDeletions:
    """Objects of one shard, by timeline. Names are layer names with the suffix of the layer's generation."""

    generation: Generation
    timelines: dict[TimelineId, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class DeletionList:
    """One list. It grows until it is written, and shrinks when validation drops shards of a stale generation."""

    sequence: int
    tenants: dict[TenantShardId, ShardDeletions] = field(default_factory=dict)
    size: int = 0
    is_validated: bool = False

    def push(self, shard: TenantShardId, timeline_id: TimelineId, generation: Generation, names: Iterable[str]) -> bool:
        """Add names, or return False and change nothing if the shard is here with another generation."""
        deletions = self.tenants.get(shard)
        if deletions is None:
            deletions = self.tenants[shard] = ShardDeletions(generation)
        elif deletions.generation != generation:
            return False
        known = deletions.timelines.setdefault(timeline_id, [])
        before = len(known)
        known.extend(names)
        self.size += len(known) - before
        return True

    def drop(self, shard: TenantShardId) -> int:
        """Forget a shard and return how many names went."""
        dropped = sum(map(len, self.tenants.pop(shard).timelines.values()))
        self.size -= dropped
        return dropped

    def clear(self) -> None:
        self.tenants.clear()
        self.size = 0

    def keys(self) -> Iterator[str]:
        """Yield the object keys."""
        for shard, deletions in self.tenants.items():
            for timeline_id, names in deletions.timelines.items():
                prefix = paths.timeline_prefix(shard, timeline_id)
                yield from (prefix + name for name in names)

    def encode(self) -> bytes:
        document: dict[str, Any] = {
            "version": _VERSION,
            "sequence": self.sequence,
            "tenants": {
                str(shard): {
                    "timelines": {str(timeline): names for timeline, names in deletions.timelines.items()},
                    "generation": deletions.generation.number,
                }
                for shard, deletions in self.tenants.items()
            },
            "size": self.size,
        }
        if self.is_validated:
            document["validated"] = True
        return json.dumps(document, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, content: bytes) -> DeletionList:
        """Read a list. Raises DeletionListError."""
        try:
            fields = parse_object(json.loads(content), "deletion list")
            _check_version(fields)
            tenants = {
                TenantShardId.parse(shard): _decode_shard(value)
                for shard, value in parse_object(required(fields, "tenants"), "tenants").items()
            }
            return cls(
                sequence=required_uint(fields, "sequence", bits=64),
                tenants=tenants,
                size=sum(len(names) for shard in tenants.values() for names in shard.timelines.values()),
                is_validated=fields.get("validated", False) is True,
            )
        except (PageServerError, ValueError, TypeError, AttributeError) as error:
            raise DeletionListError(f"deletion list does not decode: {error}") from error


class DeletionDirectory:
    """The files on disk. All methods block: call them in a worker thread."""

    def __init__(self, workdir: Path) -> None:
        self.root = workdir / DIRECTORY

    def prepare(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        sync_directory(self.root.parent)

    def list_path(self, sequence: int) -> Path:
        return self.root / f"{sequence:016x}-{_VERSION:02x}.list"

    def write_list(self, deletions: DeletionList) -> None:
        overwrite_small_file(self.list_path(deletions.sequence), deletions.encode())

    def read_list(self, sequence: int) -> DeletionList:
        """Raises DeletionListError."""
        return DeletionList.decode(self.list_path(sequence).read_bytes())

    def remove_list(self, sequence: int) -> None:
        self.list_path(sequence).unlink(missing_ok=True)

    def write_header(self, validated_sequence: int) -> None:
        document = {"version": _VERSION, "validated_sequence": validated_sequence}
        overwrite_small_file(self.root / _HEADER_NAME, json.dumps(document, separators=(",", ":")).encode())

    def read_header(self) -> int:
        """Return the sequence up to which lists are validated, 0 without a header. Raises DeletionListError."""
        try:
            content = (self.root / _HEADER_NAME).read_bytes()
        except FileNotFoundError:
            return 0
        try:
            fields = parse_object(json.loads(content), "deletion header")
            _check_version(fields)
            return required_uint(fields, "validated_sequence", bits=64)
        except (PageServerError, ValueError) as error:
            raise DeletionListError(f"deletion header does not decode: {error}") from error

    def scan(self) -> tuple[list[int], list[str]]:
        """Remove temporaries; return the sequences of all lists in order, and names that nobody of ours wrote."""
        sequences: list[int] = []
        unknown: list[str] = []
        for name in sorted(os.listdir(self.root)):
            match = _LIST_NAME.fullmatch(name)
            if name.endswith(TEMPORARY_SUFFIX):
                (self.root / name).unlink()
            elif match is not None and re.fullmatch(r"[0-9A-Fa-f]{16}", match[1]):
                sequences.append(int(match[1], 16))
            elif name != _HEADER_NAME:
                unknown.append(name)
        return sorted(sequences), unknown


def overwrite_small_file(path: Path, content: bytes) -> None:
    """Replace a file so that a crash leaves the old or the new content (2.5), with this directory's temporary name."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    temporary.unlink(missing_ok=True)
    with temporary.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def _decode_shard(value: object) -> ShardDeletions:
    fields = parse_object(value, "deletions of a shard")
    timelines: dict[TimelineId, list[str]] = {}
    for timeline_id, names in parse_object(required(fields, "timelines"), "timelines").items():
        if not isinstance(names, list) or any(not _is_plain_name(name) for name in names):
            raise ValueError(f"names of timeline {timeline_id} are not plain object names")
        timelines[TimelineId.parse(timeline_id)] = list(names)
    number = fields.get("generation")
    return ShardDeletions(
        Generation(None if number is None else required_uint(fields, "generation", bits=32)), timelines
    )


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name


def _check_version(fields: dict[str, Any]) -> None:
    version = required_uint(fields, "version", bits=8)
    if version != _VERSION:
        raise ValueError(f"unknown version {version}")
