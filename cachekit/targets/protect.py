"""Which targets may never be replaced as a whole. Pure but for looking at what is there."""

from __future__ import annotations

import os

__all__ = ["merge_only"]


def merge_only(target: bytes, *, root: bytes, home: bytes, here: bytes) -> str | None:
    """Return why the target is only ever merged, or None if it may be replaced.

    A target that is or contains the root, the home directory, ``/``, a ``.git`` or the current directory holds things
    that no cache entry knows of. All paths absolute, with links resolved.
    """
    for name, place in (("the root", root), ("the home directory", home), ("the current directory", here)):
        if place and (target in {place, b"/"} or place.startswith(target + b"/")):
            return f"it is or contains {name}" if target != b"/" else "it is /"
    if os.path.basename(target) == b".git" or os.path.lexists(os.path.join(target, b".git")):
        return "it is or contains a .git"
    return None
