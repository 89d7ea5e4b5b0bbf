"""A private directory for a while: for what is shown or measured, never for what goes into a store or a target."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from cachekit.system.files import remove_tree

__all__ = ["scratch_directory"]


@contextlib.contextmanager
def scratch_directory(label: str, *, keep: bool = False) -> Iterator[str]:
    """Make a directory that only this user may enter, below $TMPDIR; remove it afterwards unless ``keep``.

    The path has its links resolved. Raises OSError.
    """
    path = os.path.realpath(tempfile.mkdtemp(prefix=f"cachekit-{label}-"))
    try:
        yield path
    finally:
        if not keep:
            remove_tree(os.fsencode(path))
