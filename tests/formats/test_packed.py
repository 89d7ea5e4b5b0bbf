"""Compressed files: whole ones of all tools are accepted, cut and changed ones are refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
import sys
import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from cachekit.errors import Damaged, Unsupported
from cachekit.formats.detect import FileKind
from cachekit.formats.packed import unpacked
from tests.formats.test_tar import SMALL, Drip
from tests.support.foreign import accepted, looked_at, refused
from tests.support.ordinary_user import PROJECT

CONTENT = b"some text, which is repeated a little; " * 6 + bytes(range(256))


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


PACK: dict[FileKind, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": _zstd,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}
KINDS = sorted(PACK)

TOOLS = {
    "gzip -1": ["gzip", "-1", "-c"],
    "gzip -9": ["gzip", "-9", "-c"],
    "bzip2": ["bzip2", "-c"],
    "xz -0": ["xz", "-0", "-c"],
    "xz blocks": ["xz", "-T2", "--block-size=4096", "-c"],
    "xz crc32": ["xz", "--check=crc32", "-c"],
    "xz sha256": ["xz", "--check=sha256", "-c"],
    "zstd": ["zstd", "-q", "-c"],
    "zstd -19 -T2": ["zstd", "-q", "-19", "-T2", "-c"],
    "zstd no check": ["zstd", "-q", "--no-check", "-c"],
}


def content_of(data: bytes, kind: FileKind, step: int = 1 << 20) -> bytes:
    """Return what a compressed file holds. Raises Damaged, Unsupported."""
    source = unpacked(Drip(data, step), kind)
    found = bytearray()
    buffer = memoryview(bytearray(777))
    while count := source.readinto(buffer):
        found += buffer[:count]
    assert source.offset == len(found)
    return bytes(found)


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_what_tools_write(tool: str, size: int) -> None:
    """What the tools write is whole, of nothing, of one byte and of several blocks."""
    data = (CONTENT * (size // len(CONTENT) + 1))[:size]
    packed = subprocess.run(TOOLS[tool], input=data, capture_output=True, check=True).stdout
    found = accepted(packed)
    assert found.kind == tool.split(maxsplit=1)[0]
    assert found.structure["content_bytes"] == size


@pytest.mark.parametrize("kind", KINDS)
@given(pieces=st.lists(st.binary(max_size=2000), min_size=1, max_size=4), step=st.integers(1, 600))
def test_one_behind_the_other(kind: FileKind, pieces: list[bytes], step: int) -> None:
    """Streams put together hold their contents put together, however short the reads are."""
    packed = b"".join(map(PACK[kind], pieces))
    assert content_of(packed, kind, step) == b"".join(pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_anywhere(kind: FileKind) -> None:
    """A cut at any byte is refused: of one stream, and in the second of two (but for the seam itself)."""
    packed = PACK[kind](CONTENT)
    for length in range(1, len(packed)):
        with pytest.raises(Damaged):
            content_of(packed[:length], kind)
        with pytest.raises(Damaged):
            content_of(packed + packed[:length], kind)
    refused(packed[: len(packed) // 2])
    refused(packed[:-1])


@pytest.mark.parametrize("kind", KINDS)
def test_flips_anywhere(kind: FileKind) -> None:
    """A flipped bit at any place is refused, or the content is the same: what a format does not cover is no content."""
    packed = PACK[kind](CONTENT)
    harmless = set()
    for at in range(len(packed)):
        for bit in range(8):
            data = bytearray(packed)
            data[at] ^= 1 << bit
            try:
                found = content_of(bytes(data), kind)
            except (Damaged, Unsupported):
                continue
            assert found == CONTENT, (at, bit)
            harmless.add(at)
    # gzip: flags, time, level and system; zstd: a bit without a use and the window; xz covers every bit. bzip2 has
    # tables of codes with bits that no content uses.
    allowed = {"gzip": set(range(3, 10)), "zstd": {4, 5}, "xz": set(), "bzip2": set(range(3, len(packed)))}
    assert harmless <= allowed[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behind", [b"x", b"\0\0\0x", b"trailing garbage", b"PK\x03\x04", b"\x1f"])
def test_garbage_behind(kind: FileKind, behind: bytes) -> None:
    """What follows the end and is no further stream is refused."""
    with pytest.raises(Damaged):
        content_of(PACK[kind](CONTENT) + behind, kind)


@pytest.mark.parametrize(
    ("kind", "zeros", "whole"),
    [
        ("gzip", 1, True),
        ("gzip", 700_001, True),
        ("xz", 4, True),
        ("xz", 700_000, True),
        ("xz", 3, False),
        ("xz", 700_001, False),
        ("zstd", 4, False),
        ("bzip2", 4, False),
    ],
)
def test_zeros_behind(kind: FileKind, zeros: int, whole: bool) -> None:
    """Zeros may follow gzip, and xz by fours, as on tapes; not the others."""
    packed = PACK[kind](CONTENT) + bytes(zeros)
    if whole:
        assert content_of(packed, kind) == CONTENT
    else:
        with pytest.raises(Damaged):
            content_of(packed, kind)


def test_skippable_frames() -> None:
    """Frames that zstd's decoder skips may stand anywhere, also alone, and must be whole."""
    skip = b"\x5a\x2a\x4d\x18" + (300_000).to_bytes(4, "little") + bytes(300_000)
    frame = _zstd(CONTENT)
    assert content_of(skip + frame + skip + frame, "zstd") == CONTENT * 2
    assert accepted(skip).kind == "zstd"
    for length in (1, 7, 8, 300, len(skip) - 1):
        with pytest.raises(Damaged):
            content_of(frame + skip[:length], "zstd")


@pytest.mark.parametrize("kind", KINDS)
def test_tar_inside(kind: FileKind) -> None:
    """A tar in a compressed file is read while it is decompressed: one that was cut before it was packed is refused."""
    found = accepted(PACK[kind](SMALL))
    assert (found.kind, found.structure["members"]) == (f"tar in {kind}", 3)
    assert "missing" in refused(PACK[kind](SMALL[:900]))
    refused(PACK[kind](SMALL)[:-3])
    refused(PACK[kind](SMALL) + b"more")


def test_a_window_that_is_too_large_is_not_damage() -> None:
    """A zstd file that needs more memory than it gets (--long=31) is not supported, and not called damaged."""
    packed = subprocess.run(["zstd", "-q", "--long=31", "-c"], input=CONTENT, capture_output=True, check=True)
    assert isinstance(looked_at(packed.stdout).problem, Unsupported)


def test_an_xz_dictionary_that_is_too_large_is_not_damage() -> None:
    """An xz file that says that it needs 1.5 GiB is not supported, and not called damaged."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 64 << 20}]
    packed = bytearray(lzma.compress(CONTENT, filters=filters))
    at = packed.index(b"\x21\x01", 12) + 2  # filter LZMA2, one byte of properties: the dictionary's size
    packed[at] = 40
    header = packed[12 : 12 + 4 * packed[12]]
    packed[12 + len(header) : 16 + len(header)] = _crc32(bytes(header))
    assert isinstance(looked_at(bytes(packed)).problem, Unsupported)


def _crc32(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


_BOMB = """
import io, sys
from cachekit.formats.packed import unpacked
class Zeros:
    def __init__(self, data): self.file = io.BytesIO(data)
    def readinto(self, buffer): return self.file.readinto(buffer)
data = sys.stdin.buffer.read()
source = unpacked(Zeros(data), sys.argv[1])
scratch = memoryview(bytearray(1 << 20))
while source.readinto(scratch): pass
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(source.offset, peak)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_bombs(kind: FileKind) -> None:
    """A file that holds hundreds of times its size is read in bounded memory: less than it holds by far."""
    size = 256 << 20
    command = {
        "gzip": ["gzip", "-1"],
        "zstd": ["zstd", "-q", "-1"],
        "xz": ["xz", "-0"],
        "bzip2": ["bzip2", "-1"],
    }[kind]
    script = f"head -c {32 << 20} /dev/zero | {' '.join(command)} -c"
    packed = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout * (size >> 25)
    done = subprocess.run(
        [sys.executable, "-c", _BOMB, kind], input=packed, capture_output=True, check=True, cwd=PROJECT
    )
    held, kilobytes = map(int, done.stdout.split())
    assert held == size
    assert kilobytes < 200 << 10


def test_a_zstd_bomb_in_one_frame() -> None:
    """One frame of 1 GiB in some KB, at zstd's highest ratio, takes no more memory than a small CI job has."""
    script = f"head -c {1 << 30} /dev/zero | zstd -q -19 -c"
    packed = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    done = subprocess.run(
        [sys.executable, "-c", _BOMB, "zstd"], input=packed, capture_output=True, check=True, cwd=PROJECT
    )
    held, kilobytes = map(int, done.stdout.split())
    assert held == 1 << 30
    assert kilobytes < 256 << 10
