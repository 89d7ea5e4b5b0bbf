"""Zip files: the central directory, every member's CRC, and nothing that it does not explain (APPNOTE 6.3.10)."""

from __future__ import annotations

import errno
import lzma
import os
import struct
import sys
import zipfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from cachekit.errors import Damaged, Unsupported

__all__ = ["ZipSummary", "check_zip"]

_PIECE = 1 << 20
#: zipfile hands out all that as much compressed input gives, for bzip2, LZMA and zstd: 4 KiB give 128 MiB at most.
_PIECE_UNBOUNDED = 4 << 10
#: The end record without its comment.
_END = 22
_SIGNATURE = b"PK\x05\x06"
_ENCRYPTED = 1
_LOCAL_HEADER = 30


@dataclass(frozen=True, slots=True)
class ZipSummary:
    """How many members there are, the bytes in them, and how many are encrypted: their contents are unchecked."""

    members: int
    content_bytes: int
    encrypted: int


def check_zip(file: BinaryIO) -> ZipSummary:
    """Read a whole zip file. Raises Damaged, Unsupported for a method of compression that Python does not have."""
    size = os.fstat(file.fileno()).st_size
    try:
        with zipfile.ZipFile(file) as archive:
            return _checked(archive, file, size)
    except _refusals() as error:
        if isinstance(error, OSError) and error.errno not in {None, errno.EINVAL}:  # EINVAL: a seek before 0
            raise
        if isinstance(error, _zstd_errors()) and "too much memory" in str(error):
            raise _not_here(error) from None
        # zipfile's words for a file without an end record.
        lacks = str(error) == "File is not a zip file"
        why = f"it ends at byte {size}, and lacks its directory" if lacks else str(error)
        raise Damaged(f"the zip file is damaged: {why}", rung="structure", found=size) from None
    except (NotImplementedError, RuntimeError) as error:
        raise _not_here(error) from None


def _not_here(error: Exception) -> Unsupported:
    return Unsupported(
        f"the zip file cannot be checked here: {error}",
        rung="structure",
        hint="check it with the tool that made it",
    )


def _refusals() -> tuple[type[Exception], ...]:
    """Return all that zipfile and its decoders raise about what they are given."""
    return (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        struct.error,
        EOFError,
        OSError,
        ValueError,
        OverflowError,
        *_zstd_errors(),
    )


def _zstd_errors() -> tuple[type[Exception], ...]:
    """Return what zstd raises: zipfile reads such members since Python 3.14, and has the module loaded then."""
    zstd = sys.modules.get("compression.zstd")
    return (zstd.ZstdError,) if zstd else ()


def _side_by_side(members: list[zipfile.ZipInfo], end: int) -> None:
    """Refuse members that overlap or are cut, before one is opened: newer zipfiles print a warning then."""
    position = 0
    for info in members:
        # zipfile moves all offsets by what lies before the archive: a program in front is something that it hides.
        if info.header_offset < position:
            raise Damaged("two members of the zip file overlap", path=info.filename, rung="structure")
        if info.header_offset > position and not position:
            raise Damaged(
                "something lies before the first member of the zip file", rung="structure", offset=0
            )
        position = info.header_offset + _LOCAL_HEADER + info.compress_size
        if position > end:
            raise Damaged("a member of the zip file is cut", path=info.filename, rung="structure")


def _checked(archive: zipfile.ZipFile, file: BinaryIO, size: int) -> ZipSummary:
    members = sorted(archive.infolist(), key=lambda one: one.header_offset)
    end = archive.start_dir
    if not members and size != _END + len(archive.comment):
        raise Damaged("the zip file has no members, and something else", rung="structure", found=size)
    _side_by_side(members, end)
    content = encrypted = 0
    for info in members:
        if info.flag_bits & _ENCRYPTED:
            encrypted += 1
            continue
        bounded = info.compress_type in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
        piece = _PIECE if bounded else _PIECE_UNBOUNDED
        with archive.open(info) as member:
            while data := member.read(piece):
                content += len(data)
        if content > 1 << 62:
            raise Damaged("the zip file holds more than there is", rung="structure")
    # zipfile looks for the end record wherever it may be.
    last = size - _END - len(archive.comment)
    file.seek(max(0, last))
    record = file.read(_END)
    if record.startswith(_SIGNATURE) and record[-2:] != len(archive.comment).to_bytes(2, "little"):
        raise Damaged("the zip file ends inside its comment", rung="structure", found=size)
    if last < end or not record.startswith(_SIGNATURE):
        raise Damaged("something follows the end of the zip file", rung="structure", offset=last)
    # In 16 bits, also where there are more and the record of zip64 has the full number.
    counted = int.from_bytes(record[10:12], "little")
    if counted not in {0xFFFF, len(members) & 0xFFFF}:
        raise Damaged(
            f"the directory of the zip file has {len(members)} of {counted} members", rung="structure"
        )
    return ZipSummary(len(members), content, encrypted)
