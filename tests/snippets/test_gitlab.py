"""The GitLab snippets: their jobs' own lines with the variables of a runner, and whole pipelines by gitlab-ci-local."""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.snippets.npm_project import INSTALLED, committed, npm_project
from tests.snippets.stored import cut, entries, quarantined, whole
from tests.support import tools
from tests.support.capabilities import requires
from tests.support.filesystems import ext4
from tests.support.ordinary_user import PROJECT
from tests.support.processes import Result
from tests.support.protected import Protected

FOLDER = PROJECT / "ci-snippets" / "gitlab"
LOCAL = FOLDER / "local-store.gitlab-ci.yml"
CARRIED = FOLDER / "carried.gitlab-ci.yml"

BRANCH = {"CI_PIPELINE_SOURCE": "push", "CI_COMMIT_BRANCH": "main"}
MERGE_REQUEST = {"CI_PIPELINE_SOURCE": "merge_request_event", "CI_MERGE_REQUEST_IID": "7"}


@dataclass(frozen=True)
class ShellRunner:
    """What a shell runner does with a job: its variables, its lines in one bash that stops at the first failure."""

    machine: Protected
    checkout: Path
    pipeline: Path
    settings: dict[str, str]
    """The runner's own `environment`, from its config.toml."""

    def job(self, name: str, given: dict[str, str]) -> Result:
        """Run a job of the pipeline; `given` says what kind of pipeline it is, and what earlier jobs reported."""
        text = yaml.safe_load(self.pipeline.read_text())
        predefined = {
            "CI": "true",
            "GITLAB_CI": "true",
            "CI_PROJECT_DIR": str(self.checkout),
            "CI_PROJECT_PATH_SLUG": "group-shop",
            "CI_JOB_ID": "4711",
        }
        variables = self.machine.environment() | self.settings | predefined | given
        for told in (text.get("variables", {}), _variables_of_rules(text[name], variables)):
            variables |= {key: _expanded(value, variables) for key, value in told.items()}
        lines = ["set -eo pipefail", *text[name].get("before_script", ()), *text[name]["script"]]
        return self.machine.run("bash", "-c", "\n".join(lines), env=variables, cwd=self.checkout)

    @property
    def store(self) -> Path:
        """Where the runner keeps its entries."""
        return Path(self.settings["CACHEKIT_STORE"])

    def fresh(self) -> None:
        """Leave the checkout as the runner finds it: nothing that git does not know."""
        self.machine.run("git", "clean", "-ffdxq", env=self.machine.environment(), cwd=self.checkout).expect()

    def outputs(self) -> dict[str, str]:
        """Read the dotenv report of the last job."""
        pairs = (line.partition("=") for line in (self.checkout / "cachekit.env").read_text().splitlines())
        return {name: value for name, _, value in pairs}


def _expanded(value: str, variables: dict[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda name: variables.get(name[1], ""), value)


def _variables_of_rules(job: dict[str, Any], variables: dict[str, str]) -> dict[str, str]:
    """Return the variables of the first rule that holds; a job without one is in no such pipeline."""
    for rule in job["rules"]:
        name, _, wanted = re.fullmatch(r'\$(\w+)( == "(.*)")?', rule["if"]).groups()  # type: ignore[union-attr]
        if variables.get(name) == wanted or (wanted is None and variables.get(name)):
            found: dict[str, str] = rule.get("variables", {})
            return found
    raise AssertionError("no rule lets this job run")


@pytest.fixture
def runner(tmp_path: Path) -> ShellRunner:
    """A shell runner with the settings of config.toml, and a checkout with the pipeline on the local store."""
    settings = dict(setting.split("=", 1) for setting in _runners()["shell"]["environment"])
    machine = Protected(tmp_path, binds={Path("/var/cache"): tmp_path / "var-cache"})
    (tmp_path / "var-cache" / "cachekit").mkdir(parents=True, mode=0o750)
    return ShellRunner(machine, npm_project(tmp_path / "shop"), LOCAL, settings)


def _runners() -> dict[str, dict[str, Any]]:
    found = tomllib.loads((FOLDER / "config.toml").read_text())["runners"]
    return {runner["name"]: runner for runner in found}


@requires("bind", "node")
def test_three_runs(runner: ShellRunner, tmp_path: Path) -> None:
    """The first run misses and saves, the second installs nothing, the third refuses a cut entry and heals."""
    store = tmp_path / "var-cache" / "cachekit"
    for status, hit, installs in (("miss", "false", True), ("exact", "true", False)):
        runner.fresh()
        done = runner.job("build", BRANCH).expect()
        assert (runner.outputs()["CACHEKIT_STATUS"], runner.outputs()["CACHEKIT_CACHE_HIT"]) == (status, hit)
        assert (INSTALLED in done.stdout) is installs, done.stdout
    [entry] = entries(store)
    cut(entry)
    runner.fresh()
    done = runner.job("build", BRANCH).expect()
    assert runner.outputs()["CACHEKIT_STATUS"] == "refused"
    assert INSTALLED in done.stdout
    assert len(quarantined(store)) == 1
    assert whole(store) == 1


@requires("bind", "node")
def test_a_merge_request_has_a_part_of_its_own(runner: ShellRunner) -> None:
    """What a merge request saves, branches do not use; what branches saved, it restores."""
    runs = (
        (MERGE_REQUEST, "miss"),
        (BRANCH, "miss"),
        (MERGE_REQUEST | {"CI_MERGE_REQUEST_IID": "8"}, "exact"),
    )
    for pipeline, status in runs:
        runner.fresh()
        runner.job("build", pipeline).expect()
        assert runner.outputs()["CACHEKIT_STATUS"] == status, pipeline


@requires("bind", "ext4", "node")
def test_a_full_disk_leaves_the_job_green(tmp_path: Path) -> None:
    """Without room for the entry the job warns, succeeds and leaves nothing half written; with room it saves."""
    with ext4(16 << 20, at=tmp_path / "disk") as disk:
        machine = Protected(tmp_path, binds={Path("/var/cache"): disk.path})
        (disk.path / "cachekit").mkdir(mode=0o750)
        settings = {"CACHEKIT_STORE": "/var/cache/cachekit"}
        runner = ShellRunner(machine, npm_project(tmp_path / "shop"), LOCAL, settings)
        disk.fill(leave=40_000)
        done = runner.job("build", BRANCH).expect()
        assert "warning: not enough space" in done.stderr, done.stderr
        assert not entries(disk.path / "cachekit")
        disk.fill(leave=10 << 20)
        runner.job("build", BRANCH).expect()
        assert len(entries(disk.path / "cachekit")) == 1


@requires("bind", "node")
def test_an_unreachable_store_leaves_the_job_green(runner: ShellRunner) -> None:
    """A store whose place is a file is a warning, and the job builds as after a miss."""
    runner.settings["CACHEKIT_STORE"] = "/etc/passwd"
    done = runner.job("build", BRANCH).expect()
    assert INSTALLED in done.stdout
    assert done.stderr.count("cachekit: warning: ") >= 2


@requires("bind")
@pytest.mark.parametrize(("status", "code"), [("refused", 1), ("exact", 0), ("miss", 0)])
def test_the_report_warns_of_a_refusal(runner: ShellRunner, status: str, code: int) -> None:
    """The second job reads the first one's dotenv report, and fails, which is allowed, only after a refusal."""
    runner.job("report", BRANCH | {"CACHEKIT_STATUS": status}).expect(code)
    assert yaml.safe_load(LOCAL.read_text())["report"]["allow_failure"] is True


def test_both_executors_have_the_same_store() -> None:
    """In both runners of config.toml the variable names the directory that Docker jobs see as the host's."""
    runners = _runners()
    assert runners["shell"]["environment"] == runners["docker"]["environment"]
    [store] = [s.split("=")[1] for s in runners["shell"]["environment"] if s.startswith("CACHEKIT_STORE=")]
    assert f"{store}:{store}" in runners["docker"]["docker"]["volumes"]


def _gitlab_ci_local(machine: Protected, checkout: Path, *options: str, **settings: str) -> Result:
    told = [f"--variable={name}={value}" for name, value in settings.items()]
    command = [
        "gitlab-ci-local",
        "--shell-isolation",
        "--force-shell-executor",
        "--no-color",
        *told,
        *options,
    ]
    return machine.run(*command, env=machine.environment(), cwd=checkout)


@requires("bind", "gitlab_ci_local")
def test_the_pipeline_as_a_whole(runner: ShellRunner, tmp_path: Path) -> None:
    """gitlab-ci-local runs the jobs in order: miss, exact, and refused with the allowed failure that tells of it."""
    (runner.checkout / ".gitlab-ci.yml").write_bytes(LOCAL.read_bytes())
    committed(runner.checkout)
    for status in ("miss", "exact", "refused"):
        if status == "refused":
            [entry] = entries(tmp_path / "var-cache" / "cachekit")
            cut(entry)
        done = _gitlab_ci_local(runner.machine, runner.checkout, **runner.settings).expect()
        assert f"cache of the build, {status}" in done.stdout
        assert ("WARN" in done.stdout) is (status == "refused")
        assert (INSTALLED in done.stdout) is (status != "exact")


@requires("bind", "gitlab_ci_local")
def test_the_carried_entry(runner: ShellRunner, tmp_path: Path) -> None:
    """On runners that keep nothing, GitLab's cache carries one entry; cut there, it is refused and made anew."""
    (runner.checkout / ".gitlab-ci.yml").write_bytes(CARRIED.read_bytes())
    committed(runner.checkout)
    sizes = []
    for status in ("miss", "exact", "refused"):
        carried = list((runner.checkout / ".gitlab-ci-local/cache").rglob("*.tar.zst"))
        if status == "refused":
            cut(carried[0])
        shutil.rmtree(runner.machine.home)
        runner.machine.home.mkdir()
        done = _gitlab_ci_local(runner.machine, runner.checkout).expect()
        assert (INSTALLED in done.stdout) is (status != "exact"), done.stdout
        assert ("refused" in done.stdout + done.stderr) is (status == "refused")
        [carried_now] = (runner.checkout / ".gitlab-ci-local/cache").rglob("*.tar.zst")
        sizes.append(carried_now.stat().st_size)
    assert max(sizes) - min(sizes) < 200


@requires("bind", "node")
def test_the_carried_entry_by_its_lines(runner: ShellRunner) -> None:
    """The job's own lines leave one file for the cache, take it in, and do not carry on what was cut."""
    job = replace(runner, pipeline=CARRIED)
    job.settings.clear()
    for status in ("miss", "exact", "miss"):
        if (exported := runner.checkout / ".cachekit/cachekit-entry.tar.zst").exists() and status == "miss":
            cut(exported)
        shutil.rmtree(runner.machine.home)
        runner.machine.home.mkdir()
        shutil.rmtree(runner.checkout / "node_modules", ignore_errors=True)
        job.job("build", BRANCH).expect()
        assert runner.outputs()["CACHEKIT_STATUS"] == status
        assert os.listdir(runner.checkout / ".cachekit") == ["cachekit-entry.tar.zst"]


@requires("check_jsonschema")
def test_schema(tmp_path: Path) -> None:
    """GitLab's schema takes the pipelines, and refuses a key that does not exist."""
    assert tools.json_schema("gitlab-ci", LOCAL, CARRIED, transform="gitlab-ci") == ""
    (tmp_path / "bad.yml").write_text("a: {script: x, artefacts: {}}\n")
    assert tools.json_schema("gitlab-ci", tmp_path / "bad.yml", transform="gitlab-ci") != ""


@requires("shellcheck")
@pytest.mark.parametrize("path", [LOCAL, CARRIED], ids=lambda path: path.name)
def test_shellcheck(path: Path) -> None:
    """Shellcheck finds nothing in the lines of the jobs."""
    jobs = [
        job for job in yaml.safe_load(path.read_text()).values() if isinstance(job, dict) and "script" in job
    ]
    assert jobs
    for job in jobs:
        assert tools.shellcheck("\n".join(["#!/bin/bash", *job["script"]])) == ""
