"""Trees on disk from a literal description.

``make_tree(root, {"a": b"text", "sub": {"link": Symlink("../a"), "private": File(b"", mode=0o600)}})``: bytes
or str is a file, a mapping is a directory, everything else is one of the classes below. Names may be any
bytes; nothing depends on the length of a path, since every call is relative to an open directory. Modes are
set whatever the umask, and times are `MTIME` unless said otherwise, so that the same description makes the
same tree anywhere.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

MTIME = 1_600_000_000_123_456_789
"""2020-09-13 12:26:40.123456789 UTC in nanoseconds: too old to be racy, and with a part below a second."""

_WRITE_UNIT = 1 << 20

Name: TypeAlias = str | bytes


@dataclass(frozen=True)
class File:
    """A regular file with exactly these bytes; `mtime_ns` None leaves the time of creation."""

    content: bytes = b""
    mode: int = 0o644
    mtime_ns: int | None = MTIME


@dataclass(frozen=True)
class Sparse:
    """A regular file of `size` bytes that is one hole but for the `data` at the offsets given."""

    size: int
    data: Mapping[int, bytes] = field(default_factory=dict)
    mode: int = 0o644
    mtime_ns: int | None = MTIME


@dataclass(frozen=True)
class Dir:
    """A directory; its mode and time are set after everything below it."""

    entries: Tree = field(default_factory=dict)
    mode: int = 0o755
    mtime_ns: int | None = MTIME


@dataclass(frozen=True)
class Symlink:
    """A symbolic link; the target need not exist."""

    target: Name
    mtime_ns: int | None = MTIME


@dataclass(frozen=True)
class HardLink:
    """One more name of a file of this tree, given by its path from the root of the tree."""

    path: Name


@dataclass(frozen=True)
class Fifo:
    """A named pipe."""

    mode: int = 0o644
    mtime_ns: int | None = MTIME


@dataclass(frozen=True)
class Socket:
    """A socket's file (nobody listens)."""

    mode: int = 0o644
    mtime_ns: int | None = MTIME


@dataclass(frozen=True)
class Device:
    """A character device, /dev/null's unless numbered otherwise; needs root."""

    major: int = 1
    minor: int = 3
    mode: int = 0o666
    mtime_ns: int | None = MTIME


Node: TypeAlias = File | Sparse | Dir | Symlink | HardLink | Fifo | Socket | Device
Spec: TypeAlias = "Node | bytes | str | Tree"
Tree: TypeAlias = Mapping[Any, Spec]
"""From names, str or bytes, to what they stand for."""


def node(spec: Spec) -> Node:
    """Return the class that a short form stands for."""
    if isinstance(spec, bytes):
        return File(spec)
    if isinstance(spec, str):
        return File(spec.encode())
    if isinstance(spec, Mapping):
        return Dir(spec)
    return spec


def make_tree(root: Path, tree: Tree | Dir) -> Path:
    """Make `tree` below `root`, which is made if missing, and return `root`.

    Given a mapping, the root keeps the mode that it has; given a `Dir`, it gets that mode and time.
    """
    top = tree if isinstance(tree, Dir) else Dir(tree, mode=stat.S_IMODE(_made(root).st_mode), mtime_ns=None)
    _made(root)
    links: list[tuple[tuple[bytes, ...], HardLink]] = []
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _fill(fd, (), top.entries, links)
        for parts, link in links:
            _hard_link(fd, parts, link)
        _finish_directories(fd, top)
    finally:
        os.close(fd)
    return root


def _made(root: Path) -> os.stat_result:
    root.mkdir(parents=True, exist_ok=True)
    return root.stat()


def _fill(
    fd: int, prefix: tuple[bytes, ...], tree: Tree, links: list[tuple[tuple[bytes, ...], HardLink]]
) -> None:
    for given, spec in tree.items():
        name, one = os.fsencode(given), node(spec)
        if isinstance(one, Dir):
            os.mkdir(name, 0o700, dir_fd=fd)
            with _entered(fd, name) as below:
                _fill(below, (*prefix, name), one.entries, links)
        elif isinstance(one, HardLink):
            links.append(((*prefix, name), one))
        else:
            _make_leaf(fd, name, one)


def _make_leaf(fd: int, name: bytes, one: File | Sparse | Symlink | Fifo | Socket | Device) -> None:
    if isinstance(one, Symlink):
        os.symlink(os.fsencode(one.target), name, dir_fd=fd)
    elif isinstance(one, File | Sparse):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd)
        try:
            _write_content(file, one)
        finally:
            os.close(file)
    elif isinstance(one, Fifo):
        os.mkfifo(name, dir_fd=fd)
    elif isinstance(one, Socket):
        os.mknod(name, stat.S_IFSOCK | 0o600, dir_fd=fd)
    else:
        os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(one.major, one.minor), dir_fd=fd)
    if not isinstance(one, Symlink):
        os.chmod(name, one.mode, dir_fd=fd)
    if one.mtime_ns is not None:
        os.utime(name, ns=(one.mtime_ns, one.mtime_ns), dir_fd=fd, follow_symlinks=False)


def _write_content(file: int, one: File | Sparse) -> None:
    if isinstance(one, Sparse):
        os.ftruncate(file, one.size)
        for offset, data in one.data.items():
            if offset + len(data) > one.size:
                raise ValueError(f"data at {offset} ends after the file of {one.size} bytes")
            os.pwrite(file, data, offset)
        return
    view = memoryview(one.content)
    while view:
        view = view[os.write(file, view[:_WRITE_UNIT]) :]


def _hard_link(fd: int, parts: tuple[bytes, ...], link: HardLink) -> None:
    *source, source_name = os.fsencode(link.path).split(b"/")
    *parents, name = parts
    with _walked(fd, source) as source_fd, _walked(fd, parents) as parent_fd:
        os.link(source_name, name, src_dir_fd=source_fd, dst_dir_fd=parent_fd, follow_symlinks=False)


def _finish_directories(fd: int, directory: Dir) -> None:
    for given, spec in directory.entries.items():
        one = node(spec)
        if isinstance(one, Dir):
            with _entered(fd, os.fsencode(given)) as below:
                _finish_directories(below, one)
    if directory.mtime_ns is not None:
        os.utime(fd, ns=(directory.mtime_ns, directory.mtime_ns))
    os.fchmod(fd, directory.mode)


@contextmanager
def _entered(fd: int, name: bytes) -> Iterator[int]:
    below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
    try:
        yield below
    finally:
        os.close(below)


@contextmanager
def _walked(fd: int, parts: list[bytes]) -> Iterator[int]:
    here = os.dup(fd)
    try:
        for part in parts:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)
