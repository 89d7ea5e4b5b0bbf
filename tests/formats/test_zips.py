"""Zip files: every member's CRC, a whole directory, and nothing that it does not explain."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.errors import Damaged, Unsupported
from tests.support.foreign import accepted, looked_at, refused

ZSTD = 93
HAS_ZSTD = importlib.util.find_spec("_zstd") is not None
"""Python 3.14 has it, unless it was built without."""

OWN_ERRORS = [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, *([ZSTD] if HAS_ZSTD else [])]
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, *OWN_ERRORS]


def made(method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"", **members: bytes) -> bytes:
    """Make a zip file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.comment = comment
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return out.getvalue()


SMALL = made(a=b"first " * 300, b=b"second", c=b"")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("comment", [b"", b"short", b"long" * 10_000])
def test_whole(method: int, comment: bytes) -> None:
    """Every method that Python has, with a comment and without: whole, and all its bytes are counted once."""
    found = accepted(made(method, comment, a=b"first " * 300, b=b"second"))
    assert (found.kind, found.structure) == ("zip", {"members": 2, "content_bytes": 1806, "encrypted": 0})


def test_no_members() -> None:
    """An archive of nothing is whole; something before it, or behind it, is not explained."""
    assert accepted(made()).structure["members"] == 0
    refused(made() + b"x")


def test_what_the_tool_writes(tmp_path: Path) -> None:
    """What Info-ZIP writes is whole: a directory, a link, a stream without a size beforehand; zip64 as well."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_bytes(b"content" * 1000)
    (tmp_path / "link").symlink_to("d/file")
    for options in (["-qry"], ["-qryfz"]):
        name = f"{options[0]}.zip".lstrip("-")
        subprocess.run(["zip", *options, name, "d", "link"], cwd=tmp_path, check=True)
        assert accepted((tmp_path / name).read_bytes()).structure["members"] == 3
    streamed = subprocess.run(["zip", "-q", "-", "-"], input=b"stream" * 999, capture_output=True, check=True)
    assert accepted(streamed.stdout).structure["content_bytes"] == 6 * 999


def test_encrypted(tmp_path: Path) -> None:
    """The contents of encrypted members are not looked at, and that is said; the rest is checked."""
    (tmp_path / "file").write_bytes(b"secret")
    subprocess.run(["zip", "-q", "-P", "word", "z.zip", "file"], cwd=tmp_path, check=True)
    data = (tmp_path / "z.zip").read_bytes()
    assert accepted(data).structure["encrypted"] == 1
    refused(data[:-1])


def test_cut_anywhere() -> None:
    """A cut at any byte is refused."""
    for length in range(30, len(SMALL)):
        refused(SMALL[:length])


@pytest.mark.parametrize("method", METHODS)
def test_flips_in_contents(method: int) -> None:
    """A flipped bit in a member's content is refused (or, in filling bits, the content is the same)."""
    content = bytes(range(256)) * 4
    whole = made(method, a=content)
    begin, end = 31, whole.rindex(b"PK\x01\x02")
    caught = 0
    for at in range(begin, end, 7):
        data = bytearray(whole)
        data[at] ^= 0x10
        problem = looked_at(bytes(data)).problem
        if problem is None:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                assert archive.read("a") == content
        caught += isinstance(problem, Damaged | Unsupported)
    assert caught >= (end - begin) // 7 - 2


def test_something_before_and_behind() -> None:
    """Bytes before the first member, and behind the end, are refused: nobody would miss them, or see them."""
    refused(SMALL + b"x")
    refused(SMALL + bytes(70_000))
    before = io.BytesIO(b"PK\x03\x04 is what it begins with")
    before.seek(0, io.SEEK_END)
    with zipfile.ZipFile(before, "a") as archive:
        archive.writestr("a", b"1")
    refused(before.getvalue())


def test_overlapping_members() -> None:
    """Two names for one content are refused: that is how small files become endless."""
    one = made(zipfile.ZIP_STORED, a=b"1" * 100)
    directory = one.index(b"PK\x01\x02")
    row = one[directory : one.index(b"PK\x05\x06")]
    end = bytearray(one[one.index(b"PK\x05\x06") :])
    end[8:12] = b"\2\0\2\0"
    end[12:16] = (2 * len(row)).to_bytes(4, "little")
    assert "overlap" in refused(one[:directory] + row + row + bytes(end))


@pytest.mark.parametrize("method", OWN_ERRORS)
def test_methods_that_fail_in_their_own_way(method: int) -> None:
    """A member whose stream is nonsense is damage, whatever its library raises."""
    data = bytearray(made(method, a=bytes(range(256)) * 20))
    data[45:80] = b"\xff" * 35
    assert looked_at(bytes(data)).problem is not None


def as_if(method: int, stored: bytes) -> bytes:
    """Make a zip file of one member whose compressed bytes are `stored`."""
    data = bytearray(made(zipfile.ZIP_STORED, a=stored))
    for at in (8, data.index(b"PK\x01\x02") + 10):
        data[at : at + 2] = method.to_bytes(2, "little")
    return bytes(data)


def test_a_method_that_python_has_not() -> None:
    """A method of compression that nobody here can read is not supported, and not called damaged."""
    assert isinstance(looked_at(as_if(97, b"1")).problem, Unsupported)


def test_zstd() -> None:
    """A member of zstd is not supported before Python 3.14; with it, nonsense and a cut are damage."""
    for stored in (b"nonsense", b"\x28\xb5\x2f\xfd\x00\x00\xff\xff\xff"):
        problem = looked_at(as_if(ZSTD, stored)).problem
        assert isinstance(problem, Damaged if HAS_ZSTD else Unsupported)


def test_zstd_with_a_large_window() -> None:
    """A window of 2 GiB is a burden and no damage: such a member is not supported, whatever Python has."""
    one_raw_block = b"\x09\x00\x00x"
    problem = looked_at(as_if(ZSTD, b"\x28\xb5\x2f\xfd\x00\xa8" + one_raw_block)).problem
    assert isinstance(problem, Unsupported)


@given(st.lists(st.tuples(st.integers(4, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=12))
def test_any_bytes(changes: list[tuple[int, int]]) -> None:
    """Whatever is changed: whole, Damaged or Unsupported, nothing else."""
    data = bytearray(SMALL)
    for at, value in changes:
        data[at] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name that is there twice
        problem = looked_at(bytes(data)).problem
    assert problem is None or isinstance(problem, Damaged | Unsupported)
