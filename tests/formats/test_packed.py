"""Compressed files: whole ones are read, everything else is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import subprocess
import tracemalloc
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cachekit.errors import Damaged
from cachekit.formats.detect import FileKind, detect
from cachekit.formats.packed import unpacked

CONTENT = random.Random(1).randbytes(5000) + bytes(20_000) + b"the end"


def zstd(data: bytes) -> bytes:
    """Compress with a checksum, as the command does."""
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


PACK: dict[FileKind, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd,
}


def read(data: bytes, kind: FileKind) -> bytes:
    """Return what a file holds."""
    source = unpacked(io.BytesIO(data), kind)
    content = bytearray()
    buffer = memoryview(bytearray(4096))
    while count := source.readinto(buffer):
        content += buffer[:count]
    return bytes(content)


@pytest.fixture(params=list(PACK))
def kind(request: pytest.FixtureRequest) -> FileKind:
    """Each format in turn."""
    found: FileKind = request.param
    return found


def test_whole_files(kind: FileKind) -> None:
    """One stream, and several one behind the other, give their contents; the kind is seen from the first bytes."""
    data = PACK[kind](CONTENT)
    assert detect(data[:512]) == kind
    assert read(data, kind) == CONTENT
    assert read(data + PACK[kind](b"") + data, kind) == CONTENT * 2


@pytest.mark.parametrize(
    "command",
    ["gzip -9", "bzip2", "xz -2", "zstd -3", "zstd -T2 --no-check", "xz --check=sha256", "gzip --rsyncable"],
)
def test_what_tools_write(command: str) -> None:
    """Files of the real tools are read."""
    name = command.split(maxsplit=1)[0]
    done = subprocess.run([*command.split(), "-c"], input=CONTENT, capture_output=True, check=True)
    kinds: dict[str, FileKind] = {"gzip": "gzip", "bzip2": "bzip2", "xz": "xz", "zstd": "zstd"}
    assert read(done.stdout, kinds[name]) == CONTENT


def test_every_cut_is_refused(kind: FileKind) -> None:
    """A file that ends before its end is refused, wherever that is."""
    data = PACK[kind](CONTENT)
    for length in [*range(1, len(data), 97), *range(len(data) - 16, len(data))]:
        with pytest.raises(Damaged, match=r"ends in the middle|damaged"):
            read(data[:length], kind)


def test_a_cut_second_stream_is_refused(kind: FileKind) -> None:
    """The end of a first stream is no excuse for a second one that is cut."""
    data = PACK[kind](CONTENT)
    for length in (1, 3, 10, len(data) - 1):
        with pytest.raises(Damaged):
            read(data + data[:length], kind)


@given(st.data())
def test_a_flip_changes_nothing_unseen(data: st.DataObject) -> None:
    """A flipped bit is refused, or is in a place that means nothing (names and times in a gzip header, for example)."""
    kind: FileKind = data.draw(st.sampled_from(list(PACK)))
    packed = bytearray(PACK[kind](CONTENT))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = read(bytes(packed), kind)
    except Damaged:
        return
    assert found == CONTENT


@pytest.mark.parametrize(
    "behind", [b"x", b"garbage that is longer", b"\x1f\x8b", b'{"error":"no space left"}']
)
def test_something_behind_is_refused(kind: FileKind, behind: bytes) -> None:
    """What is no further stream must not follow."""
    with pytest.raises(Damaged):
        read(PACK[kind](CONTENT) + behind, kind)


def test_padding() -> None:
    """Zeros may follow gzip, and in groups of four xz; nothing else may."""
    assert read(PACK["gzip"](CONTENT) + bytes(1001), "gzip") == CONTENT
    assert read(PACK["xz"](CONTENT) + bytes(8), "xz") == CONTENT
    for packed, kind in ((PACK["xz"](CONTENT) + bytes(7), "xz"), (PACK["zstd"](CONTENT) + bytes(8), "zstd")):
        with pytest.raises(Damaged):
            read(packed, kind)  # type: ignore[arg-type]


def test_skippable_frames() -> None:
    """Zstd's skippable frames are skipped, wherever they are; a cut one is refused."""
    skip = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    data = zstd(CONTENT)
    assert detect(skip) == "zstd"
    assert read(skip + data + skip + data + skip, "zstd") == CONTENT * 2
    with pytest.raises(Damaged):
        read(data + skip[:-1], "zstd")


def test_a_bomb_takes_no_memory(kind: FileKind) -> None:
    """A hundred megabytes of zeros in a small file pass by in pieces."""
    data = PACK[kind](bytes(100 << 20))
    source = unpacked(io.BytesIO(data), kind)
    buffer = memoryview(bytearray(1 << 20))
    tracemalloc.start()
    try:
        total = 0
        while count := source.readinto(buffer):
            total += count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 100 << 20
    # zstd's decoder gives all that an input has: see the module.
    assert peak < (260 << 20 if kind == "zstd" else 32 << 20)  # of xz the dictionary is most
