"""The GitHub workflows, run by act as they stand: miss and save, hit, a cut archive refused and healed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.github import WORKFLOWS, Runner, entries
from tests.support.in_process import cut

pytestmark = [requires("act"), pytest.mark.timeout(240)]


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """A runner with a Node project to build."""
    made = Runner(tmp_path / "runner")
    made.make_node_project()
    return made


@pytest.fixture
def roomy_runner() -> Iterator[Runner]:
    """A runner all of whose filesystems have room, whatever this machine has: a clean finds its goal met."""
    with filesystems.tmpfs(60 << 30) as mounted:
        made = Runner(mounted.path / "runner", {"DOCKER_ROOT": str(mounted.path)})
        made.make_node_project()
        yield made


def test_self_hosted(runner: Runner) -> None:
    """The action restores now and saves after the job: miss, hit, refused and rebuilt, hit again."""
    workflow = WORKFLOWS / "self-hosted.yml"
    cache = "Restore now, save at the end of a job that succeeded"

    first = runner(workflow).expect()
    assert first.outputs("cache")["status"] == "miss"
    assert first.outputs("cache")["cache-hit"] == "false"
    assert "Install" in first.steps
    assert cache in first.post_steps
    (entry,) = entries(runner.store)
    assert "/shop/shop/" in str(entry), "the namespace is the repository's name"

    second = runner(workflow).expect()
    outputs = second.outputs("cache")
    assert (outputs["status"], outputs["cache-hit"]) == ("exact", "true")
    assert outputs["cache-matched-key"] == outputs["cache-primary-key"] != ""
    assert "Install" not in second.steps
    assert "built with left 1.0.0" in second.text
    assert "there is nothing to save" in second.text

    cut(entry)
    third = runner(workflow).expect()
    assert (third.outputs("cache")["status"], third.outputs("cache")["cache-hit"]) == ("refused", "false")
    assert "Install" in third.steps
    assert "built with left 1.0.0" in third.text

    healed = runner(workflow).expect()
    assert healed.outputs("cache")["status"] == "exact"


def test_pull_requests_write_apart(runner: Runner, tmp_path: Path) -> None:
    """A pull request restores what main saved, saves where only it reads, and is not run at all if it is a fork's."""
    workflow = WORKFLOWS / "self-hosted.yml"
    runner(workflow).expect()
    saved = entries(runner.store)
    event = tmp_path / "event.json"
    event.write_text('{"number": 7, "pull_request": {"head": {"repo": {"full_name": "shop/shop"}}}}')

    same = runner(workflow, "--eventpath", str(event), event="pull_request").expect()
    assert same.outputs("cache")["status"] == "exact"

    runner.make_node_project("2.0.0")
    other = runner(workflow, "--eventpath", str(event), event="pull_request").expect()
    assert other.outputs("cache")["status"] == "miss"
    (mine,) = set(entries(runner.store)) - set(saved)
    assert "/@pr-7/" in str(mine)

    event.write_text('{"number": 8, "pull_request": {"head": {"repo": {"full_name": "stranger/shop"}}}}')
    assert runner(workflow, "--eventpath", str(event), event="pull_request").steps == []


def test_a_failed_job_saves_nothing(runner: Runner) -> None:
    """After a build that failed the action saves nothing: what is there may be half a tree."""
    (runner.repository / "package.json").write_text(
        (runner.repository / "package.json").read_text().replace("console.log(", "process.exit(1, ")
    )
    failed = runner(WORKFLOWS / "self-hosted.yml").expect(1)
    assert failed.outputs("cache")["status"] == "miss"
    assert failed.post_steps == []
    assert entries(runner.store) == []


@requires("tmpfs")
def test_five_steps(roomy_runner: Runner) -> None:
    """Clean, restore, build, clean for the save, save: miss, hit, refused and rebuilt, hit again."""
    runner, workflow = roomy_runner, WORKFLOWS / "five-steps.yml"
    first = runner(workflow).expect()
    assert first.steps[1:] == [
        "cachekit for the steps below",
        "Room for the build",
        "Key",
        "Restore",
        "Install",
        "Build",
        "Room for the save",
        "Save",
    ]
    assert first.text.count("enough is free already; nothing was touched") == 2
    assert first.outputs("cache")["status"] == "miss"
    store = runner.home / ".cache/cachekit"
    (entry,) = entries(store)

    second = runner(workflow).expect()
    assert second.steps[-2:] == ["Restore", "Build"]
    outputs = second.outputs("cache")
    assert (outputs["status"], outputs["cache-hit"]) == ("exact", "true")
    assert outputs["cache-matched-key"] == outputs["cache-primary-key"] == second.outputs("key")["node"]

    cut(entry)
    third = runner(workflow).expect()
    assert (third.outputs("cache")["status"], third.outputs("cache")["cache-hit"]) == ("refused", "false")
    assert third.steps[-4:] == ["Install", "Build", "Room for the save", "Save"]

    assert runner(workflow).expect().outputs("cache")["status"] == "exact"


@requires("actions_cache", "tmpfs")
def test_hosted(roomy_runner: Runner) -> None:
    """actions/cache carries one entry: each run is on a new machine; a cut entry is refused on arrival, and heals."""
    runner, workflow = roomy_runner, WORKFLOWS / "hosted.yml"
    first = runner(workflow).expect()
    assert first.outputs("cache")["status"] == "miss"
    assert first.steps[-3:] == ["Save", "Put the entry where it is carried from", "Carry it"]

    runner.new_machine()
    second = runner(workflow).expect()
    assert (second.outputs("cache")["status"], second.outputs("cache")["cache-hit"]) == ("exact", "true")
    assert second.steps[-1] == "Build", "nothing is saved or carried again"

    runner.new_machine()
    seen = []

    def cut_in_half(name: str, content: bytes) -> bytes:
        seen.append(name.rpartition("/")[2])
        return content[: len(content) // 2]

    runner.change_carried(cut_in_half)
    assert seen[-1:] == ["cachekit-entry.tar.zst"], "it carries one entry, and nothing else"
    third = runner(workflow).expect()
    assert "cachekit: warning:" in third.text
    assert "cachekit-entry.tar.zst" in third.text
    assert third.outputs("cache")["cache-hit"] == "false"
    assert third.steps[-1] == "Carry it"

    runner.new_machine()
    healed = runner(workflow).expect()
    assert (healed.outputs("cache")["status"], healed.steps[-1]) == ("exact", "Build")


@requires("actions_cache", "tmpfs")
def test_hosted_after_a_change(roomy_runner: Runner) -> None:
    """With other dependencies the entry of the old ones is carried in, used, and a new one is carried on."""
    runner, workflow = roomy_runner, WORKFLOWS / "hosted.yml"
    runner(workflow).expect()
    runner.make_node_project("2.0.0")
    for status, last in (("partial", "Carry it"), ("exact", "Build")):
        runner.new_machine()
        done = runner(workflow).expect()
        assert (done.outputs("cache")["status"], done.steps[-1]) == (status, last)
        assert "built with left 2.0.0" in done.text

    runner.make_node_project("3.0.0")
    runner.variables["CACHEKIT_READ_ONLY"] = "1"  # nothing can be saved
    runner.new_machine()
    done = runner(workflow).expect()
    assert "built with left 3.0.0" in done.text
    assert done.steps[-1] == "Put the entry where it is carried from", (
        "the old entry is not carried on as a new one"
    )
