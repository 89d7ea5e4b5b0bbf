"""The server of a flaky mount: ``python -m tests.support.passthrough BACKING MOUNT FAULTS.json``.

A pass-through FUSE file system that asks before each call whether it shall go wrong; `tests.support.flaky`
starts it, `tests.support.faults` says what can go wrong. Nothing is cached by the kernel, times have
nanoseconds, inode numbers and hard links are those of the backing directory. There is no fallocate, no
exchange of two names, and nothing of extended attributes; file locks are the kernel's own, one for each name
of a file. A file that is removed while open is called .fuse_hidden... until it is closed, as on most FUSE
mounts.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import time
from typing import Any

from tests.support.faults import Faults

_STAT_FIELDS = (
    "st_mode",
    "st_nlink",
    "st_size",
    "st_uid",
    "st_gid",
    "st_ino",
    "st_rdev",
    "st_blocks",
    "st_blksize",
)
_STATVFS_FIELDS = (
    "f_bavail",
    "f_bfree",
    "f_blocks",
    "f_bsize",
    "f_favail",
    "f_ffree",
    "f_files",
    "f_frsize",
    "f_namemax",
)
_RENAME_NOREPLACE = 1
_UTIME_NOW = (1 << 30) - 1
_UTIME_OMIT = (1 << 30) - 2


class PassThrough:
    """The calls, named as FUSE names them; one that is absent is not supported."""

    use_ns = True

    def __init__(self, backing: str, faults: Faults, caller: Any) -> None:
        self._backing, self._faults, self._caller = os.path.realpath(backing), faults, caller

    def _real(self, path: str) -> str:
        return self._backing + path

    def _given_to_caller(self, path: str) -> None:
        if os.geteuid() == 0:
            uid, gid, _ = self._caller()
            os.lchown(self._real(path), uid, gid)

    def getattr(self, path: str, handle: int | None = None) -> dict[str, int]:
        self._faults.now("getattr", path)
        status = os.fstat(handle) if handle else os.lstat(self._real(path))
        times = {f"st_{name}time": getattr(status, f"st_{name}time_ns") for name in "amc"}
        return {name: getattr(status, name) for name in _STAT_FIELDS} | times

    def readdir(self, path: str, _handle: int) -> list[tuple[str, dict[str, int], int]]:
        self._faults.now("readdir", path)
        # Inode numbers are needed: a name with the number 0 is skipped by the kernel.
        return [
            (name, {"st_ino": status.st_ino, "st_mode": status.st_mode}, 0)
            for name in (".", "..", *os.listdir(self._real(path)))
            if (status := _status(os.path.join(self._real(path), name)))
        ]

    def create(self, path: str, mode: int, flags: int) -> int:
        self._faults.now("create", path)
        handle = os.open(self._real(path), _plain(flags) | os.O_CREAT, mode)
        self._given_to_caller(path)
        return handle

    def open(self, path: str, flags: int) -> int:
        self._faults.now("open", path)
        return os.open(self._real(path), _plain(flags))

    def read(self, path: str, size: int, offset: int, handle: int) -> bytes:
        fault = self._faults.now("read", path)
        data = os.pread(handle, size if fault.short is None else min(size, fault.short), offset)
        if fault.flip is not None and 0 <= fault.flip - offset < len(data):
            wrong = bytearray(data)
            wrong[fault.flip - offset] ^= 1
            return bytes(wrong)
        return data

    def write(self, path: str, data: bytes, offset: int, handle: int) -> int:
        fault = self._faults.now("write", path)
        granted = self._faults.room(fault, len(data))
        if fault.lie is not None:
            kept = granted if fault.after is not None else 0
            os.pwrite(handle, data[:kept], offset)
            if fault.lie == "hole" and os.fstat(handle).st_size < offset + len(data):
                os.ftruncate(handle, offset + len(data))
            return len(data)
        if granted == 0 and data:
            raise OSError(fault.errno or errno.ENOSPC, "no more")
        return os.pwrite(
            handle, data[: granted if fault.short is None else min(granted, fault.short)], offset
        )

    def truncate(self, path: str, length: int, handle: int | None = None) -> None:
        self._faults.now("truncate", path)
        os.truncate(handle or self._real(path), length)

    def fsync(self, path: str, data_only: int, handle: int) -> None:
        self._faults.now("fsync", path)
        (os.fdatasync if data_only else os.fsync)(handle)

    def flush(self, path: str, _handle: int) -> None:
        self._faults.now("flush", path)

    def release(self, _path: str, handle: int) -> None:
        os.close(handle)

    def fsyncdir(self, path: str, _data_only: int, _handle: int) -> None:
        self._faults.now("fsyncdir", path)

    def unlink(self, path: str) -> None:
        self._faults.now("unlink", path)
        os.unlink(self._real(path))

    def mkdir(self, path: str, mode: int) -> None:
        self._faults.now("mkdir", path)
        os.mkdir(self._real(path), mode)
        self._given_to_caller(path)

    def rmdir(self, path: str) -> None:
        self._faults.now("rmdir", path)
        os.rmdir(self._real(path))

    def mknod(self, path: str, mode: int, device: int) -> None:
        os.mknod(self._real(path), mode, device)
        self._given_to_caller(path)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        self._faults.now("rename", new)
        if flags & ~_RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "names cannot be exchanged")
        if flags and os.path.lexists(self._real(new)):
            raise OSError(errno.EEXIST, "exists")
        os.rename(self._real(old), self._real(new))

    def link(self, new: str, old: str) -> None:
        self._faults.now("link", new)
        os.link(self._real(old), self._real(new), follow_symlinks=False)

    def symlink(self, new: str, target: str) -> None:
        self._faults.now("symlink", new)
        os.symlink(target, self._real(new))
        self._given_to_caller(new)

    def readlink(self, path: str) -> str:
        return os.readlink(self._real(path))

    def chmod(self, path: str, mode: int) -> None:
        self._faults.now("chmod", path)
        os.chmod(self._real(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        self._faults.now("chown", path)
        os.lchown(self._real(path), uid, gid)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        self._faults.now("utimens", path)
        status = os.lstat(self._real(path))
        given = times or (_UTIME_NOW, _UTIME_NOW)
        atime, mtime = (
            {_UTIME_NOW: time.time_ns(), _UTIME_OMIT: kept}.get(int(wanted), int(wanted))
            for wanted, kept in zip(given, (status.st_atime_ns, status.st_mtime_ns), strict=True)
        )
        os.utime(self._real(path), ns=(atime, mtime), follow_symlinks=False)

    def statfs(self, path: str) -> dict[str, int]:
        self._faults.now("statfs", path)
        status = os.statvfs(self._real(path))
        return {name: getattr(status, name) for name in _STATVFS_FIELDS}


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _plain(flags: int) -> int:
    """Drop what the kernel has seen to already, and what a pwrite at an offset must not have."""
    return flags & ~(os.O_APPEND | os.O_DIRECT | os.O_EXCL)


def serve(backing: str, mount: str, faults: str) -> None:
    """Mount and serve until unmounted."""
    fuse: Any = importlib.import_module("mfusepy")

    def rename(self: Any, old: bytes, new: bytes, flags: int) -> int:
        self.operations.rename(os.fsdecode(old), os.fsdecode(new), flags)
        return 0

    # mfusepy drops the flags of renameat2, which would turn "do not replace" and "exchange" into "replace".
    kind = type("FlagsKept", (fuse.FUSE,), {"rename_fuse_3": rename})
    kind(
        PassThrough(backing, Faults(faults), fuse.fuse_get_context),
        mount,
        foreground=True,
        fsname="flaky",
        direct_io=True,
        use_ino=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
        default_permissions=True,
        allow_other=os.geteuid() == 0,
    )


if __name__ == "__main__":
    os.umask(0)
    serve(*sys.argv[1:4])
