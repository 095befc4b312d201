"""The text format of metrics (metrics.md 1.1), encoded by hand because Neon's names are not the Prometheus client's:
counters without `_total`, sums that are counters of their own, and no `_created`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from pageserver.counts import Histogram

Labels = Mapping[str, str]
NO_LABELS: Labels = {}


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram as it is printed. `counts` has one more than `bounds` and is not cumulative."""

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float

    @classmethod
    def of(cls, histogram: Histogram) -> Buckets:
        return cls(histogram.bounds, list(histogram.counts), histogram.total)


@dataclass(slots=True)
class _Family:
    kind: str
    text: str
    lines: list[str] = field(default_factory=list)


class Exposition:
    """Collects families; each name once. A labelled family without any sample is not printed."""

    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def gauge(self, name: str, text: str, samples: Iterable[tuple[Labels, float]] | float) -> None:
        self._add(name, "gauge", text, samples)

    def counter(self, name: str, text: str, samples: Iterable[tuple[Labels, float]] | float) -> None:
        self._add(name, "counter", text, samples)

    def histogram(self, name: str, text: str, samples: Iterable[tuple[Labels, Buckets]]) -> None:
        family = self._family(name, "histogram", text)
        for labels, buckets in samples:
            below = 0
            for bound, count in zip((*map(number_text, buckets.bounds), "+Inf"), buckets.counts, strict=True):
                below += count
                family.lines.append(f"{name}_bucket{_braced(labels, bound)} {below}\n")
            family.lines.append(f"{name}_sum{_braced(labels)} {number_text(buckets.total)}\n")
            family.lines.append(f"{name}_count{_braced(labels)} {below}\n")

    def encode(self) -> bytes:
        """Return the text, families in the order of their names."""
        parts = [
            f"# HELP {name} {family.text}\n# TYPE {name} {family.kind}\n{''.join(family.lines)}"
            for name, family in sorted(self._families.items())
            if family.lines
        ]
        return "".join(parts).encode()

    def _add(self, name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float]] | float) -> None:
        family = self._family(name, kind, text)
        pairs = [(NO_LABELS, samples)] if isinstance(samples, int | float) else samples
        family.lines += [f"{name}{_braced(labels)} {number_text(value)}\n" for labels, value in pairs]

    def _family(self, name: str, kind: str, text: str) -> _Family:
        assert name not in self._families, f"{name} is collected twice"
        self._families[name] = _Family(kind, text)
        return self._families[name]


def number_text(value: float) -> str:
    """Return a number as plain decimal, without exponent; integers without fraction."""
    if value == int(value):
        return str(int(value))
    return format(Decimal(repr(value)), "f")


def _braced(labels: Labels, bound: str | None = None) -> str:
    """Return labels sorted by name, the bound of a bucket last."""
    shown = [f'{key}="{_escape(text)}"' for key, text in sorted(labels.items())]
    if bound is not None:
        shown.append(f'le="{bound}"')
    return f"{{{','.join(shown)}}}" if shown else ""


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
