"""A flush that failed at its last step can be repeated (remote-storage.md 2.5)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import errno, os, resource, sys
from pathlib import Path
from pageserver import _core
from pageserver.errors import UnavailableError

directory = Path(sys.argv[1])
store = _core.TimelineStore(
    directory=str(directory),
    tenant_id=bytes(16),
    timeline_id=bytes(16),
    shard=(0, 0, 2048),
    pg_version=16,
    flavour="stock",
    hint_bits_logged=False,
    data_checksums=False,
    last_record_lsn=0x1000,
    prev_record_lsn=0,
    disk_consistent_lsn=0x1000,
    gc_cutoff_lsn=0x1000,
    next_open_layer_at=0x1001,
    ancestor=None,
    ancestor_lsn=0,
    redo=None,
    caches=_core.Caches(block_cache_bytes=1 << 20, page_cache_bytes=1 << 20, value_memory_bytes=1 << 20),
    download=None,
)
store.put_images(0x2000, [(bytes(17) + b"\\x01", b"value")])
assert store.freeze() is not None
free = os.open("/dev/null", os.O_RDONLY)
os.close(free)
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
# One descriptor more, which is the layer's: its directory cannot be opened any more.
resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
for _ in range(2):
    try:
        store.flush_oldest(1)
    except UnavailableError as error:
        assert "fsync directory" in str(error), error
        assert error.facts["errno"] == errno.EMFILE, error.facts
    else:
        raise AssertionError("the directory was synced without a descriptor")
assert store.frozen_layers() == 1
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
layer = store.flush_oldest(1)
assert layer is not None and store.frozen_layers() == 0
assert [file.name.partition("-v1-")[0] for file in directory.iterdir()] == [layer.name]
assert store.get(bytes(17) + b"\\x01", 0x2000) == b"value"
store.shutdown()
"""


def test_a_layer_whose_directory_could_not_be_synced_is_written_again(tmp_path: Path) -> None:
    """Goal: no flush is stuck until the next start because its own file is in the way.

    Method: a process without free file descriptors for the directory, which gets some afterwards.
    """
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
