"""Which processes use what: open files, mapped ones, current directories, running programs, bound sockets.

From /proc, so on Linux only; elsewhere nothing is known. A process in another mount namespace (a container) has
other paths for the same files: they are translated through both mount tables. Processes of other users can only be
looked into by root, so ``unreadable`` says how many were not.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal, Self

__all__ = ["Holder", "Holders", "How", "Sockets", "live_sockets"]

How = Literal["open", "mapped", "current directory", "running", "root directory", "socket"]

_DELETED = b" (deleted)"
_OCTAL = re.compile(rb"\\([0-7]{3})")
#: Address range, device, inode and path of each mapped file.
_MAPPED = re.compile(rb"^(\S+) \S+ \S+ \S+ [1-9]\d* +(/[^\n]*)$", re.MULTILINE)
#: Where a line of /proc/net/unix begins: a path in it may have line breaks.
_SOCKET = re.compile(rb"\n(?=[0-9a-f]{8,}: [0-9A-F]{8} )")
_LINKS: tuple[tuple[str, How], ...] = (
    ("cwd", "current directory"),
    ("exe", "running"),
    ("root", "root directory"),
)


@dataclass(frozen=True, slots=True)
class Holder:
    """One use of one path. ``pid`` is 0 where the process is not known (a socket)."""

    pid: int
    command: str
    how: How
    path: bytes

    def __str__(self) -> str:
        if not self.pid:
            return "a socket in use"
        return f"{self.how} in {self.command} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class Sockets:
    """Sockets that processes have bound to a path, by device and inode, and names of those bound by a relative path."""

    identities: frozenset[tuple[int, int]] = frozenset()
    names: frozenset[bytes] = frozenset()

    def has(self, info: os.stat_result, name: bytes) -> bool:
        """Return whether the socket with this stat and name is in use."""
        return (info.st_dev, info.st_ino) in self.identities or name in self.names


def live_sockets() -> Sockets:
    """Return the sockets in use in this process's own network namespace."""
    found = _FoundSockets()
    found.read("self", None)
    return found.result()


class _FoundSockets:
    def __init__(self) -> None:
        self.identities: set[tuple[int, int]] = set()
        self.names: set[bytes] = set()
        self.paths: list[bytes] = []
        self._seen: set[bytes] = set()

    def read(self, process: str, places: _Places | None) -> None:
        try:
            with open(f"/proc/{process}/net/unix", "rb") as file:
                lines = _SOCKET.split(b"\n" + file.read().removesuffix(b"\n"))
        except OSError:
            return
        for line in lines:
            parts = line.split(None, 7)
            if len(parts) < 8 or parts[7][:1] == b"@":
                continue
            path = parts[7]
            if path[:1] != b"/":
                self.names.add(path.rpartition(b"/")[2])
                continue
            here = path if places is None else places.here(path)
            if here is None or here in self._seen:
                continue
            self._seen.add(here)
            with contextlib.suppress(OSError):
                info = os.lstat(here)
                if stat.S_ISSOCK(info.st_mode):
                    self.identities.add((info.st_dev, info.st_ino))
                    self.paths.append(here)

    def result(self) -> Sockets:
        return Sockets(frozenset(self.identities), frozenset(self.names))


def _mounts(process: str) -> list[tuple[bytes, bytes, bytes]]:
    """Return (mount point, device, root within the filesystem), the last mounted first: it hides the others."""
    found = []
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        for line in file:
            fields = line.split(b" ", 5)
            root, point = (_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), text) for text in fields[3:5])
            found.append((point, fields[2], root))
    return found[::-1]


def _below(path: bytes, directory: bytes) -> bytes | None:
    """Return what follows ``directory`` in ``path``: empty or beginning with a slash; None if it is not below it."""
    if directory == b"/":
        return path if path != b"/" else b""
    rest = path[len(directory) :]
    return rest if path.startswith(directory) and rest[:1] in {b"", b"/"} else None


class _Places:
    """Translates paths of another mount namespace into paths of this one."""

    def __init__(self, pid: int) -> None:
        self._theirs = sorted(_mounts(str(pid)), key=lambda mount: -len(mount[0]))
        self._ours = sorted(_mounts("self"), key=lambda mount: -len(mount[2]))

    def here(self, path: bytes) -> bytes | None:
        """Return a path of the same file here; None if it has none."""
        for point, device, root in self._theirs:
            rest = _below(path, point)
            if rest is None:
                continue
            inside = (root.rstrip(b"/") + rest) or b"/"
            for our_point, our_device, our_root in self._ours:
                if our_device == device and (tail := _below(inside, our_root)) is not None:
                    return (our_point.rstrip(b"/") + tail) or b"/"
            return None
        return None


@dataclass(slots=True)
class Holders:
    """What was in use when it was asked."""

    #: Processes that could not be looked into: no permission.
    unreadable: int = 0
    sockets: Sockets = Sockets()
    _uses: dict[bytes, Holder] = field(default_factory=dict)
    _sorted: list[bytes] = field(default_factory=list)
    #: Deleted files still held, by device, then inode: allocated bytes.
    _deleted: dict[int, dict[int, int]] = field(default_factory=dict)

    @classmethod
    def scan(cls, *, ignore: Collection[int] = ()) -> Self:
        """Look into all processes but those in ``ignore``; of this one, what it has open does not count."""
        self = cls()
        sockets = _FoundSockets()
        sockets.read("self", None)
        try:
            names = os.listdir("/proc")
        except OSError:
            return self
        me = os.getpid()
        mounts, net = _namespace("self", "mnt"), _namespace("self", "net")
        places: dict[str, _Places | None] = {mounts: None}
        nets = {net}
        for name in names:
            if not name.isdigit() or int(name) in ignore:
                continue
            with contextlib.suppress(OSError):
                theirs = _namespace(name, "mnt") or mounts
                if theirs not in places:
                    places[theirs] = _Places(int(name))
                if (their_net := _namespace(name, "net")) and their_net not in nets:
                    nets.add(their_net)
                    sockets.read(name, places[theirs])
                self._process(int(name), places[theirs], own=int(name) == me)
        for path in sockets.paths:
            self._uses.setdefault(path, Holder(0, "", "socket", path))
        self.sockets = sockets.result()
        self._sorted = sorted(self._uses)
        return self

    def of(self, path: bytes) -> Holder | None:
        """Return a use of ``path`` or of something below it, None if there is none. Links are not resolved."""
        found = self._uses.get(path)
        if found is None:
            prefix = path.rstrip(b"/") + b"/"
            index = bisect_left(self._sorted, prefix)
            if index < len(self._sorted) and self._sorted[index].startswith(prefix):
                found = self._uses[self._sorted[index]]
        return found

    def open_deleted(self, device: int) -> int:
        """Return the allocated bytes of files on ``device`` that have no name any more and are kept by a process."""
        return sum(self._deleted.get(device, {}).values())

    # ---------------------------------------------------------------------------------------------------- one process

    def _process(self, pid: int, places: _Places | None, *, own: bool) -> None:
        base = f"/proc/{pid}"
        try:
            os.readlink(f"{base}/exe")
        except FileNotFoundError:
            return  # a thread of the kernel, a zombie, or gone
        except PermissionError:
            self.unreadable += 1
            return
        command = ""

        def use(path: bytes, how: How) -> None:
            nonlocal command
            here = path if places is None else places.here(path)
            if here is None or here in self._uses:
                return
            if not command:
                command = _command(pid)
            self._uses[here] = Holder(pid, command, how, here)

        if not own:
            for name in os.listdir(f"{base}/fd"):
                with contextlib.suppress(OSError):
                    path = os.readlink(f"{base}/fd/{name}".encode())
                    if path[:1] == b"/" and not self._is_deleted(path, f"{base}/fd/{name}"):
                        use(path, "open")
        for name, how in _LINKS:
            with contextlib.suppress(OSError):
                path = os.readlink(f"{base}/{name}".encode())
                if path[:1] == b"/" and not self._is_deleted(path, f"{base}/{name}"):
                    use(path, how)
        for area, path in dict.fromkeys(_mapped(base)):
            if not self._is_deleted(path, f"{base}/map_files/{area}"):
                use(path, "mapped")

    def _is_deleted(self, path: bytes, link: str) -> bool:
        """Whether the file has lost its name; if so, remember what it takes. A name may really end like the mark."""
        if not path.endswith(_DELETED):
            return False
        try:
            info = os.stat(link)
        except OSError:
            # Not to be asked (map_files wants more than ordinary rights): then a file of that very name decides.
            return not os.path.lexists(path)
        if info.st_nlink:
            return not os.path.lexists(path)
        self._deleted.setdefault(info.st_dev, {})[info.st_ino] = info.st_blocks * 512
        return True


def _mapped(base: str) -> Iterator[tuple[str, bytes]]:
    """Yield one mapping of each mapped file, as (address range, path)."""
    try:
        with open(f"{base}/maps", "rb") as file:
            text = file.read()
    except OSError:
        return
    seen = set()
    for match in _MAPPED.finditer(text):
        path = match[2]
        if path not in seen:
            seen.add(path)
            yield match[1].decode("ascii"), path.replace(b"\\012", b"\n")


def _namespace(process: str, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{process}/ns/{kind}")
    except OSError:
        return ""


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return os.fsdecode(file.read().rstrip(b"\n"))
    except OSError:
        return "?"
