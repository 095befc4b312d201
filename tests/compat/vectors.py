"""Real histories to test against: they lie beside the repository, and tests that need them are skipped where they do
not.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import zstandard

VECTORS: Final = Path(__file__).parents[2].parent / "shared" / "vectors"
_CHUNK_BYTES: Final = 1 << 20
_WINDOW_BYTES: Final = 1 << 31


def vector(name: str) -> Path:
    """Return the path of a vector. Skips the test if it is not there."""
    path = VECTORS / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def unpack(name: str) -> bytes:
    """Return the decompressed contents of a ``.zst`` vector."""
    reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).stream_reader(
        io.BytesIO(vector(name).read_bytes())
    )
    return reader.read()


def chunks(data: bytes) -> Iterator[bytes]:
    """Cut bytes into pieces, as they would come over a socket."""
    for at in range(0, len(data), _CHUNK_BYTES):
        yield data[at : at + _CHUNK_BYTES]
