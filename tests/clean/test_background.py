"""A clean beside the job: what is done at once, what goes on, and joining it."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cleaning import MIB, Scene, make_files, outcome
from tests.support.processes import members_of_session, wait_until

pytestmark = requires("tmpfs")


@pytest.fixture
def beside(scene: Scene) -> Iterator[Scene]:
    """A rule for at once, and one for beside the job that waits until something is written to a pipe."""
    make_files(scene.root / "now", 1, 2 * MIB)
    make_files(scene.root / "later", 1, 4 * MIB)
    pipe = scene.cli.home / "pipe"
    pipe.parent.mkdir(exist_ok=True)
    os.mkfifo(pipe)
    scene.rules = {
        "wait": {"command": ["cat", str(pipe)], "expect": {"size": "9M", "seconds": 1}, "background": True},
        "now": {"paths": [f"{scene.root}/now"]},
        "later": {"paths": [f"{scene.root}/later"], "background": True},
    }
    yield scene
    known = noted(scene)
    if "process" in known:
        stop(int(known["process"].split(".")[2]))


def noted(scene: Scene) -> dict[str, Any]:
    """What the clean in the background has noted."""
    try:
        found = json.loads((scene.cli.home / ".local/state/cachekit/clean-background.json").read_bytes())
    except FileNotFoundError:
        return {}
    assert isinstance(found, dict)
    return found


def stop(pid: int) -> None:
    """Kill it and what it has started, however often it has made a session of its own."""
    for member in {pid, *members_of_session(pid)}:
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            continue


def running(scene: Scene) -> int:
    """Wait until the clean in the background has said who it is; return its pid."""
    wait_until(lambda: noted(scene).get("state") == "running", "the clean in the background runs", 20)
    return int(noted(scene)["process"].split(".")[2])


def let_go(scene: Scene) -> None:
    """Let the first rule in the background end."""
    (scene.cli.home / "pipe").write_bytes(b"")


def test_at_once_and_beside(beside: Scene) -> None:
    """--background does at once what a job could miss and ends; the rest goes on, and --wait joins and reports."""
    first = beside.report("--background", "--free=64M")
    assert not (beside.root / "now").exists()
    assert (beside.root / "later").exists()
    assert outcome(first, "now")["result"] == "freed"
    for name in ("later", "wait"):
        assert outcome(first, name)["reason"] == "left to the background"
    running(beside)
    let_go(beside)
    joined = beside.cli("clean", "--wait", "--json").expect(0).json()
    assert not (beside.root / "later").exists()
    assert outcome(joined, "later")["result"] == "freed"
    assert outcome(joined, "now")["reason"] == "not in the background"
    assert joined["met"]


def test_text(beside: Scene) -> None:
    """The text of --background says what was done, what goes on and how to join it."""
    done = beside.clean("--background", "--free=64M").expect(0)
    assert re.search(r"^now +freed +2\.0 MiB", done.stdout, re.MULTILINE)
    assert "going on in the background with" in done.stderr
    assert "cachekit clean --wait" in done.stderr
    running(beside)
    let_go(beside)
    said = beside.cli("clean", "--wait").expect(0).stdout
    assert re.search(r"^later +freed +4\.0 MiB", said, re.MULTILINE)
    assert "the goal is met" in said


def test_wait_has_the_exit_code(beside: Scene) -> None:
    """--wait ends as the clean in the background did: exit 7 for an unmet goal, and a warning with --soft-fail."""
    beside.clean("--background").expect(0)
    running(beside)
    let_go(beside)
    done = beside.cli("clean", "--wait", "--json").expect(7)
    assert done.json()["met"] is False
    assert "the goal was not met" in done.stderr


def test_wait_can_be_soft(beside: Scene) -> None:
    """--wait --soft-fail makes an unmet goal a warning."""
    beside.clean("--background").expect(0)
    running(beside)
    let_go(beside)
    assert (
        "cachekit: warning: the goal was not met"
        in beside.cli("clean", "--wait", "--soft-fail").expect(0).stderr
    )


def test_wait_gives_the_report_once(beside: Scene) -> None:
    """A report that was given is not given again: the next --wait says that nothing was started."""
    beside.clean("--background").expect(0)
    running(beside)
    let_go(beside)
    beside.cli("clean", "--wait").expect(7)
    assert "no clean was started" in beside.cli("clean", "--wait").expect(2).stderr


def test_wait_without_a_start(beside: Scene) -> None:
    """--wait where nothing was started is exit 2, as text and as one JSON document."""
    assert "--background starts one" in beside.cli("clean", "--wait").expect(2).stderr
    assert beside.cli("clean", "--wait", "--json").expect(2).json()["error"]["exit_code"] == 2


def test_wait_in_vain(beside: Scene) -> None:
    """A clean in the background that takes longer than --lock-timeout is exit 6; it goes on and can be joined later."""
    beside.clean("--background", "--free=64M").expect(0)
    pid = running(beside)
    done = beside.cli("clean", "--wait", "--json", "--lock-timeout=0.2").expect(6)
    assert "still running" in done.json()["error"]["message"]
    assert Path("/proc", str(pid)).exists()
    let_go(beside)
    beside.cli("clean", "--wait").expect(0)


def test_killed(beside: Scene) -> None:
    """A clean in the background that was killed is exit 2 for who waits, at once; the next clean works."""
    beside.clean("--background").expect(0)
    stop(running(beside))
    done = beside.cli("clean", "--wait", "--lock-timeout=30").expect(2)
    assert "ended without a report" in done.stderr
    report = beside.report("--keep=wait", "--free=64M")
    assert outcome(report, "later")["result"] == "freed"


def test_nothing_left_for_the_background(scene: Scene) -> None:
    """Without a rule for the background an unmet goal is reported and exit 7 as ever, in one JSON document."""
    make_files(scene.root / "now", 1, MIB)
    scene.rules = {"now": {"paths": [f"{scene.root}/now"]}}
    report = scene.report("--background", code=7)
    assert outcome(report, "now")["result"] == "freed"
    assert noted(scene) == {}


def test_met_at_once(beside: Scene) -> None:
    """If what is done at once meets the goal, nothing is started."""
    assert beside.report("--background", "--free=60M")["met"]
    assert noted(beside) == {}
    assert (beside.root / "later").exists()


def test_outputs_are_those_of_the_step(beside: Scene, tmp_path: Path) -> None:
    """The process in the background writes into no file of the step that started it: --wait writes into its own."""
    first, second = tmp_path / "first", tmp_path / "second"
    beside.clean(
        "--background", "--free=64M", env={"GITHUB_OUTPUT": str(first), "GITHUB_STEP_SUMMARY": str(first)}
    )
    running(beside)
    told = first.read_text()
    let_go(beside)
    beside.cli("clean", "--wait", env={"GITHUB_OUTPUT": str(second)}).expect(0)
    assert first.read_text() == told
    assert "goal-met<<" in second.read_text()


def test_a_full_home(beside: Scene) -> None:
    """Where nothing can be noted the clean goes on all the same, and says that --wait will not know of it."""
    with filesystems.tmpfs(MIB) as small:
        small.fill(0)
        env = {"CACHEKIT_STATE_DIR": str(small.path / "state")}
        let_go_later = beside.start("--background", "--free=64M", env=env)
        with let_go_later as started:
            done = started.wait().expect(0)
            assert "--wait will not know" in done.stderr
        let_go(beside)
        wait_until(lambda: not (beside.root / "later").exists(), "the background has cleaned", 20)
        beside.cli("clean", "--wait", env=env).expect(2)
