"""The snippets that init fills in, as the ecosystem's own tools see them; with the commands of several tools."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import tools
from tests.support.capabilities import requires
from tests.support.github import Runner, entries
from tests.support.in_process import Here, cut
from tests.support.ordinary_user import PROJECT
from tests.support.processes import clean_environment, run
from tests.support.protected import cachekit_in


@pytest.fixture
def written(here: Here) -> Path:
    """A repository with three tools, for which init has written the files of every CI."""
    for name in ("web/package-lock.json", "requirements.txt", "pom.xml"):
        (here.root / name).parent.mkdir(exist_ok=True)
        (here.root / name).write_text("x")
    for ci in ("github", "gitlab", "jenkins", "systemd", "cron"):
        here("init", ci, "--yes").expect()
    return here.root


@requires("actionlint", "check_jsonschema", "zizmor")
def test_the_workflow(written: Path) -> None:
    """Linter, schema and auditor find nothing in the workflow for GitHub."""
    path = written / ".github/workflows/cachekit.yml"
    assert tools.actionlint(path) == []
    assert tools.zizmor(path) == []
    assert tools.json_schema("github-workflows", path) == ""


def test_the_job_for_gitlab(written: Path) -> None:
    """The job for GitLab is YAML in which every line of a script is a text, the build between restore and save."""
    job = yaml.safe_load((written / ".gitlab/cachekit.yml").read_text())[".cachekit"]
    assert all(isinstance(line, str) for line in job["before_script"] + job["script"])
    assert [line.split()[0] for line in job["script"]] == ["(cd", "pip", "mvn", "cachekit", "cachekit"]


@requires("check_jsonschema")
def test_the_schema_for_gitlab(written: Path) -> None:
    """GitLab's schema takes the job."""
    schema = tools.json_schema("gitlab-ci", written / ".gitlab/cachekit.yml")
    assert schema == ""


@requires("groovy_lint")
def test_the_jenkinsfile(written: Path) -> None:
    """npm-groovy-lint reads the Jenkinsfile without an error."""
    folder = written / "lint"
    folder.mkdir()
    shutil.copy(written / "Jenkinsfile", folder)
    assert tools.groovy_lint(folder) == []


def for_own_runners(path: Path) -> dict[str, Any]:
    """Read a snippet as it is for runners whose disk stays: with the lines that are commented out in it."""
    text = re.sub(
        r"^( *)# ?( *(?:env:|CACHEKIT_\w+:|if:|- export) ?.*)$", r"\1\2", path.read_text(), flags=re.MULTILINE
    )
    document = yaml.safe_load(text)
    assert isinstance(document, dict)
    return document


@requires("actionlint")
def test_the_workflow_for_own_runners(written: Path) -> None:
    """On runners of one's own it keeps pull requests apart, and those of forks away, as self-hosted.yml does."""
    mine = for_own_runners(written / ".github/workflows/cachekit.yml")
    theirs = yaml.safe_load((PROJECT / "ci-snippets/github/workflows/self-hosted.yml").read_text())
    assert mine["env"]["CACHEKIT_SCOPE"] == theirs["env"]["CACHEKIT_SCOPE"]
    assert mine["jobs"]["build"]["if"] == theirs["jobs"]["build"]["if"]
    path = written / ".github/workflows/own.yml"
    path.write_text(
        yaml.safe_dump(mine).replace("\ntrue:", "\n'on':")
    )  # YAML 1.1 reads "on" as a truth value
    assert tools.actionlint(path) == []


@pytest.mark.parametrize(("request_id", "part"), [("7", "/@mr-7/"), ("", "/default/entries/")])
def test_the_job_on_own_runners(here: Here, tmp_path: Path, request_id: str, part: str) -> None:
    """On GitLab runners of one's own a merge request saves where only itself reads, a branch where all do."""
    (here.root / "Makefile").write_text(
        "all: # with ccache\n\tmkdir -p $(HOME)/.cache/ccache && touch $(HOME)/.cache/ccache/x\n"
    )
    here("init", "gitlab", "--yes").expect()
    cachekit_in(tmp_path / "bin")
    job = for_own_runners(here.root / ".gitlab/cachekit.yml")[".cachekit"]
    lines = [line for line in job["before_script"] + job["script"] if " store " not in line]
    env = clean_environment(here.home) | {"CACHEKIT_COMMIT": "0a" * 20, "CI_MERGE_REQUEST_IID": request_id}
    env["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{env['PATH']}"
    run(["bash", "-e", "-c", "\n".join(lines)], env=env, cwd=here.root).expect()
    (entry,) = entries(here.store)
    assert part in f"{entry}"


@requires("act", "actions_cache")
@pytest.mark.timeout(240)
def test_the_workflow_runs(tmp_path: Path) -> None:
    """By act: it misses and carries; hits on a new machine, and carries nothing once more; then refuses a cut entry."""
    runner = Runner(tmp_path / "runner")
    (runner.repository / "Makefile").write_text("all:\n\tmkdir -p $(HOME)/.npm && touch $(HOME)/.npm/x\n")
    (runner.repository / "package-lock.json").write_text("{}")
    (runner.repository / "cachekit.toml").write_text(
        '[caches.npm]\nkey = "npm-{hash:package-lock.json}"\npaths = ["~/.npm"]\n'
    )
    workflow = PROJECT / "ci-snippets/init/github.yml"
    first = runner(workflow).expect()
    assert first.outputs("restore")["npm-status"] == "miss"
    assert first.steps[-1] == "Carry it"
    runner.new_machine()
    second = runner(workflow).expect()
    assert second.outputs("restore")["npm-status"] == "exact"
    assert second.steps[-1] == "Build"
    runner.new_machine()
    runner.change_carried(lambda _, content: content[: len(content) // 2])
    third = runner(workflow).expect()
    assert third.outputs("restore")["cache-hit"] == "false"
    assert third.steps[-1] == "Carry it"


@dataclass(frozen=True)
class Runners:
    """Machines whose disk does not stay: each job has one of its own, and gets only what was carried from the last."""

    here: Here
    ci: str
    tools: Path

    def lines(self) -> list[str]:
        """The scripts of the job as they stand in the written file, in their order."""
        if self.ci == "github":
            document = yaml.safe_load((self.here.root / ".github/workflows/cachekit.yml").read_text())
            return [step["run"] for step in document["jobs"]["build"]["steps"] if "run" in step]
        job = yaml.safe_load((self.here.root / ".gitlab/cachekit.yml").read_text())[".cachekit"]
        return [*job["before_script"], *job["script"]]

    def carried(self, machine: Path) -> Path:
        """What the CI carries from a machine to the next."""
        return machine / ".cache/cachekit-carry" if self.ci == "github" else self.here.root / ".cachekit"

    def job(self, name: str, carried: Path | None) -> tuple[Path, str]:
        """Run the job on a new machine; return the machine, and what was said."""
        machine = self.here.root.parent / name
        (machine / "run").mkdir(parents=True)
        place = self.carried(machine)
        shutil.rmtree(place, ignore_errors=True)
        if carried is not None:
            shutil.copytree(carried, place)
        env = clean_environment(machine)
        env |= {"PATH": f"{self.tools}{os.pathsep}{env['PATH']}", "CACHEKIT_COMMIT": "0a" * 20, "CI": "true"}
        if self.ci == "gitlab":
            env["CACHEKIT_CARRY"] = str(place)
        told = ""
        for script in self.lines():
            done = run(["bash", "-e", "-c", script], env=env, cwd=self.here.root).expect()
            told += done.stdout + done.stderr
        kept = self.here.root.parent / f"{name}-carried"
        shutil.copytree(place, kept)
        return kept, told


@pytest.mark.parametrize("ci", ["github", "gitlab"])
def test_the_job_runs(here: Here, tmp_path: Path, ci: str) -> None:
    """The first job misses and saves, the next hits on a machine of its own, a third heals a cut entry."""
    (here.root / "Makefile").write_text(
        "all: # with ccache\n\tmkdir -p $(HOME)/.cache/ccache\n\techo built >>$(HOME)/.cache/ccache/log\n"
    )
    here("init", ci, "--yes").expect()
    cachekit_in(tmp_path / "bin")
    runners = Runners(here, ci, tmp_path / "bin")
    first, told = runners.job("first", None)
    assert "miss" in told
    assert "exported ccache-" in told
    second, told = runners.job("second", first)
    assert "imported ccache-" in told
    assert "exact hit" in told
    assert (here.root.parent / "second/.cache/ccache/log").read_text() == "built\n" * 2
    cut(second / "ccache/cachekit-entry.tar.zst")
    third, told = runners.job("third", second)
    assert "refused (damaged) and removed" in told
    assert "exact hit" not in told
    assert "exported ccache-" in told
    _, told = runners.job("fourth", third)
    assert "exact hit" in told
