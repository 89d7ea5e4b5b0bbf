"""The GitHub actions, run from their files as a runner runs them: the pair and the Node action keep one contract."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import pytest
from packaging.requirements import Requirement

from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.github import entries
from tests.support.github_job import ACTIONS, Job, Step
from tests.support.in_process import cut
from tests.support.ordinary_user import PROJECT
from tests.support.trees import Tree, make_tree

pytestmark = requires("node")

INPUTS = {"path": "deps\n", "key": "deps-1"}


class Cached(Protocol):
    """A job with a cache: the first step restores, the last saves."""

    job: Job

    def restore(self, inputs: Mapping[str, str]) -> Step:
        """Restore, at the job's beginning."""

    def save(self) -> Step:
        """Save, at the end of a job that succeeded, if the restore was no exact hit."""


class Composite:
    """Two actions, as workflows/five-steps.yml uses them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.inputs: dict[str, str] = {}

    def restore(self, inputs: Mapping[str, str]) -> Step:
        """Run restore/action.yml."""
        self.inputs = dict(inputs)
        self.done = self.job.action("restore", inputs)
        return self.done

    def save(self) -> Step:
        """Run save/action.yml unless the workflow would skip it."""
        if self.done.outputs["cache-hit"] == "true":
            return Step(0, {}, "skipped")
        kept = {name: value for name, value in self.inputs.items() if name in {"path", "key", "store"}}
        return self.job.action("save", kept)


class Node:
    """One action with a post step."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.inputs: dict[str, str] = {}
        self.state: dict[str, str] = {}

    def restore(self, inputs: Mapping[str, str]) -> Step:
        """Run its main step."""
        self.inputs = dict(inputs)
        done, self.state = self.job.node("cache.js", inputs, {})
        return done

    def save(self) -> Step:
        """Run its post step."""
        done, _ = self.job.node("cache.js", self.inputs, self.state)
        return done


@pytest.fixture(params=[Composite, Node], ids=["composite", "node"])
def cached(request: pytest.FixtureRequest, tmp_path: Path) -> Cached:
    """A job with a cache, done in either way."""
    made: Cached = request.param(Job(tmp_path / "job", tmp_path / "home"))
    return made


def store(cached: Cached) -> Path:
    """The default store of the runner's user."""
    return cached.job.home / ".cache/cachekit"


def deps(cached: Cached) -> Path:
    """What is cached."""
    return cached.job.workspace / "deps"


def fill(cached: Cached, inputs: Mapping[str, str] = INPUTS) -> None:
    """Run a job that misses, builds `deps` and saves it; then remove it."""
    cached.restore(inputs).expect()
    make_tree(cached.job.workspace, {"deps": {"a": b"one", "b.log": b"two"}})
    cached.save().expect()
    shutil.rmtree(deps(cached))


def test_three_runs(cached: Cached) -> None:
    """The first misses and saves, the second hits, the third finds the archive cut, refuses, rebuilds and heals it."""
    first = cached.restore(INPUTS).expect()
    assert first.outputs["status"] == "miss"
    assert first.outputs["cache-hit"] == "false"
    assert (first.outputs["cache-primary-key"], first.outputs["cache-matched-key"]) == ("deps-1", "")
    make_tree(cached.job.workspace, {"deps": {"a": b"one"}})
    cached.save().expect()
    (entry,) = entries(store(cached))

    shutil.rmtree(deps(cached))
    second = cached.restore(INPUTS).expect()
    assert (second.outputs["status"], second.outputs["cache-hit"]) == ("exact", "true")
    assert second.outputs["cache-matched-key"] == "deps-1"
    assert (deps(cached) / "a").read_bytes() == b"one"
    cached.save().expect()

    cut(entry)
    shutil.rmtree(deps(cached))
    third = cached.restore(INPUTS).expect()
    assert (third.outputs["status"], third.outputs["cache-hit"]) == ("refused", "false")
    assert "::warning title=cachekit::" in third.text
    assert not deps(cached).exists()
    make_tree(cached.job.workspace, {"deps": {"a": b"one"}})
    cached.save().expect()

    shutil.rmtree(deps(cached))
    assert cached.restore(INPUTS).expect().outputs["status"] == "exact"


def test_restore_keys(cached: Cached) -> None:
    """Restore keys are lines, tried in order; a hit of one is partial, and the job saves under its own key."""
    fill(cached)
    done = cached.restore({**INPUTS, "key": "deps-2", "restore-keys": "\n  none-\n  deps-\n"}).expect()
    assert (done.outputs["status"], done.outputs["cache-hit"]) == ("partial", "false")
    assert (done.outputs["cache-primary-key"], done.outputs["cache-matched-key"]) == ("deps-2", "deps-1")
    assert (deps(cached) / "a").exists()
    cached.save().expect()
    assert cached.restore({**INPUTS, "key": "deps-2"}).expect().outputs["status"] == "exact"


def test_fail_on_cache_miss(cached: Cached) -> None:
    """With fail-on-cache-miss a miss fails the step, and its outputs say what it was."""
    done = cached.restore({**INPUTS, "fail-on-cache-miss": "true"}).expect(3)
    assert (done.outputs["status"], done.outputs["cache-hit"]) == ("miss", "false")


def test_lookup_only(cached: Cached) -> None:
    """With lookup-only the outputs are those of a restore, and nothing is restored."""
    fill(cached)
    done = cached.restore({**INPUTS, "lookup-only": "true"}).expect()
    assert (done.outputs["status"], done.outputs["cache-hit"]) == ("exact", "true")
    assert not deps(cached).exists()


def test_lines_with_an_exclamation_mark(cached: Cached) -> None:
    """A line !GLOB in path leaves files out of the save, and means nothing to a restore."""
    inputs = {**INPUTS, "path": "deps\n!*.log\n"}
    fill(cached, inputs)
    cached.restore(inputs).expect()
    assert [path.name for path in deps(cached).iterdir()] == ["a"]


def test_paths_as_actions_cache_takes_them(cached: Cached) -> None:
    """What examples of actions/cache have works: globs, a place below ~ left out, blanks after the sign, comments."""
    inputs = {"path": "# downloads\n~/pkgs\n! ~/pkgs/unwanted\n**/modules\n!old/modules", "key": "k"}
    home, work = cached.job.home, cached.job.workspace
    trees: Tree = {"pkgs": {"wanted": b"1", "unwanted": {"x": b"2"}}}
    cached.restore(inputs).expect()
    make_tree(home, trees)
    make_tree(work, {name: {"modules": {"a": b"3"}} for name in ("new", "old")})
    cached.save().expect()
    for gone in (home / "pkgs", work / "new", work / "old"):
        shutil.rmtree(gone)
    assert cached.restore(inputs).expect().outputs["cache-hit"] == "true"
    assert [path.name for path in (home / "pkgs").iterdir()] == ["wanted"]
    assert sorted(str(path.relative_to(work)) for path in work.rglob("a")) == ["new/modules/a"]


@pytest.mark.parametrize("path", ["", "!*.log", "# nothing"])
def test_no_path_fails(cached: Cached, path: str) -> None:
    """An input path that names nothing fails the step: it does not restore whatever the entry holds."""
    fill(cached)
    done = cached.restore({**INPUTS, "path": path}).expect(2)
    assert "::error title=cachekit::the input path names nothing" in done.text
    assert not deps(cached).exists()


@pytest.mark.parametrize("yes", ["true", "True", "TRUE"])
def test_how_true_is_written(cached: Cached, yes: str) -> None:
    """An input is set by each way in which YAML writes true, as with actions/cache."""
    fill(cached)
    cached.restore({**INPUTS, "lookup-only": yes}).expect()
    assert not deps(cached).exists()
    cached.restore({**INPUTS, "key": "none", "fail-on-cache-miss": yes}).expect(3)


@requires("second_platform")
def test_entries_of_another_platform(cached: Cached) -> None:
    """An entry of another platform is a miss, unless enableCrossOsArchive says that what it holds fits everywhere."""
    make_tree(cached.job.workspace, {"deps": {"a": b"1"}})
    save = ["setarch", "linux32", "cachekit", "save", "--key", "deps-1", "deps"]
    cached.job.run(save, {})[0].expect()
    shutil.rmtree(deps(cached))
    assert cached.restore(INPUTS).expect().outputs["status"] == "miss"
    done = cached.restore({**INPUTS, "enableCrossOsArchive": "true"}).expect()
    assert (done.outputs["status"], done.outputs["cache-matched-key"]) == ("exact", "deps-1")
    assert (deps(cached) / "a").exists()


def test_a_restore_that_failed_saves_nothing(tmp_path: Path) -> None:
    """Where the job goes on after a restore that failed (continue-on-error), its end neither restores nor saves."""
    node = Node(Job(tmp_path / "job", tmp_path / "home"))
    fill(node)
    node.restore({**INPUTS, "path": ""}).expect(2)
    node.inputs = dict(INPUTS)
    done = node.save().expect()
    assert done.text == ""
    assert not deps(node).exists()


HOSTILE = ['$(touch forged)`touch forged`"; touch forged; "', "--store=forged", "-", "a  é ${HOME}"]


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_keys(cached: Cached, key: str) -> None:
    """A key is text: nothing in it is run, is an option, or becomes an output."""
    inputs = {"path": "deps", "key": key}
    fill(cached, inputs)
    done = cached.restore(inputs).expect()
    assert (done.outputs["status"], done.outputs["cache-primary-key"]) == ("exact", key)
    assert [path.name for path in cached.job.workspace.iterdir()] == ["deps"]


def test_hostile_paths(cached: Cached) -> None:
    """Paths are lines: with spaces, with a leading dash, with what a shell would expand or run."""
    names = ["with space", "-dash", "$(touch forged)", "*"]
    inputs = {"path": "\n".join(names[:3]), "key": "k"}
    cached.restore(inputs).expect()
    make_tree(cached.job.workspace, {name: {"a": b"1"} for name in names[:3]})
    cached.save().expect()
    for name in names[:3]:
        shutil.rmtree(cached.job.workspace / name)
    cached.restore(inputs).expect()
    assert {path.name for path in cached.job.workspace.iterdir()} == set(names[:3])


def test_wrong_use_fails(cached: Cached) -> None:
    """An empty key fails the step, with a sentence; it is not taken for a miss."""
    done = cached.restore({**INPUTS, "key": ""}).expect(2)
    assert "key" in done.text
    assert done.outputs["cache-hit"] in {"", "false"}


@pytest.mark.parametrize(
    ("wanted", "why"),
    [({"path": "other"}, "does not hold"), ({"store": "file"}, "store"), ({"path": "file"}, "a file")],
    ids=["other paths", "no store", "in the way"],
)
def test_a_restore_that_cannot_be(cached: Cached, wanted: dict[str, str], why: str) -> None:
    """What keeps a restore from being done is a warning, and the job goes on; with fail-on-cache-miss it fails."""
    make_tree(cached.job.workspace, {"file": {"a": b"1"}})
    inputs = {"path": wanted.get("path", "deps").replace("other", "deps"), "key": "deps-1"}
    make_tree(cached.job.workspace, {"deps": {"a": b"1"}})
    cached.restore(inputs).expect()
    cached.save().expect()
    shutil.rmtree(cached.job.workspace / "file")
    (cached.job.workspace / "file").write_text("in the way")
    done = cached.restore({**inputs, **wanted}).expect()
    assert "::warning title=cachekit::" in done.text
    assert why in done.text
    assert done.outputs["status"] in {"error", "unreadable"}
    assert (done.outputs["cache-hit"], done.outputs["cache-matched-key"]) == ("false", "")
    failed = cached.restore({**inputs, **wanted, "fail-on-cache-miss": "true"})
    assert failed.code in {3, 8}


@requires("tmpfs")
def test_a_full_disk_at_the_save(cached: Cached) -> None:
    """A save for which there is no space is a warning: the job, whose build was fine, succeeds; nothing is left."""
    with filesystems.tmpfs(2 << 20) as small:
        inputs = {**INPUTS, "store": str(small.path / "store")}
        cached.restore(inputs).expect()
        make_tree(cached.job.workspace, {"deps": {"a": random.Random(1).randbytes(8 << 20)}})
        done = cached.save().expect()
        assert "::warning title=cachekit::" in done.text
        assert "space" in done.text
        assert entries(small.path) == []


def test_the_key_is_remembered(tmp_path: Path) -> None:
    """The Node action saves under the key of its main step, though the inputs would give another after the build."""
    node = Node(Job(tmp_path / "job", tmp_path / "home"))
    node.restore(INPUTS).expect()
    make_tree(node.job.workspace, {"deps": {"a": b"1"}})
    node.inputs = {"path": "other", "key": "deps-2"}
    node.save().expect()
    assert node.restore(INPUTS).expect().outputs["status"] == "exact"


# How cachekit comes onto the runner

PIP = """
import os, shutil, sys, sysconfig
assert sys.argv[1] == "install" and "--require-hashes" in sys.argv, sys.argv
open(os.environ["PIP_SAW"], "a").write(" ".join(sys.argv) + "\\n")
if os.environ.get("PIP_FAILS"):
    sys.exit("ERROR: no network")
for name in ("click", "psutil", "xxhash", "zstandard"):
    shutil.copytree(os.path.join(os.environ["PIP_FROM"], name), os.path.join(sysconfig.get_path("purelib"), name))
"""


@pytest.fixture
def bare(tmp_path: Path) -> Job:
    """A runner without cachekit; instead of the package index, pip takes the packages of this environment."""
    import click

    stand_in = tmp_path / "pip-stand-in/pip"
    stand_in.mkdir(parents=True)
    (stand_in / "__main__.py").write_text(PIP)
    (stand_in / "__init__.py").touch()
    job = Job(
        tmp_path / "job", tmp_path / "home", installed=False, system_path="/usr/local/bin:/usr/bin:/bin"
    )
    job.variables = {"PYTHONPATH": str(stand_in.parent), "PIP_SAW": str(tmp_path / "saw")}
    job.variables["PIP_FROM"] = str(Path(click.__file__).parent.parent)
    return job


def command(job: Job) -> Path:
    """The command that the action has put on PATH."""
    return Path(job.path[0]) / "cachekit"


def test_setup_installs_its_own_checkout(bare: Job, tmp_path: Path) -> None:
    """Without cachekit on PATH the action installs itself, once for a tool cache, and adds nothing but it to PATH."""
    bare.action("setup", {}).expect()
    assert [path.name for path in command(bare).parent.iterdir()] == ["cachekit"]
    done, _ = bare.run(["cachekit", "save", "--help"], {})
    assert "Save PATHs under a key" in done.expect().stdout
    requirements = ACTIONS / "requirements.txt"
    assert str(requirements) in (tmp_path / "saw").read_text()

    again = Job(tmp_path / "next", bare.home, bare.variables, installed=False, system_path=bare.system_path)
    again.action("setup", {}).expect()
    assert command(again) == command(bare)
    assert len((tmp_path / "saw").read_text().splitlines()) == 1
    assert len(list(command(bare).parents[2].iterdir())) == 1


def test_two_jobs_install_at_once(bare: Job, tmp_path: Path) -> None:
    """Two jobs that share a tool cache and install at the same time both get a whole installation, and it is one."""
    jobs = [
        Job(tmp_path / name, bare.home, bare.variables, installed=False, system_path=bare.system_path)
        for name in ("one", "two")
    ]
    done: list[Step] = []
    threads = [threading.Thread(target=lambda job=job: done.append(job.action("setup", {}))) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for step in done:
        step.expect()
    assert command(jobs[0]) == command(jobs[1])
    assert len(list(command(jobs[0]).parents[2].iterdir())) == 1


def test_a_failed_installation_leaves_nothing(bare: Job) -> None:
    """Without the package index the step fails with pip's sentence, and the next one begins anew."""
    bare.variables["PIP_FAILS"] = "1"
    assert "no network" in bare.action("setup", {}).expect(1).text
    assert list((bare.home / "tool cache/cachekit").iterdir()) == []
    del bare.variables["PIP_FAILS"]
    bare.action("setup", {}).expect()


def test_no_python(bare: Job, tmp_path: Path) -> None:
    """Where no Python is new enough the step says what to do."""
    for name in ("bash", "dirname", "cat"):
        (bare.base / "bin" / name).symlink_to(shutil.which(name) or "")
    bare.system_path = "/nowhere"
    text = (ACTIONS / "install.sh").read_text().replace("/usr/bin/python3", "/nowhere/python3")
    script = tmp_path / "a/b/install.sh"
    script.parent.mkdir(parents=True)
    script.write_text(text)
    done, _ = bare.run(["bash", str(script)], {})
    assert done.expect(1).stderr.startswith("::error title=cachekit::there is no Python 3.11")
    assert "actions/setup-python" in done.stderr


def test_what_is_on_path_is_used(tmp_path: Path) -> None:
    """A runner that has cachekit already uses that, and its tool cache stays empty."""
    job = Job(tmp_path / "job", tmp_path / "home")
    job.action("setup", {}).expect()
    assert command(job) == job.base / "bin/cachekit"
    assert not (job.home / "tool cache").exists()


def test_requirements_are_those_of_the_project() -> None:
    """requirements.txt pins, with digests, exactly what pyproject.toml asks for."""
    import tomllib

    lines = (ACTIONS / "requirements.txt").read_text().splitlines()
    pinned = dict(line.removesuffix(" \\").split("==") for line in lines if "==" in line)
    wanted = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(pinned[requirement.name])
    assert set(pinned) == {requirement.name for requirement in map(Requirement, wanted)}
    assert all(line.lstrip().startswith(("#", "--hash=sha256:")) or "==" in line for line in lines)
