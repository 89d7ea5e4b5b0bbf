"""`python -m benchmarks memory`: the peak memory of a save and a restore, summed over all their processes.

What is summed is the proportional set size: a page shared by n processes counts 1/n in each, so forked
workers and shared rings count once. It is sampled every 20 ms, so a shorter peak can be missed.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from benchmarks import binary
from benchmarks.archive import CACHEKIT
from benchmarks.filesystem import remove
from benchmarks.measure import BenchmarkError, environment
from benchmarks.table import Row
from benchmarks.trees import Tree, Writer, log, prepare

PERIOD = 0.02
"""Seconds between two samples."""
LIMIT_MIB = 160.0
LIMIT_MEMBERS = 250_000
"""Up to so many members LIMIT_MIB holds; beyond it, BYTES_PER_MEMBER more are allowed for each."""
BYTES_PER_MEMBER = 200


def limit(members: int) -> float:
    """The most MiB that a save of `members` may take."""
    return LIMIT_MIB + max(0, members - LIMIT_MEMBERS) * BYTES_PER_MEMBER / (1 << 20)


def _descendants(pid: int) -> list[int]:
    """`pid` and every process below it that is alive now."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                row = Path(f"/proc/{name}/stat").read_bytes()
            except OSError:
                continue
            parents.setdefault(int(row.rpartition(b")")[2].split()[1]), []).append(int(name))
    found = [pid]
    for parent in found:
        found += parents.get(parent, [])
    return found


def _pss(pid: int) -> int:
    """Proportional set size of one process in KiB; 0 once it is gone."""
    try:
        rows = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) for row in rows if row.startswith(b"Pss:")), 0)


def peak(argv: Sequence[str], env: dict[str, str]) -> tuple[float, int, float]:
    """Run a command; its peak in MiB, the most processes seen at once, and its wall seconds."""
    started = time.monotonic()
    highest = most = 0
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=env) as process:
        while process.poll() is None:
            alive = _descendants(process.pid)
            total = sum(map(_pss, alive))
            highest, most = max(highest, total), max(most, len(alive))
            time.sleep(PERIOD)
    if process.returncode:
        raise BenchmarkError(f"{' '.join(argv[:4])}: exit {process.returncode}")
    return highest / 1024, most, time.monotonic() - started


def _tiny(writer: Writer, members: int) -> None:
    """Directories of about 100 files of 20 to 200 bytes: `members` files and directories in all."""
    rng = Random(303)
    block = binary.pool("symbols", 1 << 14)
    folder = ""
    for number in range(members):
        if number % 101 == 0:
            folder = f"tiny/{number // 10_100:03}/{number:07}"
            continue
        start = int(rng.random() * (len(block) - 200))
        writer.file(f"{folder}/member-{number:07}.txt", block[start : start + 20 + rng.getrandbits(7)])


def _large(writer: Writer, megabytes: int) -> None:
    """Three files of `megabytes` MB that neither compress nor have holes."""
    rng = Random(404)
    for number in range(3):
        writer.file(f"large/part-{number}.bin", *(rng.randbytes(1_000_000) for _ in range(megabytes)))


def trees(directory: Path, members: int, megabytes: int) -> list[tuple[Tree, int]]:
    """The trees to save, each with the number of members its limit is computed from."""
    smaller = max(1, megabytes // 10)
    return [
        (prepare(f"tiny-{members}", "tiny", lambda writer: _tiny(writer, members), directory), members),
        (prepare(f"large-{smaller}", "large", lambda writer: _large(writer, smaller), directory), 4),
        (prepare(f"large-{megabytes}", "large", lambda writer: _large(writer, megabytes), directory), 4),
    ]


def measure(workdir: Path, directory: Path, members: int, megabytes: int, workers: int) -> list[Row]:
    """A row of the peak of a save of each tree, against its limit, and one of the restore that follows it."""
    rows = []
    env = environment(f"{workdir}/env") | {"CACHEKIT_WORKERS": str(workers)}
    store, fresh = workdir / "store", workdir / "restored"
    for tree, count in trees(directory, members, megabytes):
        log(f"memory {tree.name}")
        for path in (store, fresh):
            remove(path)
        fresh.mkdir()
        common = ["--key", "memory-1", "--store", str(store), "--json", "--root"]
        commands = {
            "save": [*CACHEKIT, "save", *common, str(tree.root), tree.target],
            "restore": [*CACHEKIT, "restore", *common, str(fresh)],
        }
        for name, argv in commands.items():
            highest, processes, wall = peak(argv, env)
            note = f"{tree.files} files, {tree.size / 1e6:.0f} MB, {processes} processes, {wall:.1f} s"
            rows.append(
                Row(
                    f"memory, {name}",
                    tree.name,
                    note,
                    "",
                    highest,
                    limit(count) if name == "save" else None,
                    "MiB",
                )
            )
    for path in (store, fresh):
        remove(path)
    return rows
