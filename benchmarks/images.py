"""`python -m benchmarks images`: image save and load against `docker save | zstd` and `zstd -d | docker load`.

Needs a running engine ($DOCKER_HOST) and its command; the image is built on it from the generated trees.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path

from benchmarks.filesystem import need
from benchmarks.measure import BenchmarkError, Run, Series, Subject, environment, interleave, run
from benchmarks.table import Row, compared, seconds
from benchmarks.trees import Tree, log

#: Save and load together, and a second save with one layer changed against a first one of the baseline.
BOTH, SECOND = 1.0, 0.3
NAME, CHANGED = "cachekit-bench:1", "cachekit-bench:2"


def build(workdir: Path, trees: list[Tree]) -> None:
    """Build two images: a layer for each tree and a small one, which differs."""
    context = workdir / "context"
    context.mkdir()
    lines = ["FROM scratch"]
    for tree in trees:
        with tarfile.open(context / f"{tree.name}.tar", "w") as tar:
            tar.add(tree.root / tree.target, tree.name)
        lines.append(f"ADD {tree.name}.tar /")
    for name, seed in ((NAME, b"1"), (CHANGED, b"2")):
        (context / "last").write_bytes(seed * 20_000_000)
        (context / "Dockerfile").write_text("\n".join([*lines, "COPY last /last"]) + "\n")
        run(["docker", "build", "-q", "-t", name, str(context)])
    shutil.rmtree(context)


def measure(
    workdir: Path, trees: list[Tree], rounds: int, store: str
) -> tuple[list[Row], dict[tuple[str, str], list[Series]]]:
    """The rows, and the runs by (command, image store)."""
    need(workdir, 6 * sum(tree.size for tree in trees))
    log("building the images")
    build(workdir, trees)
    env = environment(f"{workdir}/env")
    stored, archive = workdir / "store", workdir / "image.tar.zst"
    command = [sys.executable, "-m", "cachekit", "image"]
    saving = [*command, "save", "--json", "--store", str(stored)]
    loading = [*command, "load", "--json", "--store", str(stored), "--key=a-1"]

    def forget() -> None:
        run(["docker", "image", "rm", "-f", NAME])
        run(["docker", "builder", "prune", "-af"])

    def has(done: Run) -> None:
        if done.report.get("status") not in {"saved", "exact", None}:
            raise BenchmarkError(f"not what was measured: {dict(done.report)}")

    log("image save against docker save | zstd -T0")
    saved, their_save = interleave(
        [
            Subject(
                "image save",
                lambda: run([*saving, "--key=a-1", "--force", "--full", NAME], env=env),
                check=has,
            ),
            Subject(
                "docker save",
                lambda: run(["docker", "save", NAME], ["zstd", "-T0", "-q", "-f", "-o", str(archive)]),
            ),
        ],
        rounds,
    )
    log("image save with one layer changed")
    second, their_second = interleave(
        [
            Subject("second", lambda: run([*saving, "--key=a-2", "--force", CHANGED], env=env), check=has),
            Subject(
                "docker save",
                lambda: run(["docker", "save", CHANGED], ["zstd", "-T0", "-q", "-f", "-o", f"{archive}.2"]),
            ),
        ],
        rounds,
    )
    run(["docker", "image", "rm", "-f", CHANGED])
    log("image load against zstd -d | docker load")
    loaded, their_load = interleave(
        [
            Subject("image load", lambda: run(loading, env=env), prepare=forget, check=has),
            Subject(
                "docker load",
                lambda: run(["zstd", "-dc", str(archive)], ["docker", "load", "-q"]),
                prepare=forget,
            ),
        ],
        rounds,
    )
    forget()
    both = Series("both", [_sum(a, b) for a, b in zip(saved.runs, loaded.runs, strict=True)])
    theirs = Series("both", [_sum(a, b) for a, b in zip(their_save.runs, their_load.runs, strict=True)])
    rows = [
        compared("image save", store, saved, their_save, None),
        compared("image load", store, loaded, their_load, None),
        compared("image save and load", store, both, theirs, BOTH),
        compared("image save, one layer changed", store, second, their_second, SECOND),
    ]
    log(seconds(both.walls))
    return rows, {("image save", store): [saved, their_save], ("image load", store): [loaded, their_load]}


def _sum(first: Run, second: Run) -> Run:
    return Run(
        first.wall + second.wall,
        first.user + second.user,
        first.system + second.system,
    )
