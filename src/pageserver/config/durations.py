"""Durations in the text form of the configuration and the HTTP API (http-api.md 1.1).

`80sec` is read and `1m 20s` is written: greatest unit first, zero parts left out. A year is 365.25 days and a month a
twelfth of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

_NANOS_PER_SECOND = 1_000_000_000
_MONTH_SECONDS = 2_630_016
_YEAR_SECONDS = 31_557_600

_UNIT_NAMES: dict[int, str] = {
    1: "ns nsec nanos",
    1_000: "us usec µs",
    1_000_000: "ms msec millis",
    _NANOS_PER_SECOND: "s sec secs second seconds",
    60 * _NANOS_PER_SECOND: "m min mins minute minutes",
    3600 * _NANOS_PER_SECOND: "h hr hrs hour hours",
    86_400 * _NANOS_PER_SECOND: "d day days",
    7 * 86_400 * _NANOS_PER_SECOND: "w wk wks week weeks",
    _MONTH_SECONDS * _NANOS_PER_SECOND: "M month months",
    _YEAR_SECONDS * _NANOS_PER_SECOND: "y yr yrs year years",
}
_UNITS: dict[str, int] = {name: nanos for nanos, names in _UNIT_NAMES.items() for name in names.split()}

_SECONDS_MAX = 1 << 64
"""Neon's durations count seconds in 64 bits."""
_TERM = re.compile(r"\s*([0-9]+)\s*([^\W\d_]+)\s*")

_LONG_UNITS = (("year", _YEAR_SECONDS), ("month", _MONTH_SECONDS), ("day", 86_400))
_SHORT_UNITS = (
    ("h", 3600 * _NANOS_PER_SECOND),
    ("m", 60 * _NANOS_PER_SECOND),
    ("s", _NANOS_PER_SECOND),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
)


@dataclass(frozen=True, slots=True, order=True)
class Duration:
    """A span of time, exact to the nanosecond."""

    nanos: int

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read the text form. Raises ValueError for a number without unit (other than 0) and for unknown units."""
        if text.strip() == "0":
            return cls(0)
        total = 0
        position = 0
        while position < len(text):
            term = _TERM.match(text, position)
            if term is None:
                raise ValueError(f"invalid duration {text!r}: expected terms like 10s, 5m or 7days")
            unit = _UNITS.get(term[2])
            if unit is None:
                raise ValueError(f"invalid duration {text!r}: unknown unit {term[2]!r}")
            total += int(term[1]) * unit
            position = term.end()
        if position == 0:
            raise ValueError("invalid duration: the text is empty")
        if total >= _SECONDS_MAX * _NANOS_PER_SECOND:
            raise ValueError(f"invalid duration {text[:40]!r}: too long")
        return cls(total)

    @classmethod
    def from_seconds(cls, seconds: int) -> Duration:
        return cls(seconds * _NANOS_PER_SECOND)

    @property
    def seconds(self) -> float:
        return self.nanos / _NANOS_PER_SECOND

    def __bool__(self) -> bool:
        return self.nanos != 0

    def __str__(self) -> str:
        parts: list[str] = []
        rest = self.nanos
        for name, unit_seconds in _LONG_UNITS:
            count, rest = divmod(rest, unit_seconds * _NANOS_PER_SECOND)
            if count:
                parts.append(f"{count}{name}{'s' if count > 1 else ''}")
        for name, unit_nanos in _SHORT_UNITS:
            count, rest = divmod(rest, unit_nanos)
            if count:
                parts.append(f"{count}{name}")
        return " ".join(parts) or "0s"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: object) -> Duration:
            if isinstance(value, Duration):
                return value
            if isinstance(value, str):
                return cls.parse(value)
            raise ValueError("a duration is a text such as '10s'")

        return core_schema.no_info_plain_validator_function(
            check, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Describe the text form; months and microseconds are left to people."""
        term = "[0-9]{1,6} ?(ns|us|ms|s|sec|m|min|h|hour|d|days?|w|weeks?|years?)"
        return {"type": "string", "pattern": f"^{term}( {term}){{0,3}}$", "examples": ["10m", "7days", "1h 30m"]}
