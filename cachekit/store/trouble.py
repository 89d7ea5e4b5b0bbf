"""What an error of the store's filesystem means to people."""

from __future__ import annotations

import contextlib
import errno
import os

from cachekit.errors import CachekitError, NoSpace, StoreUnavailable
from cachekit.store import layout
from cachekit.system.space import FreeSpace, free_space

__all__ = ["explain", "free"]


def explain(error: OSError, what: str, path: str) -> CachekitError:
    """Return the error of cachekit's that an OSError of the store at ``path`` means."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        space = free(path)
        full = "is full (a quota)" if error.errno == errno.EDQUOT else "is full"
        if space is not None and space.inodes == 0:
            full = "has no inodes left: it can hold no more files"
        return NoSpace(
            f"the store's filesystem {full}: {error.strerror}",
            path=path,
            have=space.available if space else None,
            errno=error.errno,
        )
    if isinstance(error, layout.MisplacedPart):
        return StoreUnavailable(
            f"cannot {what} the store: what should be a directory of it is a link, or a file",
            path=error.filename,
            errno=error.errno,
            hint="cachekit makes no links there: find out who did before removing it",
        )
    hint = "check that the directory exists and that you may write to it, or choose another with --store"
    return StoreUnavailable(
        f"cannot {what} the store: {error.strerror}", path=path, errno=error.errno, hint=hint
    )


def free(path: str) -> FreeSpace | None:
    """Return the free space of the filesystem of a store that may not be there yet, None if it cannot be asked."""
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    with contextlib.suppress(OSError):
        return free_space(path or "/")
    return None
