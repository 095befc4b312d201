"""The archive of initdb: bytes that depend on content alone, everybody's headers, preserved copies
(remote-storage.md 8).
"""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
import structlog
import zstandard

from pageserver.clock import SystemClock
from pageserver.ids import TenantId, TimelineId
from pageserver.remote import LocalStore, paths
from pageserver.remote.initdb_archive import (
    InitdbArchiveError,
    InitdbArchiveMissingError,
    copy_to_timeline,
    download,
    pack,
    preserve,
    unpack,
    upload,
)

TENANT = TenantId(bytes.fromhex("aa" * 16))
ONE = TimelineId(bytes.fromhex("11" * 16))
OTHER = TimelineId(bytes.fromhex("22" * 16))
NEON = Path(__file__).parents[4] / "shared" / "vectors" / "neon-v15-pgbench" / "initdb.tar.zst"


def make_directory(root: Path) -> Path:
    (root / "base" / "1").mkdir(parents=True)
    (root / "pg_notify").mkdir()
    (root / "PG_VERSION").write_text("16\n")
    (root / "base" / "1" / "1259").write_bytes(bytes(8192))
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o700)
    (root / "PG_VERSION").chmod(0o600)
    return root


def listing(root: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }


def headers(archive: Path) -> list[tuple[str, int, int, int, int, int]]:
    content = zstandard.ZstdDecompressor().stream_reader(archive.read_bytes())
    with tarfile.open(fileobj=io.BytesIO(content.read())) as tar:
        return [(one.name, one.size, one.mode, one.uid, one.gid, int(one.mtime)) for one in tar]


def test_an_archive_has_everything_and_depends_on_content_alone(tmp_path: Path) -> None:
    """Goal: two servers make the same bytes of the same directory. Method: pack twice, with other times and owners'
    rights between; look at the headers; unpack and compare.
    """
    root = make_directory(tmp_path / "data")
    size = pack(root, tmp_path / "one")
    assert size == (tmp_path / "one").stat().st_size
    for path in root.rglob("*"):
        os.utime(path, (1, 1))
    (root / "base" / "1" / "1259").chmod(0o640)
    pack(root, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert headers(tmp_path / "one") == [
        ("PG_VERSION", 3, 0o644, 0, 0, 0),
        ("base", 0, 0o755, 0, 0, 0),
        ("base/1", 0, 0o755, 0, 0, 0),
        ("base/1/1259", 8192, 0o644, 0, 0, 0),
        ("pg_notify", 0, 0o755, 0, 0, 0),
        ("run.sh", 10, 0o755, 0, 0, 0),
    ]
    unpack(tmp_path / "one", tmp_path / "again")
    assert listing(tmp_path / "again") == listing(root)


@pytest.mark.skipif(not NEON.exists(), reason="the vectors are not here")
def test_neons_archive_is_read_and_ours_has_its_form(tmp_path: Path) -> None:
    """Goal: archives cross between Neon's server and ours. Method: unpack Neon's, pack it, compare names and headers;
    ours is about as small.
    """
    unpack(NEON, tmp_path / "data")
    assert (tmp_path / "data" / "global" / "pg_control").stat().st_size == 8192
    size = pack(tmp_path / "data", tmp_path / "ours")
    assert size < 1.3 * NEON.stat().st_size
    assert headers(tmp_path / "ours") == headers(NEON)


def test_what_is_no_archive_says_so(tmp_path: Path) -> None:
    root = make_directory(tmp_path / "data")
    pack(root, tmp_path / "good")
    content = (tmp_path / "good").read_bytes()
    for name, bad in (("half", content[: len(content) // 2]), ("noise", b"noise" * 100)):
        (tmp_path / name).write_bytes(bad)
        with pytest.raises(InitdbArchiveError, match=name):
            unpack(tmp_path / name, tmp_path / f"{name}-unpacked")
    for number, member in enumerate((("../out", tarfile.REGTYPE), ("link", tarfile.SYMTYPE), ("dev", tarfile.CHRTYPE))):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            header = tarfile.TarInfo(member[0])
            header.type, header.linkname = member[1], "/etc/passwd"
            tar.addfile(header)
        (tmp_path / f"evil{number}").write_bytes(zstandard.compress(raw.getvalue()))
        with pytest.raises(InitdbArchiveError):
            unpack(tmp_path / f"evil{number}", tmp_path / f"evil{number}-unpacked")
    assert not (tmp_path / "out").exists()


async def test_archives_are_copied_preserved_and_found(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    archive = tmp_path / "archive"
    pack(make_directory(tmp_path / "data"), archive)
    with pytest.raises(InitdbArchiveMissingError, match=str(ONE)):
        await download(store, TENANT, ONE, tmp_path / "nothing")
    with pytest.raises(InitdbArchiveMissingError):
        await preserve(store, TENANT, ONE)
    await upload(store, TENANT, ONE, archive, clock=SystemClock(), log=structlog.get_logger())
    assert await store.get(f"tenants/{TENANT}/timelines/{ONE}/initdb.tar.zst") == archive.read_bytes()
    await preserve(store, TENANT, ONE)
    await preserve(store, TENANT, ONE)
    await store.delete([paths.initdb_key(TENANT, ONE)])
    await download(store, TENANT, ONE, tmp_path / "preserved")
    assert (tmp_path / "preserved").read_bytes() == archive.read_bytes()
    await copy_to_timeline(store, TENANT, source=ONE, target=OTHER)
    assert await store.get(paths.initdb_key(TENANT, OTHER)) == archive.read_bytes()
