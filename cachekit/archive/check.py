"""What an entry's members may be: decided from the index alone, before any byte is written anywhere. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import NoReturn

from cachekit.archive.format import (
    DIRECTORY,
    FILE,
    FRAME_SIZE,
    HARDLINK,
    LINK_KINDS,
    MAX_NAME,
    SYMLINK,
    TAR_END,
    padded,
    parts,
)
from cachekit.archive.header import PLAIN_ID, PLAIN_MTIME_NS, PLAIN_NAME, sparse_map
from cachekit.archive.index import Index, member_bytes
from cachekit.archive.read import Archive
from cachekit.archive.seal import Seal
from cachekit.errors import Damaged, Unsafe
from cachekit.model import ROOT_PREFIX, Target

__all__ = ["check_archive", "check_members"]

#: Components that no name may have: an empty one (also: an absolute name, a slash at the end), ``.`` and ``..``.
_BAD_PARTS = (b"//", b"/./", b"/../")
_SIZE_OF_LAST_FRAME = len(TAR_END)
MAX_LENGTH = 1 << 60
#: Where the members of the other roots are; nothing below the root itself may be called so.
_RESERVED = frozenset(prefix.rstrip(b"/") for prefix in ROOT_PREFIX.values() if prefix)


def check_archive(archive: Archive) -> None:
    """Check the members of an opened archive, once. Raises Unsafe, Damaged."""
    if not archive.members_checked:
        check_members(archive.seal, archive.index)
        archive.members_checked = True


def check_members(seal: Seal, index: Index) -> None:
    """Check names, kinds, links, places and sizes of all members.

    Raises Unsafe for what must not be written (a path that leads out, a link to elsewhere, a member outside all
    targets), Damaged for what contradicts itself. After it returns:

    - every name is relative, without empty, ``.`` or ``..`` parts, unique, and inside a target of the seal;
    - none is the journal of a staging directory, which a later command would obey;
    - every target has a member of its own (but for the root itself, which none stands for);
    - the parent of every member inside a target is a directory member that comes earlier;
    - every hard link names an earlier regular file of the same target;
    - the members fill the frames to the byte, so nothing in the data frames is without a row;
    - an entry of images has no target but the root, and each layer that its seal tells of is a file of that length.
    """
    _check_names(index)
    _check_targets(seal)
    _check_tree(seal, index)
    _check_sparse(index)
    _check_frames(index)
    _check_counts(seal, index)
    _check_images(seal, index)


def _unsafe(message: str, path: bytes, **facts: object) -> NoReturn:
    raise Unsafe(message, path=path, rung="index", **facts)  # type: ignore[arg-type]


def _check_names(index: Index) -> None:
    # All names in one string between slashes: a search in C for each kind of bad component, not a loop over names.
    joined = b"/" + b"/\0/".join(index.paths) + b"/"
    if index.paths and any(part in joined for part in _BAD_PARTS):
        for path in index.paths:
            if path.startswith(b"/"):
                _unsafe("a member has an absolute name", path)
            if any(part in b"/" + path + b"/" for part in _BAD_PARTS):
                _unsafe("a member's name leads out of its directory or has an empty part", path)
    if len(set(index.paths)) != len(index.paths):
        seen: set[bytes] = set()
        twice = next(path for path in index.paths if path in seen or seen.add(path))  # type: ignore[func-returns-value]
        _unsafe("two members have the same name", twice)
    if b"/journal.json/" in joined:
        for path in index.paths:
            parts_of = path.rsplit(b"/", 2)
            if parts_of[-1] == b"journal.json" and parts_of[-2:-1] and parts_of[-2].startswith(b".cachekit-"):
                _unsafe("a member takes the place of an unfinished restore's journal", path)
    if index.paths and len(max(index.paths, key=len)) > MAX_NAME:
        _unsafe("a member's name is too long", max(index.paths, key=len)[:200])


def _check_targets(seal: Seal) -> None:
    for target in seal.targets:
        parts_of = target.path.split(b"/")
        if target.path != b"." and any(part in {b"", b".", b".."} for part in parts_of):
            _unsafe("a target's name leads out of its root", target.path)
        if target.root == "root" and parts_of[0] in _RESERVED:
            _unsafe("a target takes a name that is reserved for other roots", target.path)
        if b"\0" in target.path:
            _unsafe("a target's name has a NUL byte", target.path)
    names = sorted((target.root, target.path + b"/") for target in seal.targets)
    for (root, path), (next_root, next_path) in pairwise(names):
        if root == next_root and (next_path.startswith(path) or path == b"./"):
            _unsafe("one target lies inside another", next_path)


def _check_tree(seal: Seal, index: Index) -> None:
    """Parents and hard links. One pass; in an entry that we wrote, members come target by target."""
    roots = {target.member for target in seal.targets}
    whole_root = Target("root", b".") in seal.targets
    directories: dict[bytes, bytes] = {b"": b""} if whole_root else {}
    links = iter(index.links)
    found: set[bytes] = {b""}
    files: set[tuple[bytes, bytes]] | None = set() if HARDLINK in index.kinds else None
    for path, kind in zip(index.paths, index.kinds, strict=True):
        if path in roots:
            target = path
            found.add(path)
        else:
            parent = path.rpartition(b"/")[0]
            if parent not in directories:
                _misplaced(path, roots, index)
            target = directories[parent]
            if target == b"" and path in _RESERVED:
                _unsafe("a member takes a name that is reserved for other roots", path)
        if kind == DIRECTORY:
            directories[path] = target
        elif kind == FILE:
            if files is not None:
                files.add((target, path))
        elif kind == SYMLINK:
            if not next(links):
                _unsafe("a symlink has no target", path)
        elif files is None or (target, link := next(links)) not in files:
            _unsafe("a hard link does not name an earlier file of its own target", path, found=link)
    if absent := roots - found:
        raise Damaged("a target has no member", path=min(absent), rung="index")


def _misplaced(path: bytes, roots: set[bytes], index: Index) -> NoReturn:
    kinds = dict(zip(index.paths, index.kinds, strict=True))
    inside = any(path.startswith(root + b"/") for root in roots) or b"" in roots
    if not inside:
        _unsafe("a member lies outside the targets that the entry names", path)
    parts_of = path.split(b"/")
    for depth in range(1, len(parts_of)):
        ancestor = b"/".join(parts_of[:depth])
        if kinds.get(ancestor, DIRECTORY) != DIRECTORY:
            _unsafe("a member lies below something that is no directory", path, found=ancestor)
    _unsafe("a member comes before its directory, or without one", path)


def _check_sparse(index: Index) -> None:
    for row, (real, segments) in index.sparse.items():
        path = index.paths[row]
        position = 0
        for offset, length in segments:
            if offset < position or offset + length > real:
                _unsafe("a sparse file's regions overlap or lie behind its end", path)
            position = offset + length
        stored = len(sparse_map(segments)) + sum(length for _, length in segments)
        if stored != index.sizes[row] or real > MAX_LENGTH:
            raise Damaged(
                "a sparse file's size is not that of its regions",
                path=path,
                rung="index",
                expected=stored,
                found=index.sizes[row],
            )


def _check_frames(index: Index) -> None:
    """Lay the members out again: each must lie exactly where its row says, and the frames must be full."""
    raw = index.raw_sizes
    sizes = index.sizes
    frames, offsets = index.frames, index.offsets
    count = index.frame_count
    paths, mtimes, sparse = index.paths, index.mtimes, index.sparse
    plain_owners = max(max(index.uids, default=0), max(index.gids, default=0)) <= PLAIN_ID
    frame = position = 0
    links = iter(index.links)
    if not count or raw[count - 1] != _SIZE_OF_LAST_FRAME:
        raise Damaged("the archive does not end with a frame of its own", rung="index")
    for row, kind in enumerate(index.kinds):
        link = next(links) if kind in LINK_KINDS else b""
        size = sizes[row]
        if size and kind != FILE:
            raise Damaged(
                "a member that is no file has a content", path=index.paths[row], rung="index", found=size
            )
        path = paths[row]
        if (
            kind == FILE
            and len(path) <= PLAIN_NAME
            and path.isascii()
            and plain_owners
            and row not in sparse
            and 0 <= mtimes[row] < PLAIN_MTIME_NS
            and size <= FRAME_SIZE
        ):
            total = 512 + (size + 511 & -512)  # what member_bytes says, without its calls: nearly every row
        else:
            total = member_bytes(index, row, link)
        if frames[row] != frame or offsets[row] != position:
            _out_of_place(index, row, frame, position)
        spans = parts(size)
        if spans == 1:
            position += total
        else:
            if position or frame + spans >= count:
                _out_of_place(index, row, frame, position)
            head = total - padded(size)
            for part in range(spans):
                expected = min(FRAME_SIZE, total - head - part * FRAME_SIZE) + (head if part == 0 else 0)
                if raw[frame + part] != expected:
                    _out_of_place(index, row, frame + part, expected)
            frame += spans
            continue
        if position >= raw[frame]:
            if position != raw[frame] or frame + 1 >= count:
                _out_of_place(index, row, frame, position)
            frame += 1
            position = 0
    if position or frame != count - 1:
        raise Damaged(
            "the members do not fill the frames: some are missing, or promised and not there",
            rung="index",
            expected=count - 1,
            found=frame,
        )


def _out_of_place(index: Index, row: int, frame: int, position: int) -> NoReturn:
    raise Damaged(
        "a member is not where the sizes before it put it: a size lies",
        path=index.paths[row],
        rung="index",
        frame=frame,
        expected=position,
        found=index.offsets[row],
    )


def _check_counts(seal: Seal, index: Index) -> None:
    found = {
        "files": index.count(FILE),
        "directories": index.count(DIRECTORY),
        "symlinks": index.count(SYMLINK),
        "hardlinks": index.count(HARDLINK),
    }
    if seal.counts != found or seal.content_bytes != index.content_bytes():
        raise Damaged(
            "seal and index count different members or bytes",
            rung="index",
            expected=[seal.counts, seal.content_bytes],
            found=[found, index.content_bytes()],
        )


def _check_images(seal: Seal, index: Index) -> None:
    if seal.images is None:
        return
    if seal.targets != [Target("root", b".")]:
        raise Damaged("an entry of Docker images has targets as one of files", rung="index")
    sizes = {
        path: size
        for path, kind, size in zip(index.paths, index.kinds, index.sizes, strict=True)
        if kind == FILE
    }
    for image in seal.images:
        for layer in image.layers:
            if sizes.get(layer.member) != layer.size:
                raise Damaged(
                    "a layer of which the seal tells is not there, or has another length",
                    path=layer.member,
                    rung="index",
                    expected=layer.size,
                    found=sizes.get(layer.member),
                )
