"""A flaky mount passes everything through, and goes wrong exactly as told."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests.support.capabilities import requires
from tests.support.faults import Operation
from tests.support.filesystems import mounts_below
from tests.support.flaky import Flaky, flaky
from tests.support.ordinary_user import NOBODY
from tests.support.processes import run, wait_until
from tests.support.samples import MIB, sample_tree
from tests.support.snapshots import assert_same_tree, snapshot
from tests.support.trees import File, HardLink, make_tree

pytestmark = requires("fuse")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Flaky]:
    """A flaky mount without a fault."""
    with flaky(tmp_path / "backing") as mounted:
        yield mounted


def test_without_faults_every_kind_of_member_passes_through(disk: Flaky) -> None:
    """A sample tree made through the mount is the sample tree, seen from either side."""
    sample_tree(disk.mount / "tree", special=True)
    through = snapshot(disk.mount / "tree")
    assert_same_tree(through, disk.backing / "tree")
    assert_same_tree(sample_tree(disk.backing / "plain", special=True), through)


def test_nothing_is_mounted_afterwards(tmp_path: Path) -> None:
    """The mount and its directory are gone when the block is left, even with a file open."""
    with flaky(tmp_path / "backing") as disk:
        handle = os.open(disk.mount / "file", os.O_CREAT | os.O_WRONLY)
    assert not mounts_below(disk.mount)
    assert not disk.mount.exists()
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.write(handle, b"x")
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.close(handle)


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_cuts_a_write_short(disk: Flaky, failure: int) -> None:
    """The write that reaches the limit is short, the next fails, and what was written is there."""
    disk.set_fault("write", errno=failure, after=100_000)
    with (disk.mount / "file").open("wb", buffering=0) as file:
        assert file.write(bytes(65_536)) == 65_536
        assert file.write(bytes(65_536)) == 100_000 - 65_536
        with pytest.raises(OSError, match=os.strerror(failure)):
            file.write(b"x")
        disk.clear()
        assert file.write(b"x") == 1
    assert (disk.backing / "file").stat().st_size == 100_001


def test_short_writes_and_reads_without_an_error(disk: Flaky) -> None:
    """A call may move fewer bytes than asked, as a signal or a network does."""
    disk.set_fault("write", short=10)
    disk.set_fault("read", short=3)
    with (disk.mount / "file").open("w+b", buffering=0) as file:
        assert file.write(bytes(100)) == 10
        file.seek(0)
        assert len(file.read(10)) == 3


def test_fsync_and_close_fail(disk: Flaky) -> None:
    """The error of a write that was put off comes with fsync or with close."""
    handle = os.open(disk.mount / "file", os.O_CREAT | os.O_WRONLY)
    disk.set_fault("fsync", errno=errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.fsync(handle)
    disk.set_fault("flush", errno=errno.EDQUOT)
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)):
        os.close(handle)


@pytest.mark.parametrize(
    "operation", ["rename", "link", "unlink", "open", "mkdir", "truncate", "chmod", "utimens", "fsyncdir"]
)
def test_a_call_fails(disk: Flaky, operation: Operation) -> None:
    """Each operation can be made to fail for the paths that match, and works for the others."""
    make_tree(disk.backing, {"good": b"x", "other": b"y"})
    directory = os.open(disk.mount, os.O_RDONLY)
    calls: dict[str, Callable[[Path], object]] = {
        "rename": (disk.mount / "good").rename,
        "link": lambda path: path.hardlink_to(disk.mount / "good"),
        "unlink": lambda path: (path.parent / "other").unlink(),
        "open": lambda path: (path.parent / "other").read_bytes(),
        "mkdir": Path.mkdir,
        "truncate": lambda path: os.truncate(path.parent / "other", 0),
        "chmod": lambda path: (path.parent / "other").chmod(0o600),
        "utimens": lambda path: os.utime(path.parent / "other"),
        "fsyncdir": lambda _: os.fsync(directory),
    }
    disk.set_fault(operation, errno=errno.EIO, match="" if operation == "fsyncdir" else "other")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        calls[operation](disk.mount / "otherwise")
    disk.set_fault(operation, errno=errno.EIO, match="another")
    calls[operation](disk.mount / "third")
    os.close(directory)


def test_only_the_chosen_calls_fail(disk: Flaky) -> None:
    """`skip` lets calls pass first, `times` ends the fault."""
    disk.set_fault("mkdir", errno=errno.EIO, skip=1, times=1)
    (disk.mount / "first").mkdir()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        (disk.mount / "second").mkdir()
    (disk.mount / "third").mkdir()


def test_one_bit_is_flipped_on_read(disk: Flaky) -> None:
    """Of a file read through the mount one bit differs; the file itself is right."""
    content = bytes(range(256)) * 4096
    make_tree(disk.backing, {"file": content})
    disk.set_fault("read", flip=700_001)
    seen = (disk.mount / "file").read_bytes()
    assert [at for at in range(len(content)) if seen[at] != content[at]] == [700_001]
    assert seen[700_001] ^ content[700_001] == 1
    assert (disk.backing / "file").read_bytes() == content


@pytest.mark.parametrize(("lie", "size"), [("cut", MIB), ("hole", 3 * MIB)])
def test_a_lost_write_is_reported_as_done(disk: Flaky, lie: Literal["cut", "hole"], size: int) -> None:
    """All writes, fsync and close succeed, and what came after the first MiB is not there."""
    disk.set_fault("write", lie=lie, after=MIB)
    with (disk.mount / "file").open("wb", buffering=0) as file:
        assert sum(file.write(b"x" * MIB) for _ in range(3)) == 3 * MIB
        os.fsync(file.fileno())
    assert (disk.backing / "file").read_bytes() == b"x" * MIB + bytes(size - MIB)


def test_a_call_takes_its_time(disk: Flaky) -> None:
    """A delay holds one call up and changes nothing else."""
    disk.set_fault("mkdir", delay=0.3)
    before = time.monotonic()
    (disk.mount / "slow").mkdir()
    assert time.monotonic() - before >= 0.3


def test_locks_and_links_work_and_allocation_does_not(disk: Flaky) -> None:
    """Flock excludes, link counts are right; fallocate and exchange are what this file system lacks."""
    make_tree(disk.mount, {"a": b"x", "b": HardLink("a"), "c": File(b"y")})
    assert (disk.mount / "a").stat().st_nlink == 2
    assert (disk.mount / "a").stat().st_ino == (disk.mount / "b").stat().st_ino
    with (disk.mount / "a").open("r+b") as first, (disk.mount / "a").open("rb") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert renameat2(disk.mount / "a", disk.mount / "c", 2) == errno.EINVAL
    assert renameat2(disk.mount / "a", disk.mount / "c", 1) == errno.EEXIST
    assert renameat2(disk.mount / "a", disk.mount / "d", 1) == 0
    assert (disk.mount / "c").read_bytes() == b"y"


def test_an_unlinked_file_stays_readable(disk: Flaky) -> None:
    """A descriptor outlives the name; what stands in for the name goes with the descriptor."""
    make_tree(disk.mount, {"a": b"x"})
    with (disk.mount / "a").open("rb") as file:
        (disk.mount / "a").unlink()
        assert [path.name.startswith(".fuse_hidden") for path in disk.mount.iterdir()] == [True]
        assert file.read() == b"x"
        assert os.fstat(file.fileno()).st_size == 1
    wait_until(lambda: not list(disk.mount.iterdir()), "the hidden file is gone")


@requires("unprivileged")
def test_an_ordinary_user_meets_the_file_modes(open_path: Path) -> None:
    """Through the mount an ordinary user makes files of their own, and only where modes allow."""
    with flaky(open_path / "backing") as disk:
        (disk.mount / "closed").mkdir(mode=0o755)
        (disk.mount / "free").mkdir()
        (disk.mount / "free").chmod(0o777)
        assert run(["touch", disk.mount / "free" / "file"], user=NOBODY).code == 0
        assert run(["touch", disk.mount / "closed" / "file"], user=NOBODY).code == 1
        assert (disk.mount / "free" / "file").stat().st_uid == NOBODY


def renameat2(old: Path, new: Path, flags: int) -> int:
    """Rename with flags (1 no replace, 2 exchange); return the errno or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
    return ctypes.get_errno() if failed else 0
