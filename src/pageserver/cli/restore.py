"""`pagectl restore`: a data directory at an LSN or a moment, from which an unmodified PostgreSQL starts at once."""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import click
import httpx
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from pageserver.cli.client import Session
from pageserver.cli.moments import find_lsn
from pageserver.cli.output import make_table, show, tenant_option, timeline_option
from pageserver.cli.restore_directory import Tablespace, Target, give_to, restore
from pageserver.cli.working import working
from pageserver.errors import PageServerError
from pageserver.lsn import Lsn
from pageserver.postgres.installation import find_installation

PARTS = 4
_SHOWN = ("lsn", "pg_version", "pg_tli", "data_checksums", "files", "size_bytes")


def register(group: click.Group) -> None:
    group.add_command(restore_command)


@click.command("restore")
@tenant_option
@timeline_option
@click.option("--lsn", help="Restore the state after the last record that ends at or before this LSN.")
@click.option("--time", "moment", help='Restore a moment, e.g. "2026-11-20T09:00:00Z"; without zone it is local time.')
@click.option("--to", "directory", required=True, type=click.Path(path_type=Path), help="Directory to make.")
@click.option("--tablespace-mapping", "mappings", multiple=True, metavar="OLD=NEW", help="Put a tablespace elsewhere.")
@click.option("--tli", type=int, help="PostgreSQL timeline id of the restored server; left out, the next free one.")
@click.option("--start", "port", type=click.IntRange(1, 65535), help="Start PostgreSQL on this port afterwards.")
@click.option("--pg-bin", type=click.Path(path_type=Path), help="Where pg_ctl of that version is.")
@click.option("--run-as", "user", default="postgres", show_default=True, help="As root: who owns and runs the server.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def restore_command(
    session: Session,
    tenant: str | None,
    timeline: str,
    lsn: str | None,
    moment: str | None,
    directory: Path,
    mappings: tuple[str, ...],
    tli: int | None,
    port: int | None,
    pg_bin: Path | None,
    user: str,
    as_json: bool,
) -> None:
    """Write a data directory from which an unmodified PostgreSQL starts."""
    session.as_json = session.as_json or as_json
    if os.geteuid() == 0:
        _check_user(user)
    path = session.timeline_path(tenant, timeline)
    at = _choose_lsn(session, path, lsn, moment)
    with working(session, f"asking for the data directory at {at}"):
        manifest = session.client.get(f"{path}/data_directory", lsn=str(at), parts=PARTS, tli=tli)
    programs = None if port is None else _find_programs(manifest, pg_bin)
    target = Target(directory.absolute(), _parse_mappings(mappings))
    try:
        _download(session, f"{path}/data_directory/part", manifest, target, tli)
    except PageServerError as error:
        raise click.ClickException(str(error)) from error
    if os.geteuid() == 0:
        give_to(user, [target.directory, *target.tablespace_mapping.values()])
    if port is not None and programs is not None:
        _start(target.directory, port, programs, user)
    result = {**{key: manifest[key] for key in _SHOWN}, "directory": str(target.directory), "port": port}
    show(session, result, lambda: make_table(("", ""), [(key, str(value)) for key, value in result.items()]))


class ResponseReader:
    """A response body as a file object that can only be read."""

    def __init__(self, response: httpx.Response) -> None:
        self._pieces = response.iter_raw()
        self._rest = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, fewer only at the end; without a size, everything."""
        taken: list[bytes] = []
        while size:
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
            part = self._rest if size < 0 else self._rest[:size]
            taken.append(bytes(part))
            self._rest = self._rest[len(part) :]
            size -= len(part) if size > 0 else 0
        return taken[0] if len(taken) == 1 else b"".join(taken)


def _choose_lsn(session: Session, path: str, lsn: str | None, moment: str | None) -> Lsn:
    if (lsn is None) == (moment is None):
        raise click.UsageError("give either --lsn or --time")
    try:
        return find_lsn(session, path, moment or "") if lsn is None else Lsn.parse(lsn)
    except PageServerError as error:
        raise click.UsageError(str(error)) from error


def _check_user(user: str) -> None:
    """Refuse a user whom nothing can be given to, before anything is made."""
    try:
        pwd.getpwnam(user)
    except KeyError as error:
        raise click.UsageError(f"there is no user {user!r} here; --run-as names who owns what is restored") from error


def _parse_mappings(mappings: tuple[str, ...]) -> dict[str, Path]:
    parsed = {}
    for mapping in mappings:
        old, equals, new = mapping.partition("=")
        if not (old and equals and new) or not Path(new).is_absolute():
            raise click.UsageError(f"--tablespace-mapping {mapping!r} is not OLD=NEW with an absolute NEW")
        parsed[old] = Path(new)
    return parsed


def _download(session: Session, base: str, manifest: dict[str, Any], target: Target, tli: int | None) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=session.console, disable=not session.shows_progress, transient=True) as bar:
        task = bar.add_task(f"restoring {manifest['lsn']}", total=manifest["size_bytes"])

        @contextmanager
        def open_part(part: int) -> Iterator[IO[bytes]]:
            parameters = {"lsn": manifest["lsn"], "parts": manifest["parts"], "tli": tli}
            with session.client.stream(f"{base}/{part}", **parameters) as response:
                yield cast(IO[bytes], ResponseReader(response))

        restore(
            target,
            parts=manifest["parts"],
            directories=manifest["directories"],
            tablespaces=[Tablespace(entry["oid"], entry["location"]) for entry in manifest["tablespaces"]],
            open_part=open_part,
            on_bytes=lambda count: bar.advance(task, count),
        )


def _find_programs(manifest: dict[str, Any], pg_bin: Path | None) -> Path:
    """Return the folder of the programs that fit the restored directory: the given one, the page server's own, or the
    system's. Looked for before anything is restored.
    """
    folder, major = manifest["pg_installation"], manifest["pg_version"]
    if pg_bin is not None:
        if not (pg_bin / "pg_ctl").is_file():
            raise click.UsageError(f"there is no pg_ctl in {pg_bin} (--pg-bin)")
        return pg_bin
    try:
        return find_installation(major, pg_installations={str(major): folder} if folder else {}).bin
    except PageServerError as error:
        raise click.ClickException(
            f"nothing is restored, since it could not be started: {error}; or give --pg-bin"
        ) from error


def _start(directory: Path, port: int, folder: Path, user: str) -> None:
    """Start the restored server with its own pg_ctl, as `user` when we are root."""
    options = f"-p {port} -c unix_socket_directories=''"
    log = directory / "startup.log"
    command = [str(folder / "pg_ctl"), "-D", str(directory), "-w", "-l", str(log), "-o", options, "start"]
    as_root = os.geteuid() == 0
    done = subprocess.run(
        command,
        user=user if as_root else None,
        group=pwd.getpwnam(user).pw_gid if as_root else None,
        extra_groups=[] if as_root else None,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(f"PostgreSQL did not start: {done.stderr.strip()} (see {log})")
