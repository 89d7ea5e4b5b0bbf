"""`python -m benchmarks cleaner`: removing a tree against `rm -rf`, scanning it against `du -sx`, and a clean with
nothing to do.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.filesystem import need, wait_for_inodes
from benchmarks.measure import BenchmarkError, Run, Series, Subject, environment, interleave, run
from benchmarks.table import Row, compared, seconds
from benchmarks.trees import Tree, log

REMOVE_TARGET = 0.75
FREE_TARGET_MS = 20.0
SCAN_TARGET = 2.5
MET_TARGET_MS = 300.0

_SETTLE = 5
"""Seconds between making the copies and removing the first: what the disk does on its own comes to rest."""

_DISCARD = """
import json, sys, time
started = time.perf_counter()
from cachekit.system.removal.trash import discard
called = time.perf_counter()
moments = []
def look(path):
    moments.append(time.perf_counter() - called)
removed = discard(sys.argv[1].encode(), look_again=look)
print(json.dumps({"items": removed.items, "left": removed.left_count, "free_ms": moments[0] * 1000,
                  "phases": {"import": called - started, "rename": moments[0]}}))
"""
_USAGE = """
import json, sys
from cachekit.disk.usage import usage
found = usage(sys.argv[1].encode())
print(json.dumps({"size": found.size, "unreadable": found.unreadable, "complete": found.complete}))
"""


def measure(workdir: Path, tree: Tree, rounds: int) -> tuple[list[Row], dict[tuple[str, str], list[Series]]]:
    """All rows, and the runs by (command, tree)."""
    rows: list[Row] = []
    series: dict[tuple[str, str], list[Series]] = {}
    series["scan", tree.name] = _scan(tree, rounds, rows)
    series["clean", tree.name] = _goal_met(workdir, tree, rounds, rows)
    series["remove", tree.name] = _remove(workdir, tree, rounds, rows)
    return rows, series


def _scan(tree: Tree, rounds: int, rows: list[Row]) -> list[Series]:
    log("scan against du -sx")
    path = str(tree.root)
    expected = int(
        subprocess.run(["du", "-sx", "--block-size=1", path], capture_output=True, check=True).stdout.split()[
            0
        ]
    )

    def check(done: Run) -> None:
        if done.report != {"size": expected, "unreadable": 0, "complete": True}:
            raise BenchmarkError(f"du says {expected} bytes, the scan {dict(done.report)}")

    mine, other = interleave(
        [
            Subject("scan", lambda: run([sys.executable, "-c", _USAGE, path]), check=check),
            Subject("du -sx", lambda: run(["du", "-sx", "--block-size=1", path])),
        ],
        4 * rounds,
    )
    rows.append(compared("scan, equal to the block", tree.name, mine, other, SCAN_TARGET))
    return [mine, other]


def _goal_met(workdir: Path, tree: Tree, rounds: int, rows: list[Row]) -> list[Series]:
    log("clean with its goal met")
    argv = [sys.executable, "-m", "cachekit", "clean", "--free", "1K"]
    mine, other = interleave(
        [
            Subject("clean, goal met", lambda: run(argv, env=environment(f"{workdir}/env"))),
            Subject("python -c pass", lambda: run([sys.executable, "-c", "pass"])),
        ],
        4 * rounds,
    )
    median = statistics.median(mine.walls) * 1000
    rows.append(
        Row(
            "clean, goal met",
            "",
            seconds(mine.walls),
            f"bare Python {seconds(other.walls)}",
            median,
            MET_TARGET_MS,
            "ms",
        )
    )
    return [mine, other]


def _remove(workdir: Path, tree: Tree, rounds: int, rows: list[Row]) -> list[Series]:
    """Every copy is made before the first is removed: see benchmarks.filesystem."""
    need(workdir, 2 * (rounds + 1) * (tree.size + 5000 * (tree.files + tree.directories)))
    wait_for_inodes(workdir)
    log(f"making {2 * (rounds + 1)} copies")
    copies = [workdir / f"copy-{number}" for number in range(2 * (rounds + 1))]
    for copy in copies:
        run(["cp", "-a", str(tree.root), str(copy)])
    run(["sync"])
    time.sleep(_SETTLE)
    log("remove against rm -rf")
    names = tree.files + tree.directories + tree.links
    gone: list[Path] = []
    free: list[float] = []

    def take() -> None:
        gone.append(copies.pop())

    def ours() -> Run:
        return run([sys.executable, "-c", _DISCARD, str(gone[-1])], env=environment(f"{workdir}/env"))

    def check(more: Callable[[Run], None]) -> Callable[[Run], None]:
        def look(done: Run) -> None:
            if gone[-1].exists():
                raise BenchmarkError(f"{gone[-1]} is still there")
            more(done)

        return look

    def check_ours(done: Run) -> None:
        if done.report["left"] or not names <= done.report["items"] <= names + 2:
            raise BenchmarkError(f"{names} names were to go, not {dict(done.report)}")
        free.append(float(done.report["free_ms"]))

    mine, other = interleave(
        [
            Subject("cachekit remove", ours, take, check(check_ours)),
            Subject("rm -rf", lambda: run(["rm", "-rf", str(gone[-1])]), take, check(lambda _: None)),
        ],
        rounds,
    )
    what = f"remove {tree.files:,} files"
    rows.append(compared(what, tree.name, mine, other, REMOVE_TARGET))
    shown = f"{statistics.median(free):.1f} ms ({min(free):.1f}-{max(free):.1f})"
    rows.append(Row("path free after", tree.name, shown, "", statistics.median(free), FREE_TARGET_MS, "ms"))
    return [mine, other]
