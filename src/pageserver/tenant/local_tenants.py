"""The shards' directories on this disk: location configs, and what is left when they go (tenants.md 1.2, 1.3, 5.2).

Invariant: a configuration is replaced whole, and a directory that is to go is no tenant's any more before its first
file is removed. Methods that are not coroutines block and belong into a thread.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import uuid
from pathlib import Path
from typing import Any

from pageserver.clock import Clock
from pageserver.disk_errors import DiskGuard
from pageserver.errors import PageServerError
from pageserver.failpoints import Failpoints
from pageserver.ids import TenantShardId
from pageserver.remote import paths
from pageserver.remote.local_store import make_directory_durable, overwrite_durably, sync_directory
from pageserver.remote.retry import pause_seconds
from pageserver.tenant.location import LocationConfig, LocationConfigError
from pageserver.tenant.opening import remove_tree

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class LocalTenants:
    """The directory `tenants/` of one server."""

    def __init__(self, workdir: Path, *, clock: Clock, disk: DiskGuard, failpoints: Failpoints, log: Any) -> None:
        self._workdir = workdir
        self._clock = clock
        self._disk = disk
        self._failpoints = failpoints
        self._log = log

    async def write_when_there_is_room(self, shard: TenantShardId, location: LocationConfig) -> None:
        """At a start: wait for room on a full disk rather than end, and claim another generation at every restart."""
        failures = 0
        while True:
            try:
                await self.write(shard, location)
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._log.error("a location config cannot be written, will retry", tenant=str(shard), error=str(error))
                await self._clock.sleep(pause_seconds(failures))
                failures += 1

    async def write(self, shard: TenantShardId, location: LocationConfig) -> None:
        """Make a configuration durable. Raises OSError: then the one before is what it was."""
        await self._failpoints.fail("tenant-config-before-write", text="{}")
        try:
            await asyncio.to_thread(self._write, shard, location)
        except OSError as error:
            self._disk.check(error)
            raise

    def _write(self, shard: TenantShardId, location: LocationConfig) -> None:
        make_directory_durable(paths.timelines_directory(self._workdir, shard), self._workdir)
        overwrite_durably(paths.location_config_path(self._workdir, shard), location.encode().encode())

    def scan(self) -> dict[TenantShardId, LocationConfig]:
        """Read all configurations (tenants.md 5.2). What cannot be read is reported and left alone."""
        found: dict[TenantShardId, LocationConfig] = {}
        root = paths.tenants_directory(self._workdir)
        make_directory_durable(root, self._workdir)
        for directory in sorted(root.iterdir()):
            if not directory.is_dir():
                self._log.warning("a file where only tenants' directories belong", path=str(directory))
                continue
            if directory.name.endswith(paths.DIRECTORY_TEMPORARY_SUFFIX):
                shutil.rmtree(directory)
                continue
            try:
                shard = TenantShardId.parse(directory.name)
            except PageServerError:
                self._log.warning("Invalid tenant path (garbage in our repo directory?)", path=str(directory))
                continue
            if not any(directory.iterdir()):
                directory.rmdir()
                continue
            location = self.read(shard)
            if location is not None:
                found[shard] = location
        return found

    def read(self, shard: TenantShardId) -> LocationConfig | None:
        """Read a configuration; None, and a line in the log, if that cannot be done."""
        directory = paths.tenant_directory(self._workdir, shard)
        try:
            return LocationConfig.decode((directory / "config-v1").read_text(encoding="utf-8"))
        except (FileNotFoundError, UnicodeDecodeError, LocationConfigError) as error:
            self._log.error(
                "tenant is not loaded: its location config cannot be read", path=str(directory), error=str(error)
            )
            return None

    def purge(self, shard: TenantShardId) -> None:
        """Remove all of a shard. Rename first: a half-removed directory with an intact config would be loaded again
        after a crash.
        """
        directory = paths.tenant_directory(self._workdir, shard)
        if not directory.exists():
            return
        temporary = directory.with_name(f"{directory.name}.{uuid.uuid4().hex[:8]}.{paths.DIRECTORY_TEMPORARY_SUFFIX}")
        directory.rename(temporary)
        sync_directory(directory.parent)
        shutil.rmtree(temporary)

    def drop_cache(self, shard: TenantShardId) -> None:
        """Remove a shard's local layers, as far as that is possible: what stays is looked at by the next load."""
        try:
            remove_tree(paths.timelines_directory(self._workdir, shard))
        except OSError as error:
            self._log.warning("the local files could not be removed", tenant=str(shard), error=str(error))
