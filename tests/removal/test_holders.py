"""Every way in which a process uses a path is found, and nothing else."""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cachekit.system.holders import Holder, Holders
from tests.removal.conftest import as_nobody
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.processes import start, wait_until
from tests.support.trees import make_tree

HOLD = """
import os, socket, sys, time
how, path = sys.argv[1], os.fsencode(sys.argv[2])
if how == "open": kept = open(path)
if how == "mapped":
    import ctypes  # mmap.mmap keeps the file open as well
    call = ctypes.CDLL(None).mmap
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    with open(path, "rb") as file: call(None, 1, 1, 1, file.fileno(), 0)
if how == "current directory": os.chdir(path)
if how == "socket": kept = socket.socket(socket.AF_UNIX); kept.bind(path)
if how == "deleted": kept = open(path); os.unlink(path)
if how == "root directory": os.chroot(path)  # the current directory stays outside
print("ready", flush=True)
time.sleep(60)
"""


@contextmanager
def held(how: str, path: Path) -> Iterator[int]:
    """A process that holds `path` in that way; yields its pid."""
    with start([sys.executable, "-c", HOLD, how, path]) as running:
        wait_until(lambda: os.pread(running._out.fileno(), 9, 0) != b"", "the holder is ready")
        yield running.pid


@pytest.mark.parametrize("name", ["x", "x (deleted)", "\udcff\n"])
@pytest.mark.parametrize("how", ["open", "mapped", "current directory", "socket"])
def test_each_use_is_found(tmp_path: Path, how: str, name: str) -> None:
    """At the path itself and above it, with the process; not beside it, not in front of it, not afterwards."""
    tree = make_tree(tmp_path / "t", {"a": {}, "ab": {"c": b"c"}})
    path = tree / "a" / name
    if how == "current directory":
        path.mkdir()
    elif how != "socket":
        path.write_bytes(b"content")
    with held(how, path) as pid:
        holders = Holders.scan()
        for one in (path, tree / "a", tree, tmp_path):
            found = holders.of(os.fsencode(one))
            assert found is not None
            assert (found.how, found.path, found.pid) == (
                how,
                os.fsencode(path),
                0 if how == "socket" else pid,
            )
        for beside in ("ab", "a/y", "a/x/below", "b"):
            if beside != f"a/{name}/below":
                assert holders.of(os.fsencode(tree / beside)) is None
        if how != "socket":
            assert Holders.scan(ignore={pid}).of(os.fsencode(tree)) is None
    assert Holders.scan().of(os.fsencode(tree)) is None


def test_a_running_program_is_found(tmp_path: Path) -> None:
    """The file that a process was started from."""
    program = Path(shutil.copy(shutil.which("sleep") or "", tmp_path / "program"))
    with start([program, "60"]) as running:
        wait_until(lambda: os.readlink(f"/proc/{running.pid}/exe") == str(program), "the program runs")
        found = Holders.scan().of(os.fsencode(tmp_path))
        assert found == Holder(running.pid, "program", "running", os.fsencode(program))
        assert str(found) == f"running in program (pid {running.pid})"


@requires("root")
def test_a_root_directory_is_found(tmp_path: Path) -> None:
    """A process whose root (chroot) is a directory holds it."""
    with held("root directory", tmp_path) as pid:
        found = Holders.scan().of(os.fsencode(tmp_path))
        assert found is not None
        assert (found.pid, found.how) == (pid, "root directory")


def test_what_this_process_has_open_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But what it has mapped does, and where it is."""
    (tmp_path / "d").mkdir()
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"x")
        file.flush()
        assert Holders.scan().of(os.fsencode(tmp_path)) is None
        with mmap.mmap(file.fileno(), 0):
            found = Holders.scan().of(os.fsencode(tmp_path))
            assert found is not None
            assert found.how == "mapped"
    monkeypatch.chdir(tmp_path / "d")
    found = Holders.scan().of(os.fsencode(tmp_path))
    assert found is not None
    assert found.how == "current directory"


@requires("tmpfs")
def test_deleted_files_are_no_use_but_take_space() -> None:
    """Each counts once, on its own filesystem, however many have it open; its old path is free."""
    with filesystems.tmpfs() as mounted:
        path = mounted.path / "file"
        path.write_bytes(b"x" * 100_000)
        device = path.stat().st_dev
        with (
            path.open() as file,
            held("deleted", path) as pid,
            start(["sleep", "60"], cwd=Path("/")) as other,
        ):
            holders = Holders.scan()
            assert holders.open_deleted(device) == os.fstat(file.fileno()).st_blocks * 512 > 0
            assert holders.of(os.fsencode(path)) is None
            assert holders.open_deleted(device + 1) == 0
            assert pid != other.pid
        assert Holders.scan().open_deleted(device) == 0


@requires("unprivileged")
def test_others_processes_are_counted_as_unknown() -> None:
    """An ordinary user sees that there are processes that it cannot look into."""
    as_nobody(lambda: Holders.scan().unreadable > 0)


@requires("bind")
def test_a_process_in_another_mount_namespace(tmp_path: Path) -> None:
    """What a container holds by its own path is found at ours; a path of ours that only it has is free."""
    tree = make_tree(tmp_path / "tree", {"sub": {}})
    point = make_tree(tmp_path / "point", {"sub": {}})
    script = 'mount --bind "$1" "$2" && cd "$2/sub" && exec sleep 60'
    with start(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh", tree, point]
    ) as running:
        comm = Path("/proc", str(running.pid), "comm")
        wait_until(lambda: comm.read_text() == "sleep\n", "the process is in its directory")
        holders = Holders.scan()
        found = holders.of(os.fsencode(tree))
        assert found == Holder(running.pid, "sleep", "current directory", os.fsencode(tree / "sub"))
        assert holders.of(os.fsencode(point)) is None


@requires("bind", "tmpfs")
def test_a_mount_that_hides_another(tmp_path: Path) -> None:
    """Where a container has mounted twice in one place, what it holds there is in what was mounted last."""
    tree = make_tree(tmp_path / "tree", {"sub": {}})
    point = make_tree(tmp_path / "point", {})
    script = 'mount -t tmpfs none "$2" && mount --bind "$1" "$2" && cd "$2/sub" && exec sleep 60'
    with start(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh", tree, point]
    ) as running:
        comm = Path("/proc", str(running.pid), "comm")
        wait_until(lambda: comm.read_text() == "sleep\n", "the process is in its directory")
        assert Holders.scan().of(os.fsencode(tree)) is not None


@requires("root")
def test_a_socket_in_another_network_namespace(tmp_path: Path) -> None:
    """A container's network hides its sockets from /proc/net: they are read where they are listed."""
    path = tmp_path / "s"
    with start(["unshare", "--net", sys.executable, "-c", HOLD, "socket", path]):
        wait_until(path.exists, "the socket is bound")
        holders = Holders.scan()
        assert holders.of(os.fsencode(tmp_path)) is not None
        assert holders.sockets.has(path.lstat(), b"s")


@requires("bind")
def test_a_socket_of_a_container(tmp_path: Path) -> None:
    """A socket bound in another network and by another path is found where it lies here."""
    tree = make_tree(tmp_path / "tree", {"sub": {}})
    point = make_tree(tmp_path / "point", {})
    script = 'mount --bind "$1" "$2" && exec "$3" -c "$4" socket "$2/sub/s"'
    command = ["unshare", "--net", "--mount", "--propagation=private", "sh", "-c", script, "sh"]
    with start([*command, tree, point, sys.executable, HOLD]):
        wait_until((tree / "sub" / "s").exists, "the socket is bound")
        found = Holders.scan().of(os.fsencode(tree / "sub"))
        assert found is not None
        assert found.how == "socket"


def test_many_questions_are_cheap(tmp_path: Path) -> None:
    """10,000 of them are answered from one look, without asking the system again."""
    with held("open", make_tree(tmp_path, {"f": b"x"}) / "f"):
        holders = Holders.scan()
    found = [holders.of(os.fsencode(tmp_path / name)) for name in ("f", *map(str, range(10_000)))]
    assert found[0] is not None
    assert set(found[1:]) == {None}


def test_without_proc_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on other systems."""

    def missing(_: str) -> list[str]:
        raise FileNotFoundError

    monkeypatch.setattr(os, "listdir", missing)
    assert Holders.scan().of(b"/") is None


def test_a_socket_is_known_by_any_of_its_paths(tmp_path: Path) -> None:
    """Bound through a symlink, it is known by its inode."""
    make_tree(tmp_path, {"real": {}})
    (tmp_path / "way").symlink_to("real")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(
            os.path.relpath(tmp_path / "way" / "s")
            if len(str(tmp_path)) > 90
            else str(tmp_path / "way" / "s")
        )
        assert Holders.scan().sockets.has((tmp_path / "real" / "s").lstat(), b"s")
