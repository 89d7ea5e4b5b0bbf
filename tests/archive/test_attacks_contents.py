"""Contents, headers and sizes that lie, in entries whose seal and digests are right."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from xxhash import xxh3_128_digest

from cachekit.archive.format import DIRECTORY, FRAME_SIZE, TAR_END
from cachekit.archive.header import build, sparse_map
from cachekit.errors import Damaged, Unsafe
from tests.support.archives import (
    Entry,
    Member,
    entry_of,
    file_entry,
    restore_tree,
    symlink,
)
from tests.support.refusals import HONEST, TREE, refuse


def large_entry(size: int, mode: int = 0o644) -> Entry:
    """Make an entry with a file of zeros in two frames."""
    entry = entry_of([[TREE], [Member(b"tree/big", mode=mode)]])
    first, second = bytes(FRAME_SIZE), bytes(size - FRAME_SIZE)
    head = build(b"tree/big", 0, mode, 0, 0, 1_600_000_000, size, b"")
    entry.index.sizes[1] = size
    entry.index.contents = bytearray(xxh3_128_digest(xxh3_128_digest(first) + xxh3_128_digest(second)))
    entry.frames[1:] = [head + first, second + bytes(-len(second) % 512), TAR_END]
    return entry


def test_parts_of_a_large_file_in_the_wrong_order(place: Path) -> None:
    """Parts that are each as their frame's digest says but not the file that the index says are refused."""
    entry = large_entry(FRAME_SIZE + 512)
    entry.frames[2] = b"x" * 512
    refuse(place, entry.seal(), "large file's content", Damaged)


def test_a_large_file_with_a_part_too_many(place: Path) -> None:
    """Frames that belong to no member are refused."""
    entry = large_entry(FRAME_SIZE + 512)
    entry.frames.insert(3, bytes(512))
    refuse(place, entry.seal(), "do not fill the frames", Damaged)


@pytest.mark.parametrize(
    "lie",
    [
        build(b"tree/fake", 0, 0o644, 0, 0, 1_600_000_000, 6, b""),
        build(b"tree/file", 0, 0o755, 0, 0, 1_600_000_000, 6, b""),
        build(b"tree/file", 0, 0o644, 1, 0, 1_600_000_000, 6, b""),
        build(b"tree/file", 0, 0o644, 0, 0, 1_600_000_001, 6, b""),
        build(b"tree/file", 0, 0o644, 0, 0, 1_600_000_000, 7, b""),
        build(b"tree/file", 2, 0o644, 0, 0, 1_600_000_000, 0, b"/etc/passwd"),
        bytes(512),
    ],
)
def test_a_header_that_disagrees_with_its_row(place: Path, lie: bytes) -> None:
    """A tar header that would tell tar something else than the index tells cachekit is refused."""
    member = Member(b"tree/file", content=b"honest", header=lie)
    refuse(place, entry_of([TREE, member]).seal(), "header is not the one", Damaged)


@pytest.mark.parametrize("size", [0, 5, 7, 512, 513, 1 << 30, 1 << 62])
def test_a_size_that_lies(place: Path, size: int) -> None:
    """A size in the index (and its header) that is not the content's is refused."""
    lying = Member(b"tree/file", content=b"honest", size=size)
    for members in ([TREE, lying], [TREE, lying, Member(b"tree/next", content=b"next")]):
        refuse(place, entry_of(members).seal(), ".", Damaged)


def test_a_place_that_lies(place: Path) -> None:
    """A row that says another frame or offset than the sizes before it give is refused."""
    for frames, offsets in (([0, 0, 1], [0, 512, 1]), ([0, 0, 0], [0, 512, 0]), ([0, 1, 1], [0, 0, 0])):
        entry = entry_of([[TREE, HONEST], [Member(b"tree/next", content=b"next")]])
        entry.index.frames[:] = array("I", frames)
        entry.index.offsets[:] = array("I", offsets)
        refuse(place, entry.seal(), "not where the sizes before it put it", Damaged)


def test_a_sparse_size_that_lies(place: Path) -> None:
    """A sparse file whose regions overlap, leave the file or are not what is stored is refused."""
    for segments, length, kind in (
        (((0, 512), (256, 512)), 4096, Unsafe),
        (((4000, 512),), 4096, Unsafe),
        (((0, 1024),), 4096, Damaged),
        (((0, 512),), 1 << 61, Damaged),
    ):
        sparse = Member(b"tree/file", content=b"x" * 512, segments=segments, length=length)
        refuse(place, entry_of([TREE, sparse]).seal(), ".", kind)


def test_a_sparse_map_that_lies(place: Path) -> None:
    """A sparse file's map in the tar that is not the one of the index is refused."""
    entry = entry_of([TREE, Member(b"tree/file", content=b"x" * 512, segments=((512, 512),), length=4096)])
    honest, lie = sparse_map([(512, 512)]), sparse_map([(513, 512)])
    entry.frames[0] = entry.frames[0].replace(honest, lie)
    entry.index.contents = bytearray(xxh3_128_digest(lie + b"x" * 512))
    refuse(place, entry.seal(), "sparse file's map", Damaged)


def test_a_content_digest_that_lies(place: Path) -> None:
    """A content that is not the one of the index's digest is refused."""
    members = [TREE, Member(b"tree/file", content=b"honest", digest=bytes(16))]
    refuse(place, entry_of(members).seal(), "a file's content is not", Damaged)


def test_bytes_after_the_last_member(place: Path) -> None:
    """Bytes in a frame that no row accounts for, where tar would find more members, are refused."""
    hidden = entry_of([Member(b"tree/hidden", content=b"evil")]).frames[0]
    entry = entry_of([TREE, HONEST])
    entry.frames[0] += hidden
    refuse(place, entry.seal(), ".", Damaged)
    entry = entry_of([TREE, HONEST])
    entry.frames.insert(1, hidden)
    refuse(place, entry.seal(), "do not fill the frames", Damaged)


def test_padding_that_is_not_zero(place: Path) -> None:
    """Bytes hidden in the padding of a member are refused."""
    member = Member(b"tree/file", content=b"honest", padding=bytes(505) + b"!")
    refuse(place, entry_of([TREE, member]).seal(), "not padded with zeros", Damaged)


@pytest.mark.parametrize("end", [b"x" * 1024, bytes(512), bytes(2048), b""])
def test_a_last_frame_that_does_not_end_the_tar(place: Path, end: bytes) -> None:
    """A last frame that is anything but the two blocks which end a tar is refused."""
    refuse(place, entry_of([TREE, HONEST], end=end).seal(), "end", Damaged)


def test_more_members_after_the_end_of_the_tar(place: Path) -> None:
    """Members behind the end of the tar, which tar would not see, are refused."""
    entry = entry_of([[TREE, HONEST], [Member(b"tree/ghost")]])
    entry.frames.append(entry.frames.pop(1))
    entry.index.frames[2] = 2
    refuse(place, entry.seal(), "end", Damaged)


def test_kinds_of_the_same_name_count(place: Path) -> None:
    """A symlink without a target, and a directory or link with a content, are refused."""
    entry = entry_of([TREE, symlink(b"tree/link", b"x")])
    entry.index.links[0] = b""
    refuse(place, entry.seal(), "symlink has no target", Unsafe)
    for member in (
        Member(b"tree/sub", DIRECTORY, content=b"x" * 512),
        Member(b"tree/l", 2, b"x" * 512, link=b"y"),
    ):
        refuse(place, entry_of([TREE, member]).seal(), "content", Damaged)


def test_device_node_in_the_tar_only(place: Path) -> None:
    """A device's header in the tar under a row that says file is refused."""
    honest = build(b"tree/null", 0, 0o666, 0, 0, 1_600_000_000, 0, b"")
    device = bytearray(honest)
    device[156:157] = b"3"
    device[148:156] = b"%06o\0 " % (sum(honest) - sum(honest[148:156]) + 8 * 32 + 3)
    refuse(
        place,
        entry_of([TREE, Member(b"tree/null", header=bytes(device))]).seal(),
        "header is not the one",
        Damaged,
    )


def test_setuid_of_a_large_file(place: Path) -> None:
    """The bit goes also from a file that is cut into frames."""
    size = FRAME_SIZE + 5
    entry = large_entry(size, mode=0o4755)
    file_entry(place / "store", entry.seal())
    assert restore_tree(place / "store", place / "root").warnings
    restored = (place / "root" / "tree" / "big").stat()
    assert (restored.st_mode & 0o7777, restored.st_size) == (0o755, size)
