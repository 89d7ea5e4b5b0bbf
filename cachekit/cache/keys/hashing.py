"""The digest of files that a key depends on: names and contents, and nothing else of the machine.

docs/keys.md, "What {hash:...} is", is the definition; a test recomputes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from cachekit.archive.names import compile_patterns
from cachekit.errors import InvalidRequest, SourceUnreadable

__all__ = ["Hashed", "hash_files"]

_MAGIC = re.compile(r"[*?\[]")
_CHUNK = 1 << 20
_HEX = 32


@dataclass(frozen=True, slots=True)
class Hashed:
    """The digest (32 hex digits), and each file's name relative to the directory with its sha256."""

    digest: str
    files: tuple[tuple[bytes, str], ...]


def hash_files(directory: str, globs: str, excluded: Iterable[str] = ()) -> Hashed | None:
    """Return the digest of the files below ``directory`` that the globs (between commas) match; None if none does.

    A glob that begins with ``!`` leaves out; ``excluded`` leave out too, but not a name that is written in full. The
    digest depends on relative names and contents only. Raises InvalidRequest for a glob that cannot be used,
    SourceUnreadable for what is matched and cannot be read.
    """
    wanted, unwanted = _split(globs)
    left_out = compile_patterns(unwanted)
    not_searched = compile_patterns([*unwanted, *excluded])
    names: set[bytes] = set()
    for pattern in wanted:
        names.update(_matches(os.fsencode(directory), pattern, left_out, not_searched))
    if not names:
        return None
    total = hashlib.sha256()
    files = []
    for name in sorted(names):
        digest = _digest(os.path.join(os.fsencode(directory), name))
        total.update(name + b"\0" + digest)
        files.append((name, digest.hex()))
    return Hashed(total.hexdigest()[:_HEX], tuple(files))


def _split(globs: str) -> tuple[list[str], list[str]]:
    wanted: list[str] = []
    unwanted: list[str] = []
    for glob in globs.split(","):
        name = glob.strip()
        pattern = name.removeprefix("!").removeprefix("./")
        if not pattern or pattern.startswith(("/", "~")) or ".." in pattern.split("/") or "\0" in pattern:
            raise InvalidRequest(
                f"the glob {name!r} of a {{hash:...}} cannot be used",
                expected="names below the root, between commas",
                found=globs,
                hint="--root says where the names begin",
            )
        (unwanted if name.startswith("!") else wanted).append(pattern)
    if not wanted:
        raise InvalidRequest(
            "a {hash:...} leaves out everything", found=globs, hint="name a file before the !"
        )
    return wanted, unwanted


def _matches(
    directory: bytes, pattern: str, left_out: Callable[[bytes], bool], not_searched: Callable[[bytes], bool]
) -> Iterator[bytes]:
    """Yield the names of the files that one glob matches."""
    literal = os.fsencode(pattern)
    try:
        info = os.stat(os.path.join(directory, literal))
    except FileNotFoundError:
        if not _MAGIC.search(pattern):
            if os.path.lexists(os.path.join(directory, literal)) and not _left_out(literal, left_out):
                yield literal  # a link that leads nowhere: reading it tells
            return
    except NotADirectoryError:
        return
    except OSError as error:
        raise _unreadable(os.path.join(directory, literal), error) from None
    else:
        # A name that exists is taken literally, whatever characters it has.
        if not stat.S_ISDIR(info.st_mode) and not _left_out(literal, left_out):
            yield literal
        if not _MAGIC.search(pattern):
            return
    matches = compile_patterns([pattern], anywhere=False)
    parts = pattern.split("/")
    fixed = next(n for n, part in enumerate(parts) if _MAGIC.search(part))
    deepest = None if "**" in pattern else len(parts)
    git = ".git" in parts
    stack = [os.fsencode("/".join(parts[:fixed]))]
    while stack:
        place = stack.pop()
        for name, is_directory in _list(directory, place):
            if (os.path.basename(name) == b".git" and not git) or not_searched(name):
                continue
            if is_directory:
                if deepest is None or name.count(b"/") + 1 < deepest:
                    stack.append(name)
            elif matches(name) and not os.path.isdir(os.path.join(directory, name)):
                yield name


def _left_out(name: bytes, left_out: Callable[[bytes], bool]) -> bool:
    """Return True if the name, or a directory that it lies in, is left out."""
    parts = name.split(b"/")
    return any(left_out(b"/".join(parts[:n])) for n in range(1, len(parts) + 1))


def _list(directory: bytes, place: bytes) -> list[tuple[bytes, bool]]:
    """Return the names in a directory, and for each whether it is one itself (not a link to one)."""
    path = os.path.join(directory, place) if place else directory
    try:
        with os.scandir(path) as entries:
            return [
                (place + b"/" + entry.name if place else entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(path, error) from None


def _digest(path: bytes) -> bytes:
    """Return the sha256 of a file's content, through links."""
    found = hashlib.sha256()
    try:
        # Opening a FIFO would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise SourceUnreadable(
                    "what a {hash:...} matches is no regular file",
                    path=path,
                    hint="leave it out with ,!NAME in the placeholder",
                )
            while chunk := os.read(fd, _CHUNK):
                found.update(chunk)
        finally:
            os.close(fd)
    except OSError as error:
        raise _unreadable(path, error) from None
    return found.digest()


def _unreadable(path: bytes, error: OSError) -> SourceUnreadable:
    return SourceUnreadable(
        f"a file or directory that the key depends on cannot be read: {error.strerror}",
        path=path,
        hint="fix its permissions, or leave it out with ,!NAME in the placeholder",
        errno=error.errno,
    )
