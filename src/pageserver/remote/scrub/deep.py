"""Reading a layer object again, all of it: checksum, summary, index, every value (standalone.md 5)."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pageserver._core import layer_check, layer_summary
from pageserver.errors import CorruptDataError
from pageserver.ids import TenantId
from pageserver.remote.layer_name import LayerName
from pageserver.remote.storage import ObjectStorage


async def check_layer_object(
    storage: ObjectStorage, key: str, *, tenant_id: TenantId, name: str, size_bytes: int, target: Path
) -> int:
    """Download a layer to `target`, decode it, remove it; return how many values it has.

    Raises ObjectNotFoundError; CorruptDataError (ObjectChecksumError among them) for damage, StoreUnavailableError.
    """
    downloaded = await storage.download(key, target)
    # One call for all of the rest: a cancelled caller leaves the file to a thread that removes it.
    return await asyncio.to_thread(_decode, target, tenant_id, name, downloaded, size_bytes)


def _decode(path: Path, tenant_id: TenantId, name: str, downloaded: int, size_bytes: int) -> int:
    try:
        if downloaded != size_bytes:
            raise CorruptDataError(f"layer has {downloaded} bytes, the index says {size_bytes}", name=name)
        return _decode_file(path, tenant_id, name)
    finally:
        path.unlink()


def _decode_file(path: Path, tenant_id: TenantId, name: str) -> int:
    summary = layer_summary(path)
    # A timeline's layers may come from another one (detached ancestors), never from another tenant.
    if summary["tenant_id"] != tenant_id.raw:
        raise CorruptDataError(f"the layer belongs to tenant {TenantId(summary['tenant_id'])}", name=name)
    if str(LayerName.parse(summary["name"])) != name:
        raise CorruptDataError(f"the layer calls itself {summary['name']}", name=name)
    return layer_check(path)
