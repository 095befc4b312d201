"""Fixtures: the stores of every kind, and what opens them as the server does, from settings and environment."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest
import structlog

from pageserver.config.load import parse_override, parse_settings
from pageserver.config.settings import RemoteStorage
from pageserver.remote import ObjectStorage, RetryingStorage, open_object_storage
from pageserver.remote.open_store import open_backend
from tests.postgres.provision import ProvisionError
from tests.stores.gcs_stub import GcsStub
from tests.stores.servers import AzureServer, s3_server

KINDS = ("local", "s3", "azure", "gcs")
_numbers = itertools.count(1)


class HastyClock:
    """A clock whose pauses are noted and not waited for."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic_seconds(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)


class StoreService(Protocol):
    """What the servers and the stub have in common."""

    ENVIRONMENT: ClassVar[dict[str, str]]

    @property
    def endpoint(self) -> str: ...
    def make_bucket(self, name: str) -> None: ...
    def settings(self, bucket: str, endpoint: str | None = None) -> str: ...


@dataclass
class Bucket:
    """An empty bucket, a directory for kind `local`."""

    kind: str
    name: str
    workdir: Path
    service: StoreService | None

    def settings(self, *, endpoint: str | None = None, **more: Any) -> RemoteStorage:
        """Return `[remote_storage]`, parsed from the form of `-c`."""
        table = "{local_path='bucket'}" if self.service is None else self.service.settings(self.name, endpoint)
        document = parse_override(f"remote_storage={table}")
        document["remote_storage"].update(more)
        settings = parse_settings(document).remote_storage
        assert settings is not None
        return settings

    def open(self, *, endpoint: str | None = None, clock: HastyClock | None = None, **more: Any) -> RetryingStorage:
        """Open it as the server does; retries do not wait."""
        return open_object_storage(
            self.settings(endpoint=endpoint, **more),
            workdir=self.workdir,
            clock=clock or HastyClock(),
            log=structlog.get_logger(),
        )

    def open_once(self, *, endpoint: str | None = None, **more: Any) -> ObjectStorage:
        """Open it without retries."""
        return open_backend(self.settings(endpoint=endpoint, **more), self.workdir)


@pytest.fixture(scope="session")
def store_services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], StoreService]]:
    """Return a function from a kind to its running service, started once; skips, with the reason, where it cannot be
    had.
    """
    running: dict[str, Any] = {}
    directory = tmp_path_factory.mktemp("stores")

    def get(kind: str) -> StoreService:
        if kind not in running:
            try:
                made: Any = {
                    "s3": lambda: s3_server(directory / "s3"),
                    "azure": lambda: AzureServer(directory / "azure"),
                    "gcs": GcsStub,
                }[kind]()
            except ProvisionError as error:
                pytest.skip(f"no server for {kind}: {error}")
            made.__enter__()
            running[kind] = made
        service: StoreService = running[kind]
        return service

    yield get
    for service in running.values():
        service.__exit__(None, None, None)


@pytest.fixture
def make_bucket(
    store_services: Callable[[str], StoreService], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Bucket]:
    """Return a function that makes an empty bucket of a kind, and sets its credentials in the environment."""

    def make(kind: str) -> Bucket:
        name = f"bucket-{next(_numbers)}"
        if kind == "local":
            return Bucket(kind, name, tmp_path, None)
        service = store_services(kind)
        for variable, value in service.ENVIRONMENT.items():
            monkeypatch.setenv(variable, value)
        service.make_bucket(name)
        return Bucket(kind, name, tmp_path, service)

    return make


@pytest.fixture(params=KINDS)
def bucket(request: pytest.FixtureRequest, make_bucket: Callable[[str], Bucket]) -> Bucket:
    """Return an empty bucket of each kind in turn."""
    return make_bucket(request.param)
