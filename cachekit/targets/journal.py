"""The journal of a restore: what to do about a target whose restore was killed.

It lies beside the staged tree and, as a copy, in the state directory, so that it is found from either side. Before the
first rename it is durable; from then on the next command finishes what it says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from cachekit.model import JOURNAL_NAME
from cachekit.system.files import make_private_directory, replace_file
from cachekit.system.locks import hold
from cachekit.system.state import make_as_owner, state_directory

__all__ = ["FACTS_NAME", "Journal", "pointers", "real_place", "target_lock"]

FACTS_NAME = "directories.json"

#: staging: the target is untouched. committing: names are being moved; extras-gone: and what is not in the entry has
#: been taken away. cleaning: the new tree is whole. in-place: the target is incomplete until a restore has ended.
Phase = Literal["staging", "committing", "extras-gone", "cleaning", "in-place"]


@dataclass(slots=True)
class Journal:
    """One target's restore. Paths are absolute; bytes are kept as Latin-1 text, so any name survives JSON."""

    target: bytes
    staging: bytes
    mode: str
    inside: bool
    phase: Phase = "staging"
    #: Device and inode of the staged tree: tells after a kill whether it has taken its place already.
    new: list[int] = field(default_factory=list)
    #: What was being restored: archive path, key, identity, target, root.
    entry: dict[str, str] = field(default_factory=dict)
    #: Staging inside the target changes its mtime: what it was before.
    mtime_ns: int | None = None
    same_owner: bool = False

    @property
    def began(self) -> bool:
        """True if the target may be neither the old nor the new tree as it should be."""
        return self.phase in {"committing", "extras-gone", "in-place"}

    def dump(self) -> bytes:
        data = asdict(self)
        for name in ("target", "staging"):
            data[name] = data[name].decode("latin-1")
        return json.dumps({"journal": 1, **data}, indent=1).encode()

    @classmethod
    def load(cls, text: bytes) -> Journal | None:
        """Return the journal, None if ``text`` is not a whole one (a kill may have come while it was written)."""
        try:
            data: dict[str, Any] = json.loads(text)
            if data.pop("journal") != 1 or set(data) != {item.name for item in fields(cls)}:
                return None
            data["target"], data["staging"] = (
                data["target"].encode("latin-1"),
                data["staging"].encode("latin-1"),
            )
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, staging_fd: int) -> None:
        """Write both copies, durable, each replaced atomically."""
        replace_file(JOURNAL_NAME, self.dump(), staging_fd)
        with contextlib.suppress(OSError):  # a read-only home: the copy beside the staging serves alone
            directory = os.path.join(state_directory(), "targets")
            make_as_owner(directory)
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                replace_file(self.pointer_name, self.dump(), fd)
            finally:
                os.close(fd)

    @property
    def pointer_name(self) -> str:
        return f"{_digest(self.target)}-{os.fsdecode(os.path.basename(self.staging))[-8:]}.json"

    def forget(self) -> None:
        """Remove the copy in the state directory, and what a kill left of writing it."""
        for name in (self.pointer_name, f".{self.pointer_name}.new"):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(state_directory(), "targets", name))


def real_place(target: bytes) -> bytes:
    """Resolve links in the target's parent, never the target itself: one name for whatever leads to it."""
    if target == b"/":
        return target
    parent, name = os.path.split(target)
    return os.path.join(os.path.realpath(parent), name)


def _digest(path: bytes) -> str:
    return hashlib.sha256(path).hexdigest()[:32]


def pointers() -> list[Journal]:
    """Return the journals listed in the state directory; unreadable ones are passed over."""
    directory = os.path.join(state_directory(), "targets")
    found = []
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    for name in names:
        if not name.endswith(".json") or name.startswith("."):
            continue
        with contextlib.suppress(OSError), open(os.path.join(directory, name), "rb") as file:
            journal = Journal.load(file.read())
            if journal is not None:
                found.append(journal)
    return found


@contextlib.contextmanager
def target_lock(target: bytes, *, shared: bool, timeout: float) -> Iterator[None]:
    """Hold the lock of a target: one restore at a time, no save beside it. Raises LockTimeout.

    Where the state directory cannot be written nothing is locked: the journal still protects the tree.
    """
    target = real_place(target)
    directory = os.path.join(state_directory(), "locks")
    path = os.path.join(directory, f"{_digest(target)}.lock")
    name = target.decode("utf-8", "backslashreplace")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            make_as_owner(directory)
            make_private_directory(directory)  # raises if it is a link
            stack.enter_context(hold(path, shared=shared, timeout=timeout, what=f"the target {name}"))
        yield
