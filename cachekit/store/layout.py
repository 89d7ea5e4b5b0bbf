"""Names and places in a store directory, version 1. The grammar is in docs/format.md."""

from __future__ import annotations

import contextlib
import os
import re

__all__ = ["ENTRY_NAME", "NAMESPACE", "STRIPES", "create", "default_store", "named_locks"]

VERSION = "v1"
#: Until namespaces can be configured, everything lives in this one.
NAMESPACE = "default"
DIRECTORIES = ("entries", "used", "tmp", "quarantine", "locks")
STRIPES = 256
#: An entry's file name: safe characters of the key, 32 hex digits of the identity (``model.EntryIdentity``).
ENTRY_NAME = re.compile(r"([A-Za-z0-9._+=@-]{1,60})-([0-9a-f]{32})\.tar\.zst")

#: See https://bford.info/cachedir/: backup tools leave out directories with this file.
_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This directory is a store of cachekit: CI caches that can be made again. It may be deleted as a whole.
"""


def default_store() -> str:
    """Return $CACHEKIT_STORE, else ``cachekit`` below $XDG_CACHE_HOME or ``~/.cache``."""
    chosen = os.environ.get("CACHEKIT_STORE")
    if chosen:
        return chosen
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "cachekit")


def named_locks(path: str) -> str:
    """Return the directory of the locks of ``cachekit lock run``: one for all namespaces. It may not exist."""
    return os.path.join(path, VERSION, "named-locks")


def create(path: str) -> None:
    """Make what is missing of a store's directories and lock files. Raises OSError."""
    base = os.path.join(path, VERSION, NAMESPACE)
    if os.path.exists(os.path.join(base, "locks", "store")):
        return
    os.makedirs(base, mode=0o750, exist_ok=True)
    with (
        contextlib.suppress(FileExistsError),
        open(os.path.join(path, "CACHEDIR.TAG"), "x", encoding="ascii") as file,
    ):
        file.write(_TAG)
    for name in DIRECTORIES:
        os.makedirs(os.path.join(base, name), mode=0o750, exist_ok=True)
    # Made once, with the store, and never removed: a lock file that comes and goes can be held by two.
    for name in [f"{number:02x}" for number in range(STRIPES)] + ["store"]:
        fd = os.open(os.path.join(base, "locks", name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o660)
        os.close(fd)
