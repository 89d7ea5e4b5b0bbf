"""Files that were refused and cannot be set aside, on a read-only store: known by this user's own notes."""

from __future__ import annotations

import contextlib
import hashlib
import os

from cachekit.system.state import make_as_owner, state_directory

__all__ = ["denied", "deny"]


def _note(path: bytes) -> str | None:
    with contextlib.suppress(OSError):
        info = os.lstat(path)
        facts = f"{info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns} ".encode() + path
        return os.path.join(state_directory(), "denied", hashlib.sha256(facts).hexdigest()[:32])
    return None


def deny(path: bytes) -> bool:
    """Note that this very file was refused; False if that cannot be written down."""
    note = _note(path)
    if note is None:
        return False
    with contextlib.suppress(OSError):
        make_as_owner(os.path.dirname(note))
        os.close(os.open(note, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        return True
    return False


def denied(path: bytes) -> bool:
    """Return True if this very file was refused before."""
    note = _note(path)
    return note is not None and os.path.exists(note)
