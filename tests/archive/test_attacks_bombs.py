"""Entries that promise more than they hold, or hold more than they promise; seal and digests are right."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import zstandard

from cachekit.archive.format import FRAME_LIMIT, MAX_INDEX
from cachekit.errors import Damaged
from tests.support.archives import (
    Member,
    entry_of,
    symlink,
)
from tests.support.refusals import HONEST, TREE, refuse


@pytest.mark.parametrize("content_size", [True, False])
def test_decompression_bomb(place: Path, content_size: bool) -> None:
    """A frame that would decompress to more than the index says is refused without decompressing it."""
    bomb = zstandard.ZstdCompressor(write_checksum=True, write_content_size=content_size).compress(
        bytes(1 << 26)
    )
    entry = entry_of([TREE, HONEST])
    refuse(place, entry.seal(packed={0: bomb}), "does not hold what the entry says", Damaged)


def test_a_frame_that_says_one_size_and_holds_another(place: Path) -> None:
    """A frame whose header tells the expected size and whose blocks hold more is refused."""
    entry = entry_of([TREE, HONEST])
    honest = zstandard.ZstdCompressor(write_checksum=True).compress(entry.frames[0])
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(300 << 10))
    assert zstandard.get_frame_parameters(honest).content_size < 65_536 + 256
    size_at = 4 + 1 + (0 if honest[4] & 32 else 1)
    forged = bomb[:4] + honest[4 : size_at + 2] + bomb[4 + 1 + (0 if bomb[4] & 32 else 1) + 4 :]
    assert zstandard.get_frame_parameters(forged).content_size == len(entry.frames[0])
    refuse(place, entry.seal(packed={0: forged}), "cannot be decoded", Damaged)


def test_two_zstd_frames_in_one(place: Path) -> None:
    """A second zstd frame behind the first, inside what the index calls one frame, is refused."""
    entry = entry_of([TREE, HONEST])
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    packed = compressor.compress(entry.frames[0])
    for more in (compressor.compress(b"hidden"), b"\x50\x2a\x4d\x18\x01\0\0\0x", b"x"):
        refuse(place, entry.seal(packed={0: packed + more}), "cannot be decoded", Damaged)


def test_a_frame_without_a_checksum(place: Path) -> None:
    """A frame without zstd's own checksum, which every other zstd would believe, is refused."""
    entry = entry_of([TREE, HONEST])
    refuse(place, entry.seal(packed={0: zstandard.compress(entry.frames[0])}), "does not hold", Damaged)


def test_a_frame_larger_than_a_frame_may_be(place: Path) -> None:
    """A frame that honestly says that it holds more than any frame may is refused by the index alone."""
    entry = entry_of([TREE, HONEST])
    entry.frames.insert(1, bytes(FRAME_LIMIT + 1))
    refuse(place, entry.seal(), "more than a frame may", Damaged)


def test_index_bomb(place: Path) -> None:
    """An index that decompresses to more than the seal says, or may at all, is refused without decompressing it."""
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(1 << 24))
    refuse(place, entry_of([TREE]).seal(index_frame=lambda _: bomb), "zstd frame of the index", Damaged)
    refuse(place, entry_of([TREE]).seal(told={"index_raw_bytes": MAX_INDEX}), "index_raw_bytes", Damaged)


def test_an_index_or_frame_of_gigabytes_that_holds_nothing(place: Path, tmp_path: Path) -> None:
    """A compressed part that is longer than its content is refused before it is read into memory."""
    zeros = 64 << 20
    entry = entry_of([TREE, HONEST])
    refuse(
        place, entry.seal(index_frame=lambda _: bytes(zeros)), "index is longer than what it holds", Damaged
    )
    refuse(place, entry.seal(packed={0: bytes(zeros)}), "frame is longer than what it holds", Damaged)


def test_an_index_that_the_seal_does_not_name(place: Path) -> None:
    """A whole index whose digest is not the seal's, or that has more bytes behind its last column, is refused."""
    entry = entry_of([TREE, HONEST])
    refuse(place, entry.seal(told={"index_sha256": "0" * 64}), "index's digest", Damaged)
    refuse(place, entry.seal(index_bytes=lambda raw: raw + b"x"), "bytes follow the index", Damaged)


def test_a_million_members_promised_and_ten_present(place: Path) -> None:
    """Counts that lie, in the seal or in the index, are refused by comparing them, not by making room for them."""
    members = [TREE, *(Member(b"tree/%d" % number) for number in range(9))]
    million = 1_000_000
    refuse(place, entry_of(members).seal(told={"members": million}), "count different members", Damaged)
    refuse(place, entry_of(members).seal(counts={"files": million}), "count different members", Damaged)
    for told in (million, 1 << 60, 2**64 - 1):
        count = told.to_bytes(8, "little")
        altered = entry_of(members).seal(
            index_bytes=functools.partial(_with_count, count), told={"members": min(told, 2**32 - 1)}
        )
        refuse(place, altered, "names for|ends before", Damaged)


def _with_count(count: bytes, raw: bytes) -> bytes:
    return raw[:8] + count + raw[16:]


@pytest.mark.parametrize("field", range(6))
@pytest.mark.parametrize("by", [-1, 1, 1 << 31])
def test_an_index_whose_prefix_lies(place: Path, field: int, by: int) -> None:
    """Each number at the head of the index must be exactly right."""
    at, width = (8, 16, 24, 32, 40, 44)[field], 8 if field < 4 else 4

    def lie(raw: bytes) -> bytes:
        told = (int.from_bytes(raw[at : at + width], "little") + by) % (1 << 8 * width)
        return raw[:at] + told.to_bytes(width, "little") + raw[at + width :]

    sparse = Member(b"tree/hole", content=b"x" * 512, segments=((512, 512),), length=4096)
    entry = entry_of([TREE, HONEST, sparse, symlink(b"tree/link", b"x")])
    refuse(place, entry.seal(index_bytes=lie), ".", Damaged)
