"""A bucket of each kind for a suite, and what `pagectl scrub` must say of it afterwards.

with open_bucket("s3", folder) as bucket:
    PageServerProcess(…, settings={"remote_storage": bucket.settings()})
    …
    scrub_clean(bucket)
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from tests.page_server import pagectl
from tests.stores.gcs_stub import GcsStub
from tests.stores.servers import AzureServer, S3Server

KINDS: Final = ("local", "s3", "azure", "gcs")
_NAME: Final = "survival"


class _Service(Protocol):
    @property
    def port(self) -> int: ...
    @property
    def endpoint(self) -> str: ...
    def settings(self, bucket: str, endpoint: str | None = None) -> str: ...


class ScrubError(AssertionError):
    """The bucket is not whole, or has what cannot be purged."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """An empty bucket whose credentials are in the environment. `service` is None for a directory."""

    kind: str
    folder: Path
    service: _Service | None

    def settings(self, *, through: str | None = None, more: str = "") -> str:
        """Return `[remote_storage]` in the form of `-c`; `through` is another endpoint, `more` are further keys."""
        if self.service is None:
            table = f"{{local_path='{self.folder / 'bucket'}'}}"
        else:
            table = self.service.settings(_NAME, through)
        return table if not more else f"{table.removesuffix('}')}, {more}}}"


@contextmanager
def open_bucket(kind: str, folder: Path) -> Iterator[Bucket]:
    """Start a service of a kind with an empty bucket. Raises ProvisionError where there is none to be had."""
    if kind == "local":
        (folder / "bucket").mkdir()
        yield Bucket(kind, folder, None)
        return
    made: Any = {
        "s3": lambda: S3Server(folder / "s3"),
        "azure": lambda: AzureServer(folder / "azure"),
        "gcs": GcsStub,
    }[kind]()
    with made as service, _environment(made.ENVIRONMENT):
        service.make_bucket(_NAME)
        yield Bucket(kind, folder, service)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set credentials for this process and those that it starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def each_seed(
    folder: Path,
    run_one: Callable[[Path, Bucket, int], dict[str, Any]],
    *,
    seeds: range,
    kind: str,
    deep: bool,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Run a suite once for each seed, in a directory and on a bucket of its own, which must be whole afterwards.

    Return what the runs found, each with the figures of its `scrub`. Raises ScrubError, and what `run_one` raises.
    """
    runs = []
    for seed in seeds:
        place = folder / f"seed-{seed}"
        place.mkdir()
        place.chmod(0o755)
        with open_bucket(kind, place) as bucket:
            say(f"seed {seed}")
            runs.append({**run_one(place, bucket, seed), "scrub": scrub_clean(bucket, deep=deep)})
            say(json.dumps(runs[-1]))
        shutil.rmtree(place)
    return runs


def scrub(bucket: Bucket, *options: str) -> dict[str, Any]:
    """Run `pagectl scrub`. Raises ScrubError for every error and every warning."""
    arguments = ("scrub", "--remote-storage", bucket.settings(), *options)
    report: dict[str, Any] = pagectl(*arguments, statuses=(0, 1))
    if report["errors"] or report["warnings"]:
        raise ScrubError(f"{report['errors'][:10]} {report['warnings'][:10]}")
    return report


def scrub_clean(bucket: Bucket, *, deep: bool = False) -> dict[str, Any]:
    """Demand a whole bucket; purge its orphans, and demand that a second run lists none. No server may be running that
    still uploads or deletes. Return figures.
    """
    first = scrub(bucket, *(("--deep",) if deep else ()))
    purged = scrub(bucket, "--purge", "--min-age", "0s")
    left = scrub(bucket)
    if left["orphans"]:
        raise ScrubError(f"orphans after a purge: {left['orphans'][:10]}")
    if len(purged["purged"]) != len(first["orphans"]):
        raise ScrubError(f"{len(first['orphans'])} orphans were listed, {len(purged['purged'])} purged")
    return {
        "layers": first["layers"],
        "layers_decoded": first["layers_read"],
        "orphans_purged": len(purged["purged"]),
        "in_flight": len(left["in_flight"]),
        "without_index": len(left["relics"]),
    }
