"""How a tenant shard is placed on this server, and the file that remembers it (tenants.md 1.3, 4; remote-storage.md
2.3).

`config-v1` is TOML under two fixed comment lines. It is written crash-safely before the object it describes is spawned
and before the API answers. The stored generation is no licence to attach.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from pageserver.config import InvalidSettingError, TenantOverrides
from pageserver.errors import CorruptDataError, PageServerError
from pageserver.ids import Generation, ShardIdentity
from pageserver.remote.remote_timeline import UploadRights

_HEADER = """\
# This file contains a specific per-tenant's config.
#  It is read in case of pageserver restart.
"""


class LocationConfigError(CorruptDataError):
    """A `config-v1` that cannot be read: the tenant is not loaded, and its directory is left alone."""


class AttachMode(Enum):
    SINGLE = "Single"
    MULTI = "Multi"
    STALE = "Stale"

    def upload_rights(self) -> UploadRights:
        """Return what the mode allows (remote-storage.md 4.3)."""
        return UploadRights(deletes=self is AttachMode.SINGLE, publishes_lsn=self is not AttachMode.STALE)


@dataclass(frozen=True, slots=True)
class Attached:
    generation: Generation
    mode: AttachMode = AttachMode.SINGLE


@dataclass(frozen=True, slots=True)
class Secondary:
    warm: bool = False


@dataclass(frozen=True, slots=True)
class LocationConfig:
    """Mode, shard identity and overrides of one tenant shard on this server."""

    mode: Attached | Secondary
    shard: ShardIdentity = field(default_factory=ShardIdentity.unsharded)
    overrides: TenantOverrides = field(default_factory=TenantOverrides)

    @classmethod
    def decode(cls, text: str) -> LocationConfig:
        """Read `config-v1`; any equivalent TOML will do. Raises LocationConfigError."""
        try:
            document = tomllib.loads(text)
            return cls(
                mode=_decode_mode(document["mode"]),
                shard=_decode_shard(document.get("shard", {})),
                overrides=TenantOverrides.parse(document.get("tenant_conf", {})),
            )
        except (PageServerError, InvalidSettingError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise LocationConfigError(f"location config does not decode: {error}") from error

    def encode(self) -> str:
        """Write `config-v1`. Only a real generation can be written."""
        document = {
            "mode": self._mode_table(),
            "shard": self.shard.to_json(),
            "tenant_conf": self.overrides.to_document(),
        }
        return _HEADER + "\n".join(_toml_tables(document))

    def with_generation(self, generation: Generation) -> LocationConfig:
        assert isinstance(self.mode, Attached), "only an attached location has a generation"
        return replace(self, mode=replace(self.mode, generation=generation))

    def as_secondary(self, *, warm: bool) -> LocationConfig:
        return replace(self, mode=Secondary(warm))

    def to_api(self) -> dict[str, Any]:
        """Return the JSON of `GET /v1/location_config`."""
        attached = self.mode if isinstance(self.mode, Attached) else None
        secondary = self.mode if isinstance(self.mode, Secondary) else None
        return {
            "mode": "Secondary" if attached is None else f"Attached{attached.mode.value}",
            "generation": None if attached is None else attached.generation.number,
            "secondary_conf": None if secondary is None else {"warm": secondary.warm},
            "shard_number": self.shard.number,
            "shard_count": self.shard.count,
            "shard_stripe_size": self.shard.stripe_size,
            "tenant_conf": self.overrides.known(),
        }

    def _mode_table(self) -> dict[str, Any]:
        match self.mode:
            case Attached(generation, mode):
                assert generation.number is not None, "an unknown generation cannot be written"
                return {"Attached": {"generation": generation.number, "attach_mode": mode.value}}
            case Secondary(warm):
                return {"Secondary": {"warm": warm}}


def _decode_mode(table: Mapping[str, Any]) -> Attached | Secondary:
    if "Attached" in table:
        attached = table["Attached"]
        return Attached(Generation(_whole("generation", attached["generation"])), AttachMode(attached["attach_mode"]))
    warm = table["Secondary"]["warm"]
    if not isinstance(warm, bool):
        raise TypeError(f"warm is no truth value: {warm!r}")
    return Secondary(warm)


def _decode_shard(table: Mapping[str, Any]) -> ShardIdentity:
    number, count, stripe_size = (_whole(name, table.get(name, 0)) for name in ("number", "count", "stripe_size"))
    identity = ShardIdentity.from_parts(number, count, stripe_size)
    if table.get("layout", identity.layout) != identity.layout:
        raise ValueError(f"unknown shard layout {table['layout']!r}")
    return identity


def _whole(name: str, value: object) -> int:
    """Return a number that TOML must not give as anything else: `true` and `1.5` would pass comparisons."""
    if type(value) is not int:
        raise TypeError(f"{name} is no whole number: {value!r}")
    return value


def _toml_tables(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sections of a TOML file: a table's plain keys first, then the tables below it."""
    for name, table in document.items():
        yield from _toml_table(name, table)


def _toml_table(path: str, table: Mapping[str, Any]) -> Iterator[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping)}
    below = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    if plain or not below:
        yield f"[{path}]\n" + "".join(f"{_toml_key(key)} = {_toml_value(value)}\n" for key, value in plain.items())
    for key, value in below.items():
        yield from _toml_table(f"{path}.{_toml_key(key)}", value)


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _toml_text(key)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml_key(key)} = {_toml_value(below)}" for key, below in value.items()) + " }"
    return _toml_text(value) if isinstance(value, str) else json.dumps(value)


def _toml_text(text: str) -> str:
    """Quote a text: TOML's escapes are those of JSON, but it wants DEL escaped and knows no surrogates."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
