"""Hypothesis strategies for trees, as literal descriptions for `make_tree`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from hypothesis import strategies as st

from tests.support.trees import Dir, File, HardLink, Node, Sparse, Symlink

Entries: TypeAlias = dict[bytes, Node]

MAX_DEPTH = 4

_ODD_NAMES = [
    b" ",
    b"-rf",
    b"...",
    b"a\nb",
    b"\n::add-mask::x",
    b"\ncache-hit=true",
    b"\x1b[31m",
    b"\\",
    b"\xff",
    b"\xc3\x28",
    "\u00e4".encode(),
    "a\u0308".encode(),
    b"PaxHeaders",
    b"._a",
    b"n" * 255,
    b"m" * 101,
]
_SECOND = 10**9


def names(max_size: int = 20) -> st.SearchStrategy[bytes]:
    """Names of any bytes but NUL and slash, among them those that have broken archivers."""
    plain = st.binary(min_size=1, max_size=max_size).map(
        lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"0")
    )
    return st.one_of(plain, st.sampled_from(_ODD_NAMES)).filter(lambda name: name not in (b".", b".."))


def mtimes() -> st.SearchStrategy[int]:
    """Nanoseconds from 1901 to past 2242, where a tar header's octal field ends, with the odd ones likely."""
    return st.one_of(
        st.integers(-(2**31) * _SECOND, (8**11 + 1000) * _SECOND),
        st.sampled_from(
            [0, -1, 1, 999_999_999, -_SECOND, 2**31 * _SECOND, 8**11 * _SECOND - 1, 8**11 * _SECOND]
        ),
    )


def contents() -> st.SearchStrategy[bytes]:
    """Contents whose sizes crowd around the multiples of a tar block, compressible or not."""
    sizes = st.one_of(
        st.integers(0, 40),
        st.builds(lambda blocks, off: max(0, blocks * 512 + off), st.integers(0, 20), st.integers(-2, 2)),
        st.sampled_from([4095, 4096, 65_535, 65_536, 65_537, 200_000]),
    )
    return st.builds(
        lambda size, seed: (seed * (size // len(seed) + 1))[:size], sizes, st.binary(min_size=1, max_size=64)
    )


def files() -> st.SearchStrategy[File | Sparse]:
    """Regular files of every mode, now and then with holes."""
    modes = st.integers(0, 0o777)
    sparse = st.builds(
        lambda size, at, data, mode, mtime: Sparse(size + at + len(data), {at: data}, mode, mtime),
        st.integers(0, 300_000),
        st.integers(0, 300_000),
        st.binary(max_size=100),
        modes,
        mtimes(),
    )
    plain = st.builds(File, contents(), modes, mtimes())
    return st.integers(0, 9).flatmap(lambda roll: sparse if roll == 0 else plain)


def symlinks() -> st.SearchStrategy[Symlink]:
    """Symbolic links to anything: up, absolute, nowhere, themselves."""
    targets = st.one_of(
        st.lists(st.one_of(names(), st.just(b"..")), min_size=1, max_size=4).map(b"/".join),
        st.sampled_from([b"/", b".", b"..", b"/etc/hostname", b"t" * 101, b"t" * 300]),
    )
    return st.builds(Symlink, targets, mtimes())


@st.composite
def trees(draw: st.DrawFn, max_members: int = 12) -> Dir:
    """Draw a directory of at most `max_members` members, `MAX_DEPTH` deep, some files with several names.

    Directories keep u+rwx, so that a tree can be read and removed by who is not root.
    """
    top: Entries = {}
    folders: list[tuple[tuple[bytes, ...], Entries]] = [((), top)]
    linkable: list[bytes] = []
    for _ in range(draw(st.integers(0, max_members))):
        path, folder = draw(st.sampled_from(folders))
        name = draw(names().filter(_not_in(folder)))
        kind = draw(st.sampled_from(["file", "file", "file", "dir", "symlink", "hard link"]))
        below = (*path, name)
        if kind == "dir" and len(below) < MAX_DEPTH:
            entries: Entries = {}
            folder[name] = Dir(entries, 0o700 | draw(st.integers(0, 0o77)), draw(mtimes()))
            folders.append((below, entries))
        elif kind == "symlink":
            folder[name] = draw(symlinks())
        elif kind == "hard link" and linkable:
            folder[name] = HardLink(draw(st.sampled_from(linkable)))
        else:
            folder[name] = draw(files())
            linkable.append(b"/".join(below))
    return Dir(top, mtime_ns=draw(mtimes()))


def _not_in(folder: Entries) -> Callable[[bytes], bool]:
    return lambda name: name not in folder
