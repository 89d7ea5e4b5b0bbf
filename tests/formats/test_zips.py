"""Zip files: whole ones pass; cut ones, changed contents, and what the directory does not explain are refused."""

from __future__ import annotations

import io
import subprocess
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.errors import CachekitError, Damaged
from cachekit.formats.zips import ZipSummary, check_zip
from tests.support.capabilities import requires

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
CONTENT = b"some content, some content" * 9


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the file is written."""
    return tmp_path / "file.zip"


def checked(place: Path, data: bytes) -> ZipSummary:
    """Check a zip file with these bytes."""
    place.write_bytes(data)
    with place.open("rb") as file:
        return check_zip(file)


def made(method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"", *, zip64: bool = False) -> bytes:
    """Make a zip file of two members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name in ("a", "dir/b"):
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=zip64) as member:
                member.write(CONTENT)
        archive.comment = comment
    return out.getvalue()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("zip64", [False, True])
def test_whole(place: Path, method: int, zip64: bool) -> None:
    """Every method that Python has, with and without a comment and zip64."""
    for comment in (b"", b"a comment"):
        assert checked(place, made(method, comment, zip64=zip64)) == ZipSummary(2, 2 * len(CONTENT), 0)
    assert checked(place, b"PK\x05\x06" + bytes(18)).members == 0


@pytest.mark.parametrize("method", METHODS)
def test_every_truncation_is_refused(place: Path, method: int) -> None:
    """The directory is at the end: a cut at any byte is seen."""
    data = made(method, b"and a comment")
    for length in range(len(data)):
        with pytest.raises(Damaged):
            checked(place, data[:length])


@pytest.mark.parametrize("method", METHODS)
def test_flips_are_refused_or_leave_the_contents(place: Path, method: int) -> None:
    """Contents are covered by their CRC; a flip elsewhere is refused, or changes times, attributes and the like."""
    data = made(method)
    contents = {b for b in range(len(data)) if data[b : b + 4] == b"PK\x03\x04"}
    assert len(contents) == 2
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 0x04
        try:
            checked(place, bytes(flipped))
        except CachekitError:
            continue
        with zipfile.ZipFile(io.BytesIO(flipped)) as archive:
            assert [archive.read(info) for info in archive.infolist() if not info.flag_bits & 1] in (
                [CONTENT] * 2,
                [CONTENT],
            )


def test_what_surrounds_it_is_refused(place: Path) -> None:
    """A program in front and anything behind are not what the directory explains."""
    for data in (b"#!/bin/sh\n" + made(), made() + b"x", made() + bytes(100), made() + made()[:30]):
        with pytest.raises(Damaged):
            checked(place, data)


@requires("zip")
def test_the_tool(place: Path, tmp_path: Path) -> None:
    """What zip writes is whole, also to a pipe and with a password, whose contents stay unchecked."""
    (tmp_path / "a").write_bytes(CONTENT)
    for options, encrypted in (([], 0), (["-P", "secret"], 1)):
        place.unlink(missing_ok=True)
        subprocess.run(["zip", "-q", *options, place, "a"], cwd=tmp_path, check=True)
        assert checked(place, place.read_bytes()).encrypted == encrypted
    done = subprocess.run(["zip", "-q", "-", "a"], cwd=tmp_path, check=True, capture_output=True)
    assert checked(place, done.stdout).content_bytes == len(CONTENT)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(METHODS), st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_hostile_bytes(tmp_path_factory: pytest.TempPathFactory, method: int, at: int, field: bytes) -> None:
    """Whatever is written into a zip file, it is read or refused."""
    data = bytearray(made(method))
    data[at % len(data) : at % len(data) + len(field)] = field
    with suppress(CachekitError):
        checked(tmp_path_factory.getbasetemp() / "hostile.zip", bytes(data))
