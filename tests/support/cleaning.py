"""A small filesystem to be cleaned: plans, trees, and the command line against it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.cli import Cli
from tests.support.processes import Arg, Result, Running, clean_environment, start, wait_until

MIB = 1 << 20


def toml(value: object) -> str:
    """Write a value as TOML: JSON's texts, numbers and lists are TOML's too."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {toml(item)}" for name, item in value.items()) + " }"
    return json.dumps(value)


def plan_text(rules: Mapping[str, Mapping[str, object]], *, stages: Mapping[str, Any] | None = None) -> str:
    """Write a plan: every rule in every stage unless `stages` says otherwise; category temp unless a rule does."""
    chosen = stages or {
        stage: {"rules": list(rules), "goal": {"free": "1P"}}
        for stage in ("pre", "post", "emergency", "cron")
    }
    lines = ["format = 1", 'name = "test"', 'title = "A test"']
    for stage, content in chosen.items():
        lines += [f"[stage.{stage}]", *(f"{name} = {toml(value)}" for name, value in content.items())]
    for name, content in rules.items():
        body = {"id": name, "category": "temp", "expect": {"size": "1M", "seconds": 1}, **content}
        lines += ["[[rule]]", *(f"{key} = {toml(value)}" for key, value in body.items())]
    return "\n".join(lines) + "\n"


@dataclass
class Scene:
    """A directory (mostly the root of a small filesystem) and the command line that cleans it."""

    cli: Cli
    root: Path
    rules: dict[str, Mapping[str, object]] = field(default_factory=dict)

    @property
    def plan(self) -> Path:
        """The plan file with the rules of now; outside of the filesystem, which may be full."""
        path = self.cli.home / "plan.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(plan_text(self.rules))
        return path

    def arguments(self, *more: Arg) -> list[Arg]:
        """The arguments of a clean of this filesystem with this plan."""
        return ["clean", "--plan", self.plan, "--filesystem", self.root, *more]

    def clean(self, *more: Arg, env: Mapping[str, str] | None = None, seconds: float = 50.0) -> Result:
        """Run `cachekit clean` to its end."""
        return self.cli(*self.arguments(*more), env=env, seconds=seconds)

    def start(self, *more: Arg, env: Mapping[str, str] | None = None) -> Running:
        """Start `cachekit clean`, to be watched or killed."""
        return self.cli.start(*self.arguments(*more), env=env)

    def report(self, *more: Arg, code: int = 0, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Run it with --json and return the report."""
        document = self.clean("--json", *more, env=env).expect(code).json()
        assert isinstance(document, dict)
        return document


def outcome(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The report of one rule."""
    found = [rule for rule in report["rules"] if rule["id"] == name]
    assert len(found) == 1, f"{len(found)} reports of {name}: {report['rules']}"
    return dict(found[0])


def make_files(folder: Path, count: int = 4, size: int = 64 << 10) -> Path:
    """Fill a directory with files of random content and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"file-{number}").write_bytes(os.urandom(size))
    return folder


_PAUSING = """
import os, signal, sys
import cachekit.system.steps as steps
pause = sys.argv.pop(1)
def step(name):
    if name == pause:
        os.kill(os.getpid(), signal.SIGSTOP)
steps.step = step
from cachekit.__main__ import main
sys.exit(main())
"""


@contextmanager
def pausing(cli: Cli, step: str, *arguments: Arg, cwd: Path | None = None) -> Iterator[Running]:
    """Run the command line until it comes to a step; `go_on` lets it continue, until it comes there again."""
    command: list[Arg] = [sys.executable, "-c", _PAUSING, step, *arguments]
    with start(command, env=clean_environment(cli.home), cwd=cwd or cli.cwd) as running:
        wait_until(lambda: not running.alive or stopped(running.pid), f"it comes to {step}", 30)
        assert running.alive, running.wait().expect()
        yield running


def go_on(running: Running) -> None:
    """Let a child go on that has stopped."""
    running.send(signal.SIGCONT)


def stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
