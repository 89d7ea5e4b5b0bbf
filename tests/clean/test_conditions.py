"""The conditions of rules with paths, on real trees, through the whole command."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.capabilities import requires
from tests.support.cleaning import MIB, Scene, make_files, outcome
from tests.support.cli import give
from tests.support.processes import start, wait_until
from tests.support.snapshots import unchanged

pytestmark = requires("tmpfs")


def clean(scene: Scene, when: dict[str, object], env: dict[str, str] | None = None) -> dict[str, Any]:
    """Clean what is in `units` under a condition; return the report of the rule."""
    scene.rules = {"units": {"paths": [f"{scene.root}/units/*"], "when": when}}
    return outcome(scene.report("--free", "1T", code=7, env=env), "units")


def names(scene: Scene) -> list[str]:
    """What is left in `units`."""
    return sorted(os.listdir(scene.root / "units"))


def git(place: Path, *arguments: str) -> None:
    """Run git with an identity and without anybody's settings."""
    env = {"PATH": os.environ["PATH"], "HOME": str(place), "GIT_CONFIG_NOSYSTEM": "1"}
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", "-C", place, *identity, *arguments], check=True, env=env, capture_output=True)


@pytest.fixture
def repository(scene: Scene) -> Path:
    """A checkout with what is ignored, tracked, both, and neither."""
    top = scene.root / "checkout"
    for name in ("ignored", "tracked", "plain", "mixed"):
        make_files(top / name)
    (top / ".gitignore").write_text("ignored/\nmixed/\n[odd]*/\n")
    (top / "mixed" / "kept").write_text("tracked although ignored")
    git(top, "init")
    git(top, "add", "tracked", ".gitignore")
    git(top, "add", "-f", "mixed/kept")
    git(top, "commit", "-m", "first")
    scene.rules = {
        "builds": {
            "paths": [f"$WORKSPACE/{name}" for name in ("ignored", "tracked", "plain", "mixed")],
            "when": {"git-ignored": True},
        }
    }
    return top


def test_git_ignored(scene: Scene, repository: Path) -> None:
    """What git ignores goes; what it tracks, tracks something in, or does not ignore stays and is told of."""
    stays = [repository / name for name in ("tracked", "plain", "mixed")]
    with unchanged(*stays):
        report = scene.report("--free", "1T", code=7, env={"GITHUB_WORKSPACE": str(repository)})
    assert not (repository / "ignored").exists()
    reasons = {os.path.basename(item["path"]): item["reason"] for item in outcome(report, "builds")["left"]}
    assert set(reasons) == {"tracked", "plain", "mixed"}
    assert set(reasons.values()) <= {"git does not ignore it", "git tracks something in it"}


def test_git_ignored_without_a_repository(scene: Scene, repository: Path) -> None:
    """Where there is no repository nothing goes."""
    shutil.rmtree(repository / ".git")
    with unchanged(repository):
        report = scene.report("--free", "1T", code=7, env={"GITHUB_WORKSPACE": str(repository)})
    assert "git cannot say" in outcome(report, "builds")["reason"]


@requires("root")
def test_git_ignored_in_the_repository_of_another(scene: Scene, repository: Path) -> None:
    """In a repository that git does not trust, because it is another user's, nothing goes."""
    give(repository)
    with unchanged(repository):
        report = scene.report("--free", "1T", code=7, env={"GITHUB_WORKSPACE": str(repository)})
    assert "git cannot say" in outcome(report, "builds")["reason"]


def test_git_ignored_names_are_no_patterns(scene: Scene, repository: Path) -> None:
    """Names with the signs of git's own patterns mean themselves."""
    odd = make_files(repository / "odd[1]")
    other = make_files(repository / "odd1")
    git(repository, "add", "-f", ":(literal)odd1/file-0")
    scene.rules = {"builds": {"paths": ["$WORKSPACE/odd*"], "when": {"git-ignored": True}}}
    report = scene.report("--free", "1T", code=7, env={"GITHUB_WORKSPACE": str(repository)})
    assert [item["path"] for item in outcome(report, "builds")["left"]] == [str(other)]
    assert not odd.exists()


def test_unlinked(scene: Scene) -> None:
    """The version that a link in the same directory leads to stays, the others go."""
    for version in ("1.0", "2.0", "3.0"):
        make_files(scene.root / "units" / version)
    (scene.root / "units" / "current").symlink_to("2.0")
    scene.rules = {
        "units": {
            "paths": [f"{scene.root}/units/*"],
            "when": {"unlinked": True},
            "exclude": ["current"],
        }
    }
    with unchanged(scene.root / "units" / "2.0"):
        rule = outcome(scene.report("--free", "1T", code=7), "units")
    assert names(scene) == ["2.0", "current"]
    assert "the version in use" in rule["left"][0]["reason"]


def a_runner(scene: Scene) -> tuple[Path, dict[str, str], Path]:
    """A runner's directory with a job's leftovers, and the program that works on jobs."""
    runner = scene.root / "runner"
    (runner / "bin").mkdir(parents=True)
    (runner / ".runner").write_text('{"workFolder": "_work"}')
    worker = runner / "bin" / "Runner.Worker"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", worker)
    make_files(runner / "_work" / "project")
    scene.rules = {"work": {"paths": ["$RUNNER_WORK/*"], "when": {"idle-runner": True}}}
    return runner, {"CACHEKIT_RUNNER_ROOTS": str(runner)}, worker


def test_an_idle_runner(scene: Scene) -> None:
    """The work directories of a runner without a job go."""
    runner, env, _ = a_runner(scene)
    assert outcome(scene.report("--free", "1T", code=7, env=env), "work")["result"] == "freed"
    assert os.listdir(runner / "_work") == []


def test_a_runner_with_a_job(scene: Scene) -> None:
    """While a job's worker runs from the runner's directory its work directories stay, and the pid is told."""
    runner, env, worker = a_runner(scene)
    with start([worker, "600"]) as running, unchanged(runner / "_work"):
        wait_until(lambda: os.readlink(f"/proc/{running.pid}/exe") == str(worker), "the worker runs")
        rule = outcome(scene.report("--free", "1T", code=7, env=env), "work")
        assert rule["result"] == "blocked"
        assert f"a job is running on this runner (pid {running.pid})" in rule["reason"]


def test_a_job_on_another_runner(scene: Scene, tmp_path: Path) -> None:
    """A job on one runner does not keep the leftovers of another, not even of one whose name begins the same."""
    runner, env, worker = a_runner(scene)
    other = scene.root / "runner-2" / "bin" / "Runner.Worker"
    other.parent.mkdir(parents=True)
    shutil.copy(worker, other)
    with start([other, "600"]) as running:
        wait_until(lambda: os.readlink(f"/proc/{running.pid}/exe") == str(other), "the worker runs")
        assert outcome(scene.report("--free", "1T", code=7, env=env), "work")["result"] == "freed"
    assert os.listdir(runner / "_work") == []


def test_keep(scene: Scene) -> None:
    """The newest so many stay, by the newest thing in each; the others go."""
    for name in ("c", "a", "b"):
        make_files(scene.root / "units" / name)
        time.sleep(0.02)  # its age is that of its last change
    (scene.root / "units" / "c" / "more").write_bytes(b"the newest of all")
    clean(scene, {"keep": 2})
    assert names(scene) == ["b", "c"]


def test_keep_counts_what_is_too_new(scene: Scene) -> None:
    """The newest so many are those of all, also of the ones that are too new to go anyway."""
    for name in "abc":
        make_files(scene.root / "units" / name)
        time.sleep(0.02)
    time.sleep(1.5)
    for name in "de":
        make_files(scene.root / "units" / name)
    clean(scene, {"keep": 3, "older": "1s"})
    assert names(scene) == ["c", "d", "e"]


def test_keep_more_than_there_are(scene: Scene) -> None:
    """Where no more are there than are to be kept, all stay."""
    make_files(scene.root / "units" / "a")
    assert clean(scene, {"keep": 2})["result"] == "skipped"
    assert names(scene) == ["a"]


def test_larger(scene: Scene) -> None:
    """What takes no more than the size stays, by allocated bytes: a large file with nothing in it is small."""
    make_files(scene.root / "units" / "large", 3, MIB)
    make_files(scene.root / "units" / "small", 1, MIB)
    with (make_files(scene.root / "units" / "sparse") / "hole").open("wb") as file:
        file.truncate(1 << 30)
    clean(scene, {"larger": "2M"})
    assert names(scene) == ["small", "sparse"]


def test_larger_counts_hard_links_once(scene: Scene) -> None:
    """A file with several names in a unit counts once."""
    unit = make_files(scene.root / "units" / "a", 1, MIB)
    for number in range(5):
        os.link(unit / "file-0", unit / f"again-{number}")
    assert clean(scene, {"larger": "2M"})["result"] == "skipped"


def test_older(scene: Scene) -> None:
    """A unit goes if nothing in it changed lately; old times that an archive brought do not count."""
    for name in ("old", "touched", "unpacked"):
        make_files(scene.root / "units" / name / "deep" / "er")
    made = (scene.root / "units" / "unpacked").stat().st_ctime
    wait_until(lambda: time.time() > made + 5, "it is five seconds old")
    (scene.root / "units" / "touched" / "deep" / "er" / "file-0").write_bytes(b"now")
    for path in (scene.root / "units" / "unpacked").rglob("*"):
        os.utime(path, (0, 0))
    changed = time.time()
    report = clean(scene, {"older": "5s"})
    assert report["result"] == "freed"
    if time.time() - changed < 5:  # else the machine is so busy that the others have become old too
        assert names(scene) == ["touched", "unpacked"]


def test_older_a_long_time(scene: Scene) -> None:
    """What was made just now stays under any ordinary age, whatever its mtime says."""
    unit = make_files(scene.root / "units" / "a")
    for path in (*unit.iterdir(), unit):
        os.utime(path, (0, 0))
    assert clean(scene, {"older": "1d"})["result"] == "skipped"
    assert names(scene) == ["a"]


def test_a_condition_on_space(scene: Scene) -> None:
    """A rule for scarce space is left out while there is more than that."""
    make_files(scene.root / "units" / "a")
    assert clean(scene, {"free-below": "10M"})["result"] == "skipped"
    assert clean(scene, {"free-below": "1T"})["result"] == "freed"


def test_a_condition_on_the_environment(scene: Scene) -> None:
    """A rule for another environment does not apply, and in its own it does."""
    make_files(scene.root / "units" / "a")
    assert clean(scene, {"environment": ["gitlab"]})["result"] == "not-applicable"
    assert clean(scene, {"environment": ["gitlab"]}, {"GITLAB_CI": "true"})["result"] == "freed"
