"""What a tree takes is what du says, to the block; the largest consumers tell where."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.disk import usage as module
from cachekit.disk.usage import Consumer, Usage, usage
from tests.removal.conftest import as_nobody, give
from tests.removal.test_removal import wide
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.trees import Dir, HardLink, Sparse, Symlink, Tree, make_tree


def du(path: Path) -> int:
    """What `du -sx` says, in bytes; what it cannot read is left out."""
    done = subprocess.run(["du", "-sx", "--block-size=1", path], capture_output=True, check=False)
    return int(done.stdout.split()[0])


FILES = st.one_of(
    st.integers(0, 200_000).map(lambda size: b"x" * size),
    st.builds(
        Sparse, st.just(1 << 24), st.dictionaries(st.integers(0, 1 << 23), st.just(b"data"), max_size=3)
    ),
    st.just(Symlink("/")),
    st.just(Symlink("x" * 200)),
)
TREES = st.recursive(
    st.dictionaries(st.text("abc\udcff\n", min_size=1, max_size=3), FILES, max_size=5),
    lambda below: st.dictionaries(
        st.text("abc", min_size=1, max_size=3), st.one_of(FILES, below), max_size=4
    ),
    max_leaves=30,
)


@settings(max_examples=60)
@given(TREES, st.integers(0, 3), st.sampled_from([0, 2]))
def test_equal_to_du(tree: Tree, links: int, workers: int) -> None:
    """Whatever the tree: sparse files, hard links inside and to outside, long links, odd names."""
    with tempfile.TemporaryDirectory() as base, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SMALL", 0)  # so that workers have something to do
        top = make_tree(Path(base, "t"), {"tree": tree, "one": {"file": b"y" * 9000}})
        (Path(base) / "outside").hardlink_to(top / "one" / "file")
        for number in range(links):
            (top / f"link{number}").hardlink_to(top / "one" / "file")
        found = usage(os.fsencode(top), workers=workers)
        assert (found.size, found.unreadable, found.complete) == (du(top), 0, True)
        inodes = {}
        for folder, folders, files in os.walk(top):
            for name in (*folders, *files):
                info = os.lstat(os.path.join(folder, name))
                inodes[info.st_ino] = os.path.isdir(os.path.join(folder, name)) and info.st_nlink > 1
        assert found.files + found.directories == len(inodes) + 1


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_large_tree(tmp_path: Path, workers: int) -> None:
    """With workers as without: size, files and directories, and each directory's part of it."""
    tree = make_tree(
        tmp_path / "t", {"many": wide(200), "l": {f"h{n}": HardLink("many/d0/sub/f0") for n in range(9)}}
    )
    found = usage(os.fsencode(tree), workers=workers)
    assert (found.size, found.files, found.directories) == (du(tree), 4000, 403)
    assert found.totals[b""] == (found.size, found.files)
    assert found.totals[b"many/d7"][1] == 20
    assert len(found.totals) == 403


@requires("bind", "tmpfs")
def test_mounts_as_du_has_them(tmp_path: Path) -> None:
    """Another filesystem is left out; a bind mount of the same one counts, as du counts it."""
    tree = make_tree(tmp_path / "t", {"other": {}, "bind": {}, "x": b"x" * 5000})
    outside = make_tree(tmp_path / "outside", {"y": b"y" * 50_000})
    with filesystems.tmpfs(at=tree / "other"), filesystems.bind(outside, tree / "bind"):
        (tree / "other" / "z").write_bytes(b"z" * 70_000)
        assert usage(os.fsencode(tree)).size == du(tree) > 50_000


@requires("unprivileged")
def test_unreadable_directories_are_counted(open_path: Path) -> None:
    """As an ordinary user: what can be seen is what du sees, and how many directories were closed is told."""
    tree = make_tree(
        open_path / "in" / "t", {**wide(3), "shut": {"a": {"b": b"b" * 5000}}, "also": Dir({"x": b""}, 0)}
    )
    give(tree)
    os.chown(tree / "shut", 0, 0)
    (tree / "shut").chmod(0o700)

    def work() -> bool:
        found = usage(os.fsencode(tree))
        return (found.size, found.unreadable) == (du(tree), 2)

    as_nobody(work)


def test_a_file_and_a_missing_path(tmp_path: Path) -> None:
    """A file is a tree of one; what is missing is an error."""
    make_tree(tmp_path, {"f": b"x" * 5000, "l": Symlink("f")})
    for name in ("f", "l"):
        found = usage(os.fsencode(tmp_path / name))
        assert (found.size, found.files, found.directories) == (du(tmp_path / name), 1, 0)
    with pytest.raises(FileNotFoundError):
        usage(os.fsencode(tmp_path / "missing"))


def test_deeper_than_a_path_may_be(tmp_path: Path) -> None:
    """2,000 levels, whose paths the kernel does not take in one piece."""
    from tests.crash.test_files import deep_tree

    deep_tree(tmp_path / "deep", 2000)
    found = usage(os.fsencode(tmp_path / "deep"))
    assert (found.files, found.directories, found.unreadable) == (2000, 2001, 0)
    subprocess.run(["rm", "-rf", tmp_path / "deep"], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_it_stops_at_the_deadline(tmp_path: Path, workers: int) -> None:
    """What was read by then is told, and that it is not all."""
    tree = make_tree(tmp_path / "t", wide(200))
    found = usage(os.fsencode(tree), deadline=time.monotonic(), workers=workers)
    assert not found.complete
    assert found.files < 4000


def test_excluded_directories_are_not_read(tmp_path: Path) -> None:
    """Nor counted."""
    tree = make_tree(tmp_path / "t", {"a": {"b": {"x": b"x"}}, "c": {"y": b"y"}})
    found = usage(os.fsencode(tree), exclude={os.fsencode(tree / "a" / "b"), b"/elsewhere"})
    assert (found.files, found.directories) == (1, 3)


def test_access_times_stay(tmp_path: Path) -> None:
    """Reading a directory of ours does not change its access time."""
    tree = make_tree(tmp_path / "t", wide(5))
    for folder, _, _ in os.walk(tree):
        os.utime(folder, ns=(1, 2))
    usage(os.fsencode(tree), workers=0)
    assert {os.stat(folder).st_atime_ns for folder in (tree, tree / "d1", tree / "d1" / "sub")} == {1}


def test_a_killed_worker_makes_it_incomplete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums are then too small, and that is told."""
    monkeypatch.setattr(module._Worker, "handle", lambda self, message: os.kill(os.getpid(), 9))
    assert not usage(os.fsencode(make_tree(tmp_path / "t", wide(200))), workers=2).complete


def test_the_top_consumers() -> None:
    """The directory that holds most of another is shown instead of it; nothing is counted twice."""
    totals = {
        b"": (1000, 50),
        b"usr": (700, 30),
        b"usr/lib": (650, 20),
        b"usr/lib/a": (300, 9),
        b"usr/lib/b": (290, 9),
        b"usr/share": (20, 5),
        b"home": (200, 5),
        b"home/me": (200, 4),
        b"home/me/x": (90, 2),
    }
    found = Usage(b"/", 1000, 50, totals=totals).top(3)
    assert found == [Consumer(b"/usr/lib", 650, 20), Consumer(b"/home/me", 200, 4), Consumer(b"/", 100, 15)]
    assert Usage(b"/a", 5, 1, totals={b"": (5, 1)}).top(9) == [Consumer(b"/a", 5, 1)]
    every = Usage(b"/", 1000, 50, totals=totals).top(100)
    assert sum(one.size for one in every) == 1000


def test_directories_told_apart_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of them, what lies in further ones counts to the nearest above; the sum stays right."""
    monkeypatch.setattr(module, "_TOLD", 10)
    tree = make_tree(tmp_path / "t", wide(200))
    found = usage(os.fsencode(tree), workers=2)
    assert found.size == du(tree)
    assert len(found.totals) <= 12


def test_it_needs_nothing_but_the_standard_library() -> None:
    """The scan runs on a bare machine."""
    code = "import sys, cachekit.disk.usage, cachekit.system.removal.trash; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"psutil", "click", "zstandard"}.isdisjoint(done.stdout.split())
