"""Tar headers: for any row there is one, tarfile reads it as what the row says, and its length is known beforehand."""

from __future__ import annotations

import io
import tarfile
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from cachekit.archive import header
from cachekit.archive.format import BLOCK, DIRECTORY, FILE, HARDLINK, SYMLINK, TAR_END

PART = st.binary(min_size=1, max_size=120).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"0"))
PATHS = st.one_of(
    st.lists(PART, min_size=1, max_size=6).map(b"/".join),
    st.builds(lambda size: b"n" * size, st.integers(1, 300)),
    st.builds(lambda a, b: b"d" * a + b"/" + b"n" * b, st.integers(1, 200), st.integers(1, 120)),
    st.text("aä名", min_size=30, max_size=60).map(str.encode),
).filter(lambda path: path.strip(b"/") not in {b"", b".", b".."})
MTIMES = st.one_of(
    st.integers(-(2**34), 2**34),
    st.sampled_from([0, -1, 8**11 - 1, 8**11, -(2**63) // 10**9, 2**63 // 10**9]),
)
SIZES = st.one_of(st.integers(0, 1 << 50), st.sampled_from([0, 1, 512, 8**11 - 1, 8**11, 8 << 30, 1 << 62]))
IDS = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 8**7 - 1, 8**7, 2**32 - 1]))
MODES = st.integers(0, 0o7777)


def read(data: bytes) -> tarfile.TarInfo:
    """Return what tarfile makes of a header; it must use all of its bytes."""
    with tarfile.open(fileobj=io.BytesIO(data + TAR_END), mode="r:", encoding="utf-8") as tar:
        member = tar.next()
        assert member is not None
        assert member.offset_data == len(data)
        return member


def raw(name: str) -> bytes:
    """Return the bytes of a name that tarfile read."""
    return name.encode("utf-8", "surrogateescape")


@given(path=PATHS, mode=MODES, uid=IDS, gid=IDS, mtime=MTIMES, size=SIZES)
def test_tarfile_reads_a_files_header_as_its_row(
    path: bytes, mode: int, uid: int, gid: int, mtime: int, size: int
) -> None:
    """A file's name of any bytes, mode, owners, time and size come back from tarfile as they went in."""
    data = header.build(path, FILE, mode, uid, gid, mtime, size, b"")
    assert len(data) == header.length(path, FILE, uid, gid, mtime, size, b"")
    assert len(data) % BLOCK == 0
    member = read(data)
    assert member.isreg()
    assert (raw(member.name), member.mode, member.uid, member.gid) == (path, mode, uid, gid)
    assert (int(member.mtime), member.size) == (mtime, size)


@given(
    path=PATHS,
    kind=st.sampled_from([DIRECTORY, SYMLINK, HARDLINK]),
    mode=MODES,
    uid=IDS,
    mtime=MTIMES,
    link=PATHS,
)
def test_tarfile_reads_other_headers_as_their_rows(
    path: bytes, kind: int, mode: int, uid: int, mtime: int, link: bytes
) -> None:
    """Directories and links, their targets of any bytes and length too, come back from tarfile as they went in."""
    link = b"" if kind == DIRECTORY else link
    data = header.build(path, kind, mode, uid, uid, mtime, 0, link)
    assert len(data) == header.length(path, kind, uid, uid, mtime, 0, link)
    member = read(data)
    assert {DIRECTORY: member.isdir, SYMLINK: member.issym, HARDLINK: member.islnk}[kind]()
    assert (raw(member.name), member.mode, member.uid) == (path, mode, uid)
    assert (raw(member.linkname), int(member.mtime), member.size) == (link, mtime, 0)


@given(
    path=PATHS,
    mtime=MTIMES,
    lengths=st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 2000)), min_size=1, max_size=5),
    tail=st.integers(0, 1 << 40),
)
def test_tarfile_reads_a_sparse_header_as_its_row(
    path: bytes, mtime: int, lengths: list[tuple[int, int]], tail: int
) -> None:
    """A sparse file's name, length and data regions come back from tarfile as they went in."""
    segments, position = [], 0
    for hole, length in lengths:
        segments.append((position + hole, length))
        position += hole + length
    real = position + tail
    text = header.sparse_map(segments)
    size = len(text) + sum(length for _, length in segments)
    data = header.build(path, FILE, 0o644, 1, 2, mtime, size, b"", real)
    assert len(data) == header.length(path, FILE, 1, 2, mtime, size, b"", real)
    stored = data + text + bytes(size - len(text)) + bytes(-size % BLOCK)
    with tarfile.open(fileobj=io.BytesIO(stored + TAR_END), mode="r:", encoding="utf-8") as tar:
        member = tar.next()
    assert member is not None
    assert (raw(member.name), member.size, int(member.mtime)) == (path, real, mtime)
    found: Any = member.sparse  # the stubs call it bytes
    assert found == segments
    assert member.offset_data == len(data) + len(text)


@given(
    rows=st.lists(st.tuples(PATHS, MODES, IDS, MTIMES), min_size=2, max_size=2, unique=True),
    sizes=st.lists(SIZES, min_size=2, max_size=2),
)
def test_rows_that_differ_have_headers_that_differ(
    rows: list[tuple[bytes, int, int, int]], sizes: list[int]
) -> None:
    """No two different rows have the same header, so a header tells its row."""
    (one, other), (size, other_size) = rows, sizes
    assume((*one, size) != (*other, other_size))
    first = header.build(one[0], FILE, one[1], one[2], one[2], one[3], size, b"")
    second = header.build(other[0], FILE, other[1], other[2], other[2], other[3], other_size, b"")
    assert first != second
