"""Trees are removed whole, whatever their depth and permissions, and nothing outside of them is touched."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachekit.system.files import open_directory, remove_tree, replace_file
from cachekit.targets.protect import merge_only, mounted_in
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.ordinary_user import NOBODY
from tests.support.snapshots import unchanged
from tests.support.trees import Dir, Fifo, File, Symlink, make_tree

LEVELS = 3000


def deep_tree(root: Path, levels: int = LEVELS) -> bytes:
    """Make directories in each other, with a file in each; return the path of the innermost."""
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    parts = [os.fsencode(root)]
    for level in range(levels):
        name = b"level-%04d" % level
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
        parts.append(name)
    os.close(fd)
    return b"/".join(parts)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """Let this process have 100 files open, as few as a bare machine may allow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_descriptors")
def test_a_very_deep_tree_goes(tmp_path: Path) -> None:
    """3,000 levels, more than Python can recurse and than files may be open, are removed and counted."""
    innermost = deep_tree(tmp_path / "deep")
    assert len(innermost) > 30_000
    fd = open_directory(innermost)
    assert os.listdir(fd) == []
    os.close(fd)
    assert remove_tree(os.fsencode(tmp_path / "deep")) == 2 * LEVELS + 1
    assert os.listdir(tmp_path) == []


def test_a_path_longer_than_the_kernel_takes_is_opened_in_pieces(tmp_path: Path) -> None:
    """Absolute or relative, with doubled slashes too; a symlink at its end and a missing name are errors."""
    innermost = deep_tree(tmp_path / "deep", 500)
    parent, last = os.path.split(innermost)
    before = len(os.listdir("/proc/self/fd"))
    fd = open_directory(innermost)
    top = open_directory(os.fsencode(tmp_path))
    relative = os.path.relpath(innermost, os.fsencode(tmp_path))
    for path in (relative, relative.replace(b"/", b"//")):
        again = open_directory(path, dir_fd=top)
        assert os.path.samestat(os.fstat(fd), os.fstat(again))
        os.close(again)
    above = open_directory(parent)
    os.symlink(last, b"link", dir_fd=above)
    for path, code in ((b"link", errno.ENOTDIR), (b"missing", errno.ENOENT), (b"file", errno.ENOTDIR)):
        with pytest.raises(OSError, match=os.strerror(code)):
            open_directory(parent + b"/" + path)
    os.close(open_directory(parent + b"/link", follow=True))
    for one in (fd, top, above):
        os.close(one)
    assert len(os.listdir("/proc/self/fd")) == before
    remove_tree(os.fsencode(tmp_path / "deep"))


def test_links_are_removed_not_followed(tmp_path: Path) -> None:
    """A symlink goes, what it leads to does not change, not even when the tree itself is named by a link."""
    kept = make_tree(tmp_path / "kept", {"file": b"x", "sub": {"y": b"z"}})
    make_tree(
        tmp_path / "tree", {"to-dir": Symlink(str(kept)), "to-file": Symlink(str(kept / "file")), "p": Fifo()}
    )
    (tmp_path / "named").symlink_to(kept)
    with unchanged(kept):
        assert remove_tree(os.fsencode(tmp_path / "tree")) == 4
        assert remove_tree(os.fsencode(tmp_path / "named")) == 1
        assert remove_tree(os.fsencode(tmp_path / "missing")) == 0
    assert os.listdir(tmp_path) == ["kept"]


@requires("unprivileged")
def test_read_only_directories_of_ours_go(open_path: Path) -> None:
    """As an ordinary user, a tree of read-only and closed directories is removed."""
    tree = Dir(
        {"a": Dir({"b": Dir({"c": b"x"}, mode=0o500)}, mode=0o555), "closed": Dir({"d": b"y"}, mode=0)}, 0o555
    )
    make_tree(open_path / "tree", tree)
    for folder, folders, files in os.walk(open_path):
        for name in (*folders, *files):
            os.chown(Path(folder, name), NOBODY, NOBODY)
    os.chown(open_path, NOBODY, NOBODY)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            code = 0 if remove_tree(os.fsencode(open_path / "tree")) == 6 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.listdir(open_path) == []


@requires("tmpfs")
@pytest.mark.parametrize("bind", [False, True], ids=["other-device", "same-device"])
def test_nothing_is_removed_across_a_mount(tmp_path: Path, bind: bool) -> None:
    """Another file system, or a bind mount of the same one, anywhere in the tree: refused before a name goes."""
    tree = make_tree(tmp_path / "tree", {"file": b"x", "sub": {"mount with space": {}, "z": b"z"}})
    point = tree / "sub" / "mount with space"
    outside = make_tree(tmp_path / "outside", {"precious": b"p"})
    with filesystems.bind(outside, point) if bind else filesystems.tmpfs(at=point):
        (point / "kept").touch()
        with unchanged(tree):
            for path in (tree, point):
                with pytest.raises(OSError, match="mount point") as caught:
                    remove_tree(os.fsencode(path))
                assert caught.value.errno == errno.EXDEV
    remove_tree(os.fsencode(tree))
    assert (outside / "precious").exists()


def test_a_file_is_replaced_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure leaves the old content and no temporary file."""
    fd = os.open(tmp_path, os.O_RDONLY)
    replace_file("name", b"old", fd)

    def failing(_fd: int) -> None:
        raise OSError(errno.EIO, "disk failure")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="disk failure"):
            replace_file("name", b"new", fd)
    assert (tmp_path / "name").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["name"]
    replace_file("name", b"new", fd)
    assert (tmp_path / "name").read_bytes() == b"new"
    os.close(fd)


ROOT, HOME, HERE = b"/w/root", b"/home/me", b"/w/root/sub/here"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (b"/", "it is /"),
        (b"/w", "it is or contains the root"),
        (b"/w/root", "it is or contains the root"),
        (b"/home", "it is or contains the home directory"),
        (b"/home/me", "it is or contains the home directory"),
        (b"/w/root/sub", "it is or contains the current directory"),
        (b"/w/root/sub/here", "it is or contains the current directory"),
        (b"/w/root/.git", "it is or contains a .git"),
        (b"/w/root/mounted", "something is mounted in it"),
        (b"/w/root/sub/here/tree", None),
        (b"/w/root/su", None),
        (b"/w/root/other", None),
        (b"/w/root/mounted/point", None),
        (b"/w/root/mount", None),
        (b"/home/me/.npm", None),
        (b"/home/m", None),
        (b"/w/root/.gitignore", None),
    ],
)
def test_what_is_only_merged(target: bytes, reason: str | None) -> None:
    """The root, home, current directory, a .git, what contains them, and what has a mount in it; nothing else."""
    mounts = {b"/", b"/w/root/mounted/point", b"/proc"}
    assert merge_only(target, root=ROOT, home=HOME, here=HERE, mounts=mounts) == reason


@pytest.mark.parametrize("git", [Dir(), File(b"gitdir: elsewhere\n"), Symlink("nowhere")])
def test_a_checkout_is_only_merged(tmp_path: Path, git: Dir | File | Symlink) -> None:
    """Whether its .git is a directory, a worktree's file or a dangling link."""
    make_tree(tmp_path / "checkout", {".git": git})
    reason = merge_only(os.fsencode(tmp_path / "checkout"), root=b"/r", home=b"/h", here=b"/c")
    assert reason == "it is or contains a .git"


def test_mounts_below_a_target() -> None:
    """Relative to the target, neither the target itself nor a neighbour with a longer name."""
    mounts = [b"/", b"/a", b"/a/b", b"/a/b/c", b"/ab/c", b"/proc"]
    assert sorted(mounted_in(b"/a", mounts)) == [b"b", b"b/c"]
    assert sorted(mounted_in(b"/", mounts)) == [b"a", b"a/b", b"a/b/c", b"ab/c", b"proc"]
    assert mounted_in(b"/a/b/c", mounts) == []
