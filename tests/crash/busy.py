"""Trees large enough that a save or a restore of them can be caught in the middle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cachekit.cache.restore import RestoreRequest, restore
from cachekit.cache.save import SaveRequest, save
from cachekit.cache.verify import VerifyRequest, verify
from cachekit.model import RestoreReport, SaveReport
from cachekit.store.directory import DirectoryStore
from cachekit.system.state import state_directory
from tests.support.cli import Cli
from tests.support.processes import Running, members_of_session, wait_until
from tests.support.samples import MIB, package_tree
from tests.support.snapshots import Snapshot, snapshot


@dataclass(frozen=True)
class Sources:
    """Two trees that differ, `one/tree` and `two/tree` below `base`, and a store with an entry of each."""

    base: Path
    trees: dict[str, Snapshot]

    @classmethod
    def make(cls, base: Path, *, files: int, large: int) -> Sources:
        """Make and save them below `base`."""
        trees = {}
        for seed, name in enumerate(("one", "two"), 1):
            trees[name] = snapshot(package_tree(base / name / "tree", files=files, seed=seed, large=large))
            save(SaveRequest(name, ["tree"], str(base / "store"), root=str(base / name)))
        return cls(base, trees)


@dataclass(frozen=True)
class Busy:
    """A store and a root of one test, and where its trees come from; their target is `tree`."""

    cli: Cli
    base: Path
    sources: Path
    trees: dict[str, Snapshot]

    @classmethod
    def make(cls, cli: Cli, base: Path, sources: Sources, *, saved: bool) -> Busy:
        """Make a root below `base`, and with `saved` a store with the entries `one` and `two`."""
        (base / "root").mkdir()
        if saved:
            shutil.copytree(sources.base / "store", base / "store")
        return cls(cli, base, sources.base, sources.trees)

    @property
    def store(self) -> Path:
        """The store's directory."""
        return self.base / "store"

    @property
    def root(self) -> Path:
        """Where it is restored."""
        return self.base / "root"

    @property
    def target(self) -> Path:
        """The target of a restore."""
        return self.root / "tree"

    def save(self, name: str, key: str | None = None, *, force: bool = False) -> SaveReport:
        """Save one of the trees, here and now."""
        request = SaveRequest(
            key or name, ["tree"], str(self.store), root=str(self.sources / name), force=force
        )
        return save(request)

    def restore(self, key: str, root: Path | None = None, *, replace: bool = True) -> RestoreReport:
        """Restore an entry, here and now."""
        return restore(
            RestoreRequest(
                key, str(self.store), root=str(root or self.root), mode="replace" if replace else "merge"
            )
        )

    def start_save(self, name: str, key: str, *more: str) -> Running:
        """Start a child that saves one of the trees."""
        return self.cli.start(
            "save", "--store", self.store, "--root", self.sources / name, "--key", key, "tree", *more
        )

    def start_restore(self, key: str, *more: str, root: Path | None = None) -> Running:
        """Start a child that restores an entry."""
        return self.cli.start(
            "restore", "--store", self.store, "--root", root or self.root, "--key", key, *more
        )

    def temporary(self) -> list[Path]:
        """The temporary files of the store."""
        folder = self.store / "v1/default/tmp"
        return list(folder.iterdir()) if folder.is_dir() else []

    def writing(self) -> bool:
        """Whether a saver has begun to write frames."""
        return any(path.stat().st_size > MIB // 2 for path in self.temporary() if path.exists())

    def staging(self) -> list[Path]:
        """Staging directories beside the target."""
        return list(self.root.glob(".cachekit-*"))

    def unpacking(self) -> bool:
        """Whether a restore has begun to write files."""
        return any(os.path.isdir(path / "new/packages") for path in self.staging())

    def assert_no_leftovers(self) -> None:
        """Nothing temporary is in the store, beside the target or in the state directory."""
        pointers = Path(state_directory(), "targets")
        assert self.temporary() == []
        assert self.staging() == []
        assert not pointers.is_dir() or not list(pointers.iterdir())

    def assert_verifies(self) -> int:
        """Every entry verifies to its last byte; returns how many there are."""
        reports = list(verify(VerifyRequest([], str(self.store), every=True)))
        assert all(report.ok for report in reports), reports
        return len(reports)

    def sweep(self) -> None:
        """Do what every save and restore does first."""
        DirectoryStore(str(self.store)).sweep()


def in_the_middle(running: Running, moment: Callable[[], bool]) -> None:
    """Wait until `moment()`, which must come before the child ends."""
    wait_until(lambda: moment() or not running.alive, "the middle of the work", 30)
    assert running.alive, f"it ended too soon: {running.wait().stderr}"


def workers_of(running: Running) -> list[int]:
    """The worker processes of a child."""
    return [pid for pid in members_of_session(running.pid) if pid != running.pid]
