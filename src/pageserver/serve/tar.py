"""GNU tar headers for base backups and restores: the few fields that a reader needs, nothing else.

A member is a 512-byte header, its data, and zeros up to the next multiple of 512; an archive ends with 1024 zero bytes.
Source: spec page-service.md 6.3.
"""

from pageserver.errors import RequestError

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
NAME_MAX = 100


class TarNameTooLongError(RequestError):
    """A member's name does not fit the header; no file of a data directory has such a name."""

    def __init__(self, *, name: str) -> None:
        super().__init__(f"tar member name {name!r} is longer than {NAME_MAX} bytes")
        self.name = name


def file_header(name: str, size: int, mtime: int) -> bytes:
    """Return the header of a regular file of `size` bytes (mode 0600)."""
    return _header(name, mode=0o600, size=size, mtime=mtime, kind=b"\0")


def directory_header(name: str, mtime: int) -> bytes:
    """Return the header of a directory (mode 0755, no trailing slash)."""
    return _header(name, mode=0o755, size=0, mtime=mtime, kind=b"5")


def padding(size: int) -> bytes:
    """Return the zeros that follow a member's data of `size` bytes."""
    return bytes(-size % BLOCK)


def _header(name: str, *, mode: int, size: int, mtime: int, kind: bytes) -> bytes:
    encoded = name.encode()
    if len(encoded) > NAME_MAX:
        raise TarNameTooLongError(name=name)
    header = bytearray(BLOCK)
    header[0 : len(encoded)] = encoded
    header[100:108] = b"%07o\0" % mode
    header[124:136] = b"%011o\0" % size
    header[136:148] = b"%011o\0" % mtime
    header[148:156] = b" " * 8
    header[156:157] = kind
    header[257:265] = b"ustar  \0"
    header[148:156] = b"%07o\0" % sum(header)
    return bytes(header)
