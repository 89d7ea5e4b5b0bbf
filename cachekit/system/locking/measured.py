"""Whether flock excludes other hosts on a filesystem: what was measured there, else what its kind suggests.

``cachekit doctor`` measures and remembers, in this user's state directory, one small file a filesystem. That flock
does not exclude always counts, wherever it was found; that it does counts if two hosts found it together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass

from cachekit.system import space
from cachekit.system.clock import now_ns
from cachekit.system.files import open_directory, random_name, replace_file
from cachekit.system.state import state_directory

__all__ = ["Exclusion", "Mount", "excludes", "is_local", "mount_under", "recall", "remember"]

_DIRECTORY = "exclusion"


@dataclass(frozen=True, slots=True)
class Mount:
    """Which filesystem: its kind, what is mounted and where. The same again after a new mount, or a new boot."""

    kind: str
    source: str
    point: str

    @property
    def file_name(self) -> str:
        """Where a measurement of it lies."""
        return (
            hashlib.sha256(os.fsencode(f"{self.kind}\0{self.source}\0{self.point}")).hexdigest()[:32]
            + ".json"
        )


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What was measured. ``hosts`` is how many took part; ``at`` in seconds since 1970, UTC."""

    flock: bool
    fcntl: bool | None
    hosts: int
    at: int


def mount_under(fd_or_path: int | str | bytes) -> Mount:
    """Return the mount that an open directory or a path lies on. Linux; elsewhere a mount without names."""
    path = f"/proc/self/fd/{fd_or_path}" if isinstance(fd_or_path, int) else fd_or_path
    point = space.mount_of(os.fsencode(os.path.realpath(path)))
    kind, source = "unknown", ""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = line.split()
            if space.unescape(fields[4]) == point:
                dash = fields.index(b"-")
                kind, source = os.fsdecode(fields[dash + 1]), os.fsdecode(space.unescape(fields[dash + 2]))
    return Mount(kind, source, os.fsdecode(point))


def is_local(fd_or_path: int | str | bytes) -> bool:
    """Return True on filesystems of this host alone: their inodes and times are this kernel's own."""
    return space.flock_excludes(mount_under(fd_or_path).kind)


def recall(mount: Mount) -> Exclusion | None:
    """Return what was measured on this mount, None if nothing was or it cannot be read."""
    try:
        with open(os.path.join(state_directory(), _DIRECTORY, mount.file_name), "rb") as file:
            raw = json.loads(file.read(SIZE))
        fcntl = raw["fcntl"]
        return Exclusion(
            raw["flock"] is True, None if fcntl is None else fcntl is True, int(raw["hosts"]), int(raw["at"])
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


SIZE = 4096


def remember(mount: Mount, *, flock: bool, fcntl: bool | None, hosts: int) -> None:
    """Keep what was measured, for ``excludes``. Raises OSError.

    One host alone that found flock excluding does not replace what two hosts found together.
    """
    before = recall(mount)
    if hosts == 1 and flock and before is not None and before.hosts > 1:
        return
    directory = os.path.join(state_directory(), _DIRECTORY)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    facts = {
        "flock": flock,
        "fcntl": fcntl,
        "hosts": hosts,
        "at": now_ns() // 10**9,
        "mount": [mount.kind, mount.source, mount.point],
    }
    fd = open_directory(os.fsencode(directory))
    try:
        # Written under a name of its own first: two doctors may end at once.
        temporary = f"{random_name()}.json"
        replace_file(temporary, json.dumps(facts).encode("ascii"), fd)
        os.replace(temporary, mount.file_name, src_dir_fd=fd, dst_dir_fd=fd)
    finally:
        os.close(fd)


def excludes(fd_or_path: int | str | bytes) -> bool:
    """Return True where flock excludes every other user of the file: measured, or known of local filesystems."""
    mount = mount_under(fd_or_path)
    known = recall(mount)
    if known is not None and (not known.flock or known.hosts > 1):
        return known.flock
    return space.flock_excludes(mount.kind)
