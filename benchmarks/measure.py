"""Running commands and weighing them: wall time, CPU of the children, interleaved rounds, medians of pairs."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class BenchmarkError(Exception):
    """A measured command failed, or did not do what it was measured for."""


@dataclass(frozen=True)
class Run:
    """One measured run: wall seconds, CPU seconds of all its processes, and the JSON that it printed."""

    wall: float
    user: float
    system: float
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase as cachekit reports them; empty for other commands."""
        found = self.report.get("phases")
        return {str(key): float(value) for key, value in found.items()} if isinstance(found, dict) else {}


@dataclass
class Series:
    """The runs of one command, in the order of the rounds; the warm-up is not among them."""

    name: str
    runs: list[Run] = field(default_factory=list)

    @property
    def walls(self) -> list[float]:
        """Wall seconds, one a round."""
        return [run.wall for run in self.runs]

    @property
    def cpu(self) -> float:
        """Median CPU seconds (user and system) of a run."""
        return statistics.median(run.user + run.system for run in self.runs)

    def phase(self, name: str) -> float:
        """Median seconds of one phase; 0 if it is not reported."""
        return statistics.median(run.phases.get(name, 0.0) for run in self.runs)


@dataclass(frozen=True)
class Subject:
    """One of the commands that are compared: `prepare` is not timed, `run` is, `check` looks at what it did."""

    name: str
    run: Callable[[], Run]
    prepare: Callable[[], None] = lambda: None
    check: Callable[[Run], None] = lambda run: None


def environment(state: str) -> dict[str, str]:
    """This environment with cachekit's own state and settings replaced by an empty directory `state`."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in {"GITHUB_OUTPUT", "GITHUB_ACTIONS", "GITLAB_CI"}
        and (not key.startswith("CACHEKIT_") or key == "CACHEKIT_WORKERS")
    }
    return kept | {
        "XDG_STATE_HOME": f"{state}/state",
        "XDG_CACHE_HOME": f"{state}/cache",
        "XDG_CONFIG_HOME": f"{state}/config",
    }


def run(*stages: Sequence[str], env: Mapping[str, str] | None = None, expect: int = 0) -> Run:
    """Run `stages` as one pipeline and wait for all; the last one's standard output is kept as JSON if it is
    JSON.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        processes: list[subprocess.Popen[bytes]] = []
        for number, argv in enumerate(stages):
            last = number == len(stages) - 1
            source = processes[-1].stdout if processes else subprocess.DEVNULL
            processes.append(
                subprocess.Popen(
                    argv, stdin=source, stdout=output if last else subprocess.PIPE, stderr=errors, env=env
                )
            )
            if number and processes[-2].stdout is not None:
                processes[-2].stdout.close()
        codes = [process.wait() for process in processes]
        wall = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if codes[:-1] != [0] * (len(codes) - 1) or codes[-1] != expect:
            errors.seek(0)
            raise BenchmarkError(
                f"{' | '.join(stage[0] for stage in stages)}: exit {codes}: {errors.read()[-2000:]!r}"
            )
        output.seek(0)
        text = output.read()
    return Run(wall, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, _report(text))


def _report(text: bytes) -> Mapping[str, Any]:
    """The JSON object printed by a command, or nothing if it printed something else."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def interleave(subjects: Sequence[Subject], rounds: int, *, settle: bool = True) -> list[Series]:
    """Run each subject once unmeasured, then `rounds` times in turn, the order reversed in every other round.

    With `settle`, what earlier runs left to be written goes to disk before each timed run, so that none pays
    for another.
    """
    series = [Series(subject.name) for subject in subjects]
    for number in range(rounds + 1):
        order = list(range(len(subjects)))
        for index in order if number % 2 else reversed(order):
            subject = subjects[index]
            subject.prepare()
            if settle:
                os.sync()
            outcome = subject.run()
            subject.check(outcome)
            if number:
                series[index].runs.append(outcome)
    return series


def pair_ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """The median of first/second taken round by round: what both rounds shared (a busy machine) cancels out."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))
