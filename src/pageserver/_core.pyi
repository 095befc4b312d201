"""The compiled engine. Keys are 18 raw bytes, LSNs are integers, ids 16 raw bytes. Work releases the GIL.

Errors are those of ``pageserver.errors``. Each group of names here has a file of the same name in ``crates/pagecore-py/src``.
"""

# crc.rs

def crc32c(data: bytes, start: int = 0) -> int:
    """Return the CRC-32C of ``data``; ``start`` is the CRC of what came before it, 0 at the beginning."""
