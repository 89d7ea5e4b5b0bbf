"""Tar headers: one deterministic function from an index row to bytes.

Because the bytes follow from the row, a reader checks a header by building it again: a header that says anything else
than its row is refused. Plain ustar (POSIX.1-1988) wherever it can hold the values; pax extended records (POSIX.1-2001)
only where it cannot, and GNU's sparse format 1.0 for files with holes, which GNU tar, bsdtar and tarfile all read.
"""

from __future__ import annotations

import functools

from cachekit.archive.format import BLOCK, DIRECTORY, FILE, HARDLINK, SYMLINK, padded

__all__ = ["build", "length", "sparse_map"]

_TYPEFLAG = {FILE: b"0", DIRECTORY: b"5", SYMLINK: b"2", HARDLINK: b"1"}
#: Up to these values a file's header is one block: name bytes, owner, time in ns (exclusive).
PLAIN_NAME = 100
PLAIN_ID = 0o7777777
PLAIN_MTIME_NS = 0o77777777777 * 1_000_000_000
_MAX_OCTAL_8 = 0o7777777
_MAX_OCTAL_12 = 0o77777777777
_NAME, _PREFIX = 100, 155
#: linkname .. pad of a header without link name: empty link, "ustar" magic and version, no user and group names.
_TAIL = bytes(100) + b"ustar\x0000" + bytes(32) + bytes(32) + b"0000000\x000000000\x00"
_NO_PREFIX = bytes(_PREFIX + 12)


@functools.lru_cache(maxsize=4096)
def _middle(mode: int, uid: int, gid: int) -> tuple[bytes, int]:
    data = b"%07o\0%07o\0%07o\0" % (mode, uid, gid)
    return data, sum(data)


#: What follows the checksum in the header of a file and of a directory that need no prefix, and the checksum of all
#: that is the same in each such header; the checksum field itself counts as eight spaces.
_TAILS = tuple(_TYPEFLAG[kind] + _TAIL + _NO_PREFIX for kind in (FILE, DIRECTORY))
_TAIL_SUMS = tuple(sum(tail) + 8 * 0x20 for tail in _TAILS)


def build(
    path: bytes,
    kind: int,
    mode: int,
    uid: int,
    gid: int,
    mtime: int,
    size: int,
    link: bytes,
    real_size: int = -1,
) -> bytes:
    """Return the header bytes of a member, 512 or (with pax records) more.

    ``mtime`` in whole seconds; ``size`` is what is stored after the header; ``link`` is the target of a link, else
    empty; ``real_size`` is the length of a sparse file, -1 for any other. Total function: every row has a header.
    """
    if (
        kind <= DIRECTORY
        and real_size < 0
        and len(path) < _NAME
        and 0 <= mtime <= _MAX_OCTAL_12
        and size <= _MAX_OCTAL_12
        and uid <= _MAX_OCTAL_8
        and gid <= _MAX_OCTAL_8
        and (path.isascii() or _is_utf8(path))
    ):
        middle, middle_sum = _middle(mode, uid, gid)
        numbers = b"%011o\0%011o\0" % (size, mtime)
        name = path + b"/" if kind == DIRECTORY else path
        checksum = _TAIL_SUMS[kind] + middle_sum + sum(numbers) + sum(name)
        return b"%b%b%b%06o\0 %b" % (name.ljust(_NAME, b"\0"), middle, numbers, checksum, _TAILS[kind])
    return _build_general(path, kind, mode, uid, gid, mtime, size, link, real_size)


def length(
    path: bytes, kind: int, uid: int, gid: int, mtime: int, size: int, link: bytes, real_size: int = -1
) -> int:
    """Return ``len(build(...))``, quickly for the usual member."""
    plain = (
        path.isascii()
        and (not link or (len(link) <= _NAME and link.isascii()))
        and real_size < 0
        and 0 <= mtime <= _MAX_OCTAL_12
        and size <= _MAX_OCTAL_12
        and uid <= _MAX_OCTAL_8
        and gid <= _MAX_OCTAL_8
    )
    if plain and (len(path) < _NAME or _split(path + b"/" if kind == DIRECTORY else path) is not None):
        return BLOCK
    return len(_build_general(path, kind, 0, uid, gid, mtime, size, link, real_size))


def sparse_map(segments: list[tuple[int, int]]) -> bytes:
    """Return the map that precedes a sparse file's data (GNU sparse format 1.0): decimal lines, padded to blocks."""
    text = b"%d\n" % len(segments) + b"".join(b"%d\n%d\n" % segment for segment in segments)
    return text.ljust(padded(len(text)), b"\0")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _split(path: bytes) -> tuple[bytes, bytes] | None:
    """Split a name into ustar's prefix and name at the first slash that makes both fit; None if there is none."""
    if len(path) <= _NAME:
        return b"", path
    start = max(0, len(path) - _NAME - 1)
    cut = path.find(b"/", start, _PREFIX + 1)
    if cut <= 0 or cut == len(path) - 1:
        return None
    return path[:cut], path[cut + 1 :]


def _build_general(
    path: bytes, kind: int, mode: int, uid: int, gid: int, mtime: int, size: int, link: bytes, real_size: int
) -> bytes:
    records: list[tuple[bytes, bytes]] = []
    stored_path = path + b"/" if kind == DIRECTORY else path
    binary = not (_is_utf8(path) and _is_utf8(link))
    if binary:
        records.append((b"hdrcharset", b"BINARY"))
    split = None if binary else _split(stored_path)
    if real_size >= 0:
        records += [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", stored_path),
            (b"GNU.sparse.realsize", b"%d" % real_size),
        ]
        split = (b"GNUSparseFile.0", _short(path))
    elif split is None:
        records.append((b"path", stored_path))
        split = b"", _short(path)
    if len(link) > _NAME or (binary and link):
        records.append((b"linkpath", link))
        link = b""
    if size > _MAX_OCTAL_12:
        records.append((b"size", b"%d" % size))
    if not 0 <= mtime <= _MAX_OCTAL_12:
        records.append((b"mtime", b"%d" % mtime))
    for name, value in ((b"uid", uid), (b"gid", gid)):
        if value > _MAX_OCTAL_8:
            records.append((name, b"%d" % value))
    header = _ustar(
        split,
        _TYPEFLAG[kind],
        mode,
        min(uid, _MAX_OCTAL_8),
        min(gid, _MAX_OCTAL_8),
        min(max(mtime, 0), _MAX_OCTAL_12),
        min(size, _MAX_OCTAL_12),
        link,
    )
    if not records:
        return header
    body = b"".join(_record(name, value) for name, value in records)
    extended = _ustar((b"PaxHeaders", _short(path)), b"x", 0o644, 0, 0, 0, len(body), b"")
    return extended + body.ljust(padded(len(body)), b"\0") + header


def _short(path: bytes) -> bytes:
    """A name for readers that do not know pax records: the last component, at most 100 bytes."""
    return path.rpartition(b"/")[2][:_NAME]


def _ustar(
    name: tuple[bytes, bytes],
    typeflag: bytes,
    mode: int,
    uid: int,
    gid: int,
    mtime: int,
    size: int,
    link: bytes,
) -> bytes:
    prefix, base = name
    front = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (base.ljust(_NAME, b"\0"), mode, uid, gid, size, mtime)
    back = typeflag + link.ljust(100, b"\0") + _TAIL[100:] + prefix.ljust(_PREFIX + 12, b"\0")
    return b"%b%06o\0 %b" % (front, sum(front) + sum(back) + 8 * 0x20, back)


def _record(name: bytes, value: bytes) -> bytes:
    """One pax record: its own length in decimal, a space, name=value, newline."""
    payload = b" %b=%b\n" % (name, value)
    size = len(payload)
    while size != len(payload) + len(str(size)):
        size = len(payload) + len(str(size))
    return b"%d%b" % (size, payload)
