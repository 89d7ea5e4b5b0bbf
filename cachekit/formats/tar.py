"""A strict reader of tar archives as they stream past: every header is checked, and the end has to be there.

Reads ustar (POSIX.1-1988), pax records (POSIX.1-2001) and GNU's long names and large numbers. Nothing is allocated
because a header says so, but for names, which are bounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NoReturn, Protocol

from cachekit.errors import Damaged

__all__ = ["Kind", "Source", "TarMember", "TarReader", "is_header"]

Kind = Literal["file", "directory", "symlink", "hardlink", "other"]

_BLOCK = 512
_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hardlink",
    b"2": "symlink",
    b"5": "directory",
}
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
#: GNU's old sparse files: where a header, and a block of the map behind it, say that the map goes on.
_SPARSE, _SPARSE_MORE, _SPARSE_MORE_NEXT = b"S", 482, 504
#: The longest name, link or set of pax records that is read.
_LONGEST = 1 << 20
_PIECE = 1 << 20


class Source(Protocol):
    """Where the archive comes from."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer's beginning and return how much; 0 at the end."""
        ...


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member: its name (without a slash at the end), and where its header lies. ``mtime`` in seconds since 1970."""

    name: bytes
    kind: Kind
    size: int
    link: bytes
    mode: int
    mtime: int
    offset: int


class TarReader:
    """``next()`` gives one member after the other, ``readinto`` the last one's content; ``offset`` is what was read.

    Raises Damaged for anything that is no whole archive, saying where it ends and what is missing.
    """

    def __init__(self, source: Source) -> None:
        self.offset = 0
        self._source = source
        self._left = self._padding = 0
        self._member: TarMember | None = None
        self._ended = False
        self._scratch = memoryview(bytearray(_PIECE))
        self._defaults: dict[bytes, bytes] = {}

    def next(self) -> TarMember | None:
        """Return the next member, None when the archive has ended as it should. Raises Damaged."""
        if self._ended:
            return None
        self._skip()
        records = dict(self._defaults)
        while True:
            at = self.offset
            block = self._block()
            if block == bytes(_BLOCK):
                if records != self._defaults:
                    self._wrong("a tar archive ends between a long name and its member", at)
                self._end(at)
                return None
            if not is_header(block):
                self._wrong("a tar header's checksum is wrong" if at else "this is no tar archive", at)
            flag = block[156:157]
            size = self._number(block, 124, 12, at)
            if flag not in {_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL}:
                break
            if size > _LONGEST:
                self._wrong("a tar header announces a name that is too long", at)
            data = self._exactly(size, "a long name", at)
            self._exactly(-size % _BLOCK, "a long name", at)
            if flag == _LONG_NAME:
                records[b"path"] = data.rstrip(b"\0")
            elif flag == _LONG_LINK:
                records[b"linkpath"] = data.rstrip(b"\0")
            elif flag == _PAX_GLOBAL:
                self._defaults |= self._records(data, at)
                records |= self._records(data, at)
            else:
                records |= self._records(data, at)
        more = flag == _SPARSE and block[_SPARSE_MORE]
        while more:  # the rest of the map of an old GNU sparse file, which its size does not count
            more = self._exactly(_BLOCK, "the map of a sparse file", at)[_SPARSE_MORE_NEXT]
        member = self._made(block, flag, size, records, at)
        self._member = member
        self._left = member.size if member.kind in {"file", "other"} else 0
        self._padding = -self._left % _BLOCK
        return member

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer's beginning with the current member's content; 0 at its end. Raises Damaged if it is cut."""
        if not self._left or not len(buffer):
            return 0
        count = self._source.readinto(buffer[: self._left])
        if not count:
            assert self._member is not None
            name = self._member.name
            self._wrong(
                f"the archive ends inside the member {name.decode('utf-8', 'backslashreplace')!r}: "
                f"{self._left} of {self._member.size} bytes are missing",
                self.offset,
            )
        self.offset += count
        self._left -= count
        return count

    def _made(self, block: bytes, flag: bytes, size: int, records: dict[bytes, bytes], at: int) -> TarMember:
        name = block[:100].split(b"\0", 1)[0]
        if block[257:263] == b"ustar\0" and (prefix := block[345:500].split(b"\0", 1)[0]):
            name = prefix + b"/" + name
        name = records.get(b"path", name)
        link = records.get(b"linkpath", block[157:257].split(b"\0", 1)[0])
        if b"size" in records:
            if not records[b"size"].isdigit() or len(records[b"size"]) > 20:
                self._wrong("a tar header's size is no number", at)
            size = int(records[b"size"])
        if size >= 1 << 62:
            self._wrong("a tar header's size is no size", at)
        kind = _KINDS.get(flag, "other")
        if any(record.startswith(b"GNU.sparse.") for record in records):
            kind = "other"
        if kind == "file" and name.endswith(b"/"):
            kind = "directory"  # as before there was a flag for it
        return TarMember(
            name.rstrip(b"/") or name,
            kind,
            size,
            link if kind in {"symlink", "hardlink"} else b"",
            self._number(block, 100, 8, at) & 0o7777,
            self._number(block, 136, 12, at),
            at,
        )

    def _records(self, data: bytes, at: int) -> dict[bytes, bytes]:
        found = {}
        while data:
            length, space, _ = data.partition(b" ")
            if (
                not space
                or not length.isdigit()
                or len(length) > 8
                or not len(length) + 2 < int(length) <= len(data)
            ):
                self._wrong("a tar archive has pax records that are none", at)
            name, equals, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
            if not equals or data[int(length) - 1 : int(length)] != b"\n":
                self._wrong("a tar archive has pax records that are none", at)
            found[name] = value
            data = data[int(length) :]
        return found

    def _skip(self) -> None:
        while self._left:
            self.readinto(self._scratch)
        self._exactly(self._padding, "the padding of a member", self.offset)
        self._padding = 0

    def _end(self, at: int) -> None:
        """Read the second block of zeros, and the zeros that may follow."""
        if self._block() != bytes(_BLOCK):
            self._wrong("a tar archive goes on after a block of zeros", at)
        while count := self._source.readinto(self._scratch):
            if self._scratch[:count] != memoryview(bytes(count)):
                self._wrong("something follows the end of the tar archive", self.offset)
            self.offset += count
        self._ended = True

    def _block(self) -> bytes:
        return self._exactly(
            _BLOCK,
            "the end of the archive (two blocks of zeros)" if self.offset else "all of it",
            self.offset,
        )

    def _exactly(self, size: int, what: str, at: int) -> bytes:
        buffer = memoryview(bytearray(size))
        done = 0
        while done < size:
            count = self._source.readinto(buffer[done:])
            if not count:
                self._wrong(f"the tar archive ends at byte {self.offset}, and lacks {what}", at)
            done += count
            self.offset += count
        return bytes(buffer)

    def _number(self, block: bytes, begin: int, length: int, at: int) -> int:
        field = block[begin : begin + length]
        if field[0] in {0x80, 0xFF}:
            value = (
                int.from_bytes(field, "big", signed=True)
                if field[0] == 0xFF
                else int.from_bytes(field[1:], "big")
            )
            if begin == 124 and not 0 <= value < 1 << 62:
                self._wrong("a tar header's size is no number", at)
            return value
        text = field.strip(b" \0")
        if not text:
            return 0
        if not text.isdigit() or b"8" in text or b"9" in text:
            self._wrong("this is no tar header: a number in it is none", at)
        return int(text, 8)

    def _wrong(self, message: str, at: int) -> NoReturn:
        raise Damaged(message, rung="structure", offset=at)


def is_header(block: bytes) -> bool:
    """Return True if 512 bytes are a tar header, by their checksum (signed or not: old writers differed)."""
    field = block[148:156].strip(b" \0")
    if not field or len(field) > 8 or field.strip(b"01234567"):
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    return int(field, 8) in {sum(rest), sum(byte - 256 if byte > 127 else byte for byte in rest)}
