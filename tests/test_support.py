"""The support of the tests does what it promises: trees, snapshots, processes, capabilities."""

from __future__ import annotations

import os
import signal
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import given

from tests.support import capabilities, strategies
from tests.support.capabilities import need, requires
from tests.support.cli import Cli, give
from tests.support.ordinary_user import NOBODY
from tests.support.processes import children_gone, members_of_session, run, start, wait_until
from tests.support.samples import LONG_PATH, MIB, package_tree, sample_tree
from tests.support.snapshots import ROOT, assert_same_tree, diff, fingerprint, snapshot, unchanged
from tests.support.trees import (
    MTIME,
    Device,
    Dir,
    Fifo,
    File,
    HardLink,
    Socket,
    Sparse,
    Symlink,
    Tree,
    make_tree,
)


def test_every_kind_of_member_is_made_and_read_back(tmp_path: Path) -> None:
    """What `make_tree` was told is what `snapshot` sees."""
    tree: Tree = {
        "file": File(b"content", mode=0o640, mtime_ns=-1),
        b"\xff\n": "text",
        "dir": Dir({"link": Symlink(b"\xfe"), "hard": HardLink("file")}, mode=0o555, mtime_ns=5),
        "hole": Sparse(3 * MIB, {MIB: b"data"}),
        "pipe": Fifo(mode=0o600),
        "socket": Socket(),
    }
    seen = snapshot(make_tree(tmp_path / "root", Dir(tree, mode=0o750)), extents=True)
    assert [seen[path].kind for path in (ROOT, b"file", b"dir/link", b"pipe", b"socket")] == [
        "dir",
        "file",
        "symlink",
        "fifo",
        "socket",
    ]
    assert (seen[ROOT].mode, seen[ROOT].mtime_ns) == (0o750, MTIME)
    assert (seen[b"file"].mode, seen[b"file"].mtime_ns, seen[b"file"].size) == (0o640, -1, 7)
    assert (seen[b"dir"].mode, seen[b"dir"].mtime_ns) == (0o555, 5)
    assert (seen[b"dir/link"].target, seen[b"dir/link"].mtime_ns) == (b"\xfe", MTIME)
    assert seen[b"dir/hard"].group == seen[b"file"].group == b"dir/hard"
    assert seen[b"\xff\n"].size == 4
    extents = seen[b"hole"].extents
    assert extents is not None
    assert sum(end - start for start, end in extents) < MIB


@requires("root")
def test_a_device_is_made(tmp_path: Path) -> None:
    """A device node has the numbers it was given."""
    make_tree(tmp_path / "root", {"null": Device(1, 3)})
    assert (tmp_path / "root" / "null").stat().st_rdev == os.makedev(1, 3)


def test_the_sample_is_the_same_each_time(tmp_path: Path) -> None:
    """Two sample trees agree in everything a cache keeps, and reach beyond a path of 255 bytes."""
    first, second = sample_tree(tmp_path / "a", special=True), sample_tree(tmp_path / "b", special=True)
    assert_same_tree(first, second)
    seen = snapshot(first)
    assert len(LONG_PATH) > 255
    assert LONG_PATH + b"/leaf" in seen
    assert {node.kind for node in seen.values()} == {"file", "dir", "symlink", "fifo", "socket"}


def test_paths_longer_than_the_kernel_takes_are_made_and_read(tmp_path: Path) -> None:
    """Nothing depends on PATH_MAX."""
    tree: Dir = Dir({"leaf": b"x"})
    for _ in range(30):
        tree = Dir({b"d" * 200: tree})
    assert max(len(path) for path in snapshot(make_tree(tmp_path / "root", tree))) > 6000


def test_a_package_tree_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    """The same arguments give the same tree, another seed another; the large file is as large as asked."""
    first = snapshot(package_tree(tmp_path / "a", files=50, large=9 * MIB))
    assert not diff(first, snapshot(package_tree(tmp_path / "b", files=50, large=9 * MIB)))
    assert diff(first, snapshot(package_tree(tmp_path / "c", files=50, seed=2, large=9 * MIB)))
    assert first[b"packages/lib-large.so"].size == 9 * MIB
    assert sum(node.kind == "file" for node in first.values()) == 51


@given(tree=strategies.trees())
def test_drawn_trees_can_be_made(tmp_path_factory: pytest.TempPathFactory, tree: Dir) -> None:
    """Every tree that is drawn can be made, and reads the same when made twice."""
    base = tmp_path_factory.mktemp("drawn")
    assert_same_tree(make_tree(base / "a", tree), make_tree(base / "b", tree))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root: (root / "text.txt").write_bytes(b"a Line\n" * 100), "text.txt: digest"),
        (lambda root: (root / "private").chmod(0o644), "private: mode 0o600 -> 0o644"),
        (lambda root: (root / "empty").unlink(), "missing: empty (file)"),
        (lambda root: (root / "new").mkdir(), "extra: new (dir)"),
        (lambda root: os.utime(root / "empty", ns=(1, 1)), "empty: mtime_ns"),
        (lambda root: os.utime(root, ns=(1, 1)), ".: mtime_ns"),
    ],
)
def test_a_difference_is_told(tmp_path: Path, change: object, told: str) -> None:
    """`diff` names the member and the field."""
    before = snapshot(sample_tree(tmp_path / "root"))
    assert callable(change)
    change(tmp_path / "root")
    assert told in diff(before, snapshot(tmp_path / "root"))


def test_a_hole_and_its_zeros_have_the_same_content(tmp_path: Path) -> None:
    """The digest is of the content alone; only the extents tell holes."""
    make_tree(tmp_path / "a", {"f": Sparse(MIB + 17, {70_000: b"x"})})
    make_tree(tmp_path / "b", {"f": File(bytes(70_000) + b"x" + bytes(MIB + 17 - 70_001))})
    assert not diff(snapshot(tmp_path / "a"), snapshot(tmp_path / "b"), ignore={"root"})
    assert "extents" in diff(snapshot(tmp_path / "a", extents=True), snapshot(tmp_path / "b", extents=True))


def test_touching_a_tree_is_noticed_even_if_undone(tmp_path: Path) -> None:
    """A mode set and set back, or a file replaced by its copy, changes the fingerprint; reading does not."""
    root = sample_tree(tmp_path / "root")
    with unchanged(root, tmp_path / "absent"):
        (root / "text.txt").read_bytes()
        snapshot(root)
    before = fingerprint(root)
    (root / "empty").chmod(0o600)
    (root / "empty").chmod(0o644)
    assert "empty: ctime_ns" in diff(before, fingerprint(root))
    with pytest.raises(AssertionError, match="was touched"), unchanged(root, tmp_path / "absent"):
        (tmp_path / "absent").mkdir()


def test_a_child_is_killed_with_its_descendants(tmp_path: Path) -> None:
    """After `kill` nothing is left of the session, not even what the child started."""
    up = str(tmp_path / "up")
    script = f"import subprocess, time; subprocess.Popen(['sleep', '60']); open({up!r}, 'w'); time.sleep(60)"
    with start([sys.executable, "-c", script]) as running:
        result = running.kill_when((tmp_path / "up").exists)
        assert result.code == -signal.SIGKILL
        wait_until(lambda: children_gone(running.pid), "the sleeping grandchild is gone")


def test_a_grandchild_that_stays_is_seen() -> None:
    """A process left behind by a child that ended by itself still counts as its descendant."""
    with start(
        [sys.executable, "-c", "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"]
    ) as running:
        left = int(running.wait().stdout)
        assert members_of_session(running.pid) == [left]
        assert not children_gone(running.pid)
    wait_until(lambda: children_gone(running.pid), "leaving the block kills what is left")


def test_output_and_code_of_a_child_are_kept() -> None:
    """A result has what was printed, and `expect` shows it when the code is another."""
    result = run([sys.executable, "-c", "import sys; print('{\"a\": 1}'); sys.exit('bad')"])
    assert (result.code, result.json(), result.stderr) == (1, {"a": 1}, "bad\n")
    with pytest.raises(AssertionError, match="bad"):
        result.expect()
    assert result.expect(1) is result


def test_a_traceback_is_never_expected() -> None:
    """`expect` fails on a traceback whatever the code is."""
    with pytest.raises(AssertionError, match="traceback"):
        run([sys.executable, "-c", "1/0"]).expect(1)


def test_the_environment_is_clean(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of CI reaches a child, and home is a private directory."""
    monkeypatch.setenv("GITHUB_OUTPUT", "x")
    monkeypatch.setenv("CACHEKIT_STORE", "x")
    seen = run([sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]).json()
    assert not [name for name in seen if name.startswith(("GITHUB", "CACHEKIT", "XDG", "HOME"))]
    assert Path.home() == cli.home
    assert "CI" not in os.environ


@requires("unprivileged")
def test_an_ordinary_user_runs_python_and_owns_nothing(nobody_cli: Cli) -> None:
    """A child as nobody has no rights beyond the file modes, and its own work directory."""
    script = "import os; print(os.getuid(), os.access('/etc/shadow', os.R_OK), os.access('.', os.W_OK))"
    result = run([sys.executable, "-c", script], user=NOBODY, cwd=nobody_cli.cwd).expect()
    assert result.stdout.split() == [str(NOBODY), "False", "True"]
    make_tree(nobody_cli.cwd, {"d": {"f": b"x", "l": Symlink("f")}})
    give(nobody_cli.cwd)
    assert {node.owner for node in snapshot(nobody_cli.cwd, owners=True).values()} == {(NOBODY, NOBODY)}


def test_what_is_missing_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing capability skips with its reason; under CACHEKIT_REQUIRE_ALL it fails."""
    monkeypatch.setitem(capabilities.PROBES, "flying", lambda: "no wings")
    monkeypatch.delenv(capabilities.REQUIRE_ALL, raising=False)
    need("hard_links")
    with pytest.raises(pytest.skip.Exception, match="flying: no wings"):
        need("flying")
    monkeypatch.setenv(capabilities.REQUIRE_ALL, "1")
    with pytest.raises(pytest.fail.Exception, match="no wings"):
        need("flying")
    with pytest.raises(ValueError, match="no probe for swimming"):
        requires("swimming")


def test_the_open_directory_is_open(open_path: Path, tmp_path: Path) -> None:
    """Everyone may enter `open_path` from the root of the file system down, unlike `tmp_path`."""
    assert all(above.stat().st_mode & stat.S_IXOTH for above in (open_path, *open_path.parents))
    assert not all(above.stat().st_mode & stat.S_IXOTH for above in tmp_path.parents)
