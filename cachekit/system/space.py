"""How much room there is, and on what kind of filesystem."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

__all__ = [
    "FreeSpace",
    "Room",
    "filesystem_type",
    "flock_excludes",
    "free_space",
    "mount_of",
    "mount_points",
    "pool_of",
    "room",
    "unescape",
]

_OCTAL = re.compile(rb"\\([0-7]{3})")


def unescape(field: bytes) -> bytes:
    """Return a field of mountinfo as it is: blanks and backslashes are octal there (proc(5))."""
    return _OCTAL.sub(lambda m: bytes([int(m[1], 8)]), field)


#: Filesystems of one host, on which flock excludes every process that can see the file.
_LOCAL_TYPES = frozenset(
    "ext2 ext3 ext4 xfs btrfs tmpfs ramfs overlay zfs f2fs bcachefs jfs reiserfs apfs hfs ufs ntfs3 vfat exfat".split()
)


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """What an ordinary user may still take. ``inodes`` is None where the filesystem does not count them.

    ``available`` and ``block_size`` in bytes. A quota of the user or directory may allow less; that is only known by
    trying.
    """

    available: int
    inodes: int | None
    block_size: int
    device: int


def free_space(fd_or_path: int | str | bytes) -> FreeSpace:
    """Return the free space of the filesystem under ``fd_or_path``. Raises OSError."""
    facts = os.statvfs(fd_or_path)
    # btrfs reports f_files == 0: its inodes have no fixed number, so "none left" would be wrong.
    inodes = facts.f_favail if facts.f_files else None
    return FreeSpace(
        facts.f_bavail * facts.f_frsize, inodes, facts.f_frsize or 4096, os.stat(fd_or_path).st_dev
    )


@dataclass(frozen=True, slots=True)
class Room:
    """How full a filesystem is, as df says it. ``available`` is for ordinary users, so used + available < total.

    ``inodes`` and ``inodes_free`` are None where the filesystem does not count them. ``device`` is its number.
    """

    device: int
    total: int
    used: int
    available: int
    inodes: int | None
    inodes_free: int | None

    @property
    def percent(self) -> float:
        """Used, of what ordinary users could use, in percent."""
        return 100 * self.used / max(1, self.used + self.available)


def room(fd_or_path: int | str | bytes) -> Room:
    """Return how full the filesystem under ``fd_or_path`` is. Raises OSError."""
    facts = os.statvfs(fd_or_path)
    unit = facts.f_frsize or 4096
    return Room(
        os.stat(fd_or_path).st_dev,
        facts.f_blocks * unit,
        (facts.f_blocks - facts.f_bfree) * unit,
        facts.f_bavail * unit,
        facts.f_files or None,
        facts.f_favail if facts.f_files else None,
    )


def mount_of(path: bytes) -> bytes:
    """Return the mount point that the existing ``path`` lies on: the longest one above it, links resolved."""
    path = os.path.realpath(path)
    points = mount_points()
    while path not in points and path != b"/":
        path = os.path.dirname(path)
    return path


def pool_of(path: bytes) -> int:
    """Return one number for all that shares its free space with the existing ``path``. Raises OSError.

    That is the device number, but on btrfs, where each subvolume has a device number of its own, the filesystem's.
    """
    point = mount_of(path)
    device = None
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            for line in file:
                fields = line.split(b" ", 5)
                if unescape(fields[4]) == point:
                    device = fields[2]  # the last one: it covers what was mounted there before
    except OSError:
        pass
    if device is None:
        return os.stat(path).st_dev
    major, minor = map(int, device.split(b":"))
    return os.makedev(major, minor)


def filesystem_type(fd_or_path: int | str | bytes) -> str:
    """Return the kernel's name for the filesystem (``ext4``, ``nfs4`` ...), or ``unknown``. Linux only."""
    device = os.stat(fd_or_path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.split(" ")
                if fields[2] == wanted:
                    return fields[fields.index("-") + 1]
    except (OSError, ValueError, IndexError):
        pass
    return "unknown"


def mount_points() -> set[bytes]:
    """Return the paths at which something is mounted, bind mounts included. Linux only: elsewhere none is known."""
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return {unescape(line.split(b" ")[4]) for line in file}
    except OSError:
        return set()


def flock_excludes(kind: str) -> bool:
    """Return True where flock is known to exclude every other user of a file: on filesystems of one host.

    ``kind`` is the kernel's name of the filesystem, as of the mount: btrfs's device numbers lead to no mount.
    """
    return kind in _LOCAL_TYPES
