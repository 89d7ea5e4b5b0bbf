"""`python -m benchmarks archive`: save, restore and archive size against `tar` and `zstd`, on each tree."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.filesystem import need, remove, wait_for_inodes
from benchmarks.measure import BenchmarkError, Run, Series, Subject, environment, interleave, run
from benchmarks.table import Row, compared
from benchmarks.trees import Tree, log, read_through, survey

CACHEKIT = (sys.executable, "-m", "cachekit")
SAVE_TARGET = {"node": 0.90, "venv": 0.85}
"""The most that a save may take, as a share of `tar | zstd`, by the kind of tree; others count as many small
files.
"""
RESTORE_TARGET = 0.55
SIZE_TARGET = 1.02


@dataclass
class Bench:
    """One run of the benchmark: where it works, how often, and what it has measured so far."""

    workdir: Path
    rounds: int
    level: int
    rows: list[Row]
    series: dict[tuple[str, str], list[Series]]
    """By (command, tree): cachekit's runs, then the baseline's."""


def entries(store: Path) -> list[Path]:
    """The entry files of a store."""
    return sorted(store.glob("**/entries/*.tar.zst"))


def fresh_store(workdir: Path) -> Path:
    """A store with nothing but a tiny entry of another family in it, and no state: neither copied frames nor
    hits.
    """
    store = workdir / "store"
    for path in (store, workdir / "env"):
        remove(path)
    seed = workdir / "seed" / "target"
    seed.mkdir(parents=True, exist_ok=True)
    (seed / "file").write_text("a tiny entry\n", encoding="utf-8")
    save(workdir, store, "seed-0", seed.parent, "target", 3)
    return store


def save(workdir: Path, store: Path, key: str, root: Path, target: str, level: int) -> Run:
    """One `cachekit save` of `target` in `root`."""
    options = ["--store", str(store), "--root", str(root), "--level", str(level), "--force", "--json"]
    return run([*CACHEKIT, "save", "--key", key, *options, target], env=environment(f"{workdir}/env"))


def measure_save(bench: Bench, tree: Tree) -> None:
    """Rows of save time (with and without fsync) and of archive size."""
    plain = bench.workdir / f"{tree.name}.tar.zst"
    store = bench.workdir / "store"
    sizes: list[int] = []

    def before_ours() -> None:
        fresh_store(bench.workdir)
        read_through(tree)

    def ours() -> Run:
        return save(bench.workdir, store, f"bench-{tree.name}", tree.root, tree.target, bench.level)

    def check_ours(_: Run) -> None:
        sizes.append(max((path.stat().st_size for path in entries(store)), default=0))
        if sizes[-1] < tree.size // 1000:
            raise BenchmarkError("save left no entry of a plausible size in the store")

    def before_theirs() -> None:
        plain.unlink(missing_ok=True)
        read_through(tree)

    def theirs() -> Run:
        done = run(
            ["tar", "-C", str(tree.root), "-cf", "-", tree.target],
            ["zstd", "-T0", f"-{bench.level}", "-q", "-o", str(plain)],
        )
        return replace(done, report={"phases": {"fsync": _fsync(plain)}})

    subjects = [
        Subject("cachekit save", ours, before_ours, check_ours),
        Subject("tar | zstd", theirs, before_theirs),
    ]
    mine, other = interleave(subjects, bench.rounds)
    bench.series["save", tree.name] = [mine, other]
    target = next(
        (value for name, value in SAVE_TARGET.items() if tree.name.startswith(name)), SAVE_TARGET["node"]
    )
    bench.rows += [
        compared("save, without fsync", tree.name, mine, other, target, without="fsync"),
        compared("save, fsync in ours only", tree.name, mine, other, None),
        compared("save, fsync in both", tree.name, mine, other, None, plus="fsync"),
    ]
    size, bare = statistics.median(sizes), plain.stat().st_size
    bench.rows.append(
        Row(
            "archive size",
            tree.name,
            f"{size / 1e6:.1f} MB",
            f"{bare / 1e6:.1f} MB",
            size / bare,
            SIZE_TARGET,
        )
    )


def _fsync(path: Path) -> float:
    """Seconds that an fsync of `path` takes."""
    started = time.perf_counter()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return time.perf_counter() - started


def measure_restore(bench: Bench, tree: Tree) -> None:
    """The row of restoring into an absent target, another one each time; the first restore of each side is
    compared with the tree.
    """
    plain = bench.workdir / f"{tree.name}.tar.zst"
    store = fresh_store(bench.workdir)
    key = f"bench-{tree.name}"
    save(bench.workdir, store, key, tree.root, tree.target, bench.level)
    remove(bench.workdir / "env")
    entry = max(entries(store), key=lambda path: path.stat().st_size)
    if not plain.exists():
        run(
            ["tar", "-C", str(tree.root), "-cf", "-", tree.target],
            ["zstd", "-T0", f"-{bench.level}", "-q", "-o", str(plain)],
        )
    targets: list[Path] = []
    verified: set[str] = set()
    wait_for_inodes(bench.workdir)

    def before(archive: Path) -> Callable[[], None]:
        def prepare() -> None:
            targets.append(bench.workdir / f"restored-{tree.name}-{len(targets)}")
            targets[-1].mkdir()
            remove(bench.workdir / "env")
            archive.read_bytes()

        return prepare

    def ours() -> Run:
        options = ["--store", str(store), "--root", str(targets[-1]), "--json"]
        return run([*CACHEKIT, "restore", "--key", key, *options], env=environment(f"{bench.workdir}/env"))

    def theirs() -> Run:
        return run(["zstd", "-q", "-d", "-c", str(plain)], ["tar", "-C", str(targets[-1]), "-xf", "-"])

    def check(name: str, *, exact: bool) -> Callable[[Run], None]:
        def compare(_: Run) -> None:
            if name in verified:
                if not (targets[-1] / tree.target).is_dir():
                    raise BenchmarkError(f"{name} restored nothing")
                return
            verified.add(name)
            found = survey(tree.name, targets[-1], tree.target)
            same = (found.files, found.directories, found.links, found.size)
            if same != (tree.files, tree.directories, tree.links, tree.size) or (
                exact and found.digest != tree.digest
            ):
                raise BenchmarkError(f"{name} did not restore the tree that was saved: {found}")

        return compare

    mine, other = interleave(
        [
            Subject("cachekit restore", ours, before(entry), check("cachekit restore", exact=True)),
            Subject("zstd | tar", theirs, before(plain), check("zstd | tar", exact=False)),
        ],
        bench.rounds,
    )
    bench.series["restore", tree.name] = [mine, other]
    bench.rows.append(compared("restore, verified", tree.name, mine, other, RESTORE_TARGET))


def measure(bench: Bench, tree: Tree, only: set[str]) -> None:
    """The rows of `tree` that `only` asks for; nothing is removed, see benchmarks.filesystem."""
    if "save" in only:
        log(f"save {tree.name}")
        measure_save(bench, tree)
    if "restore" in only:
        need(bench.workdir, 2 * (bench.rounds + 1) * (tree.size + 5000 * (tree.files + tree.directories)))
        log(f"restore {tree.name}")
        measure_restore(bench, tree)
