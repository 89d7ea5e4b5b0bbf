"""What a tree is: one value to compare, and a text that says how two trees differ.

`snapshot` reads what a cache keeps: kind, mode, size, time, link target, content, hard-link groups.
`fingerprint` adds what only an untouched tree keeps: inode numbers, change times, owners. Both walk by
descriptors, follow no link, and do not change access times where they may avoid it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

ROOT = b"."
"""The key of the root itself in a snapshot; everything else is its path below the root."""

UNREADABLE = "unreadable"

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}
_BLOCK = 1 << 16
_ZEROS = bytes(_BLOCK)


@dataclass(frozen=True)
class Node:
    """One member of a tree. What was not asked for, or does not apply to the kind, is None."""

    kind: str
    mode: int | None
    size: int | None
    mtime_ns: int
    target: bytes | None = None
    digest: str | None = None
    group: bytes | None = None
    """The first path, in byte order, of the same inode, if it has more than one name in this tree."""
    extents: tuple[tuple[int, int], ...] | None = None
    """Where a file holds data, as (start, end); None unless asked for."""
    owner: tuple[int, int] | None = None
    identity: tuple[int, int, int] | None = None
    """Device, inode number and link count; None but in a fingerprint."""
    ctime_ns: int | None = None


Snapshot = dict[bytes, Node]


def snapshot(
    root: Path, *, content: bool = True, extents: bool = False, owners: bool = False, identity: bool = False
) -> Snapshot:
    """Read the tree at `root`, which may be anything but missing; sorted by path, `ROOT` first."""
    parent = os.open(root.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        reader = _Reader(content, extents, owners, identity)
        reader.read(parent, os.fsencode(root.name or "."), b"")
    finally:
        os.close(parent)
    return reader.finished()


def fingerprint(root: Path) -> Snapshot:
    """Read all that changes when the tree is touched, access times apart; empty if there is no tree."""
    try:
        root.lstat()
    except FileNotFoundError:
        return {}
    return snapshot(root, extents=True, owners=True, identity=True)


@contextmanager
def unchanged(*roots: Path) -> Iterator[None]:
    """Fail unless each tree is afterwards the very tree it was, down to inode numbers and change times."""
    before = [fingerprint(root) for root in roots]
    yield
    for root, old in zip(roots, before, strict=True):
        difference = diff(old, fingerprint(root))
        assert not difference, f"{root} was touched:\n{difference}"


def diff(old: Mapping[bytes, Node], new: Mapping[bytes, Node], *, ignore: Collection[str] = ()) -> str:
    """Tell how `new` differs from `old`, a line for each member and field; empty if they are the same.

    `ignore` names fields of `Node` that need not agree; "root" leaves out the root itself.
    """
    lines = []
    for path in sorted(set(old) | set(new)):
        if path == ROOT and "root" in ignore:
            continue
        shown = ascii(path)[2:-1]
        if path not in new:
            lines.append(f"missing: {shown} ({old[path].kind})")
        elif path not in old:
            lines.append(f"extra: {shown} ({new[path].kind})")
        else:
            for name in (field.name for field in fields(Node)):
                was, now = getattr(old[path], name), getattr(new[path], name)
                if was != now and name not in ignore:
                    show = oct if name == "mode" and was is not None and now is not None else repr
                    lines.append(f"{shown}: {name} {show(was)} -> {show(now)}")
    return "\n".join(lines)


def assert_same_tree(old: Path | Snapshot, new: Path | Snapshot, *, ignore: Collection[str] = ()) -> None:
    """Fail with the differences unless the two trees, or snapshots, agree."""
    before = snapshot(old) if isinstance(old, Path) else old
    after = snapshot(new) if isinstance(new, Path) else new
    difference = diff(before, after, ignore=ignore)
    assert not difference, difference


class _Reader:
    def __init__(self, content: bool, extents: bool, owners: bool, identity: bool) -> None:
        self._content, self._extents, self._owners, self._identity = content, extents, owners, identity
        self._nodes: Snapshot = {}
        self._names: dict[tuple[int, int], list[bytes]] = {}

    def read(self, parent: int, name: bytes, path: bytes) -> None:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        one = Node(
            kind=kind,
            mode=None if kind == "symlink" else stat.S_IMODE(status.st_mode),
            size=status.st_size if kind == "file" else None,
            mtime_ns=status.st_mtime_ns,
            target=os.readlink(name, dir_fd=parent) if kind == "symlink" else None,
        )
        if self._owners:
            one = replace(one, owner=(status.st_uid, status.st_gid))
        if self._identity:
            identity = (status.st_dev, status.st_ino, status.st_nlink)
            one = replace(one, identity=identity, ctime_ns=status.st_ctime_ns)
        if kind == "file" and (self._content or self._extents):
            one = self._with_content(parent, name, one)
        if kind != "dir" and status.st_nlink > 1:
            self._names.setdefault((status.st_dev, status.st_ino), []).append(path or ROOT)
        self._nodes[path or ROOT] = one
        if kind == "dir":
            self._read_directory(parent, name, path)

    def _read_directory(self, parent: int, name: bytes, path: bytes) -> None:
        try:
            fd = _opened(name, parent, os.O_DIRECTORY)
        except PermissionError:
            self._nodes[path or ROOT] = replace(self._nodes[path or ROOT], digest=UNREADABLE)
            return
        try:
            for below in sorted(os.fsencode(entry) for entry in os.listdir(fd)):
                self.read(fd, below, path + b"/" + below if path else below)
        finally:
            os.close(fd)

    def _with_content(self, parent: int, name: bytes, one: Node) -> Node:
        try:
            fd = _opened(name, parent, 0)
        except PermissionError:
            return replace(one, digest=UNREADABLE)
        try:
            extents = tuple(_data_extents(fd, one.size or 0))
            return replace(
                one,
                digest=_digest(fd, one.size or 0, extents) if self._content else None,
                extents=extents if self._extents else None,
            )
        finally:
            os.close(fd)

    def finished(self) -> Snapshot:
        for names in self._names.values():
            if len(names) > 1:
                for path in names:
                    self._nodes[path] = replace(self._nodes[path], group=min(names))
        return dict(sorted(self._nodes.items(), key=lambda item: (item[0] != ROOT, item[0])))


def _opened(name: bytes, parent: int, flags: int) -> int:
    flags |= os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=parent)
    except PermissionError:
        return os.open(name, flags, dir_fd=parent)


def _data_extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position


def _digest(fd: int, size: int, extents: tuple[tuple[int, int], ...]) -> str:
    """Digest the content, the same whether its zeros are holes or not; no hole is read."""
    digest = hashlib.sha256(b"%d" % size)
    done = 0
    for start, end in extents:
        for offset in range(max(done, start - start % _BLOCK), end, _BLOCK):
            block = os.pread(fd, _BLOCK, offset)
            done = offset + _BLOCK
            if block != _ZEROS[: len(block)]:
                digest.update(b"%d:" % offset)
                digest.update(block)
    return digest.hexdigest()
