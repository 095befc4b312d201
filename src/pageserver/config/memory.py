"""How much memory the engine may have where no setting says it.

Pages that clients asked for are kept decompressed and replayed, as a database keeps them in its buffers: an eighth of
what this process may use, so that the operating system's cache of the layer files and everything else have room.

New values stay in memory until they are in a layer file: a sixteenth for those of all timelines, but not more than one
open layer of the default `checkpoint_distance`. What does not fit goes to ephemeral files: written once more, and read
once for each window of a flush.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pageserver.config.settings import ServerSettings

_CLIENT_PAGES_SHARE: Final = 8
_VALUES_SHARE: Final = 16
_VALUES_MAX: Final = 256 << 20
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


def client_page_cache_bytes(settings: ServerSettings) -> int:
    """Return the budget for pages as they were answered."""
    if settings.client_page_cache_bytes is not None:
        return settings.client_page_cache_bytes
    return usable_memory_bytes() // _CLIENT_PAGES_SHARE


def open_layer_memory_bytes(settings: ServerSettings) -> int:
    """Return the budget for values that are not in a layer file yet."""
    if settings.open_layer_memory_bytes is not None:
        return settings.open_layer_memory_bytes
    return min(usable_memory_bytes() // _VALUES_SHARE, _VALUES_MAX)


def usable_memory_bytes(cgroup_limit: Path = _CGROUP_LIMIT) -> int:
    """Return the machine's memory, or the limit of the container if that is lower."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = cgroup_limit.read_text().strip()
    except OSError:
        return memory
    return memory if text == "max" else min(memory, int(text))
