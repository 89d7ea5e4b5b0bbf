"""What follows the data frames of every entry: the frame that ends the tar, index, seal and seek table."""

from __future__ import annotations

import hashlib
from typing import Protocol

from cachekit.archive import seal as sealing
from cachekit.archive.format import DIRECTORY, FILE, HARDLINK, INDEX_MAGIC, SYMLINK, TAR_END
from cachekit.archive.index import Index, compress_index
from cachekit.archive.pack import compressor
from cachekit.archive.read import Archive
from cachekit.archive.seal import Seal
from cachekit.trust import Trust

__all__ = ["Output", "write_tail"]


class Output(Protocol):
    """Where an entry is written: a file that is not yet visible to anybody."""

    fd: int

    def write(self, data: bytes, offset: int) -> None:
        """Write all of ``data`` or raise OSError."""
        ...

    def finish(self, size: int) -> None:
        """Cut at ``size`` and make durable, or raise OSError."""
        ...


def write_tail(
    index: Index,
    seal: Seal,
    output: Output,
    position: int,
    *,
    level: int,
    trust: Trust,
    base: Archive | None = None,
) -> tuple[int, bytes]:
    """Write all that follows the data frames, which end at ``position``; fill in what the seal says of them.

    ``seal`` has what does not depend on the bytes written. The index of ``base`` is taken over if it says the same.
    Return the length of the entry and the index as it is in it. Raises OSError of the output.
    """
    end = compressor(level).compress(TAR_END)
    output.write(end, position)
    position += len(end)
    index.frame_sizes.append(len(end))
    index.raw_sizes.append(len(TAR_END))
    index.frame_digests += hashlib.sha256(end).digest()
    if base is not None and index.same_as(base.index):
        packed, raw_bytes = base.packed_index, base.seal.index_raw_bytes
    else:
        packed, raw_bytes = compress_index(index)
    seal.data_bytes = position
    frame = sealing.skippable(INDEX_MAGIC, packed)
    output.write(frame, position)
    position += len(frame)
    seal.sealed_bytes = position
    seal.index_raw_bytes = raw_bytes
    seal.index_sha256 = hashlib.sha256(packed).hexdigest()
    seal.frames = index.frame_count
    seal.members = len(index)
    seal.tar_bytes = sum(index.raw_sizes)
    seal.content_bytes = index.content_bytes()
    seal.counts = {
        "files": index.count(FILE),
        "directories": index.count(DIRECTORY),
        "symlinks": index.count(SYMLINK),
        "hardlinks": index.count(HARDLINK),
    }
    seal.features = (["image"] if seal.images is not None else []) + (["sparse"] if index.sparse else [])
    tail = sealing.encode(seal, trust) + sealing.seek_table(
        zip(index.frame_sizes, index.raw_sizes, strict=True)
    )
    output.write(tail, position)
    return position + len(tail), packed
