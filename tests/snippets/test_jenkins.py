"""The Jenkinsfile: its shell steps with the variables of an agent, in the order of its stages and of its `post`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.snippets.jenkinsfile import environment, shell_steps
from tests.snippets.npm_project import INSTALLED, committed, npm_project
from tests.snippets.stored import cut, entries, quarantined, whole
from tests.support import tools
from tests.support.capabilities import requires
from tests.support.ordinary_user import PROJECT
from tests.support.processes import Result, wait_until
from tests.support.protected import Protected

JENKINSFILE = PROJECT / "ci-snippets" / "jenkins" / "Jenkinsfile"
STAGES = ("stage(Restore)", "stage(Build)", "stage(Test)")


@dataclass(frozen=True)
class Agent:
    """What an agent does with a build: each `sh` step is a script of its own, the first that fails ends the stages."""

    machine: Protected
    checkout: Path
    store: Path
    output: list[str] = field(default_factory=list)

    def variables(self, change: str = "") -> dict[str, str]:
        """Make the variables of a step, in a build of the pull request `change` if given."""
        jenkins = {
            "BUILD_ID": "12",
            "JENKINS_URL": "http://jenkins.invalid/",
            "JOB_NAME": f"shop/{f'PR-{change}' if change else 'main'}",
            "WORKSPACE": str(self.checkout),
            "BRANCH_NAME": f"PR-{change}" if change else "main",
        }
        own = {"CHANGE_ID": change} if change else {}
        return self.machine.environment() | jenkins | own | environment(JENKINSFILE)

    def step(self, script: str, change: str = "") -> Result:
        """Run one step as Jenkins does, and remember what it printed."""
        done = self.machine.run("sh", "-xe", "-c", script, env=self.variables(change), cwd=self.checkout)
        self.output.append(done.stdout + done.stderr)
        return done

    def build(self, change: str = "") -> bool:
        """Run a build in the workspace as the last one left it; return whether its stages succeeded."""
        self.output.clear()
        stages = [script for stage in STAGES for script in shell_steps(JENKINSFILE, stage)]
        good = all(self.step(script, change).code == 0 for script in stages)
        for condition in ("always", "success" if good else "failure"):
            for script in shell_steps(JENKINSFILE, "post", condition):
                self.step(script, change).expect()
        return good

    @property
    def status(self) -> str:
        """What the restore of the last build said."""
        lines = (self.checkout / "cachekit.env").read_text().splitlines()
        return next(line for line in lines if line.startswith("CACHEKIT_STATUS=")).partition("=")[2]

    @property
    def installed(self) -> bool:
        """Whether the last build made node_modules anew."""
        return INSTALLED in "".join(self.output)


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    """An agent with an empty store at the place that the Jenkinsfile names."""
    store = tmp_path / "var-cache" / "cachekit"
    store.mkdir(parents=True, mode=0o750)
    machine = Protected(tmp_path, binds={Path("/var/cache"): store.parent})
    return Agent(machine, npm_project(tmp_path / "shop"), store)


@requires("bind", "node")
def test_three_builds(agent: Agent) -> None:
    """The first misses and saves, the second installs nothing, the third refuses a cut entry, builds anew and heals."""
    for status, installs in (("miss", True), ("exact", False)):
        assert agent.build()
        assert (agent.status, agent.installed) == (status, installs)
        left_over = agent.checkout / "node_modules/left-over"
        assert not left_over.exists()
        left_over.touch()
    [entry] = entries(agent.store)
    cut(entry)
    assert agent.build()
    assert (agent.status, agent.installed) == ("refused", True)
    assert len(quarantined(agent.store)) == 1
    assert whole(agent.store) == 1


@requires("bind", "node")
def test_a_pull_request_has_a_part_of_its_own(agent: Agent) -> None:
    """What a pull request saves, branches do not use; what branches saved, it restores."""
    assert agent.build(change="7")
    assert agent.build()
    assert agent.status == "miss"
    assert agent.build(change="8")
    assert agent.status == "exact"


@requires("bind", "node")
def test_a_failed_build_saves_nothing(agent: Agent) -> None:
    """When the tests fail, nothing is saved, and the log says how full the disk is."""
    package = agent.checkout / "package.json"
    package.write_text(package.read_text().replace("? 0 : 1", "? 1 : 0"))
    committed(agent.checkout)
    assert not agent.build()
    assert not entries(agent.store)
    assert "free of" in agent.output[-1]


@requires("bind", "node")
def test_the_tests_of_two_builds_take_turns(agent: Agent, tmp_path: Path) -> None:
    """While another build has the lock, the tests wait; when that build's agent is killed, they run."""
    [command] = shell_steps(JENKINSFILE, "stage(Test)")
    begun, variables = tmp_path / "begun", agent.variables()
    other = command.replace("npm test", f"sh -c 'touch {begun}; exec sleep 60'")
    assert other != command

    def waits() -> bool:
        listing = agent.machine.run(
            "cachekit", "lock", "ls", "--dir", agent.machine.home, "--json", env=variables, cwd=agent.checkout
        )
        return any(lock["waiters"] for lock in listing.expect().json())

    agent.step("npm ci --no-audit --no-fund").expect()
    with agent.machine.start("sh", "-xe", "-c", other, env=variables, cwd=agent.checkout) as holder:
        wait_until(begun.exists, "the other build has the lock")
        with agent.machine.start("sh", "-xe", "-c", command, env=variables, cwd=agent.checkout) as waiting:
            wait_until(waits, "the second build waits for the lock")
            holder.kill()
            done = waiting.wait().expect()
    assert "shop@1.0.0 test" in done.stdout


@requires("groovy_lint")
def test_groovy(tmp_path: Path) -> None:
    """npm-groovy-lint reads it without an error, and does find one in a file with an unclosed block."""
    for name, text in (
        ("good", JENKINSFILE.read_text()),
        ("bad", JENKINSFILE.read_text().replace("}", "", 1)),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "Jenkinsfile").write_text(text)
    found = tools.groovy_lint(tmp_path)
    assert found
    assert all("/bad/" in error for error in found), found


@requires("shellcheck")
def test_shellcheck() -> None:
    """Shellcheck finds nothing in the shell steps."""
    for script in shell_steps(JENKINSFILE):
        assert tools.shellcheck(script, shell="sh") == ""


@requires("bind", "node")
def test_an_unusable_store_leaves_the_build_green(agent: Agent) -> None:
    """Without a store the build warns, and does its work as after a miss."""
    agent.store.rmdir()
    agent.store.write_text("not a directory")
    assert agent.build()
    assert agent.installed
    assert sum("cachekit: warning: " in output for output in agent.output) >= 2
