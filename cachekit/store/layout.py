"""Names and places in a store directory, version 1. The grammar is in docs/format.md."""

from __future__ import annotations

import contextlib
import os
import re

from cachekit.errors import InvalidRequest
from cachekit.model import STORE_DIRECTORIES, Namespace

__all__ = [
    "ENTRY_NAME",
    "STRIPES",
    "VERSION",
    "base_of",
    "create",
    "default_store",
    "family_of",
    "namespaces",
]

VERSION = "v1"
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


def family_of(name: str) -> str:
    """Return the family that the name of an entry file tells, also in quarantine: the key's safe characters up to its
    last ``-``. For files whose seal cannot be asked.
    """
    return re.sub(r"-[^-]*$", "", name.rpartition(".tar.zst")[0].rpartition("-")[0])


def base_of(path: str, namespace: Namespace) -> str:
    """Return the directory of a namespace in the store at ``path``."""
    return os.path.join(path, VERSION, *namespace.text.split("/"))


def namespaces(path: str) -> list[Namespace]:
    """Return the namespaces of the store at ``path`` that have been made, scopes included, by name. Raises OSError."""
    found: list[Namespace] = []
    stack = [""]
    while stack:
        name = stack.pop()
        try:
            with os.scandir(os.path.join(path, VERSION, name)) as entries:
                below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        if name and "entries" in below:
            with contextlib.suppress(InvalidRequest):
                found.append(Namespace(name))
        stack += [f"{name}/{part}" if name else part for part in below if part not in STORE_DIRECTORIES]
    return sorted(found)


def create(path: str, namespace: Namespace) -> None:
    """Make what is missing of a namespace's directories and lock files, each 0750. Raises OSError."""
    base = base_of(path, namespace)
    if os.path.exists(os.path.join(base, "locks", "store")):
        return
    os.makedirs(os.path.join(path, VERSION), mode=0o750, exist_ok=True)
    place = os.path.join(path, VERSION)
    for part in namespace.text.split("/"):
        place = os.path.join(place, part)
        with contextlib.suppress(FileExistsError):
            os.mkdir(place, 0o750)
    with (
        contextlib.suppress(FileExistsError),
        open(os.path.join(path, "CACHEDIR.TAG"), "x", encoding="ascii") as file,
    ):
        file.write(_TAG)
    for name in STORE_DIRECTORIES:
        os.makedirs(os.path.join(base, name), mode=0o750, exist_ok=True)
    # Made once, with the store, and never removed: a lock file that comes and goes can be held by two.
    for name in [f"{number:02x}" for number in range(STRIPES)] + ["store"]:
        fd = os.open(os.path.join(base, "locks", name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o660)
        os.close(fd)
