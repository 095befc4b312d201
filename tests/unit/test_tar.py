"""Tar headers against the worked examples of spec page-service.md 6.3."""

import io
import tarfile

import pytest

from pageserver.serve import tar

MTIME = 1735689600


def test_the_headers_of_the_specification_come_out() -> None:
    """Goal: the bytes of 6.3. Method: compare mode, size, time and checksum fields of both examples."""
    header = tar.file_header("PG_VERSION", 3, MTIME)
    assert header[100:108] == bytes.fromhex("3030303036303000")
    assert header[124:136] == bytes.fromhex("303030303030303030303300")
    assert header[136:148] == bytes.fromhex("313437333531303236303000")
    assert header[148:156] == bytes.fromhex("3030303630343100")
    assert tar.directory_header("base/1", MTIME)[148:156] == bytes.fromhex("3030303534373500")


def test_an_ordinary_tar_reader_reads_the_archive() -> None:
    """Goal: anybody's tar can read it. Method: Python's tarfile."""
    archive = tar.directory_header("base", MTIME) + tar.file_header("base/x", 5, MTIME) + b"hello" + tar.padding(5)
    with tarfile.open(fileobj=io.BytesIO(archive + tar.END_OF_ARCHIVE)) as reader:
        assert [member.name for member in reader] == ["base", "base/x"]
        member = reader.extractfile("base/x")
        assert member is not None
        assert member.read() == b"hello"


def test_a_name_that_does_not_fit_is_refused() -> None:
    """Goal: no truncated names. Method: 101 bytes."""
    with pytest.raises(tar.TarNameTooLongError):
        tar.file_header("x" * 101, 0, MTIME)
