"""Reads tar archives that arrive in pieces, without seeking and without holding a member in memory.

The base backup of a primary and the bodies of the import routes are tars of one kind: regular files, directories and
(for tablespaces) symbolic links, in ustar form, now and then with the long-name extensions of GNU or POSIX. Members
are met in order and each must be read, or skipped, before the next one.

    chunks ──▶ TarReader ──▶ TarMember, TarMember, … each with `read()`, `chunks()`

Invariant: whatever is not understood is an error, never skipped silently.
Source: POSIX pax, "ustar interchange format"; spec tenants.md 10.2 for what may follow the last member.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from pageserver.errors import RequestError

TAR_BLOCK_BYTES = 512
_ZERO_BLOCK = bytes(TAR_BLOCK_BYTES)
_LONG_NAME_BYTES_MAX = 65536
_SMALL_MEMBER_BYTES_MAX = 64 * 1024 * 1024


class TarFormatError(RequestError):
    """The bytes are not a tar archive of the kind that is accepted here."""


class MemberKind(Enum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


class Closing(Enum):
    """What follows the last member."""

    ZERO_BLOCKS = "zero blocks"
    """Two blocks of zeros, then nothing but further blocks of zeros (spec tenants.md 10.2)."""
    NOTHING = "nothing"
    """The stream just ends, as in the archives of PostgreSQL 14's BASE_BACKUP (spec stock.md 1.3)."""


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    kind: bytes
    size: int
    link_target: str


class TarMember:
    """One entry. Its contents can be read once, before the reader moves on."""

    def __init__(self, reader: TarReader, header: _Header, kind: MemberKind) -> None:
        self.name = header.name
        self.kind = kind
        self.size = header.size
        self.link_target = header.link_target
        self._reader = reader

    def chunks(self) -> Iterator[memoryview]:
        """Yield the contents in pieces as they come. Raises: TarFormatError if the stream ends too early."""
        return self._reader.member_chunks(self)

    def read(self) -> bytes:
        """Return the contents of a small member. Raises: TarFormatError if it is larger than 64 MiB."""
        if self.size > _SMALL_MEMBER_BYTES_MAX:
            raise TarFormatError(f"tar member {self.name} is unexpectedly large ({self.size} bytes)")
        return b"".join(self.chunks())


class TarReader:
    """Iterates over the members of one archive."""

    def __init__(self, chunks: Iterable[bytes | memoryview], *, closing: Closing) -> None:
        self._chunks = iter(chunks)
        self._closing = closing
        self._buffer = memoryview(b"")
        self._current: TarMember | None = None
        self._left_in_member = 0
        self._padding = 0

    def __iter__(self) -> Iterator[TarMember]:
        while (member := self._next_member()) is not None:
            yield member
            if self._current is member:
                for _ in self.member_chunks(member):
                    pass

    def member_chunks(self, member: TarMember) -> Iterator[memoryview]:
        """Yield what is left of `member`, which must be the current one."""
        if self._current is not member:
            raise TarFormatError(f"tar member {member.name} has been passed already")
        while self._left_in_member:
            if not self._buffer and not self._fill():
                missing = f"{self._left_in_member} of {member.size} bytes are missing"
                raise TarFormatError(f"tar archive ends inside of {member.name}: {missing}")
            piece = self._buffer[: self._left_in_member]
            self._buffer = self._buffer[len(piece) :]
            self._left_in_member -= len(piece)
            yield piece
        self._current = None
        if self._padding:
            self._take_exactly(self._padding, what=f"the padding of {member.name}")
            self._padding = 0

    # What follows reads headers.

    def _next_member(self) -> TarMember | None:
        overrides: dict[str, str] = {}
        while True:
            block = self._take(TAR_BLOCK_BYTES)
            if not block and self._closing is Closing.NOTHING:
                return None
            if len(block) != TAR_BLOCK_BYTES:
                raise TarFormatError(f"tar archive ends inside of a header ({len(block)} bytes)")
            if block == _ZERO_BLOCK:
                self._read_closing()
                return None
            header = _parse_header(block)
            if header.kind == b"L":
                overrides["path"] = self._read_extension(header).rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.kind == b"K":
                overrides["linkpath"] = self._read_extension(header).rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.kind in (b"x", b"g"):
                records = _parse_pax_records(self._read_extension(header))
                if header.kind == b"x":
                    overrides.update(records)
            else:
                return self._begin_member(header, overrides)

    def _begin_member(self, header: _Header, overrides: dict[str, str]) -> TarMember:
        kinds = {b"0": MemberKind.FILE, b"\0": MemberKind.FILE, b"5": MemberKind.DIRECTORY, b"2": MemberKind.SYMLINK}
        name = overrides.get("path", header.name)
        kind = kinds.get(header.kind)
        if kind is None:
            raise TarFormatError(f"entry {name!r} in the tar archive has the unexpected type {header.kind!r}")
        if kind is MemberKind.FILE and name.endswith("/"):
            kind = MemberKind.DIRECTORY
        name = name.rstrip("/")
        size = header.size
        if "size" in overrides:
            if not overrides["size"].isdigit():
                raise TarFormatError(f"tar entry {name!r} has the invalid size {overrides['size']!r}")
            size = int(overrides["size"])
        if kind is not MemberKind.FILE:
            size = 0
        member = TarMember(self, _Header(name, header.kind, size, overrides.get("linkpath", header.link_target)), kind)
        self._current = member
        self._left_in_member = size
        self._padding = -size % TAR_BLOCK_BYTES
        return member

    def _read_extension(self, header: _Header) -> bytes:
        if header.size > _LONG_NAME_BYTES_MAX:
            raise TarFormatError(f"tar extension header of {header.size} bytes is too long")
        data = self._take_exactly(header.size, what="an extension header")
        self._take_exactly(-header.size % TAR_BLOCK_BYTES, what="an extension header")
        return data

    def _read_closing(self) -> None:
        if self._closing is Closing.NOTHING and not self._buffer and not self._fill():
            return
        second = self._take(TAR_BLOCK_BYTES)
        if len(second) != TAR_BLOCK_BYTES:
            raise TarFormatError("incomplete or invalid tar EOF marker")
        if second != _ZERO_BLOCK:
            raise TarFormatError("invalid tar EOF marker")
        zeros = 0
        while self._buffer or self._fill():
            if any(self._buffer):
                raise TarFormatError("unexpected non-zero bytes after the tar archive")
            zeros += len(self._buffer)
            self._buffer = memoryview(b"")
        if zeros % TAR_BLOCK_BYTES:
            size = f"tar block size ({TAR_BLOCK_BYTES} bytes)"
            raise TarFormatError(
                f"unexpected number of zeros ({zeros}), not divisible by {size}, after the tar archive"
            )

    # What follows moves bytes.

    def _fill(self) -> bool:
        for chunk in self._chunks:
            if len(chunk):
                self._buffer = memoryview(chunk)
                return True
        return False

    def _take(self, count: int) -> bytes:
        """Return `count` bytes, or fewer at the end of the stream."""
        if len(self._buffer) >= count:
            out = bytes(self._buffer[:count])
            self._buffer = self._buffer[count:]
            return out
        parts: list[bytes] = []
        while count and (self._buffer or self._fill()):
            part = bytes(self._buffer[:count])
            self._buffer = self._buffer[len(part) :]
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def _take_exactly(self, count: int, *, what: str) -> bytes:
        data = self._take(count)
        if len(data) != count:
            raise TarFormatError(f"tar archive ends inside of {what}")
        return data


def _parse_header(block: bytes) -> _Header:
    expected = _parse_number(block[148:156], "checksum")
    actual = sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")
    if actual != expected:
        raise TarFormatError(f"tar header has the wrong checksum (expected {expected}, got {actual})")
    name = _text(block[0:100])
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = f"{prefix}/{name}"
    return _Header(name, block[156:157], _parse_number(block[124:136], "size"), _text(block[157:257]))


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _parse_number(field: bytes, what: str) -> int:
    """Octal digits, or from the high bit of the first byte on a big-endian binary number."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    digits = field.split(b"\0", 1)[0].strip(b" ")
    try:
        return int(digits, 8) if digits else 0
    except ValueError as error:
        raise TarFormatError(f"tar header has an invalid {what}: {field!r}") from error


def _parse_pax_records(data: bytes) -> dict[str, str]:
    """`<length> <name>=<value>\\n`, the length counting all of the record."""
    records: dict[str, str] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at)
        length = data[at:space]
        if space < 0 or not length.isdigit() or not space < at + int(length) <= len(data):
            raise TarFormatError("tar extension header does not parse")
        name, equals, value = data[space + 1 : at + int(length) - 1].partition(b"=")
        if not equals:
            raise TarFormatError("tar extension header does not parse")
        records[name.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at += int(length)
    return records
