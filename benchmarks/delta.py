"""`python -m benchmarks delta`: saves and restores of a tree that is nearly as before, against full ones of it.

A change replaces whole directories of one package in a hundred, as an update does; or, for comparison, single files
scattered over everything. What is replaced is moved away, not removed, see benchmarks.filesystem.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.archive import CACHEKIT, Bench, entries
from benchmarks.filesystem import need, wait_for_inodes
from benchmarks.measure import BenchmarkError, Run, Subject, environment, interleave, run
from benchmarks.table import compared
from benchmarks.trees import Tree, log

SHARE = 100
"""One package, or one file, in so many is changed."""
TARGETS = {
    "save, nothing changed": 0.15,
    "save, packages changed": 0.25,
    "save, files scattered": 1.05,
    "restore in place, nothing changed": 0.10,
    "restore in place, packages changed": 0.15,
}


class Scene:
    """A copy of the tree that is changed and saved, stores for both sides, and their states."""

    def __init__(self, bench: Bench, tree: Tree) -> None:
        self.tree, self.level = tree, bench.level
        self.place = bench.workdir / f"delta-{tree.name}"
        self.copy = self.place / "tree"
        self.number = 0
        self.copy.mkdir(parents=True)
        self.run_ours("save", "first-0", tree.root)
        self.run_ours("restore", "first-0", self.copy)

    def run_ours(self, command: str, key: str, root: Path, *more: str) -> Run:
        """One command with our store and state."""
        return self._run("ours", command, key, root, *more)

    def run_full(self, command: str, key: str, root: Path, *more: str) -> Run:
        """The same with a store and state of its own: nothing to start from."""
        return self._run("full", command, key, root, *more)

    def _run(self, side: str, command: str, key: str, root: Path, *more: str) -> Run:
        options = ["--store", str(self.place / f"store-{side}"), "--root", str(root), "--json", "--key", key]
        if command == "save":
            options += ["--family", "bench", "--level", str(self.level), *more, self.tree.target]
        else:
            options += more
        return run([*CACHEKIT, command, *options], env=environment(f"{self.place}/state-{side}"))

    def key(self) -> str:
        """A key that was not used yet."""
        self.number += 1
        return f"bench-{self.number}"

    def packages(self) -> list[Path]:
        """The directories of one package in a hundred, none inside another."""
        found: list[Path] = []
        for folder, names, files in os.walk(self.copy / self.tree.target):
            names.sort()
            if "package.json" in files or folder.endswith(".dist-info"):
                home = Path(folder)
                if folder.endswith(".dist-info"):
                    home = home.parent / home.name.rpartition("-")[0]
                found.append(home)
                if "package.json" in files:
                    names.clear()
        return sorted(path for path in found if path.is_dir())[::SHARE]

    def change_packages(self) -> None:
        """Put a new version in the place of the packages."""
        self.number += 1
        aside = self.place / "aside" / str(self.number)
        aside.mkdir(parents=True)
        for number, home in enumerate(self.packages()):
            old = aside / str(number)
            home.rename(old)
            for folder, names, files in os.walk(old):
                names.sort()
                new = home / Path(folder).relative_to(old)
                new.mkdir()
                for name in sorted(files):
                    source = Path(folder) / name
                    if source.is_symlink():
                        (new / name).symlink_to(source.readlink())
                        continue
                    self._write(new / name, source.read_bytes())

    def change_files(self) -> None:
        """Put a new version in the place of one file in a hundred."""
        self.number += 1
        seen = 0
        for folder, names, files in os.walk(self.copy / self.tree.target):
            names.sort()
            for name in sorted(files):
                path = Path(folder) / name
                seen += 1
                if seen % SHARE == 0 and not path.is_symlink():
                    self._write(path, path.read_bytes()[-(1 << 20) :])

    def _write(self, path: Path, content: bytes) -> None:
        """Write a version of a file: about as long as it was, with another beginning."""
        head = f"// version {self.number} of {path.name}\n".encode()
        path.write_bytes(head + content[len(head) :])


def measure_save(bench: Bench, scene: Scene) -> None:
    """The rows of saves."""
    tree = scene.tree
    scene.run_ours("save", scene.key(), scene.copy)

    def row(what: str, change: Callable[[], None], *more: str) -> None:
        def ours() -> Run:
            return scene.run_ours("save", scene.key(), scene.copy, *more)

        def full() -> Run:
            return scene.run_full("save", scene.key(), scene.copy, "--full")

        def check(done: Run) -> None:
            if not done.report.get("copied_bytes") and done.report.get("status") != "reused":
                raise BenchmarkError(f"{what}: nothing was taken over from the earlier entry")

        mine, other = interleave(
            [Subject(what, ours, change, check), Subject("full save", full)], bench.rounds
        )
        bench.series[what, tree.name] = [mine, other]
        bench.rows.append(compared(what, tree.name, mine, other, TARGETS.get(what)))

    row("save, nothing changed", lambda: None)
    row("save, nothing changed, --skip-unchanged", lambda: None, "--skip-unchanged")
    row("save, packages changed", scene.change_packages)
    row("save, files scattered", scene.change_files)


def measure_restore(bench: Bench, scene: Scene) -> None:
    """The rows of restores in place over the old tree."""
    tree = scene.tree
    keys = []
    for _ in range(2):
        scene.change_packages()
        keys.append(scene.key())
        scene.run_ours("save", keys[-1], scene.copy)
    store = scene.place / "store-ours"
    shutil.copytree(store, scene.place / "store-full", dirs_exist_ok=True)
    rounds = iter(range(1000))

    def row(what: str, next_key: Callable[[], str]) -> None:
        def ours() -> Run:
            return scene.run_ours("restore", next_key(), scene.copy, "--in-place")

        def full() -> Run:
            target = scene.place / f"restored-{next(rounds)}"
            target.mkdir()
            return scene.run_full("restore", keys[0], target)

        def check(done: Run) -> None:
            if not done.report.get("unchanged"):
                raise BenchmarkError(f"{what}: nothing was left alone")

        mine, other = interleave(
            [Subject(what, ours, check=check), Subject("full restore", full)], bench.rounds
        )
        bench.series[what, tree.name] = [mine, other]
        bench.rows.append(compared(what, tree.name, mine, other, TARGETS[what]))

    turns = iter(range(1000))
    row("restore in place, nothing changed", lambda: keys[-1])
    row("restore in place, packages changed", lambda: keys[next(turns) % 2])


def measure(bench: Bench, tree: Tree) -> None:
    """All rows of one tree."""
    need(bench.workdir, (2 * bench.rounds + 8) * (tree.size + 5000 * (tree.files + tree.directories)))
    wait_for_inodes(bench.workdir)
    log(f"delta {tree.name}")
    scene = Scene(bench, tree)
    if not entries(scene.place / "store-ours"):
        raise BenchmarkError("save left no entry")
    measure_save(bench, scene)
    measure_restore(bench, scene)
