"""The file systems and faults for tests fail as they promise, and leave nothing mounted."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.filesystems import MIB, mounts_below, of_kind
from tests.support.ordinary_user import PROJECT
from tests.support.processes import start

KINDS = [pytest.param(kind, marks=requires(kind)) for kind in filesystems.KINDS]


def write_until_it_fails(
    path: Path, unit: int = 1 << 16, most: int = 512 * MIB
) -> tuple[list[int], int | None]:
    """Write a file in units; return what each write took and the errno of the one that failed."""
    took: list[int] = []
    try:
        with path.open("wb", buffering=0) as file:
            while sum(took) < most:
                took.append(file.write(bytes(unit)))
            os.fsync(file.fileno())
    except OSError as error:
        return took, error.errno
    return took, None


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_file_system_says_so(kind: str) -> None:
    """With 8 MiB left, little less than 8 MiB can be written, and the next write is ENOSPC."""
    with of_kind(kind) as disk:
        assert 8 * MIB <= disk.fill(leave=8 * MIB) < 8 * MIB + 65_536
        took, failure = write_until_it_fails(disk.path / "file")
        assert failure == errno.ENOSPC
        assert 6 * MIB < sum(took) <= 8 * MIB + 65_536
    assert not disk.path.exists()
    assert not mounts_below(disk.path)


@pytest.mark.parametrize("kind", KINDS)
def test_room_can_be_changed(kind: str) -> None:
    """`fill` takes and gives back room on the same file system."""
    with of_kind(kind) as disk:
        for leave in (4 * MIB, 20 * MIB, 10 * MIB):
            assert leave <= disk.fill(leave) < leave + 65_536


@requires("btrfs_quota")
def test_a_quota_cuts_a_write_short() -> None:
    """Under a quota group the last write is short, the next EDQUOT, while the file system has room."""
    with filesystems.btrfs() as disk:
        took, failure = write_until_it_fails(disk.quota(8 * MIB) / "file")
        assert failure == errno.EDQUOT
        assert 7 * MIB < sum(took) <= 8 * MIB
        assert took[-1] < 1 << 16
        assert os.statvfs(disk.path).f_bavail * 4096 > 50 * MIB


@requires("xfs")
def test_a_shut_down_xfs_fails_with_eio() -> None:
    """After a shutdown every call is EIO, and the file system can still be unmounted."""
    with filesystems.xfs() as disk:
        (disk.path / "file").write_bytes(b"x")
        disk.shutdown()
        for call in ((disk.path / "file").read_bytes, lambda: os.listdir(disk.path)):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                call()
    assert not mounts_below(disk.path)


@pytest.mark.parametrize("kind", [param for param in KINDS if param.values[0] in ("tmpfs", "ext4")])
def test_inodes_can_be_used_up(kind: str) -> None:
    """With bytes free and no inode left, a new file is ENOSPC; with three left, three files can be made."""
    with filesystems.tmpfs(inodes=100) if kind == "tmpfs" else filesystems.ext4(inodes=100) as disk:
        disk.use_up_inodes(leave=3)
        with contextlib.ExitStack() as files:
            for number in range(3):
                files.enter_context((disk.path / f"{number}").open("wb"))
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                (disk.path / "one-more").touch()
        assert os.statvfs(disk.path).f_bavail > 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_system_turns_read_only(kind: str) -> None:
    """After `read_only` a write is EROFS, after `writable` it works."""
    with of_kind(kind) as disk:
        disk.read_only()
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            (disk.path / "file").touch()
        disk.writable()
        (disk.path / "file").touch()


@requires("overlay", "tmpfs")
def test_a_directory_of_a_lower_layer_cannot_be_renamed() -> None:
    """In an overlay a directory from below is EXDEV to rename, and its lower layer is never changed."""
    with filesystems.tmpfs() as below:
        (below.path / "lower" / "target").mkdir(parents=True)
        (below.path / "lower" / "target" / "file").touch()
        with filesystems.overlay(below.path / "lower") as disk:
            with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
                (disk.path / "target").rename(disk.path / "other")
            (disk.path / "target" / "file").unlink()
        assert (below.path / "lower" / "target" / "file").exists()


@requires("bind")
def test_a_bind_mount_shows_the_source(tmp_path: Path) -> None:
    """A bind mount is the same directory under another mount, read-only if asked for."""
    source, target = tmp_path / "a", tmp_path / "b"
    source.mkdir()
    target.mkdir()
    with filesystems.bind(source, target):
        (target / "file").touch()
        assert (source / "file").exists()
        with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
            (target / "file").rename(source / "other")
    with filesystems.bind(source, target, read_only=True), pytest.raises(OSError, match="Read-only"):
        (target / "more").touch()
    assert not list(target.iterdir())


@requires("ext4")
def test_a_busy_mount_goes_away(tmp_path: Path) -> None:
    """A file left open does not keep the mount, nor does a failure; `at` chooses the place."""
    target = tmp_path / "target"
    handles = []

    def fail_with_a_file_open() -> None:
        with filesystems.ext4(at=target) as disk:
            assert disk.path == target
            handles.append(os.open(disk.path / "open", os.O_CREAT | os.O_WRONLY))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_with_a_file_open()
    assert not mounts_below(target)
    os.close(handles[0])


@requires("tmpfs")
def test_a_killed_session_is_swept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Mounts whose process is gone are unmounted and removed; those of a living one stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = (
        "import os; from tests.support.filesystems import tmpfs; kept = tmpfs(); "
        "print(kept.__enter__().path, flush=True); os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    with start([sys.executable, "-c", script], env=environment) as running:
        left = Path(running.wait().stdout.strip())
    assert mounts_below(left) == [left]
    with filesystems.tmpfs() as alive:
        filesystems.sweep()
        assert not left.parent.exists()
        assert mounts_below(alive.path) == [alive.path]
