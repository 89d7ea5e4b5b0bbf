"""Real small file systems, mounted for the length of a block and always unmounted.

Each of `tmpfs`, `ext4`, `xfs`, `btrfs` is a context manager that yields a `Filesystem` of its own, in a
private directory that everyone may enter; `of_kind` chooses one by name. `overlay` and `bind` mount what is
given. Only root can. The directory's name carries the process that made it, and `sweep`, called before a test
session, unmounts what a killed session left.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.filling import fill, use_up_inodes

MIB = 1 << 20

_PREFIX = "cachekit-mount-"
_LOOP_WAIT_SECONDS = 30
"""There may be only eight loop devices, for everybody on the machine; another test gives one back soon."""


class CannotMountError(Exception):
    """The machine refused to make or mount a file system."""


@dataclass(frozen=True)
class Filesystem:
    """One mounted file system; `path` is its root."""

    path: Path
    kind: str

    def fill(self, leave: int) -> int:
        """Leave about `leave` bytes free, however many were free before; returns the free bytes."""
        return fill(self.path, leave)

    def use_up_inodes(self, leave: int = 0) -> None:
        """Leave `leave` free inodes."""
        use_up_inodes(self.path, leave)

    def read_only(self) -> None:
        """Remount read-only; refused by the kernel (busy) while a file is open for writing."""
        _run("mount", "-o", "remount,ro", str(self.path))

    def writable(self) -> None:
        """Remount read-write."""
        _run("mount", "-o", "remount,rw", str(self.path))


class Xfs(Filesystem):
    """XFS, which can be made to fail as a whole."""

    def shutdown(self) -> None:
        """Make every call on the file system fail with EIO until it is unmounted."""
        _run("xfs_io", "-x", "-c", "shutdown", str(self.path))


class Btrfs(Filesystem):
    """Btrfs, which has quota groups."""

    def quota(self, limit: int, name: str = "limited") -> Path:
        """Make a subvolume that holds `limit` bytes: a short write, then EDQUOT; statvfs knows nothing."""
        subvolume = self.path / name
        _run("btrfs", "subvolume", "create", str(subvolume))
        _run("btrfs", "quota", "enable", str(self.path))
        _run("btrfs", "qgroup", "limit", str(limit), str(subvolume))
        return subvolume


@contextmanager
def tmpfs(size: int = 32 * MIB, *, inodes: int = 0, at: Path | None = None) -> Iterator[Filesystem]:
    """Mount a file system in memory: exact sizes, and `inodes` at most (0: no limit, `f_files` is 0)."""
    with (
        _place(at) as (_, mount),
        _mounted(mount, "-t", "tmpfs", "-o", f"size={size},nr_inodes={inodes}", "tmpfs"),
    ):
        yield Filesystem(mount, "tmpfs")


@contextmanager
def ext4(size: int = 32 * MIB, *, inodes: int | None = None, at: Path | None = None) -> Iterator[Filesystem]:
    """Mount an ext4 without blocks kept for root, so that what is free is free for all."""
    count = () if inodes is None else ("-N", str(inodes))
    with _image(size, at, "mkfs.ext4", "-q", "-F", "-m", "0", *count) as mount:
        yield Filesystem(mount, "ext4")


@contextmanager
def xfs(size: int = 300 * MIB, *, at: Path | None = None) -> Iterator[Xfs]:
    """Mount an XFS; mkfs.xfs makes none below 300 MiB. With 100 kB free no file can be made any more."""
    with _image(size, at, "mkfs.xfs", "-q") as mount:
        yield Xfs(mount, "xfs")


@contextmanager
def btrfs(size: int = 128 * MIB, *, at: Path | None = None) -> Iterator[Btrfs]:
    """Mount a btrfs with data and metadata in the same block groups, as so little room demands.

    It takes some 1.7 MB less than statvfs says, and nothing at all once that says 2 MiB.
    """
    with _image(size, at, "mkfs.btrfs", "-q", "-M") as mount:
        yield Btrfs(mount, "btrfs")


KINDS: dict[str, Callable[[], AbstractContextManager[Filesystem]]] = {
    "tmpfs": tmpfs,
    "ext4": ext4,
    "xfs": xfs,
    "btrfs": btrfs,
}


def of_kind(kind: str) -> AbstractContextManager[Filesystem]:
    """Mount a file system of that kind with its default size; `fill` says how much room it shall have."""
    return KINDS[kind]()


@contextmanager
def overlay(lower: Path, *, upper: Path | None = None, at: Path | None = None) -> Iterator[Filesystem]:
    """Mount an overlay of a writable `upper` (in memory unless given) on `lower`."""
    with ExitStack() as stack:
        _, mount = stack.enter_context(_place(at))
        top = upper if upper is not None else stack.enter_context(tmpfs(256 * MIB)).path / "upper"
        top.mkdir(exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".work-", dir=top.parent))
        try:
            options = f"lowerdir={lower},upperdir={top},workdir={work}"
            with _mounted(mount, "-t", "overlay", "-o", options, "overlay"):
                yield Filesystem(mount, "overlay")
        finally:
            shutil.rmtree(work)


@contextmanager
def bind(source: Path, target: Path, *, read_only: bool = False) -> Iterator[Filesystem]:
    """Mount `source` once more on `target`, both of which must exist."""
    with _mounted(target, "--bind", str(source)):
        if read_only:
            _run("mount", "-o", "remount,bind,ro", str(target))
        yield Filesystem(target, "bind")


def mounts_below(path: Path) -> list[Path]:
    """Every mount point at or below `path`, the last mounted first."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        raw = line.split(b" ")[4]
        for code in (b"\\040", b"\\011", b"\\012", b"\\134"):
            raw = raw.replace(code, bytes([int(code[1:], 8)]))
        point = Path(os.fsdecode(raw))
        if point.is_relative_to(path):
            found.append(point)
    return found[::-1]


def unmount(mount: Path) -> None:
    """Unmount, lazily if it stays busy for a second."""
    for _ in range(10):
        done = subprocess.run(["umount", str(mount)], capture_output=True, text=True, check=False)
        if done.returncode == 0 or "not mounted" in done.stderr:
            return
        time.sleep(0.1)
    _run("umount", "--lazy", str(mount))


def sweep() -> None:
    """Unmount and remove what test processes that are gone left in the temporary directory."""
    for base in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = base.name.removeprefix(_PREFIX).split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            _remove(base)


@contextmanager
def private_directory() -> Iterator[Path]:
    """Make a directory for mounts, open to everyone, removed at the end with whatever is mounted in it."""
    base = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    base.chmod(0o755)
    try:
        yield base
    finally:
        _remove(base)


def _remove(base: Path) -> None:
    for mount in mounts_below(base):
        unmount(mount)
    if not mounts_below(base):
        shutil.rmtree(base)


@contextmanager
def _place(at: Path | None) -> Iterator[tuple[Path, Path]]:
    with private_directory() as base:
        mount = base / "mount" if at is None else at
        mount.mkdir(exist_ok=True)
        yield base, mount


@contextmanager
def _image(size: int, at: Path | None, *mkfs: str) -> Iterator[Path]:
    with _place(at) as (base, mount):
        image = base / "image"
        with image.open("wb") as file:
            file.truncate(size)
        _run(*mkfs, str(image))
        with _mounted(mount, "-o", "loop", str(image)):
            yield mount


@contextmanager
def _mounted(mount: Path, *what: str) -> Iterator[None]:
    deadline = time.monotonic() + _LOOP_WAIT_SECONDS
    while True:
        try:
            _run("mount", *what, str(mount))
            break
        except CannotMountError as error:
            if "loop device" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    try:
        yield
    finally:
        unmount(mount)


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CannotMountError(f"{command[0]} is not installed") from error
    if done.returncode != 0:
        raise CannotMountError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
