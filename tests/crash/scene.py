"""Two trees, the entries saved of them, and the places in which a restore of the one over the other is killed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cachekit.cache.recovery import RecoverLine, recover_targets
from cachekit.cache.restore import RestoreRequest, restore
from cachekit.cache.save import SaveRequest, save
from cachekit.cache.verify import VerifyRequest, verify
from cachekit.model import RestoreReport, SaveReport
from cachekit.system import steps
from cachekit.system.state import state_directory
from tests.support import filesystems
from tests.support.cli import Cli
from tests.support.flaky import flaky
from tests.support.processes import Result
from tests.support.snapshots import ROOT, Snapshot, assert_same_tree, snapshot
from tests.support.trees import Dir, File, HardLink, Symlink, make_tree

OLD = Dir(
    {
        "kept": b"the same in both",
        "changed": b"old content",
        "only-old": b"not in the new tree",
        "dir": Dir({"a": b"old a", "only-old": b"x", "deep": Dir({"leaf": b"old"})}, mtime_ns=1_000),
        "gone": Dir({"x": b"1"}, mode=0o700),
        "becomes-file": Dir({"inside": b"lost in a merge"}),
        "becomes-dir": b"a file",
        "link": Symlink("changed"),
        "locked": Dir({"inside": b"old", "below": Dir({"x": b"old"}, mode=0o555)}, mode=0o555),
    },
    mode=0o750,
    mtime_ns=1_111_111_111_000_000_111,
)
NEW = Dir(
    {
        "kept": b"the same in both",
        "changed": File(b"new content, longer", mode=0o600),
        "only-new": b"fresh",
        "dir": Dir({"a": b"new a", "b": b"new b", "deep": Dir({"leaf": b"new"}, mtime_ns=2_000)}, mode=0o711),
        "becomes-file": b"a file now",
        "becomes-dir": Dir({"inside": b"new"}),
        "link": Symlink("kept"),
        "hard": HardLink("changed"),
        "locked": Dir({"inside": b"new", "below": Dir({"x": b"new"}, mode=0o555)}, mode=0o555),
        "empty": Dir(),
    },
    mode=0o755,
    mtime_ns=1_222_222_222_000_000_222,
)

Mode = Literal["merge", "replace", "in-place"]


@dataclass(frozen=True)
class Store:
    """A store with the entries `old` and `new`, and what they hold."""

    path: Path
    old: Snapshot
    new: Snapshot

    @classmethod
    def make(cls, base: Path) -> Store:
        """Save both trees in a new store below `base`."""
        taken = {}
        for key, tree in (("old", OLD), ("new", NEW)):
            source = base / f"source-{key}"
            make_tree(source / "tree", tree)
            taken[key] = snapshot(source / "tree")
            report = save(SaveRequest(key, ["tree"], str(base / "store"), root=str(source)))
            assert report.status == "saved"
        return cls(base / "store", taken["old"], taken["new"])


@dataclass(frozen=True)
class Scene:
    """A store with the entries `old` and `new`, and the target `tree` below `root`."""

    cli: Cli
    store: Path
    root: Path
    old: Snapshot
    new: Snapshot

    @classmethod
    def make(cls, cli: Cli, base: Path, store: Store) -> Scene:
        """Lay the scene below `base`."""
        root = base / "root"
        root.mkdir()
        return cls(cli, store.path, root, store.old, store.new)

    @property
    def target(self) -> Path:
        """Where the tree is restored."""
        return self.root / "tree"

    def at(self, root: Path) -> Scene:
        """The same with another root."""
        return replace(self, root=root)

    # What is done, in this process

    def restore(self, mode: Mode = "merge", *, key: str = "new", extras: bool = False) -> RestoreReport:
        """Restore an entry over the target."""
        return restore(
            RestoreRequest(key, str(self.store), root=str(self.root), mode=mode, replace_extras=extras)
        )

    def save(self, key: str, *, force: bool = False) -> SaveReport:
        """Save the target."""
        return save(SaveRequest(key, ["tree"], str(self.store), root=str(self.root), force=force))

    def recover(self, *, named: bool) -> list[RecoverLine]:
        """Recover the target by its name, or whatever the state directory knows."""
        return recover_targets([str(self.target)] if named else [])

    # What is done by a child that dies

    def kill(self, step: str, *args: str) -> Result:
        """Run the command line with the order to die at `step`, and see that it did."""
        given: list[str | Path] = ["--store", self.store, "--root", self.root]
        died = self.cli(*args, *given, env={"CACHEKIT_KILL_AT": step})
        assert died.code == -signal.SIGKILL, f"did not die at {step}: exit {died.code}\n{died.stderr}"
        return died

    # What must be true afterwards

    def assert_store_whole(self) -> None:
        """Every entry verifies to its last byte, and the older one can be restored."""
        reports = list(verify(VerifyRequest([], str(self.store), every=True)))
        assert reports
        assert all(report.ok for report in reports), reports
        elsewhere = self.at(self.root.parent / "elsewhere")
        shutil.rmtree(elsewhere.root, ignore_errors=True)
        elsewhere.root.mkdir()
        assert elsewhere.restore(key="old").status == "exact"
        assert_same_tree(self.old, elsewhere.target)

    def leftovers(self) -> list[str]:
        """What is left of staging, of journals, and of temporary files of the store."""
        found = [str(path) for path in self.root.rglob(".cachekit-*")]
        pointers = Path(state_directory(), "targets")
        found += [str(path) for path in pointers.iterdir()] if pointers.is_dir() else []
        return found + [str(path) for path in (self.store / "v1/default/tmp").iterdir()]

    def forget_state(self) -> None:
        """Lose the state directory."""
        shutil.rmtree(state_directory(), ignore_errors=True)


def die_at(step: str, action: Callable[[], object]) -> int:
    """Do something in a forked child that dies at `step`; return its exit code, -9 if it died, 0 if it did not."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            steps._KILL_AT = step
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def seen(root: Path) -> Snapshot:
    """Snapshot a target without the staging that may be inside it; empty if there is none."""
    if not os.path.lexists(root):
        return {}
    taken = snapshot(root)
    return {path: node for path, node in taken.items() if not path.startswith(b".cachekit-")}


def merged(old: Snapshot, new: Snapshot) -> Snapshot:
    """What a merge of `new` over `old` must give."""
    solid = [path for path, node in new.items() if node.kind != "dir" and path in old]
    kept = {path: node for path, node in old.items() if not any(path.startswith(one + b"/") for one in solid)}
    return dict(sorted((kept | new).items(), key=lambda item: (item[0] != ROOT, item[0])))


def content(tree: Snapshot) -> dict[bytes, tuple[object, ...]]:
    """What a tree holds, without modes and times."""
    return {path: (node.kind, node.size, node.target, node.digest) for path, node in tree.items()}


def assert_each_whole(now: Snapshot, old: Snapshot, new: Snapshot, *, all_there: bool) -> None:
    """Each member is the old or the new one as a whole; with `all_there` no file of both is missing."""
    before, after, found = content(old), content(new), content(now)
    for path, node in found.items():
        assert node in (before.get(path), after.get(path)), f"{path!r} is neither old nor new: {node}"
    if all_there:
        files = [path for path in before if path in after and before[path][0] == after[path][0] == "file"]
        missing = [path for path in files if path not in found]
        assert not missing, f"in both trees, but missing: {missing}"


# Where the target is, and what is in it before


@contextmanager
def _plain(scene: Scene) -> Iterator[Scene]:
    make_tree(scene.target, OLD)
    yield scene


@contextmanager
def _absent(scene: Scene) -> Iterator[Scene]:
    yield scene


@contextmanager
def _mounted(scene: Scene) -> Iterator[Scene]:
    with filesystems.tmpfs(at=scene.target):
        make_tree(scene.target, OLD)
        yield scene


@contextmanager
def _lower(scene: Scene) -> Iterator[Scene]:
    with ExitStack() as stack:
        lower = scene.root / "lower"
        make_tree(lower / "tree", OLD)
        mount = stack.enter_context(filesystems.overlay(lower)).path
        yield scene.at(mount)


@contextmanager
def _no_exchange(scene: Scene) -> Iterator[Scene]:
    with flaky(scene.root / "backing") as disk:
        make_tree(disk.mount / "tree", OLD)
        yield scene.at(disk.mount)


PLACES = {
    "plain": _plain,
    "absent": _absent,
    "mounted": _mounted,
    "lower": _lower,
    "no-exchange": _no_exchange,
}
