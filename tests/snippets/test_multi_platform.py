"""The steps of multi-platform.yml around the build, without an engine: what comes in, and what is pushed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.github import WORKFLOWS
from tests.support.github_job import Job, Step
from tests.support.layouts import MadeLayout, content

WORKFLOW = WORKFLOWS / "multi-platform.yml"
KEYS = {"KEY": "buildkit-amd64-new", "EARLIER": "buildkit-amd64-"}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job on a machine of its own."""
    return Job(tmp_path / "job", tmp_path / "home")


def carried(tmp_path: Path, job: Job, *, whole: bool, kind: str = "files") -> None:
    """Let a build cache be carried in that an earlier job has saved, as files: nobody looked at what they hold."""
    earlier = Job(tmp_path / "earlier", tmp_path / "earlier home")
    layout = MadeLayout(earlier.workspace / "buildkit-cache")
    layout.cache("latest", [content(1), content(2)])
    if not whole:
        lost = next(
            name
            for name in sorted(layout.digests())
            if content(1) == layout.file({"digest": name}).read_bytes()
        )
        layout.file({"digest": lost}).unlink()
    for command in (
        ["cachekit", "save", "--kind", kind, "--key", "buildkit-amd64-old", "buildkit-cache"],
        ["cachekit", "store", "export", "--key", "buildkit-amd64-old", "--to", str(tmp_path / "carry")],
    ):
        earlier.run(command, {})[0].expect()
    shutil.copytree(tmp_path / "carry", job.home / ".cache/cachekit-carry")


def taken_in(job: Job) -> Step:
    """Run the step that takes in what is carried."""
    return job.step(WORKFLOW, "Take it into the store, and restore it", KEYS).expect()


def test_a_whole_cache_comes_in(job: Job, tmp_path: Path) -> None:
    """The newest cache of the platform is there for the build."""
    carried(tmp_path, job, whole=True)
    assert taken_in(job).outputs["matched-key"] == "buildkit-amd64-old"
    assert (job.workspace / "buildkit-cache/index.json").exists()


def test_a_cache_that_lacks_a_layer_stays_out(job: Job, tmp_path: Path) -> None:
    """An entry whose every byte is right, but whose cache lacks a layer, is refused: with it the build would fail."""
    carried(tmp_path, job, whole=False)
    step = taken_in(job)
    assert step.outputs["status"] == "refused"
    assert not (job.workspace / "buildkit-cache").exists()


def test_a_cache_that_cannot_be_restored(job: Job, tmp_path: Path) -> None:
    """A cache that cannot be restored is a warning: the build is slower, and not lost."""
    carried(tmp_path, job, whole=True)
    (job.workspace / "buildkit-cache").write_text("in the way")
    step = taken_in(job)
    assert "::warning title=cachekit::" in step.text
    assert step.outputs["cache-hit"] == "false"


BUILDX = """#!/bin/sh
while [ "$1" != --metadata-file ]; do shift; done
printf '%s' '{metadata}' >"$2"
"""


@pytest.mark.parametrize(
    ("metadata", "code"),
    [({"containerimage.digest": "sha256:" + "ab" * 32}, 0), ({"buildx.build.ref": "x"}, 1)],
)
def test_what_is_pushed_has_a_digest(job: Job, metadata: dict[str, str], code: int) -> None:
    """The image's digest goes on to the last job; without one the step fails, instead of joining "null"."""
    docker = job.base / "bin/docker"
    docker.write_text(BUILDX.replace("{metadata}", json.dumps(metadata)))
    docker.chmod(0o755)
    step = job.step(WORKFLOW, "Build and push by digest", {"PLATFORM": "linux/amd64"})
    assert step.expect(code).code == code
    names = [path.name for path in (job.workspace / "digests").iterdir()]
    assert names == (["ab" * 32] if code == 0 else [])
