"""Layer names as decisions need them: which kind, which LSNs, whether a file of that name belongs here (layer-files.md
2).

    <key start>-<key end>__<LSN>                     image
    <key start>-<key end>__<LSN start>-<LSN end>     delta, all ranges half-open

Keys are 36 upper-case hexadecimal digits, LSNs 16. A physical name appends `-v1-<generation>` (local file) or
`-<generation>` (object).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from pageserver.errors import CorruptDataError
from pageserver.lsn import Lsn

_KEY = re.compile(r"[0-9A-Fa-f]{36}")
_LSN = re.compile(r"[0-9A-Fa-f]{1,16}")


class LayerNameError(CorruptDataError):
    """A text that should name a layer does not."""

    def __init__(self, *, name: str) -> None:
        super().__init__(f'neither delta nor image layer file name: "{name}"', name=name)
        self.name = name


class LayerKind(Enum):
    IMAGE = "image"
    DELTA = "delta"


@dataclass(frozen=True, slots=True)
class LayerName:
    """A parsed logical name. An image's LSN range is the one LSN it is of: `lsn_end` is one above."""

    kind: LayerKind
    key_start: str
    key_end: str
    lsn_start: Lsn
    lsn_end: Lsn

    @classmethod
    def parse(cls, text: str) -> LayerName:
        """Read a logical or physical name; the generation is dropped unchecked. Raises LayerNameError.

        Temporary names must be sorted out before: `…-v1-00000001.1.temp_download` would pass (layer-files.md 2.4).
        """
        keys, separator, rest = text.partition("__")
        key_start, dash, key_end = keys.partition("-")
        if not separator or not dash or not _KEY.fullmatch(key_start) or not _KEY.fullmatch(key_end):
            raise LayerNameError(name=text)
        parsed = cls._parse_delta(key_start, key_end, rest) or cls._parse_image(key_start, key_end, rest)
        if parsed is None:
            raise LayerNameError(name=text)
        return parsed

    def is_from_the_future(self, disk_consistent_lsn: Lsn) -> bool:
        """Return whether the layer reaches beyond what its index calls consistent (layer-files.md 2.5)."""
        if self.kind is LayerKind.IMAGE:
            return self.lsn_start > disk_consistent_lsn
        return self.lsn_end > disk_consistent_lsn + 1

    def __str__(self) -> str:
        keys = f"{self.key_start}-{self.key_end}__{int(self.lsn_start):016X}"
        return keys if self.kind is LayerKind.IMAGE else f"{keys}-{int(self.lsn_end):016X}"

    @classmethod
    def _parse_delta(cls, key_start: str, key_end: str, rest: str) -> LayerName | None:
        start, dash, tail = rest.partition("-")
        end, more, generation = tail.partition("-")
        if not dash or not _LSN.fullmatch(start) or not _LSN.fullmatch(end) or (more and not _is_physical(generation)):
            return None
        lsn_start, lsn_end = Lsn(int(start, 16)), Lsn(int(end, 16))
        # A generation suffix of an image also looks like an end LSN; its length tells them apart.
        if len(end) != 16 or lsn_start >= lsn_end or key_start.upper() >= key_end.upper():
            return None
        return cls(LayerKind.DELTA, key_start.upper(), key_end.upper(), lsn_start, lsn_end)

    @classmethod
    def _parse_image(cls, key_start: str, key_end: str, rest: str) -> LayerName | None:
        text, more, generation = rest.partition("-")
        if not _LSN.fullmatch(text) or (more and not _is_physical(generation)):
            return None
        lsn = Lsn(int(text, 16))
        return cls(LayerKind.IMAGE, key_start.upper(), key_end.upper(), lsn, Lsn(lsn + 1))


def _is_physical(tail: str) -> bool:
    return tail.startswith("v") or len(tail) == 8
