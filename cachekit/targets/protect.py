"""Which targets may never be replaced as a whole. Pure but for looking at what is there."""

from __future__ import annotations

import os
from collections.abc import Collection

__all__ = ["merge_only", "mounted_in"]


def mounted_in(target: bytes, mounts: Collection[bytes]) -> list[bytes]:
    """Return the paths, relative to the target, at which something is mounted below it."""
    below = target.rstrip(b"/") + b"/"
    return [point[len(below) :] for point in mounts if point.startswith(below) and point != below]


def merge_only(
    target: bytes, *, root: bytes, home: bytes, here: bytes, mounts: Collection[bytes] = ()
) -> str | None:
    """Return why the target is only ever merged, or None if it may be replaced.

    A target that is or contains the root, the home directory, ``/``, a ``.git`` or the current directory holds things
    that no cache entry knows of; what is mounted in it would be moved away with it. All paths absolute, with links
    resolved.
    """
    for name, place in (("the root", root), ("the home directory", home), ("the current directory", here)):
        if place and (target in {place, b"/"} or place.startswith(target + b"/")):
            return f"it is or contains {name}" if target != b"/" else "it is /"
    if os.path.basename(target) == b".git" or os.path.lexists(os.path.join(target, b".git")):
        return "it is or contains a .git"
    if mounted_in(target, mounts):
        return "something is mounted in it"
    return None
