"""Parameters of paths and queries, and the value forms of http-api.md 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pageserver.mgmt.openapi.answers import Json
from pageserver.remote.names import NAME_LENGTH_MAX

TENANT = "3d1f7595b468230304e0b73cecbcb081"
TIMELINE = "8cbe8ed3cd4d3b0ee9e7a0e1b0ac1d2c"
LAYER = "000000067F00000005000000000000000001-000000067F000000050000400C00000002C6__0000000002000029-0000000004CF6E01"

U32: Json = {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1}
U64: Json = {"type": "integer", "minimum": 0, "maximum": (1 << 64) - 1}
BOOLEAN: Json = {"type": "boolean"}
LSN: Json = {"type": "string", "pattern": "^[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}$", "examples": ["0/4CF6E00"]}
ID: Json = {"type": "string", "pattern": "^[0-9A-Fa-f]{32}$", "examples": [TENANT]}
SHARD_ID: Json = {
    "type": "string",
    "pattern": "^[0-9A-Fa-f]{32}(-[0-9A-Fa-f]{4})?$",
    "examples": [TENANT, f"{TENANT}-0104"],
}
KEY: Json = {"type": "string", "pattern": "^[0-9A-Fa-f]{36}$", "examples": ["000000067F00000001000000AE0000000000"]}
PG_VERSION: Json = {"type": "integer", "enum": [14, 15, 16, 17, 18]}
TIMESTAMP: Json = {
    "type": "string",
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z$",
    "examples": ["2026-02-21T10:02:59Z"],
}


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    schema: Json
    example: Any
    description: str
    is_required: bool = False

    def to_openapi(self, *, location: str) -> Json:
        return {
            "name": self.name,
            "in": location,
            "required": self.is_required or location == "path",
            "description": self.description,
            "schema": self.schema,
            "example": self.example,
        }


def flag(name: str, description: str, *, default: bool) -> Parameter:
    return Parameter(name, {**BOOLEAN, "default": default}, default, description)


def lsn(name: str, description: str, *, is_required: bool = False) -> Parameter:
    return Parameter(name, LSN, "0/4CF6E00", description, is_required)


TIMELINE_NAME: Json = {
    "type": "string",
    "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$",
    "minLength": 1,
    "maxLength": NAME_LENGTH_MAX,
    "not": {"pattern": "^[0-9A-Fa-f]{32}$"},
    "examples": ["main"],
}
NAMED_TIMELINE = Parameter("timeline_id", {"anyOf": [ID, TIMELINE_NAME]}, TIMELINE, "A timeline, by id or by name")

PATH_PARAMETERS: dict[str, Parameter] = {
    parameter.name: parameter
    for parameter in (
        Parameter("tenant_shard_id", SHARD_ID, TENANT, "A tenant, or `<tenant>-NNCC` for shard NN of CC"),
        Parameter("tenant_id", ID, TENANT, "A tenant that is not sharded"),
        Parameter("timeline_id", ID, TIMELINE, "A timeline"),
        Parameter("layer_file_name", {"type": "string", "minLength": 1}, LAYER, "A layer, as the listing names it"),
        Parameter("name", TIMELINE_NAME, "main", "What a timeline is called"),
        Parameter("part", {"type": "integer", "minimum": 0, "maximum": 31}, 0, "Number of a part"),
    )
}
