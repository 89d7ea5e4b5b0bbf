"""Steps run as GitHub's runner runs them: actions from their files as they stand, with its variables and files."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.support import tools
from tests.support.ordinary_user import PROJECT
from tests.support.processes import Result, run

ACTIONS = PROJECT / "ci-snippets/github"

_FILES = ("GITHUB_OUTPUT", "GITHUB_STATE", "GITHUB_PATH", "GITHUB_ENV", "GITHUB_STEP_SUMMARY")
_EXPRESSION = re.compile(r"\$\{\{\s*(\w+)\.([\w.-]+)\s*\}\}")


@dataclass(frozen=True)
class Step:
    """How a step, or an action's steps together, ended."""

    code: int
    outputs: dict[str, str]
    text: str

    def expect(self, code: int = 0) -> Step:
        """Fail with all that was said unless it ended so."""
        assert self.code == code, f"exit {self.code}, not {code}:\n{self.text}"
        return self


@dataclass
class Job:
    """One job on a machine: its workspace, and what the runner hands from step to step."""

    base: Path
    home: Path
    variables: dict[str, str] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)
    installed: bool = True
    system_path: str = field(default_factory=lambda: tools.environment()["PATH"])

    def __post_init__(self) -> None:
        for folder in (self.workspace, self.home / "tmp", self.home / "run", self.base / "bin"):
            folder.mkdir(parents=True, exist_ok=True)
        if self.installed:
            command = self.base / "bin/cachekit"
            command.write_text(
                f'#!/bin/sh\nPYTHONPATH="{PROJECT}" exec "{sys.executable}" -m cachekit "$@"\n'
            )
            command.chmod(0o755)

    @property
    def workspace(self) -> Path:
        """The checkout that the steps work in."""
        return self.base / "workspace"

    def action(self, name: str, inputs: Mapping[str, str]) -> Step:
        """Run a composite action: its steps in order, up to the first that fails."""
        path = ACTIONS / name
        action = yaml.safe_load((path / "action.yml").read_text())
        known = action.get("inputs", {})
        assert set(inputs) <= set(known), "an input that the action does not have"
        given = {key: inputs.get(key, value.get("default", "")) for key, value in known.items()}
        scopes: dict[str, str] = {f"inputs.{key}": value for key, value in given.items()}
        code, text = 0, ""
        for step in action["runs"]["steps"]:
            env = {key: self._filled(value, scopes) for key, value in step.get("env", {}).items()}
            shell = {"bash": ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail"]}[step["shell"]]
            script = self.base / "script.sh"
            script.write_text(step["run"])
            result, values = self.run([*shell, str(script)], env | {"GITHUB_ACTION_PATH": str(path)})
            scopes |= {
                f"steps.{step.get('id')}.outputs.{key}": value
                for key, value in values["GITHUB_OUTPUT"].items()
            }
            code, text = result.code, text + result.stdout + result.stderr
            if code:
                break
        outputs = {
            key: self._filled(value["value"], scopes) for key, value in action.get("outputs", {}).items()
        }
        return Step(code, outputs, text)

    def step(self, workflow: Path, name: str, env: Mapping[str, str]) -> Step:
        """Run the script of a workflow's step, found by its name, with this in the place of the step's `env`."""
        jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
        (step,) = (step for job in jobs for step in job["steps"] if step.get("name") == name)
        assert set(env) == set(step.get("env", {})), "the step has another environment"
        script = self.base / "script.sh"
        script.write_text(step["run"])
        result, values = self.run(["bash", "-e", str(script)], env)
        return Step(result.code, values["GITHUB_OUTPUT"], result.stdout + result.stderr)

    def node(
        self, script: str, inputs: Mapping[str, str], state: Mapping[str, str]
    ) -> tuple[Step, dict[str, str]]:
        """Run an action of node: `state` is what an earlier run of it has left; returns what this one leaves."""
        action = yaml.safe_load((ACTIONS / "action.yml").read_text())
        given = {key: inputs.get(key, value.get("default", "")) for key, value in action["inputs"].items()}
        env = {f"INPUT_{key.upper().replace(' ', '_')}": value for key, value in given.items()}
        env |= {f"STATE_{key}": value for key, value in state.items()}
        node = tools.program("node")
        assert node is not None
        result, values = self.run([node, str(ACTIONS / script)], env)
        return Step(result.code, values["GITHUB_OUTPUT"], result.stdout + result.stderr), values[
            "GITHUB_STATE"
        ]

    def run(self, command: list[str], env: Mapping[str, str]) -> tuple[Result, dict[str, dict[str, str]]]:
        """Run a command as a step; return how it ended and what it wrote into each of the runner's files."""
        files = {name: self.base / name for name in _FILES}
        for file in files.values():
            file.write_text("")
        own = tools.environment(self.home)
        own.pop("PYTHONPATH")
        own["PATH"] = ":".join([*self.path, str(self.base / "bin"), self.system_path])
        own |= {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(self.workspace), "CI": "true"}
        own |= {"RUNNER_TEMP": str(self.home / "tmp"), "RUNNER_TOOL_CACHE": str(self.home / "tool cache")}
        own |= {name: str(file) for name, file in files.items()} | self.variables | dict(env)
        result = run([*command], env=own, cwd=self.workspace)
        self.path = files["GITHUB_PATH"].read_text().split("\n")[:-1][::-1] + self.path
        return result, {
            name: parsed(file.read_text()) for name, file in files.items() if name != "GITHUB_PATH"
        }

    @staticmethod
    def _filled(text: str, scopes: Mapping[str, str]) -> str:
        return _EXPRESSION.sub(lambda match: scopes.get(f"{match[1]}.{match[2]}", ""), text)


def parsed(text: str) -> dict[str, str]:
    """Read a file of the runner's as it does: NAME<<DELIMITER, lines, DELIMITER; or NAME=value."""
    found: dict[str, str] = {}
    lines = iter(text.splitlines())
    for line in lines:
        name, heredoc, delimiter = line.partition("<<")
        if heredoc:
            found[name] = "\n".join(itertools.takewhile(delimiter.__ne__, lines))
        elif "=" in line:
            name, _, found[name] = line.partition("=")
    return found
