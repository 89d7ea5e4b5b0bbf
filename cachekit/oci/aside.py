"""Blobs that lie aside while a collection looks whether they are needed after all: moved there, put back, removed.

There are two places. A directory holds all that is to go. Where the disk is so full that no directory can be made,
a few things go first, each under a name of its own beside ``index.json``: a rename needs no room.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from cachekit.oci.layout import ASIDE, Layout, is_digest, read_document
from cachekit.oci.plan import Line
from cachekit.system.files import open_directory, random_name, remove_tree
from cachekit.system.publish import put_back

__all__ = [
    "Aside",
    "move_single",
    "put_singles_back",
    "remove_single",
    "single_bytes",
]

_MODES = 0o700
#: Followed by a random name, a full stop, and what ``_flat`` says.
_SINGLE = f"{ASIDE}1-"


@dataclass(frozen=True, slots=True)
class Aside:
    """The directory. ``name`` is its name in the layout."""

    layout: Layout
    name: str

    @classmethod
    def make(cls, layout: Layout) -> Aside:
        """Make one. Raises OSError."""
        name = f"{ASIDE}-{random_name()}"
        os.mkdir(name, _MODES, dir_fd=layout.fd)
        return cls(layout, name)

    def take(self, line: Line) -> None:
        """Move a blob or ingest here; it may be gone already."""
        with contextlib.suppress(FileNotFoundError):
            _move(self.layout, _flat(line), f"{self.name}/{_flat(line)}")

    def document(self, digest: str, size: int) -> bytes | None:
        """Return a document that lies here; None if it does not, or has another size."""
        name = f"{self.name}/{digest.replace(':', '-')}"
        with contextlib.suppress(OSError):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            return read_document(os.open(name, flags, dir_fd=self.layout.fd), size)
        return None

    def put_back(self, needed: set[str] | None) -> set[str]:
        """Put blobs back that are ``needed`` (None: all, and ingests); return their lines' keys."""
        restored = set()
        for flat in self._listed():
            kind, _, rest = flat.partition("-")
            if needed is None or f"{kind}:{rest}" in needed:
                restored.add(flat)
                _return(self.layout, f"{self.name}/{flat}", flat)
        return restored

    def remove(self) -> int:
        """Remove it with all that is still here; return the bytes of that."""
        sizes = [_bytes_of(self.layout, f"{self.name}/{flat}") for flat in self._listed()]
        remove_tree(os.fsencode(self.name), dir_fd=self.layout.fd)
        return sum(sizes)

    @staticmethod
    def key(line: Line) -> str:
        """Return what ``put_back`` calls a line."""
        return _flat(line)

    def _listed(self) -> list[str]:
        fd = open_directory(os.fsencode(self.name), dir_fd=self.layout.fd)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)


def move_single(layout: Layout, line: Line) -> str:
    """Move one blob or ingest aside; return its name there. Raises OSError."""
    name = f"{_SINGLE}{random_name()}.{_flat(line)}"
    _move(layout, _flat(line), name)
    return name


def put_singles_back(layout: Layout) -> None:
    """Give all of them their places again, unless something is there by now; also those of a killed collection."""
    for name in os.listdir(layout.fd):
        flat = name.removeprefix(_SINGLE).partition(".")[2]
        if name.startswith(_SINGLE) and _place(flat) is not None:
            _return(layout, name, flat)
            remove_tree(os.fsencode(name), dir_fd=layout.fd)


def single_bytes(layout: Layout, name: str) -> int:
    """Return how many bytes it has."""
    return _bytes_of(layout, name)


def remove_single(layout: Layout, name: str) -> None:
    """Remove it."""
    remove_tree(os.fsencode(name), dir_fd=layout.fd)


def _flat(line: Line) -> str:
    return f"ingest-{line.name}" if line.kind == "ingest" else line.name.replace(":", "-")


def _place(flat: str) -> tuple[list[str], str] | None:
    """Return the directories and the name of where something belongs; None if it is nothing that we moved."""
    kind, _, rest = flat.partition("-")
    if kind == "ingest" and rest not in {"", ".", ".."}:
        return ["ingest"], rest
    return (["blobs", kind], rest) if is_digest(kind, rest) else None


def _move(layout: Layout, flat: str, new: str) -> None:
    place = _place(flat)
    assert place is not None
    with layout.inside(*place[0]) as fd:
        os.rename(place[1], new, src_dir_fd=fd, dst_dir_fd=layout.fd)  # noqa: TID251 - a move


def _return(layout: Layout, name: str, flat: str) -> None:
    """Give something its place again; what a build has written there meanwhile stays.

    A place below a link is not in the layout: whoever made that link must not have files put there. Raises OSError.
    """
    place = _place(flat)
    if place is None:
        return
    # An ingest that is there anew is a directory: this one goes later.
    with contextlib.suppress(FileNotFoundError, IsADirectoryError), layout.inside(*place[0]) as fd:
        put_back(name, layout.fd, place[1], fd)


def _bytes_of(layout: Layout, name: str) -> int:
    with contextlib.suppress(NotADirectoryError):
        total = 0
        with contextlib.suppress(FileNotFoundError):
            fd = open_directory(os.fsencode(name), dir_fd=layout.fd)
            try:
                total = sum(os.lstat(one, dir_fd=fd).st_size for one in os.listdir(fd))
            finally:
                os.close(fd)
        return total
    return os.lstat(name, dir_fd=layout.fd).st_size
