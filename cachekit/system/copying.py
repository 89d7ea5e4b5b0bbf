"""Copying a file's bytes between two descriptors: by the kernel where it can, every byte accounted for."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from cachekit.system.files import pwrite_all

__all__ = ["copy_bytes"]

_PIECE = 16 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT}


def copy_bytes(
    source: int,
    target: int,
    size: int,
    read: Callable[[int, int], bytes],
    progress: Callable[[int, int, int], None] | None = None,
) -> None:
    """Copy the first ``size`` bytes of ``source`` to the beginning of ``target``.

    What the kernel cannot copy is read with ``read(size, offset)``, which gives all of it or raises; so its errors are
    those of the source, and an OSError is one of the target. ``progress`` gets (done, total, 0).
    """
    done = 0
    by_kernel = hasattr(os, "copy_file_range")
    while done < size:
        count = min(_PIECE, size - done)
        if by_kernel:
            try:
                count = os.copy_file_range(source, target, count, done, done)
            except OSError as error:
                if error.errno in _FULL:
                    raise
                count = 0  # it cannot, or one side fails: the slow way tells which
            by_kernel = count > 0
        if not by_kernel:
            count = min(_PIECE, size - done)
            pwrite_all(target, read(count, done), done)
        done += count
        if progress is not None:
            progress(done, size, 0)
