"""The result of a benchmark as rows, and the rows as the Markdown of docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import filesystem
from benchmarks.measure import Series, pair_ratio


@dataclass(frozen=True)
class Row:
    """One line: what was measured, both sides as text, the measured figure and the most it may be."""

    what: str
    tree: str
    cachekit: str
    baseline: str
    measured: float
    target: float | None
    unit: str = "x"

    @property
    def verdict(self) -> str:
        """`met` or `missed`; empty where there is no target."""
        if self.target is None:
            return ""
        return "met" if self.measured <= self.target else "**missed**"

    def figure(self, value: float | None) -> str:
        """`value` in this row's unit."""
        if value is None:
            return ""
        return f"{value:.2f} x" if self.unit == "x" else f"{value:.0f} {self.unit}"


def seconds(values: Sequence[float]) -> str:
    """`median s (least-most)`, in ms where the median is below half a second."""
    middle = statistics.median(values)
    factor, unit, digits = (1000.0, "ms", 0) if middle < 0.5 else (1.0, "s", 2)
    return f"{middle * factor:.{digits}f} {unit} ({min(values) * factor:.{digits}f}-{max(values) * factor:.{digits}f})"


def compared(
    what: str,
    tree: str,
    ours: Series,
    theirs: Series,
    target: float | None,
    *,
    without: str = "",
    plus: str = "",
) -> Row:
    """A row of the pair ratio; `without` takes a phase of ours off, `plus` adds a phase of theirs."""
    first = [run.wall - run.phases.get(without, 0.0) for run in ours.runs]
    second = [run.wall + run.phases.get(plus, 0.0) for run in theirs.runs]
    return Row(
        what,
        tree,
        f"{seconds(first)}, CPU {ours.cpu:.2f} s",
        f"{seconds(second)}, CPU {theirs.cpu:.2f} s",
        pair_ratio(first, second),
        target,
    )


def markdown(rows: Sequence[Row]) -> str:
    """All rows as one table."""
    lines = ["| what | tree | cachekit | baseline | measured | at most | |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        cells = (
            row.what,
            row.tree,
            row.cachekit,
            row.baseline,
            row.figure(row.measured),
            row.figure(row.target),
            row.verdict,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def phase_table(measured: Mapping[tuple[str, str], Sequence[Series]]) -> str:
    """Median seconds of each phase that the first series (cachekit) reported, by (command, tree); may be
    empty.
    """
    lines = []
    for (command, tree), (series, *_) in measured.items():
        names = dict.fromkeys(name for run in series.runs for name in run.phases)
        cells = ", ".join(f"{name} {series.phase(name):.2f}" for name in names)
        if cells:
            lines.append(f"| {command} | {tree} | {statistics.median(series.walls):.2f} | {cells} |")
    if not lines:
        return ""
    return "\n".join(["| command | tree | wall s | phases, s |", "|---|---|---|---|", *lines])


def _first_line(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError:
        return "absent"
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def facts(workdir: Path) -> dict[str, str]:
    """What the figures depend on, without names of hosts or places: cores, load, memory, kernel, versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    zstd = _first_line("zstd", "--version")
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "load average before": f"{os.getloadavg()[0]:.1f}",
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release().partition("-")[0],
        "filesystem": filesystem.description(workdir),
        "python": platform.python_version(),
        "zstd": next((word.strip(",") for word in zstd.split() if word.startswith("v")), zstd),
        "tar": _first_line("tar", "--version").rpartition(" ")[2],
    }
