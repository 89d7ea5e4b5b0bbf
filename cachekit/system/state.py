"""Where this user's own notes lie: unfinished restores, target locks, entries refused on a read-only store."""

from __future__ import annotations

import os

from cachekit.system.files import open_directory

__all__ = ["make_as_owner", "state_directory"]


def state_directory() -> str:
    """Return $CACHEKIT_STATE_DIR, else ``cachekit`` below $XDG_STATE_HOME or ``~/.local/state``; it may not exist."""
    chosen = os.environ.get("CACHEKIT_STATE_DIR")
    if chosen:
        return os.path.abspath(chosen)
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "cachekit")


def make_as_owner(path: str, mode: int = 0o700) -> None:
    """Make a directory and what is missing above, each with ``mode``. Raises OSError.

    What root makes in a user's home (``sudo -E``) becomes that user's: else it would be closed to the job's next steps,
    ``~/.local`` and ``~/.cache`` included. Nothing is followed below what was there already, since its owner may change
    it meanwhile.
    """
    there, missing = os.path.abspath(path), []
    while not os.path.isdir(there):
        there, name = os.path.split(there)
        missing.append(name)
    fd = open_directory(os.fsencode(there), follow=True)
    try:
        owner = os.fstat(fd)
        for name in reversed(missing):
            try:
                os.mkdir(name, mode, dir_fd=fd)
                made = True
            except FileExistsError:
                made = False  # by another process, just now
            inner = open_directory(os.fsencode(name), dir_fd=fd)
            os.close(fd)
            fd = inner
            if made and os.geteuid() == 0 != owner.st_uid:
                os.fchown(fd, owner.st_uid, owner.st_gid)
    finally:
        os.close(fd)
