"""Tar archives in pieces: members of every accepted kind, all ways of cutting, and what must be refused."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageserver.wal.tar_stream import Closing, MemberKind, TarFormatError, TarReader

LONG_NAME = "base/" + "d" * 120 + "/" + "f" * 150


def archive(*, form: int = tarfile.USTAR_FORMAT, members: dict[str, bytes] | None = None) -> bytes:
    """Return a tar with a directory, a link and the given files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        directory = tarfile.TarInfo("base")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        link = tarfile.TarInfo("pg_tblspc/16400")
        link.type, link.linkname = tarfile.SYMTYPE, "/srv/space"
        tar.addfile(link)
        for name, data in (members or {"PG_VERSION": b"16\n", "empty": b"", "page": bytes(8192)}).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def read_all(data: bytes, *, size: int = 4096, closing: Closing = Closing.ZERO_BLOCKS) -> dict[str, bytes]:
    reader = TarReader(pieces(data, size), closing=closing)
    return {member.name: member.read() for member in reader if member.kind is MemberKind.FILE}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_formats_give_the_same_members(form: int) -> None:
    members = {"PG_VERSION": b"16\n", "x" * 99: b"y" * 1000}
    if form != tarfile.USTAR_FORMAT:
        members[LONG_NAME] = b"long"
    assert read_all(archive(form=form, members=members)) == members


def test_directories_and_links_are_told_apart() -> None:
    members = list(TarReader([archive()], closing=Closing.ZERO_BLOCKS))
    assert [member.kind for member in members[:2]] == [MemberKind.DIRECTORY, MemberKind.SYMLINK]
    assert members[1].link_target == "/srv/space"


@settings(max_examples=30, deadline=None)
@given(st.integers(min_value=1, max_value=3000))
def test_any_cutting_gives_the_same_members(size: int) -> None:
    members = {"a": b"abc" * 500, "b": b"", "c": bytes(range(256)) * 4}
    assert read_all(archive(members=members), size=size) == members


def test_members_that_nobody_reads_are_skipped() -> None:
    reader = TarReader([archive()], closing=Closing.ZERO_BLOCKS)
    assert [member.name for member in reader] == ["base", "pg_tblspc/16400", "PG_VERSION", "empty", "page"]


def test_an_archive_without_closing_blocks_is_accepted_where_it_is_expected() -> None:
    """PostgreSQL 14 sends archives without the two blocks of zeros."""
    data = archive(members={"a": b"x" * 512})
    bare = data[: 4 * 512]
    assert read_all(bare, closing=Closing.NOTHING) == {"a": b"x" * 512}
    with pytest.raises(TarFormatError, match="ends inside of a header"):
        read_all(bare)


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (bytes(512), "incomplete or invalid tar EOF marker"),
        (bytes(512) + b"x" * 512, "invalid tar EOF marker"),
        (bytes(1024) + b"garbage", "unexpected non-zero bytes after the tar archive"),
        (bytes(1024) + bytes(100), r"unexpected number of zeros \(100\)"),
    ],
)
def test_what_follows_the_last_member_is_checked(tail: bytes, message: str) -> None:
    data = archive(members={"a": b"x" * 512})[: 4 * 512]
    with pytest.raises(TarFormatError, match=message):
        read_all(data + tail)


def test_truncation_anywhere_is_an_error() -> None:
    data = archive(members={"a": b"x" * 700})
    for end in range(0, 5 * 512 + 511, 37):
        with pytest.raises(TarFormatError):
            read_all(data[:end])


def test_a_damaged_header_is_an_error() -> None:
    data = bytearray(archive())
    data[2 * 512 + 3] ^= 1
    with pytest.raises(TarFormatError, match="wrong checksum"):
        read_all(bytes(data))


def test_other_kinds_of_entries_are_refused() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo("pipe")
        info.type = tarfile.FIFOTYPE
        tar.addfile(info)
    with pytest.raises(TarFormatError, match="unexpected type"):
        read_all(out.getvalue())
