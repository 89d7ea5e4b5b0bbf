"""Compressed files: real tools' output is whole, every cut is refused, and so is every change that matters."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import tracemalloc
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.errors import CachekitError, Damaged, Unsupported
from cachekit.formats.detect import FileKind, detect
from cachekit.formats.packed import unpacked
from tests.support.capabilities import requires

KINDS: tuple[FileKind, ...] = ("gzip", "zstd", "xz", "bzip2")
EVERY = pytest.mark.parametrize("kind", KINDS)
CONTENT = b"some text that repeats, some text that repeats " * 20 + bytes(range(256))


def pack(kind: FileKind, data: bytes) -> bytes:
    """Compress as the format's library does, with its checksum."""
    if kind == "zstd":
        return zstandard.ZstdCompressor(write_checksum=True).compress(data)
    if kind == "gzip":
        return gzip.compress(data)
    return lzma.compress(data) if kind == "xz" else bz2.compress(data)


def unpack(kind: FileKind, data: bytes) -> bytes:
    """Read a whole compressed file."""
    source, buffer, found = unpacked(io.BytesIO(data), kind), memoryview(bytearray(70_000)), []
    while count := source.readinto(buffer):
        found.append(bytes(buffer[:count]))
    return b"".join(found)


@EVERY
@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=3000), min_size=1, max_size=4))
def test_streams_one_behind_the_other(kind: FileKind, pieces: list[bytes]) -> None:
    """Files that are put together, as pigz and others write them, are one file."""
    data = b"".join(pack(kind, piece) for piece in pieces)
    assert detect(data) == kind
    assert unpack(kind, data) == b"".join(pieces)


@EVERY
def test_every_truncation_is_refused(kind: FileKind) -> None:
    """A cut at any byte of a stream is refused; between two streams nobody can tell."""
    one = pack(kind, CONTENT)
    data = one + pack(kind, b"more")
    for length in range(1, len(data)):
        if length == len(one):
            assert unpack(kind, data[:length]) == CONTENT
            continue
        with pytest.raises(Damaged):
            unpack(kind, data[:length])


@EVERY
@pytest.mark.parametrize("change", [0x01, 0x20, 0x80])
def test_every_flip_is_refused_or_changes_nothing(kind: FileKind, change: int) -> None:
    """A flipped bit is refused, or the content is the same: gzip has times and flags, bzip2 unused bits."""
    data = pack(kind, CONTENT)
    passed = set()
    for place in range(6, len(data)) if kind != "gzip" else range(3, len(data)):
        flipped = bytearray(data)
        flipped[place] ^= change
        try:
            assert unpack(kind, bytes(flipped)) == CONTENT
        except CachekitError:
            continue
        passed.add(place)
    assert len(passed) <= {"gzip": 8, "bzip2": 4}.get(kind, 0)


@EVERY
def test_what_follows_is_refused(kind: FileKind) -> None:
    """Anything behind the last stream that is no stream of this kind is refused."""
    for behind in (b"x", b"\0\0\0\0x", b"garbage" * 99, pack("xz" if kind != "xz" else "gzip", b"1")):
        with pytest.raises(Damaged):
            unpack(kind, pack(kind, CONTENT) + behind)


def test_padding() -> None:
    """Gzip's tool allows zeros at the end, xz by fours, also between streams; the others none."""
    assert unpack("gzip", pack("gzip", b"1") + bytes(700_000)) == b"1"
    assert unpack("xz", pack("xz", b"1") + bytes(8) + pack("xz", b"2") + bytes(4)) == b"12"
    for kind, zeros in (("xz", 3), ("zstd", 4), ("bzip2", 4)):
        with pytest.raises(Damaged):
            unpack(kind, pack(kind, b"1") + bytes(zeros))  # type: ignore[arg-type]


def test_frames_that_are_skipped() -> None:
    """Zstd's skippable frames hold nothing of the content, wherever they are; cut they are refused."""
    skipped = b"\x5a\x2a\x4d\x18" + (300_000).to_bytes(4, "little") + bytes(300_000)
    nothing = b"\x50\x2a\x4d\x18" + bytes(4)
    data = nothing + pack("zstd", b"1") + skipped + pack("zstd", b"2") + nothing
    assert detect(data) == "zstd"
    assert unpack("zstd", data) == b"12"
    with pytest.raises(Damaged):
        unpack("zstd", pack("zstd", b"1") + skipped[:-1])


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind != "zstd"]
)  # whose library hands out all at once
def test_a_bomb_takes_bounded_memory(kind: FileKind) -> None:
    """What is decompressed is handed on in pieces, however much it is."""
    data = pack(kind, bytes(100 << 20))
    source, buffer, total = unpacked(io.BytesIO(data), kind), memoryview(bytearray(1 << 20)), 0
    tracemalloc.start()
    try:
        while count := source.readinto(buffer):
            total += count
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 100 << 20
    assert peak < 40 << 20


@requires("gnu_tar")
@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("gzip", ["gzip", "-c"]),
        ("xz", ["xz", "-c", "-T2", "--block-size=4096"]),
        ("xz", ["xz", "-c", "--check=none"]),
        ("bzip2", ["bzip2", "-c"]),
        ("zstd", ["zstd", "-c", "-q", "-T0"]),
        ("zstd", ["zstd", "-c", "-q", "--no-check"]),
        ("zstd", ["zstd", "-c", "-q", "--long=27"]),
    ],
)
def test_real_tools(kind: FileKind, command: list[str]) -> None:
    """What the tools themselves write is whole."""
    done = subprocess.run(command, input=CONTENT * 50, capture_output=True, check=True)
    assert detect(done.stdout) == kind
    assert unpack(kind, done.stdout) == CONTENT * 50


@requires("gnu_tar")
def test_a_window_that_is_too_large_is_no_damage() -> None:
    """Zstd --long=31 needs 2 GiB to be decompressed: it is not done, and not called damage."""
    done = subprocess.run(["zstd", "-c", "-q", "--long=31"], input=CONTENT, capture_output=True, check=True)
    with pytest.raises(Unsupported, match="window"):
        unpack("zstd", done.stdout)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(KINDS), st.binary(max_size=200))
def test_hostile_bytes(kind: FileKind, data: bytes) -> None:
    """Whatever follows a right beginning, it is read or refused."""
    whole = pack(kind, b"abc" * 50)
    for text in (whole[:20] + data, whole + data, data):
        with suppress(CachekitError):
            unpack(kind, text)
