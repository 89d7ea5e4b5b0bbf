"""The short commands: how soon cachekit starts, and how soon it refuses an archive that was cut, however
large.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.archive import CACHEKIT, Bench, entries, fresh_store, save
from benchmarks.filesystem import remove
from benchmarks.measure import BenchmarkError, Run, Series, Subject, environment, interleave, pair_ratio, run
from benchmarks.table import Row, seconds
from benchmarks.trees import Tree, log

VERSION_TARGET = 3.0
"""The most that `cachekit --version` may take, in times of a Python that does nothing."""
START_TARGET_MS = 120.0
REFUSE_TARGET_MS = 150.0
LARGE = 10 << 30
"""Size in bytes of the large archive that is refused; nearly all of it is a hole."""
TAIL = 4 << 20
"""Bytes at the end of an entry that are put behind the hole: more than its index, seal and seek table."""

PYTHON = Subject("python -c pass", lambda: run([sys.executable, "-c", "pass"]))


def _script() -> list[str]:
    """The console script of this environment if it is installed, else the module."""
    script = Path(sys.executable).with_name("cachekit")
    return [str(script)] if script.exists() else list(CACHEKIT)


def _often(rounds: int) -> int:
    """Rounds for commands of some ten milliseconds: short runs vary more, and cost little."""
    return max(20, 4 * rounds)


def _milliseconds(what: str, tree: str, ours: Series, bare: Series, target: float) -> Row:
    """A row whose figure is the median wall time in ms."""
    return Row(
        what,
        tree,
        seconds(ours.walls),
        seconds(bare.walls),
        1000 * statistics.median(ours.walls),
        target,
        "ms",
    )


def measure_start(bench: Bench) -> None:
    """Rows of `--version`, `--help` and `ls` of an empty store, each beside `python -c pass`."""
    log("start")
    store = bench.workdir / "empty"
    store.mkdir(exist_ok=True)
    env = environment(f"{bench.workdir}/env")
    command = _script()

    def subject(*arguments: str) -> Subject:
        return Subject(" ".join(arguments[:1]), lambda: run([*command, *arguments], env=env))

    subjects = [subject("--version"), subject("--help"), subject("ls", "--store", str(store)), PYTHON]
    version, usage, listing, bare = interleave(subjects, _often(bench.rounds), settle=False)
    ratio = pair_ratio(version.walls, bare.walls)
    bench.rows += [
        Row("`cachekit --version`", "", seconds(version.walls), seconds(bare.walls), ratio, VERSION_TARGET),
        _milliseconds("`cachekit --help`", "", usage, bare, START_TARGET_MS),
        _milliseconds("`cachekit ls`, empty store", "", listing, bare, START_TARGET_MS),
    ]


def _half(entry: bytes, path: Path) -> None:
    path.write_bytes(entry[: len(entry) // 2])


def _cut_by_one(entry: bytes, path: Path) -> None:
    path.write_bytes(entry[:-1])


def _hole_after(entry: bytes, path: Path) -> None:
    path.write_bytes(entry)
    os.truncate(path, LARGE)


def _tail_after_hole(entry: bytes, path: Path, cut: int = 0) -> None:
    tail = entry[-TAIL:]
    with path.open("wb") as stream:
        stream.write(entry[:TAIL])
        stream.seek(LARGE - len(tail))
        stream.write(tail[: len(tail) - cut])


def _cut_tail_after_hole(entry: bytes, path: Path) -> None:
    _tail_after_hole(entry, path, 1000)


DAMAGES: dict[str, Callable[[bytes, Path], None]] = {
    "cut in half": _half,
    "cut by one byte": _cut_by_one,
    "10 GB, ends in a hole": _hole_after,
    "10 GB, tail cut by 1000 bytes": _cut_tail_after_hole,
    "10 GB, whole tail of a smaller one": _tail_after_hole,
}
"""What becomes of a good entry, by the name of its row."""


def measure_refusal(bench: Bench, tree: Tree) -> None:
    """A row for each damage: wall time of the restore that refuses it and leaves its target alone."""
    log(f"refusal {tree.name}")
    store = fresh_store(bench.workdir)
    known = set(entries(store))
    key = f"bench-{tree.name}"
    save(bench.workdir, store, key, tree.root, tree.target, bench.level)
    (path,) = set(entries(store)) - known
    good = path.read_bytes()
    fresh = bench.workdir / "restored"
    fresh.mkdir(exist_ok=True)
    arguments = ["restore", "--key", key, "--store", str(store), "--root", str(fresh), "--json"]
    env = environment(f"{bench.workdir}/env")
    untouched = fresh.stat().st_mtime_ns
    command = _script()

    def place(damage: Callable[[bytes, Path], None]) -> Callable[[], None]:
        def prepare() -> None:
            for leftover in [*store.glob("**/quarantine/*"), path]:
                remove(leftover)
            damage(good, path)

        return prepare

    def check(outcome: Run) -> None:
        if outcome.report.get("status") != "refused":
            raise BenchmarkError(f"a damaged archive was not refused: {dict(outcome.report)}")
        if os.listdir(fresh) or fresh.stat().st_mtime_ns != untouched:
            raise BenchmarkError("a refused restore wrote to its root")

    for name, damage in DAMAGES.items():
        refuse = Subject(name, lambda: run([*command, *arguments], env=env), place(damage), check)
        ours, bare = interleave([refuse, PYTHON], 2 * bench.rounds)
        bench.rows.append(_milliseconds(f"refusal: {name}", tree.name, ours, bare, REFUSE_TARGET_MS))
