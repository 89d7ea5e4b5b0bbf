"""Zip files: whole ones are read, everything else is refused."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import pytest

from cachekit.errors import Damaged
from cachekit.formats.zips import ZipSummary, check_zip


def made(*, comment: bytes = b"", method: int = zipfile.ZIP_DEFLATED, big: bool = False) -> bytes:
    """Return a zip file with three members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for number in range(3):
            data = random.Random(number).randbytes(2000)
            with archive.open(f"d/{number}", "w", force_zip64=big) as member:
                member.write(data)
        archive.comment = comment
    return out.getvalue()


def check(data: bytes, tmp_path: Path) -> ZipSummary:
    """Check bytes as a file."""
    path = tmp_path / "file.zip"
    path.write_bytes(data)
    with path.open("rb") as file:
        return check_zip(file)


@pytest.mark.parametrize("comment", [b"", b"a comment"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("big", [False, True])
def test_whole_files(tmp_path: Path, comment: bytes, method: int, big: bool) -> None:
    """Every member is read; comments, methods and zip64 are known."""
    assert check(made(comment=comment, method=method, big=big), tmp_path) == ZipSummary(3, 6000, 0)


def test_an_empty_archive(tmp_path: Path) -> None:
    """An archive without members is whole."""
    out = io.BytesIO()
    zipfile.ZipFile(out, "w").close()
    assert check(out.getvalue(), tmp_path).members == 0


def test_every_cut_is_refused(tmp_path: Path) -> None:
    """A file that ends before its end is refused, wherever that is."""
    data = made()
    for length in [*range(10, len(data), 101), *range(len(data) - 25, len(data))]:
        with pytest.raises(Damaged):
            check(data[:length], tmp_path)


@pytest.mark.parametrize("data", [b"x" + made(), b"#!/bin/sh\n" + made(), made() + b"x", made() + bytes(100)])
def test_something_around_it_is_refused(tmp_path: Path, data: bytes) -> None:
    """Nothing may lie before the first member or behind the end."""
    with pytest.raises(Damaged):
        check(data, tmp_path)


def test_a_flipped_content(tmp_path: Path) -> None:
    """A flip in any member's content is found by its CRC."""
    data = made(method=zipfile.ZIP_STORED)
    for at in range(100, 6000, 611):
        bad = bytearray(data)
        bad[at] ^= 4
        with pytest.raises(Damaged):
            check(bytes(bad), tmp_path)
