"""Names and places in a store directory, version 1. The grammar is in docs/format.md."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat

from cachekit.errors import InvalidRequest
from cachekit.model import NAMED_LOCKS, STORE_DIRECTORIES, Namespace
from cachekit.system.files import open_directory
from cachekit.system.state import make_as_owner

__all__ = [
    "ENTRY_NAME",
    "STRIPES",
    "VERSION",
    "MisplacedPart",
    "base_of",
    "create",
    "default_store",
    "family_of",
    "named_locks",
    "namespaces",
    "open_part",
    "open_to_all",
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


def named_locks(path: str) -> str:
    """Return the directory of the locks of ``cachekit lock run``: one for all namespaces. It may not exist."""
    return os.path.join(path, VERSION, NAMED_LOCKS)


def family_of(name: str) -> str:
    """Return the family that the name of an entry file tells, also in quarantine: the key's safe characters up to its
    last ``-``. For files whose seal cannot be asked.
    """
    return re.sub(r"-[^-]*$", "", name.rpartition(".tar.zst")[0].rpartition("-")[0])


def base_of(path: str, namespace: Namespace) -> str:
    """Return the directory of a namespace in the store at ``path``."""
    return os.path.join(path, VERSION, *namespace.text.split("/"))


class MisplacedPart(OSError):
    """What should be a directory of the store is a link, or a file; ``filename`` says which."""


def open_part(path: str, namespace: Namespace, name: str, *, make: bool = False) -> int:
    """Open a directory of a namespace and return its descriptor; with ``make``, make what is missing, each 0750.

    The store's own path may lead over links. Below it none is followed: whoever may write the store could make one, to
    have files made, moved or removed elsewhere in our name. Raises MisplacedPart, OSError.
    """
    if make:
        _make_place(path)
    fd = open_directory(os.fsencode(path), follow=True)
    for part in (VERSION, *namespace.text.split("/"), *([name] if name else [])):
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o750, dir_fd=fd)
            below = open_directory(os.fsencode(part), dir_fd=fd)
        except OSError as error:
            if error.errno in {errno.ENOTDIR, errno.ELOOP}:
                raise MisplacedPart(error.errno, error.strerror, os.path.join(path, part)) from None
            raise
        finally:
            os.close(fd)
        fd, path = below, os.path.join(path, part)
    return fd


def _make_place(path: str) -> None:
    """Make the store's own directory, 0750, if it is missing: what is missing above belongs to who owns the rest."""
    if not os.path.isdir(path):
        make_as_owner(os.path.dirname(os.path.abspath(path)), 0o777)
        os.makedirs(path, mode=0o750, exist_ok=True)


def open_to_all(path: str, namespace: Namespace) -> str | None:
    """Return a directory of a namespace, or above it in the store, that everybody may write to; None without one.

    What is not there, or may not be looked at, is not: using it tells. Owner and group are the store's own business.
    """
    places = [path, os.path.join(path, VERSION)]
    for part in namespace.text.split("/"):
        places.append(os.path.join(places[-1], part))
    places += [os.path.join(places[-1], name) for name in STORE_DIRECTORIES]
    for place in places:
        with contextlib.suppress(OSError):
            if os.stat(place).st_mode & stat.S_IWOTH:
                return place
    return None


def namespaces(path: str, denied: list[str] | None = None) -> list[Namespace]:
    """Return the namespaces of the store at ``path`` that have been made, scopes included, by name. Raises OSError.

    Directories below it that may not be read are added to ``denied``, or raise PermissionError where that is None.
    """
    found: list[Namespace] = []
    stack = [""]
    while stack:
        name = stack.pop()
        try:
            with os.scandir(os.path.join(path, VERSION, name)) as entries:
                below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            if denied is None or not name:
                raise
            denied.append(name)
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
    os.close(open_part(path, namespace, "", make=True))
    with (
        contextlib.suppress(FileExistsError),
        open(
            os.path.join(path, "CACHEDIR.TAG"),
            "x",
            encoding="ascii",
            opener=lambda name, flags: os.open(name, flags, 0o644),
        ) as file,
    ):
        file.write(_TAG)
    for name in STORE_DIRECTORIES:
        os.close(open_part(path, namespace, name, make=True))
    # Made once, with the store, and never removed: a lock file that comes and goes can be held by two.
    locks = open_part(path, namespace, "locks")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        for name in [f"{number:02x}" for number in range(STRIPES)] + ["store"]:
            os.close(os.open(name, flags, 0o660, dir_fd=locks))
    finally:
        os.close(locks)
