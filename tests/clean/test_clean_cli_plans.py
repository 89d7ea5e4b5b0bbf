"""The shipped plans where they are meant for: which is chosen, and what goes and stays on a runner of one's own.

No shipped plan is ever carried out here: dry runs, or copies of its rules that name a made-up runner only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import cachekit.clean.run
from tests.support.capabilities import requires
from tests.support.cleaning import Scene, outcome, plan_text
from tests.support.cli import Cli
from tests.support.in_process import Here
from tests.support.processes import wait_until

HOSTED = {
    "GITHUB_ACTIONS": "true",
    "RUNNER_ENVIRONMENT": "github-hosted",
    "ImageOS": "ubuntu24",
    "CI": "true",
}
SELF_HOSTED = {"GITHUB_ACTIONS": "true", "RUNNER_ENVIRONMENT": "self-hosted", "CI": "true"}
ALONE = {"DOCKER_HOST": "unix:///nowhere/docker.sock", "CACHEKIT_RUNNER_ROOTS": "/nowhere"}
STAGES = ("pre", "post", "emergency", "cron")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("env", "plan", "why"),
    [
        ({}, "generic", "neither a GitHub-hosted runner nor a runner's directory was found"),
        (HOSTED, "github-hosted", "RUNNER_ENVIRONMENT is github-hosted (ubuntu24)"),
        (SELF_HOSTED, "self-hosted", "a GitHub job on a runner that is not GitHub's own"),
    ],
)
def test_dry_run_of_every_stage(cli: Cli, env: dict[str, str], plan: str, why: str, stage: str) -> None:
    """Every stage of every shipped plan reads well on a machine that it has never seen: exit 0, 80 columns, and why."""
    done = cli("clean", "--stage", stage, "--dry-run", env=ALONE | env).expect()
    folded = " ".join(done.stdout.split())
    assert f"plan {plan}, stage {stage} ({why})" in folded
    assert "dry run: nothing was changed" in folded
    wide = [line for line in done.stdout.splitlines() if len(line) > 80 and len(line.split()) > 1]
    assert not wide
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["generic", "github-hosted", "self-hosted"])
def test_plan_by_name(cli: Cli, name: str) -> None:
    """--plan NAME takes a shipped plan wherever it runs, and says that it was asked for."""
    done = cli("clean", "--plan", name, "--dry-run", "--json", "--free=1K", env=ALONE).expect().json()
    assert (done["plan"], done["plan_why"]) == (name, "--plan")


def test_toolchains_go_on_hosted_runners_only(cli: Cli) -> None:
    """Asked for by name on another machine, the plan for GitHub's runners removes no toolchain."""
    done = cli("clean", "--plan=github-hosted", "--dry-run", "--json", env=ALONE).expect().json()
    toolchains = [rule for rule in done["rules"] if rule["category"] == "toolchain"]
    assert toolchains
    assert {rule["result"] for rule in toolchains} == {"not-applicable"}


# ------------------------------------------------------------------------------------------ a runner between its jobs

WORK = "_work"


def write(path: Path, text: str = "x" * 5000) -> None:
    """Make a file and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def runner(root: Path) -> tuple[set[str], int]:
    """Make a runner's directory; return what is old in it, and a moment between that and what is young."""
    for name in ("old", "young"):
        if name == "young":
            time.sleep(0.05)
            moment = time.time_ns()
            time.sleep(0.05)
        write(root / WORK / f"repo-{name}" / f"repo-{name}" / "src" / "main.c")
        write(root / WORK / "_temp" / f"{name}.sh")
        write(root / WORK / "_actions" / name / "action.yml")
        write(root / WORK / "_tool" / name / "x64.complete")
        write(root / WORK / "_PipelineMapping" / name / "map.json")
        write(root / "_diag" / "pages" / f"{name}.log")
        write(root / "_diag" / "blocks" / f"{name}.1")
        for number in range(35 if name == "old" else 2):
            write(root / "_diag" / f"Runner_{name}-{number:02}.log")
        if name == "old":
            write(root / WORK / "_update" / "bin" / "Runner.Listener")
            for version in ("2.299.0", "2.300.0"):
                write(root / f"bin.{version}" / "Runner.Listener")
                write(root / f"externals.{version}" / "node20" / "bin" / "node")
            for kind in ("bin", "externals"):
                (root / kind).symlink_to(f"{kind}.2.300.0")
            for one in (
                ".credentials",
                ".credentials_rsaparams",
                ".path",
                ".env",
                "run.sh",
                "svc.sh",
                "config.sh",
            ):
                write(root / one)
            write(root / ".runner", "\ufeff" + json.dumps({"agentId": 1, "workFolder": WORK}))
    # An old checkout in which something is new is in use.
    write(root / WORK / "repo-old-but-used" / "src" / "new.c")
    return everything(root), moment


def everything(root: Path) -> set[str]:
    """The paths of all that is in it."""
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def copied_rules(marker: str = "$RUNNER_") -> dict[str, dict[str, Any]]:
    """The rules of the shipped plan whose every path lies in a runner's directory."""
    text = (resources.files("cachekit.clean.plan") / "shipped" / "self-hosted.toml").read_text(
        encoding="utf-8"
    )
    rules = {}
    for rule in tomllib.loads(text)["rule"]:
        paths = rule.get("paths", [])
        if paths and all(path.startswith((f"{marker}ROOT/", f"{marker}WORK/")) for path in paths):
            rules[rule["id"]] = rule
    assert len(rules) >= 7
    return rules


SECONDS = {"h": 3600, "d": 86400}


def carry_out(
    here: Here, scene: Scene, monkeypatch: pytest.MonkeyPatch, moment: int, stage: str
) -> dict[str, Any]:
    """Carry out each copied rule of a stage when its limit of age is that moment; return the reports."""
    reports = {}
    text = (resources.files("cachekit.clean.plan") / "shipped" / "self-hosted.toml").read_text(
        encoding="utf-8"
    )
    wanted = tomllib.loads(text)["stage"][stage]["rules"]
    for name, rule in copied_rules().items():
        if name not in wanted:
            continue
        older = rule["when"]["older"]
        now = moment + int(older[:-1]) * SECONDS[older[-1]] * 10**9
        monkeypatch.setattr(cachekit.clean.run, "now_ns", lambda now=now: now)
        plan = here.home / "copy.toml"
        plan.write_text(plan_text({name: rule}))
        report = (
            here("clean", "--json", f"--stage={stage}", "--plan", plan, "--filesystem", scene.root)
            .expect(7)
            .json()
        )
        reports[name] = outcome(report, name)
    return reports


@pytest.fixture
def here(tmp_path: Path, clean_surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line in this process."""
    monkeypatch.chdir(tmp_path)
    return Here(tmp_path, clean_surroundings)


@requires("tmpfs")
def test_a_runner_between_jobs(scene: Scene, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between jobs what is old goes from a runner's directory; versions in use, credentials, tools and actions stay."""
    root = scene.root / "actions-runner"
    before, moment = runner(root)
    monkeypatch.setenv("CACHEKIT_RUNNER_ROOTS", str(root))
    carry_out(here, scene, monkeypatch, moment, "cron")
    gone = before - everything(root)
    tops = {path for path in gone if str(Path(path).parent) not in gone}
    logs = {path for path in tops if path.startswith("_diag/Runner_")}
    assert tops - logs == {
        "_work/repo-old",
        "_work/_temp/old.sh",
        "_work/_update",
        "bin.2.299.0",
        "externals.2.299.0",
        "_diag/pages/old.log",
        "_diag/blocks/old.1",
    }
    assert logs == {f"_diag/Runner_old-{number:02}.log" for number in range(7)}  # 37 there, 30 stay
    assert (root / "bin" / "Runner.Listener").exists()


@requires("tmpfs")
def test_a_runner_with_a_job(scene: Scene, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a job runs on it, nothing of a runner's work directory goes, however old, and the report says why."""
    root = scene.root / "actions-runner"
    before, moment = runner(root)
    worker = root / "bin.2.300.0" / "Runner.Worker"
    shutil.copy2(os.path.realpath(shutil.which("sh") or "/bin/sh"), worker)
    monkeypatch.setenv("CACHEKIT_RUNNER_ROOTS", str(root))
    with subprocess.Popen([str(worker), "-c", "read line"], stdin=subprocess.PIPE) as child:
        wait_until(lambda: os.readlink(f"/proc/{child.pid}/exe") == str(worker), "the job runs")
        reports = carry_out(here, scene, monkeypatch, moment, "cron")
        assert child.stdin is not None
        child.stdin.close()
    gone = before - everything(root)
    assert not [path for path in gone if path.startswith("_work/")]
    for name in ("runner-work", "runner-temp", "runner-update"):
        assert reports[name]["result"] == "blocked"
        assert f"a job is running on this runner (pid {child.pid})" in reports[name]["reason"]
    assert reports["runner-versions"]["result"] == "freed"


@requires("tmpfs")
def test_two_runners(scene: Scene, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy runner does not keep another one on the machine from being cleaned."""
    busy, idle = scene.root / "busy", scene.root / "idle"
    runner(busy)
    _, moment = runner(idle)
    monkeypatch.setenv("CACHEKIT_RUNNER_ROOTS", f"{busy}:{idle}:/nowhere")
    worker = busy / "bin.2.300.0" / "Runner.Worker"
    shutil.copy2(os.path.realpath(shutil.which("sh") or "/bin/sh"), worker)
    with subprocess.Popen([str(worker), "-c", "read line"], stdin=subprocess.PIPE) as child:
        wait_until(lambda: os.readlink(f"/proc/{child.pid}/exe") == str(worker), "the job runs")
        reports = carry_out(here, scene, monkeypatch, moment, "cron")
        assert child.stdin is not None
        child.stdin.close()
    assert (busy / WORK / "repo-old").exists()
    assert not (idle / WORK / "repo-old").exists()
    assert reports["runner-work"]["result"] == "freed"
    assert "a job is running" in str(reports["runner-work"]["left"])


def test_a_runner_is_found(cli: Cli, tmp_path: Path) -> None:
    """Outside of a job a runner's directory chooses the plan for machines of one's own, and the report says where."""
    root = tmp_path / "runner"
    write(root / ".runner", json.dumps({"workFolder": "elsewhere"}))
    (root / "elsewhere").mkdir()
    env = ALONE | {"CACHEKIT_RUNNER_ROOTS": str(root)}
    report = cli("clean", "--stage=cron", "--dry-run", "--json", env=env).expect().json()
    assert report["plan"] == "self-hosted"
    assert report["plan_why"] == f"a GitHub runner is installed at {root}"
    assert outcome(report, "runner-work")["result"] == "stale"
    (root / ".runner").unlink()
    again = cli("clean", "--stage=cron", "--dry-run", "--json", env=env).expect().json()
    assert again["plan"] == "generic"
