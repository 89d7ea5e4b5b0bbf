"""What may go goes, what may not stays and is told; nothing outside is touched; nobody's death loses the run."""

from __future__ import annotations

import errno
import os
import signal
import socket
from itertools import chain
from pathlib import Path

import pytest

from cachekit.system import workers
from cachekit.system.holders import Sockets
from cachekit.system.native import exchange
from cachekit.system.removal.tree import Removed, remove
from tests.crash.test_files import deep_tree
from tests.removal.conftest import as_nobody, give, no_descriptor_lost
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.snapshots import unchanged
from tests.support.trees import Device, Dir, Fifo, HardLink, Sparse, Symlink, Tree, make_tree
from tests.support.trees import Socket as SocketFile

ROUNDS = 2000
"""Over all ways of removing together."""


def gone(path: Path, *, workers: int | None = None) -> Removed:
    """Remove, with nothing left and no descriptor lost."""
    with no_descriptor_lost():
        removed = remove(os.fsencode(path), workers=workers)
    assert (removed.left, removed.left_count, os.path.lexists(path)) == ([], 0, False)
    return removed


def left(removed: Removed, below: Path) -> dict[str, str]:
    """What stays, by path below `below`, with the reason."""
    assert removed.left_count == len(removed.left)
    return {os.path.relpath(os.fsdecode(path), below): why for path, why in removed.left}


def wide(count: int = 60, files: int = 20) -> dict[str, Tree]:
    """A tree large enough for workers."""
    return {f"d{one}": {"sub": {f"f{two}": b"x" for two in range(files)}} for one in range(count)}


@pytest.mark.usefixtures("either_kernel")
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_tree_goes_with_all_kinds_of_names(tmp_path: Path, count: int) -> None:
    """Files, links, pipes, dead sockets, hostile names; names and allocated bytes are counted."""
    odd: Tree = {
        b"\xff\xfe": b"x",
        b"new\nline": {b"::error::": b"y"},
        "p": Fifo(),
        "s": SocketFile(),
        "l": Symlink("/"),
    }
    tree = make_tree(tmp_path / "tree", {**wide(), "odd": odd, "holes": Sparse(1 << 30, {5: b"z"})})
    infos = [os.lstat(Path(folder, name)) for folder, *both in os.walk(tree) for name in chain(*both)]
    infos.append(os.lstat(tree))
    removed = gone(tree, workers=count)
    assert (removed.items, removed.size) == (len(infos), sum(info.st_blocks * 512 for info in infos))


@pytest.mark.usefixtures("either_kernel")
def test_a_file_a_link_and_nothing(tmp_path: Path) -> None:
    """A single file goes, a link goes without what it leads to, a missing path is fine."""
    make_tree(tmp_path, {"file": b"x", "kept": {"y": b"y"}, "link": Symlink("kept")})
    with unchanged(tmp_path / "kept"):
        assert [gone(tmp_path / name).items for name in ("file", "link", "missing")] == [1, 1, 0]


@pytest.mark.usefixtures("either_kernel")
def test_no_part_of_the_path_is_followed(tmp_path: Path) -> None:
    """A path through a symlink is not removed: its owner may have put it there after the path was looked at."""
    make_tree(tmp_path, {"real": {"tree": {"x": b"x"}}, "way": Symlink("real")})
    with unchanged(tmp_path / "real"):
        removed = remove(os.fsencode(tmp_path / "way" / "tree"))
    assert removed.left_count == 1
    assert removed.items == 0


def test_bytes_count_with_the_last_name(tmp_path: Path) -> None:
    """A file with another name elsewhere frees nothing; with both names in the tree it counts once."""
    make_tree(
        tmp_path,
        {
            "tree": {"a": b"x" * 9000, "b": HardLink("tree/a"), "c": b"y" * 5000},
            "out": {"c": HardLink("tree/c")},
        },
    )
    own = os.lstat(tmp_path / "tree").st_blocks + os.lstat(tmp_path / "tree" / "a").st_blocks
    assert gone(tmp_path / "tree", workers=0).size == own * 512
    assert (tmp_path / "out" / "c").read_bytes() == b"y" * 5000


@requires("bind", "tmpfs")
@pytest.mark.usefixtures("either_kernel")
@pytest.mark.parametrize("kind", ["bind", "tmpfs", "file"])
@pytest.mark.parametrize("count", [0, 2])
def test_a_mount_stays_with_all_in_it(tmp_path: Path, kind: str, count: int) -> None:
    """A bind mount of the same filesystem, another filesystem, a mounted file: untouched, the rest is gone."""
    tree = make_tree(tmp_path / "tree", {**wide(), "m": {"point": {}, "file": b"", "x": b"x"}})
    outside = make_tree(tmp_path / "outside", {"precious": {"p": b"p"}, "one": b"1"})
    where = {"bind": "m/point", "tmpfs": "m/point", "file": "m/file"}[kind]
    mounts = {
        "bind": lambda: filesystems.bind(outside, tree / where),
        "tmpfs": lambda: filesystems.tmpfs(at=tree / where),
        "file": lambda: filesystems.bind(outside / "one", tree / where),
    }
    with mounts[kind](), unchanged(outside):
        if kind == "tmpfs":
            (tree / where / "kept").touch()
        removed = remove(os.fsencode(tree), workers=count)
        assert list(left(removed, tree)) == [where]
        assert "mount" in removed.left[0][1]
        assert sorted(os.listdir(tree)) == ["m"]
        assert os.listdir(tree / "m") == [where.rpartition("/")[2]]
        if kind == "tmpfs":
            assert os.listdir(tree / where) == ["kept"]
        again = remove(os.fsencode(tree / where))
        assert list(left(again, tree)) == [where]
    gone(tree)


@requires("root")
def test_devices_and_lost_and_found_stay(tmp_path: Path) -> None:
    """Device nodes and lost+found stay, also when named themselves; an overlay's whiteout goes."""
    tree = make_tree(
        tmp_path / "tree",
        {"dev": {"null": Device(), "x": b"x"}, "lost+found": {"y": b"y"}, "white": Device(0, 0)},
    )
    removed = remove(os.fsencode(tree))
    assert left(removed, tree) == {"dev/null": "a device", "lost+found": "the filesystem's own"}
    assert removed.items == 2
    for name in ("dev/null", "lost+found"):
        assert list(left(remove(os.fsencode(tree / name)), tree)) == [name]
    assert (tree / "lost+found" / "y").exists()
    assert not (tree / "dev" / "x").exists()


@pytest.mark.usefixtures("either_kernel")
def test_a_socket_that_is_bound_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By absolute or by relative path; the file of one that is not bound any more goes."""
    tree = make_tree(tmp_path / "t", {"dead": SocketFile(), "x": b"x"})
    monkeypatch.chdir(tree)
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as two:
        one.bind(f"/proc/self/fd/{os.open(tree, os.O_PATH)}/absolute")
        two.bind("relative")
        removed = remove(os.fsencode(tree))
        assert left(removed, tree) == {"absolute": "a socket in use", "relative": "a socket in use"}
        assert list(left(remove(os.fsencode(tree / "relative")), tree)) == ["relative"]
    gone(tree)


@pytest.mark.parametrize("count", [0, 2])
def test_a_locked_directory_stays_with_all_below(tmp_path: Path, count: int) -> None:
    """A flock on a directory keeps it and its tree; everything else goes; the top may be locked too."""
    fcntl = pytest.importorskip("fcntl")
    tree = make_tree(tmp_path / "tree", {**wide(), "busy": {"below": {"x": b"x"}}})
    fd = os.open(tree / "busy", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    removed = remove(os.fsencode(tree), workers=count)
    assert left(removed, tree) == {"busy": "locked by somebody (flock)"}
    assert (os.listdir(tree), (tree / "busy/below/x").exists()) == (["busy"], True)
    assert list(left(remove(os.fsencode(tree / "busy")), tree)) == ["busy"]
    os.close(fd)
    gone(tree)


@requires("unprivileged")
@pytest.mark.usefixtures("either_kernel")
@pytest.mark.parametrize("count", [0, 2])
def test_read_only_directories_of_ours_go(open_path: Path, count: int) -> None:
    """As an ordinary user: 0555, 0500 and 0000 directories, the top included."""
    read_only = {
        f"r{n}": Dir({f"f{m}": b"x" for m in range(9)}, mode=(0o555, 0o500, 0)[n % 3]) for n in range(60)
    }
    tree = make_tree(open_path / "in" / "tree", Dir(read_only, mode=0o555))
    give(tree)
    as_nobody(lambda: remove(os.fsencode(tree), workers=count).left_count == 0)
    assert not tree.exists()


@requires("unprivileged")
@pytest.mark.parametrize("count", [0, 2])
def test_what_is_roots_is_told_not_raised(open_path: Path, count: int) -> None:
    """As an ordinary user: root's directories stay with their files, ours go, and modes are as they were."""
    tree = make_tree(open_path / "in" / "tree", {**wide(), "keep": Dir({"root": {"x": b"x"}}, mode=0o555)})
    give(tree)
    os.chown(tree / "keep" / "root", 0, 0)

    def work() -> bool:
        removed = remove(os.fsencode(tree), workers=count)
        return list(left(removed, tree)) == ["keep/root/x"] and removed.left[0][1] == "no permission"

    as_nobody(work)
    assert os.listdir(tree) == ["keep"]
    assert (tree / "keep").stat().st_mode & 0o777 == 0o555
    assert (tree / "keep/root/x").exists()


@requires("tmpfs")
def test_a_read_only_filesystem_is_told(tmp_path: Path) -> None:
    """Everything stays, with the reason; only the first hundred by name, all of them by number."""
    with filesystems.tmpfs() as mounted:
        tree = make_tree(mounted.path / "tree", wide(12))
        mounted.read_only()
        with unchanged(tree):
            removed = remove(os.fsencode(tree), workers=0)
    assert (removed.items, removed.left_count, len(removed.left)) == (0, 240, 100)
    assert {why for _, why in removed.left} == {"the filesystem is read-only"}


@pytest.mark.usefixtures("either_kernel")
@pytest.mark.parametrize("count", [0, 2])
def test_a_very_deep_tree_goes(tmp_path: Path, count: int) -> None:
    """2,000 levels, with workers too: deeper than Python recurses, paths longer than the kernel takes."""
    deep_tree(tmp_path / "deep", 2000)
    make_tree(tmp_path / "deep", wide(20))
    assert gone(tmp_path / "deep", workers=count).items == 4_001 + 20 * 22


def test_a_path_longer_than_the_kernel_takes(tmp_path: Path) -> None:
    """The tree to remove lies itself deeper than PATH_MAX."""
    innermost = deep_tree(tmp_path / "deep", 600)
    assert len(innermost) > 6000
    parent = os.path.dirname(innermost)
    assert remove(parent).items == 3
    removed = remove(os.fsencode(tmp_path / "deep"))
    assert (removed.items, removed.left) == (2 * 600 + 1 - 3, [])


def test_many_names_in_one_directory(tmp_path: Path) -> None:
    """More files and directories than are held at a time."""
    (tmp_path / "many").mkdir()
    for number in range(4500):
        (tmp_path / "many" / f"d{number}").mkdir()
        if number % 3 == 0:
            (tmp_path / "many" / f"f{number}").touch()
    assert gone(tmp_path / "many", workers=0).items == 6_001


@pytest.mark.parametrize("way", ["remove", "discard"])
@pytest.mark.parametrize("kernel", ["openat2", "older"])
def test_a_directory_swapped_for_a_link_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, kernel: str
) -> None:
    """While trees go, another process swaps a directory in them and a link to outside, over and over."""
    from cachekit.system.removal import beneath, trash

    monkeypatch.setenv("CACHEKIT_STATE_DIR", str(tmp_path / "state"))
    if kernel == "older":
        monkeypatch.setattr(beneath, "_has_openat2", lambda: False)
    outside = make_tree(tmp_path / "outside", {f"f{n}": b"x" for n in range(5)})
    base = tmp_path / "base"
    base.mkdir()
    link = os.fsencode(tmp_path / "link")
    target = os.fsencode(base / "t" / "d" / "e")
    swapper = os.fork()
    if swapper == 0:
        while True:
            try:
                exchange(target, link, source_fd=-100, target_fd=-100)
            except OSError:
                continue
    swapped = 0
    try:
        with unchanged(outside):
            for _ in range(ROUNDS // 4):
                make_tree(base / "new", {"d": {"e": {f"f{n}": b"" for n in range(5)}}})
                if not os.path.lexists(link):
                    os.symlink(outside, link)
                path = os.fsencode(base / "t")
                os.rename(base / "new", path)
                if way == "remove":
                    remove(path, workers=0, sockets=Sockets())
                else:
                    trash.discard(path, workers=0, sockets=Sockets())
                swapped += not os.path.islink(link)
                while os.listdir(base):
                    remove(os.fsencode(base / os.listdir(base)[0]), workers=0, sockets=Sockets())
                if not os.path.islink(link):
                    remove(link, workers=0, sockets=Sockets())
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)
    assert swapped


@pytest.mark.parametrize("moment", [1, 3])
def test_a_worker_killed_in_the_middle_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The process that leads removes the rest itself, and every name is counted."""
    tree = make_tree(tmp_path / "tree", wide())
    polls = 0
    real = workers.ForkPool.poll

    def poll(self: workers.ForkPool, *, wait: bool) -> list[tuple[int, object]]:
        nonlocal polls
        polls += 1
        if polls == moment:
            os.kill(self._peers[0].pid, signal.SIGKILL)
            os.waitid(os.P_PID, self._peers[0].pid, os.WEXITED | os.WNOWAIT)
        return real(self, wait=wait)

    monkeypatch.setattr(workers.ForkPool, "poll", poll)
    removed = gone(tree, workers=3)
    assert polls >= moment
    # What workers had removed of the directories that they were in is not counted.
    assert 1321 - 3 * 21 <= removed.items <= 1321


def test_without_memory_for_a_fork_it_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork fails (EAGAIN): this process does all of it; what stays is told once."""

    def fork() -> int:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(os, "fork", fork)
    assert gone(make_tree(tmp_path / "tree", wide()), workers=3).items == 1321


@pytest.mark.parametrize("huge", [1, 25])
def test_one_large_part_among_small_ones_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, huge: int
) -> None:
    """A worker in a large directory hands parts of it to those that have nothing to do."""
    make_tree(tmp_path / "tree", {"small": wide(20), "huge": {"in": wide(150 * huge // 25 + 60)}})
    handed: set[int] = set()
    real = workers.ForkPool.poll

    def poll(self: workers.ForkPool, *, wait: bool) -> list[tuple[int, object]]:
        replies = real(self, wait=wait)
        handed.update(worker for worker, reply in replies if not isinstance(reply, bytes))
        return replies

    monkeypatch.setattr(workers.ForkPool, "poll", poll)
    gone(tmp_path / "tree", workers=4)
    assert handed == {0, 1, 2, 3}
