"""Fixtures that several tests share: real PostgreSQL servers of every major."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.postgres.provision import Installation, ProvisionError, provision
from tests.postgres.server import PostgresServer

MakeServer = Callable[..., PostgresServer]


@pytest.fixture(scope="session")
def postgres_installation() -> Callable[[int], Installation]:
    """Return a function that gives the installation of a major, fetched once; skips, with the reason, where it cannot
    be had.
    """
    known: dict[int, Installation | ProvisionError] = {}

    def get(major: int) -> Installation:
        if major not in known:
            try:
                known[major] = provision(major)
            except ProvisionError as error:
                known[major] = error
        found = known[major]
        if isinstance(found, ProvisionError):
            pytest.skip(f"PostgreSQL {major} cannot be had: {found}")
        return found

    return get


@pytest.fixture
def server_dir() -> Iterator[Path]:
    """Return a temporary directory that the unprivileged user of the servers can reach; pytest's own is closed to
    others.
    """
    folder = Path(tempfile.mkdtemp(prefix="pageserver-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def make_server(postgres_installation: Callable[[int], Installation], server_dir: Path) -> Iterator[MakeServer]:
    """Return a function that makes and starts a server: `make_server(16, "primary", checksums=True, settings={…})`."""
    made: list[PostgresServer] = []

    def make(
        major: int,
        name: str = "server",
        *,
        checksums: bool = False,
        settings: Mapping[str, str] | None = None,
        start: bool = True,
    ) -> PostgresServer:
        installation = postgres_installation(major)
        folder = server_dir / f"{name}-{major}"
        server = PostgresServer(major, folder, checksums=checksums, settings=settings, installation=installation)
        made.append(server)
        server.initdb()
        if start:
            server.start()
        return server

    yield make
    for server in made:
        if server.is_running():
            server.stop("immediate")
