"""Compressed files as a stream of what they hold: each ends where its format says that it ends, or is refused.

Of each format all that it promises is checked: gzip the CRC and length of every member (RFC 1952), bzip2 the CRC of
every block and of the whole, xz the check of every block and the index, zstd that every frame ends, and its checksum if
it has one (RFC 8878). Files may be put one behind the other, as their tools allow. What is decompressed is handed on
and not kept, in pieces of bounded size.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from cachekit.errors import Damaged, Unsupported
from cachekit.formats.detect import FileKind, detect, is_skippable
from cachekit.formats.tar import Source

__all__ = ["PACKED", "unpacked"]

#: Formats that hold one stream of bytes.
PACKED: frozenset[FileKind] = frozenset({"gzip", "zstd", "xz", "bzip2"})

_PIECE = 1 << 20
_INPUT = 256 << 10
#: zstd's decoder hands out all that an input gives, twice for a moment: 2 KiB can be 64 MiB at most (RFC 8878: a block
#: of 3 + 1 bytes gives 128 KiB), and are some hundred KB of what people have.
_ZSTD_INPUT = 2 << 10
#: xz -9 needs 65 MiB; what asks for more than this was made to be a burden. (zstd's own limit is 128 MiB.)
_XZ_MEMORY = 512 << 20
_SKIPPABLE = struct.Struct("<II")


class _Decoder(Protocol):
    """One stream of a file: takes input, gives output; knows its end, and what came behind that."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused(self) -> bytes: ...

    def feed(self, data: bytes) -> bytes:
        """Return some of what the input gives; with an empty input more of what was fed before. Raises ValueError."""
        ...

    @property
    def hungry(self) -> bool:
        """True if there is nothing more without further input."""
        ...


class _Zlib:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused(self) -> bytes:
        return self._inner.unused_data

    @property
    def hungry(self) -> bool:
        return not self._inner.unconsumed_tail

    def feed(self, data: bytes) -> bytes:
        try:
            return self._inner.decompress(self._inner.unconsumed_tail + data, _PIECE)
        except zlib.error as error:
            raise ValueError(str(error)) from None


class _Library:
    """bz2 and lzma, which have one interface."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._inner = make()

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused(self) -> bytes:
        found: bytes = self._inner.unused_data
        return found

    @property
    def hungry(self) -> bool:
        return bool(self._inner.needs_input)

    def feed(self, data: bytes) -> bytes:
        try:
            found: bytes = self._inner.decompress(data, _PIECE)
        except (lzma.LZMAError, OSError) as error:
            if "Memory usage limit" in str(error):
                raise _too_large("xz") from None
            raise ValueError(str(error)) from None
        return found


class _Zstd:
    """A frame, or one that is to be skipped."""

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise Unsupported(
                "this is a zstd file, and the Python package zstandard is not here to check it",
                hint="pip install zstandard",
            ) from None
        self._error: Any = zstandard.ZstdError
        self._inner = zstandard.ZstdDecompressor().decompressobj()
        self._head: bytes | None = b""
        self._skip = 0
        self.eof = False
        self.unused = b""
        self.hungry = True

    def feed(self, data: bytes) -> bytes:
        if self._head is not None:
            data = self._head + data
            if len(data) < _SKIPPABLE.size:
                self._head = data
                return b""
            self._head = None
            if is_skippable(data):
                self._skip = _SKIPPABLE.size + _SKIPPABLE.unpack_from(data)[1]
        if self._skip:
            if len(data) < self._skip:
                self._skip -= len(data)
                return b""
            self.eof, self.unused = True, data[self._skip :]
            return b""
        try:
            found: bytes = self._inner.decompress(data)
        except self._error as error:
            if "too much memory" in str(error):
                raise Unsupported(
                    "the zstd file was made with a window of more than 128 MiB, and is not decompressed here",
                    hint="make it without --long=28 and above",
                ) from None
            raise ValueError(str(error)) from None
        self.eof, self.unused = self._inner.eof, self._inner.unused_data
        return found


def _too_large(kind: str) -> Unsupported:
    return Unsupported(
        f"the {kind} file needs more memory to be read than is spent on one",
        hint="compress it with a smaller window, or check it with the tool that made it",
    )


_MAKE: dict[FileKind, Callable[[], _Decoder]] = {
    "gzip": _Zlib,
    "xz": lambda: _Library(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)),
    "bzip2": lambda: _Library(bz2.BZ2Decompressor),
    "zstd": _Zstd,
}

#: What may fill a file up behind its last stream, by the tools' own manuals: zeros, for xz in groups of four.
_PADDED: dict[FileKind, int] = {"gzip": 1, "xz": 4}


class unpacked:  # noqa: N801 - used like a function, as ``open`` is
    """What a compressed source holds, as a source. Raises Damaged, Unsupported while it is read.

    ``streams`` counts those that have ended, ``offset`` the bytes of content so far.
    """

    def __init__(self, source: Source, kind: FileKind) -> None:
        self.streams = self.offset = 0
        self._kind, self._source, self._make = kind, source, _MAKE[kind]
        self._decoder: _Decoder | None = None
        self._input = memoryview(bytearray(_ZSTD_INPUT if kind == "zstd" else _INPUT))
        self._unused = b""
        self._output = memoryview(b"")
        self._read = 0
        self._ended = False

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer's beginning; 0 at the end of a whole file."""
        while not self._output and not self._ended:
            self._output = memoryview(self._more())
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        self.offset += count
        return count

    def _more(self) -> bytes:
        decoder = self._decoder
        if decoder is None:
            data = self._take()
            if self.streams:
                data = self._behind(data)
            if not data:
                self._ended = True
                return b""
            decoder = self._decoder = self._make()
        else:
            data = self._take() if decoder.hungry else b""
            if not data and decoder.hungry:
                self._wrong(f"it ends at byte {self._read}, in the middle of what it holds")
        try:
            output = decoder.feed(data)
        except (ValueError, EOFError) as error:
            self._wrong(str(error))
        if decoder.eof:
            self.streams += 1
            self._unused, self._decoder = decoder.unused, None
        return output

    def _behind(self, data: bytes) -> bytes:
        """Return what begins behind an ended stream: nothing, or another one. Raises Damaged for anything else."""
        unit, zeros = _PADDED.get(self._kind, 0), 0
        while unit and data[:1] in {b"", b"\0"}:
            rest = data.lstrip(b"\0")
            zeros += len(data) - len(rest)
            data = rest or self._take()
            if not data:
                break
        if unit and zeros % unit:
            self._wrong("zeros follow it that are no padding")
        while data and len(data) < 6 and (more := self._take()):
            data += more
        if data and detect(data) != self._kind:
            self._wrong("something else follows its end")
        return data

    def _take(self) -> bytes:
        if self._unused:
            data, self._unused = self._unused, b""
            return data
        count = self._source.readinto(self._input)
        self._read += count
        return bytes(self._input[:count])

    def _wrong(self, reason: str) -> NoReturn:
        raise Damaged(f"the {self._kind} file is damaged: {reason}", rung="structure", offset=self._read)
