"""Where a file has data and where holes, by SEEK_DATA and SEEK_HOLE (lseek(2))."""

from __future__ import annotations

import errno
import os

from cachekit.archive.index import Segments

__all__ = ["SPARSE_MINIMUM", "find_segments", "segments_of"]

#: A file must be longer than this to be looked at for holes: ext4 and btrfs keep tiny files without any block.
SPARSE_MINIMUM = 4096


def segments_of(name: bytes, dir_fd: int, size: int) -> Segments | None:
    """Return the data regions if the file has holes, None if it has none or cannot be asked."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
    except OSError:
        return None  # the packer meets the same error and reports it
    try:
        return find_segments(fd, size)
    except OSError:
        return None
    finally:
        os.close(fd)


def find_segments(fd: int, size: int) -> Segments | None:
    """Return a file's data regions by SEEK_DATA and SEEK_HOLE, None if it is one region from 0 to its end.

    A file that ends in a hole gets a last, empty region at its end, as GNU tar writes it.
    """
    segments: Segments = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind position
                break
            raise
        if start >= size:
            break
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        segments.append((start, end - start))
        position = end
    if segments == [(0, size)]:
        return None
    if not segments or sum(segments[-1]) < size:
        segments.append((size, 0))
    return segments
