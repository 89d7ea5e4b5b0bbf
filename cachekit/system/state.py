"""Where this user's own notes lie: unfinished restores, target locks, entries refused on a read-only store."""

from __future__ import annotations

import os

__all__ = ["state_directory"]


def state_directory() -> str:
    """Return $CACHEKIT_STATE_DIR, else ``cachekit`` below $XDG_STATE_HOME or ``~/.local/state``; it may not exist."""
    chosen = os.environ.get("CACHEKIT_STATE_DIR")
    if chosen:
        return os.path.abspath(chosen)
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "cachekit")
