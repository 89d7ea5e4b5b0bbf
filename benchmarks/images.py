"""`python -m benchmarks images`: image save and load against `docker save | zstd` and `zstd -d | docker load`.

Needs a running engine ($DOCKER_HOST) and its command; the image is built on it from the generated trees. The engine's
data root is best a filesystem of its own, or what others write there is counted among what a save takes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.filesystem import Peak, need, taken, used, watched
from benchmarks.measure import BenchmarkError, Run, Series, Subject, environment, interleave, run
from benchmarks.table import Row, compared, seconds
from benchmarks.trees import Tree, log

#: Save and load together, and a second save with one layer changed against a first one of the baseline.
BOTH, SECOND = 1.0, 0.3
#: The archive alone; a hundredth for what a file takes beside its bytes (its last block, the entry's lock).
DISK = 1.01
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


class Commands:
    """The measured commands, on one image store."""

    def __init__(self, workdir: Path) -> None:
        self.env = environment(f"{workdir}/env")
        self.stored, self.archive = workdir / "store", workdir / "image.tar.zst"
        self.command = [sys.executable, "-m", "cachekit", "image"]

    def save(self, key: str, image: str, *options: str) -> Run:
        """Save an image with cachekit."""
        saving = [*self.command, "save", "--json", "--store", str(self.stored), f"--key={key}", "--force"]
        return run([*saving, *options, image], env=self.env)

    def load(self) -> Run:
        """Load the first image with cachekit."""
        return run([*self.command, "load", "--json", "--store", str(self.stored), "--key=a-1"], env=self.env)

    def docker_save(self, image: str) -> Run:
        """Save an image as the documentation of Docker does."""
        return run(["docker", "save", image], ["zstd", "-T0", "-q", "-f", "-o", str(self.archive)])

    def docker_load(self) -> Run:
        """Load it."""
        return run(["zstd", "-dc", str(self.archive)], ["docker", "load", "-q"])

    def forget(self) -> None:
        """Remove the images from the engine."""
        for image in (NAME, CHANGED):
            run(["docker", "image", "rm", "-f", image])
        run(["docker", "builder", "prune", "-af"])


def measure(
    workdir: Path, trees: list[Tree], rounds: int, store: str
) -> tuple[list[Row], dict[tuple[str, str], list[Series]]]:
    """The rows, and the runs by (command, image store)."""
    need(workdir, 6 * sum(tree.size for tree in trees))
    log("building the images")
    build(workdir, trees)
    do = Commands(workdir)

    def pair(
        title: str, ours: Callable[[], Run], theirs: Callable[[], Run], *, empty: bool = False
    ) -> list[Series]:
        log(title)
        prepare = do.forget if empty else lambda: None
        return interleave(
            [Subject("cachekit", ours, prepare, _done), Subject("docker", theirs, prepare)], rounds
        )

    save, docker_save = pair(
        "image save against docker save | zstd -T0",
        lambda: do.save("a-1", NAME, "--full"),
        lambda: do.docker_save(NAME),
    )
    asked, docker_asked = pair(
        "image save through the API",
        lambda: do.save("a-1", NAME, "--full", "--source=engine"),
        lambda: do.docker_save(NAME),
    )
    second, docker_second = pair(
        "image save with one layer changed",
        lambda: do.save("a-2", CHANGED),
        lambda: do.docker_save(CHANGED),
    )
    log("the disk that a save takes")
    disk = _disk(do, store)
    load, docker_load = pair("image load against zstd -d | docker load", do.load, do.docker_load, empty=True)
    do.forget()
    both = Series("both", [_sum(a, b) for a, b in zip(save.runs, load.runs, strict=True)])
    theirs = Series("both", [_sum(a, b) for a, b in zip(docker_save.runs, docker_load.runs, strict=True)])
    rows = [
        compared("image save", store, save, docker_save, None),
        compared("image save, through the API", store, asked, docker_asked, None),
        compared("image load", store, load, docker_load, None),
        compared("image save and load", store, both, theirs, BOTH),
        compared("image save, one layer changed", store, second, docker_second, SECOND),
        *disk,
    ]
    log(seconds(both.walls))
    return rows, {("image save", store): [save, docker_save], ("image load", store): [load, docker_load]}


def _done(outcome: Run) -> None:
    if outcome.report.get("status") not in {"saved", "exact"}:
        raise BenchmarkError(f"not what was measured: {dict(outcome.report)}")


def _disk(do: Commands, store: str) -> list[Row]:
    """What a save takes at its most, in the store and where the engine keeps its data, in archives of its size."""
    asking = ["docker", "info", "-f", "{{.DockerRootDir}}"]
    root = Path(subprocess.run(asking, capture_output=True, text=True, check=True).stdout.strip())
    rows = []
    for number, (title, options) in enumerate((("data root", ()), ("API", ("--source=engine",)))):
        mine, engines = Peak(lambda: used(do.stored)), Peak(lambda: taken(root))
        with watched(mine, engines):
            outcome = do.save(f"disk-{number}", NAME, "--full", *options)
        size = float(outcome.report["archive_bytes"])
        rows.append(
            Row(
                f"image save by {title}, most extra disk in the store",
                store,
                f"{mine.bytes / 1e6:.1f} MB (in the engine's: {engines.bytes / 1e6:.1f} MB)",
                f"archive {size / 1e6:.1f} MB",
                mine.bytes / size,
                DISK,
            )
        )
    return rows


def _sum(first: Run, second: Run) -> Run:
    return Run(
        first.wall + second.wall,
        first.user + second.user,
        first.system + second.system,
    )
