"""Reading fields of JSON documents that came from a store: every check names the field."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from pageserver.lsn import Lsn

_TIMESTAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?")


def parse_object(value: object, what: str) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError if it is something else."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not an object")
    return cast(dict[str, Any], value)


def required(fields: Mapping[str, Any], name: str) -> Any:
    if fields.get(name) is None:
        raise ValueError(f"missing field `{name}`")
    return fields[name]


def required_uint(fields: Mapping[str, Any], name: str, *, bits: int) -> int:
    value = required(fields, name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << bits:
        raise ValueError(f"field `{name}` is not an unsigned integer of {bits} bits: {value!r}")
    return value


def required_lsn(fields: Mapping[str, Any], name: str) -> Lsn:
    value = required(fields, name)
    if not isinstance(value, str):
        raise ValueError(f"field `{name}` is not an lsn: {value!r}")
    return Lsn.parse(value)


def optional_lsn(fields: Mapping[str, Any], name: str) -> Lsn | None:
    return None if fields.get(name) is None else required_lsn(fields, name)


def optional_timestamp(fields: Mapping[str, Any], name: str) -> str | None:
    """Return a naive UTC time stamp in its written form: no fraction, or 3, 6 or 9 digits, the shortest exact one."""
    value = fields.get(name)
    return None if value is None else parse_timestamp(value, name)


def parse_timestamp(value: object, name: str) -> str:
    """The same for a value that is there."""
    match = _TIMESTAMP.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"field `{name}` is not a time stamp: {value!r}")
    datetime.fromisoformat(match[1])
    fraction = (match[2] or "")[:9].rstrip("0")
    if not fraction:
        return match[1]
    return f"{match[1]}.{fraction.ljust(-(-len(fraction) // 3) * 3, '0')}"


def optional_enum(
    fields: Mapping[str, Any], name: str, words: Sequence[str], *, ignore_case: bool = False
) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    word = value.lower() if ignore_case and isinstance(value, str) else value
    if word not in words:
        raise ValueError(f"field `{name}` has the unknown value {value!r}")
    return cast(str, word)
