"""WAL to flushed layers, beside PostgreSQL replaying the same WAL from the same base backup.

    primary: pg_basebackup, then pgbench until enough WAL is written, then a segment switch
    ours:    import_basebackup, then import_wal of the segments: from the first byte of the request's body to its
             answer, which comes after every layer is written, fsynced and named in the index
    peer:    archive recovery with restore_command = 'cp …', from "redo starts" to "redo done" of its log

`import_wal` is the way in that needs no walsender: what is measured is the page server, its HTTP server and the tar
reader included, and not how fast PostgreSQL sends. Both sides have fsync on; PostgreSQL gets shared_buffers = 1 GB and
need not write its pages back before "redo done", while our layers are on disk.
"""

from __future__ import annotations

import http.client
import io
import re
import shutil
import statistics
import subprocess
import tarfile
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.world import (
    MAJOR,
    Report,
    forget_peak_rss,
    installation,
    lsn_number,
    note,
    page_server,
    peak_rss_bytes,
    primary,
    work_directory,
)
from tests.page_server import PageServerProcess
from tests.postgres.server import PostgresServer, unprivileged_user

SEGMENT_BYTES = 16 << 20
BODY_CHUNK_BYTES = 1 << 20
PRIMARY_SETTINGS = {"shared_buffers": "1GB", "wal_keep_size": "16GB", "max_wal_size": "1GB"}
"""Default checkpoints: the mix of page images and small records is that of a server nobody tuned."""

REPLAY_SETTINGS = {
    "shared_buffers": "1GB",
    "fsync": "on",
    "hot_standby": "off",
    "archive_mode": "off",
    "log_min_messages": "info",
    "max_wal_size": "8GB",
}


@dataclass(frozen=True, slots=True)
class Options:
    """`wal_mib` of WAL are taken, rounded up to whole segments."""

    scale: int
    wal_mib: int
    repeat: int


@dataclass(frozen=True, slots=True)
class History:
    """A base backup and the WAL behind it, as files."""

    base_tar: Path
    base_lsn: str
    consistent_lsn: str
    segments: list[Path]
    end_lsn: str
    records: int

    @property
    def wal_bytes(self) -> int:
        return lsn_number(self.end_lsn) - lsn_number(self.base_lsn)


@dataclass(frozen=True, slots=True)
class Taken:
    """What one import took."""

    seconds: float
    peak_rss_bytes: int


def run(report: Report, options: Options) -> None:
    """Make a history, then take it in turn with both."""
    with work_directory() as base:
        history = make_history(base, options)
        ours, theirs = [], []
        for _ in range(options.repeat):
            theirs.append(replay_with_postgres(base / "replay", history))
            ours.append(take_with_page_server(base / "taken", history))
        mb = history.wal_bytes / 1e6
        seconds = statistics.median(taken.seconds for taken in ours)
        report.line(
            "ingest",
            scale=options.scale,
            wal_bytes=history.wal_bytes,
            records=history.records,
            mb_per_second=round(mb / seconds, 1),
            records_per_second=round(history.records / seconds),
            peak_rss_mib=round(max(taken.peak_rss_bytes for taken in ours) / (1 << 20)),
            postgres_mb_per_second=round(mb / statistics.median(theirs), 1),
            postgres_records_per_second=round(history.records / statistics.median(theirs)),
            ratio=round(statistics.median(peer / taken.seconds for peer, taken in zip(theirs, ours, strict=True)), 3),
            way_in="import_wal over loopback HTTP",
            repeat=options.repeat,
            target="ratio >= 1.5 and peak_rss_mib <= 512",
        )


# The history ----------------------------------------------------------------------------------------------------------


def make_history(base: Path, options: Options) -> History:
    """Back up a primary, load it until there is enough WAL, and copy that."""
    with primary(base, scale=options.scale, settings=PRIMARY_SETTINGS) as postgres:
        backup = base / "backup"
        backup.mkdir()
        shutil.chown(backup, *_owner(postgres.data_dir))
        postgres.program("pg_basebackup", "-D", str(backup), "-F", "tar", "-X", "none", "-c", "fast", "--no-sync")
        label = _member(backup / "base.tar", "backup_label").decode()
        base_lsn = _group(r"START WAL LOCATION: (\S+)", label)
        consistent = postgres.value("select pg_current_wal_insert_lsn()")
        note(f"pgbench until there are {options.wal_mib} MiB of wal")
        target = lsn_number(base_lsn) + (options.wal_mib << 20)
        while lsn_number(postgres.value("select pg_current_wal_insert_lsn()")) < target:
            postgres.pgbench("-n", "-c", "8", "-j", "2", "-T", "10")
        end = postgres.value("select pg_current_wal_insert_lsn()")
        postgres.sql("select pg_switch_wal()")
        postgres.stop("fast")
        archive = base / "archive"
        archive.mkdir()
        first, last = lsn_number(base_lsn) // SEGMENT_BYTES, (lsn_number(end) - 1) // SEGMENT_BYTES
        segments = []
        for number in range(first, last + 1):
            name = f"00000001{number >> 8:08X}{number & 0xFF:08X}"
            segments.append(Path(shutil.copy(postgres.data_dir / "pg_wal" / name, archive / name)))
            segments[-1].chmod(0o644)
    shutil.rmtree(base / "primary")
    history = History(backup / "base.tar", base_lsn, consistent, segments, end, count_records(segments, base_lsn, end))
    note(f"{history.wal_bytes >> 20} MiB, {history.records} records, {history.wal_bytes // history.records} bytes each")
    return history


def count_records(segments: list[Path], start: str, end: str) -> int:
    """Ask pg_waldump."""
    command = [str(installation().tools / "pg_waldump"), "--stats", "-p", str(segments[0].parent)]
    command += ["-s", start, "-e", end]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return int(_group(r"(?m)^Total\s+(\d+)", done.stdout))


# PostgreSQL -----------------------------------------------------------------------------------------------------------


def replay_with_postgres(folder: Path, history: History) -> float:
    """Return the seconds that archive recovery took, by the server's own clock."""
    note("PostgreSQL replays it")
    server = PostgresServer(MAJOR, folder, installation=installation(), settings=_replay_settings(history))
    folder.mkdir()
    try:
        with tarfile.open(history.base_tar) as archive:
            archive.extractall(folder, filter="tar")
        (folder / "recovery.signal").touch()
        subprocess.run(["chown", "-R", ":".join(_owner_names(server)), folder], check=True)
        folder.chmod(0o700)
        subprocess.run(["sync"], check=True)
        server.start(wait=False)
        deadline = time.monotonic() + 3600
        while "redo done" not in server.log_text():
            assert server.is_running() and time.monotonic() < deadline, server.log_text()[-2000:]
            time.sleep(0.1)
        text = server.log_text()
        server.stop("immediate")
        reached = _group(r"redo done at (\S+)", text)
        assert lsn_number(reached) > lsn_number(history.end_lsn) - 2 * SEGMENT_BYTES, f"replay ended at {reached}"
        return float(_group(r"redo done at .* elapsed: ([0-9.]+) s", text))
    finally:
        server.remove()


def _replay_settings(history: History) -> dict[str, str]:
    return {**REPLAY_SETTINGS, "restore_command": f"cp {history.segments[0].parent}/%f %p"}


def _owner_names(server: PostgresServer) -> tuple[str, str]:
    user = unprivileged_user()
    if user is None:
        return _owner(server.data_dir)
    return user, user


def _owner(path: Path) -> tuple[str, str]:
    return path.owner(), path.group()


# Ours -----------------------------------------------------------------------------------------------------------------


def take_with_page_server(folder: Path, history: History) -> Taken:
    """Return what import_wal took."""
    note("the page server takes it")
    folder.mkdir()
    try:
        with page_server(folder) as server:
            tenant, timeline = "aa" * 16, "bb" * 16
            server.pagectl("tenant", "create", tenant)
            path = f"/v1/tenant/{tenant}/timeline/{timeline}"
            versions = {"pg_version": MAJOR, "flavour": "stock"}
            ends = {"base_lsn": history.base_lsn, "end_lsn": history.consistent_lsn}
            _put(server, f"{path}/import_basebackup", {**ends, **versions}, *_file(history.base_tar))
            subprocess.run(["sync"], check=True)
            forget_peak_rss(server.pid)
            ends = {"start_lsn": history.base_lsn, "end_lsn": history.end_lsn}
            seconds = _put(server, f"{path}/import_wal", ends, *_tar(history.segments))
            rss = peak_rss_bytes(server.pid)
            detail: dict[str, Any] = server.api("GET", path)
            reached = lsn_number(detail["disk_consistent_lsn"])
            assert reached >= lsn_number(history.end_lsn) - SEGMENT_BYTES, f"flushed only to {detail}"
            return Taken(seconds, rss)
    finally:
        shutil.rmtree(folder)


def _put(server: PageServerProcess, path: str, params: dict[str, Any], body: Iterator[bytes], size: int) -> float:
    """Send a body with as little work of our own as can be, since server and client share the machine."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=3600)
    started = time.monotonic()
    query = urllib.parse.urlencode(params)
    connection.request("PUT", f"{path}?{query}", body=body, headers={"content-length": str(size)})
    response = connection.getresponse()
    answer = response.read()
    seconds = time.monotonic() - started
    connection.close()
    assert response.status == 200, answer.decode()
    return seconds


def _file(path: Path) -> tuple[Iterator[bytes], int]:
    return _chunks(path), path.stat().st_size


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(BODY_CHUNK_BYTES):
            yield chunk


def _tar(segments: list[Path]) -> tuple[Iterator[bytes], int]:
    """A tar made on the way."""

    def chunks() -> Iterator[bytes]:
        for path in segments:
            info = tarfile.TarInfo(path.name)
            info.size = SEGMENT_BYTES
            yield info.tobuf(tarfile.USTAR_FORMAT)
            yield from _chunks(path)
        yield bytes(2 * tarfile.BLOCKSIZE)

    return chunks(), len(segments) * (tarfile.BLOCKSIZE + SEGMENT_BYTES) + 2 * tarfile.BLOCKSIZE


def _member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        assert isinstance(file, io.BufferedReader)
        return file.read()


def _group(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, f"no {pattern} in {text[-500:]}"
    return found.group(1)
