"""Reading an entry: the first two rungs of the ladder (seal, index), and single frames.

Everything goes through one descriptor that was opened once, with pread: the file is never mapped (a truncation by
somebody else would be SIGBUS), and a frame is decoded from the very buffer whose digest was just checked.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import threading
from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Self

from cachekit.archive import seal as sealing
from cachekit.archive.format import (
    FRAME_LIMIT,
    INDEX_MAGIC,
    SKIPPABLE_HEADER,
)
from cachekit.archive.index import Index, decode
from cachekit.archive.seal import Seal
from cachekit.errors import Damaged, Refused, Unreadable
from cachekit.system.files import pread_exactly
from cachekit.trust import Signed, Trust

__all__ = ["Archive", "decode_frame", "open_archive", "read_errors"]

#: What a filesystem says when it fails, not when the file is wrong.
_TROUBLE = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENODEV,
    errno.ENXIO,
    errno.EREMOTEIO,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
}

#: How often one name may be replaced between the kernel's look at it and its opening.
_STALE_TRIES = 20


@contextlib.contextmanager
def read_errors(path: str | bytes) -> Iterator[None]:
    """Turn the filesystem's errors while reading ``path`` into Unreadable."""
    try:
        yield
    except OSError as error:
        if error.errno not in _TROUBLE:
            raise
        raise Unreadable(f"cannot read the archive: {error.strerror}", path=path, errno=error.errno) from None


class Archive:
    """One opened entry file. Use as a context manager; the descriptor is ``fd``.

    Nothing is checked by opening. ``seal`` and ``index`` check what they read, once; nothing but the tail is readable
    of an entry that ``trust`` refuses, since all else is reached through ``seal``.
    """

    def __init__(self, path: bytes, fd: int, trust: Trust) -> None:
        self.path = path
        self.fd = fd
        self.trust = trust
        info = os.fstat(fd)
        self.size = info.st_size
        self.identity = (info.st_dev, info.st_ino)
        #: Everybody on the machine may change the file.
        self.open_to_all = bool(info.st_mode & stat.S_IWOTH)
        if not stat.S_ISREG(info.st_mode):
            raise Damaged("this is no regular file", path=path, rung="seal")
        self._seal: Seal | None = None
        self._signed: Signed | None = None
        self._tail: sealing.Tail | None = None
        self._index: Index | None = None
        self._packed_index = b""
        #: Set when the rules for members (``check.check_members``) are known to hold.
        self.members_checked = False
        self._offsets: array[int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def read(self, size: int, offset: int) -> bytes:
        """Return exactly ``size`` bytes. Raises Damaged if the file ends before, Unreadable if reading fails."""
        with read_errors(self.path):
            data = pread_exactly(self.fd, size, offset)
        if len(data) != size:
            raise Damaged(
                "the file became shorter while it was read",
                path=self.path,
                rung="seal",
                expected=offset + size,
                found=offset + len(data),
            )
        return data

    @property
    def seal(self) -> Seal:
        """The seal, checked: digest, structure, that it lies where it says, and who signed it. Costs the same for any
        file size.

        Raises Damaged or Unsupported; Forged or Untrusted for what ``trust`` refuses.
        """
        if self._seal is None:
            with _about(self.path):
                tail = sealing.parse_tail(self.size, self.read)
                # Before it is even parsed: what a stranger wrote is not worth a parser's bug.
                signed = self.trust.check(tail.json, tail.signatures)
                seal = sealing.decode_json(tail.json)
                if seal.sealed_bytes != tail.seal_offset:
                    raise Damaged(
                        "the file is not as long as its seal says",
                        rung="seal",
                        expected=seal.sealed_bytes,
                        found=tail.seal_offset,
                    )
                if seal.frames != tail.frames:
                    raise Damaged(
                        "seal and seek table count different frames",
                        rung="seal",
                        expected=seal.frames,
                        found=tail.frames,
                    )
                if not 0 < seal.data_bytes < seal.sealed_bytes - SKIPPABLE_HEADER.size:
                    raise Damaged("the seal's sizes contradict each other", rung="seal")
            self._seal, self._tail, self._signed = seal, tail, signed
        return self._seal

    def file_as(self, key: str, family: str, created_ns: int) -> None:
        """Take the entry for that of another key, which an alias says it is; its identity stays."""
        self._seal = replace(self.seal, key=key, family=family, created_ns=created_ns)

    @property
    def signed(self) -> Signed:
        """By whom the entry was signed, as far as ``trust`` can tell. Raises as ``seal`` does."""
        _ = self.seal
        assert self._signed is not None
        return self._signed

    @property
    def index(self) -> Index:
        """The index, checked: digest, structure, agreement with seal and seek table. Raises Damaged."""
        if self._index is None:
            seal = self.seal
            with _about(self.path):
                self._index = self._read_index(seal)
        return self._index

    @property
    def packed_index(self) -> bytes:
        """The index as it lies in the entry, checked as ``index`` is. Raises Damaged."""
        _ = self.index
        return self._packed_index

    def _read_index(self, seal: Seal) -> Index:
        import zstandard

        length = seal.sealed_bytes - seal.data_bytes
        if length > _most_compressed(seal.index_raw_bytes):
            raise Damaged("the index is longer than what it holds", rung="index", offset=seal.data_bytes)
        frame = self.read(length, seal.data_bytes)
        size = len(frame) - SKIPPABLE_HEADER.size
        if SKIPPABLE_HEADER.unpack_from(frame) != (INDEX_MAGIC, size):
            raise Damaged(
                "the index does not begin where the seal says", rung="index", offset=seal.data_bytes
            )
        packed = memoryview(frame)[SKIPPABLE_HEADER.size :]
        found = hashlib.sha256(packed).hexdigest()
        if found != seal.index_sha256:
            raise Damaged(
                "the index's digest is wrong",
                rung="index",
                expected=seal.index_sha256,
                found=found,
                offset=seal.data_bytes,
            )
        raw = decompress(zstandard.ZstdDecompressor(), packed, seal.index_raw_bytes, "index")
        index = decode(raw)
        self._packed_index = bytes(packed)
        if len(index) != seal.members or index.frame_count != seal.frames:
            raise Damaged(
                "seal and index count different members or frames",
                rung="index",
                expected=[seal.members, seal.frames],
                found=[len(index), index.frame_count],
            )
        if sum(index.frame_sizes) != seal.data_bytes or sum(index.raw_sizes) != seal.tar_bytes:
            raise Damaged(
                "the index's frame sizes do not add up to the seal's",
                rung="index",
                expected=[seal.data_bytes, seal.tar_bytes],
                found=[sum(index.frame_sizes), sum(index.raw_sizes)],
            )
        if index.raw_sizes and max(index.raw_sizes) > FRAME_LIMIT:
            raise Damaged(
                "a frame claims to decompress to more than a frame may",
                rung="index",
                expected=FRAME_LIMIT,
                found=max(index.raw_sizes),
            )
        if any(a > _most_compressed(b) for a, b in zip(index.frame_sizes, index.raw_sizes, strict=True)):
            raise Damaged("a frame is longer than what it holds", rung="index")
        table = sealing.seek_table(zip(index.frame_sizes, index.raw_sizes, strict=True))
        assert self._tail is not None
        offset = self._tail.seek_table_offset
        if self.read(self.size - offset, offset) != table:
            raise Damaged("the seek table is not the one that the index implies", rung="index", offset=offset)
        return index

    def frame(self, number: int) -> bytes:
        """Return the compressed bytes of a data frame, its sha256 checked. Raises Damaged naming the frame."""
        index = self.index
        if self._offsets is None:
            self._offsets = index.frame_offsets()
        offset = self._offsets[number]
        data = self.read(index.frame_sizes[number], offset)
        found = hashlib.sha256(data).digest()
        expected = index.frame_digest(number)
        if found != expected:
            raise Damaged(
                f"frame {number} of {index.frame_count} is damaged",
                path=self.path,
                rung="frames",
                frame=number,
                offset=offset,
                expected=expected.hex(),
                found=found.hex(),
            )
        return data


def _most_compressed(size: int) -> int:
    """Return what ``size`` bytes take at most when compressed: a longer frame would fill memory first."""
    return size + (size >> 7) + 1024


def decompress(decompressor: object, data: bytes | memoryview, size: int, rung: str) -> bytes:
    """Return the content of exactly one zstd frame of known size. Raises Damaged for anything else.

    One-shot on purpose: the streaming readers of ``zstandard`` end silently on a cut frame. The size in the frame's
    header is compared first, so that no more than ``size`` bytes are ever allocated.
    """
    import zstandard

    try:
        parameters = zstandard.get_frame_parameters(data)
        if parameters.content_size != size or not parameters.has_checksum:
            raise Damaged(
                f"a zstd frame of the {rung} does not hold what the entry says",
                rung=rung,
                expected=size,
                found=parameters.content_size if parameters.content_size < 1 << 62 else "no size",
            )
        if size == 0:
            return b""
        result: bytes = decompressor.decompress(data, allow_extra_data=False)  # type: ignore[attr-defined]
    except zstandard.ZstdError as error:
        raise Damaged(f"a zstd frame of the {rung} cannot be decoded: {error}", rung=rung) from None
    return result


def decode_frame(archive: Archive, number: int, here: threading.local) -> bytes:
    """Return the content of a data frame, decoded from the bytes whose digest was just checked. Raises Damaged.

    For threads: ``here`` keeps each one's decoder.
    """
    import zstandard

    if not hasattr(here, "decompressor"):
        here.decompressor = zstandard.ZstdDecompressor()
    return decompress(here.decompressor, archive.frame(number), archive.index.raw_sizes[number], "frames")


@contextlib.contextmanager
def _about(path: bytes) -> Iterator[None]:
    """Say of every refusal which file it is about."""
    try:
        yield
    except Refused as error:
        if error.path is None:
            error.path = path
        raise


def _opened(path: bytes, flags: int) -> int:
    """Open a name that others may replace meanwhile: NFS and FUSE then say ESTALE, a new look finds the new file."""
    for _ in range(_STALE_TRIES):
        try:
            return os.open(path, flags)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return os.open(path, flags)


@contextlib.contextmanager
def open_archive(path: bytes, trust: Trust, *, follow: bool = False) -> Iterator[Archive]:
    """Open the file at ``path`` for reading, by the policy ``trust`` (``trust.ANYONE`` takes any whole entry).

    A link is followed only with ``follow``, which is for files that people name: in a store only an attacker makes one.
    Raises FileNotFoundError, Unreadable, or Damaged for what is no file.
    """
    # O_NONBLOCK: a fifo named like an entry must not make us wait.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    try:
        fd = _opened(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        if (error.errno == errno.ELOOP and not follow) or error.errno == errno.ENXIO:
            raise Damaged("this is no regular file", path=path, rung="seal") from None
        raise Unreadable(f"cannot open the archive: {error.strerror}", path=path, errno=error.errno) from None
    try:
        archive = Archive(path, fd, trust)
    except BaseException:
        os.close(fd)
        raise
    with archive:
        yield archive
