"""A GitHub runner for the tests: `act` runs workflows as they stand, on this machine, in a repository of their own.

What GitHub would fetch comes from here: our actions from a copy of the checkout, actions/cache from a stand-in with
GitHub's own client (npm @actions/cache) against act's cache server. actions/checkout act does by itself: each job has a
working tree of its own.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
import zstandard

from tests.support import tools
from tests.support.ordinary_user import PROJECT
from tests.support.processes import Result, run

WORKFLOWS = PROJECT / "ci-snippets/github/workflows"

_RUNS_HERE = ("self-hosted", "linux", "ubuntu-24.04", "ubuntu-24.04-arm")
_PACKAGE = {
    "name": "shop",
    "version": "1.0.0",
    "scripts": {"build": "node -e \"console.log('built with ' + require('left'))\""},
    "dependencies": {"left": "file:left-1.0.0.tgz"},
}
_CACHE_CLIENT = """
import * as cache from '%(npm)s/node_modules/@actions/cache/lib/cache.js';
import { appendFileSync } from 'node:fs';

process.env.ACTIONS_RUNTIME_TOKEN ??= 'any';
const input = (name) => (process.env[`INPUT_${name.toUpperCase()}`] ?? '').trim();
const lines = (name) => input(name).split('\\n').map((line) => line.trim()).filter(Boolean);
if ('%(name)s' === 'restore') {
  const found = await cache.restoreCache(lines('path'), input('key'), lines('restore-keys'));
  appendFileSync(process.env.GITHUB_OUTPUT, `cache-matched-key=${found ?? ''}\\n`);
  console.log(`carried: ${found ?? 'nothing'}`);
} else if (await cache.restoreCache(lines('path'), input('key'), [], { lookupOnly: true }) === input('key')) {
  console.log('carried already: a key is written once'); // GitHub's server refuses it, act's would not
} else {
  await cache.saveCache(lines('path'), input('key'));
}
"""
_UPLOAD = """
import { cpSync } from 'node:fs';
import { dirname } from 'node:path';
cpSync(dirname(process.env.INPUT_PATH), '%(artifacts)s', { recursive: true });
"""
_DOWNLOAD = """
import { cpSync } from 'node:fs';
cpSync('%(artifacts)s', process.env.INPUT_PATH, { recursive: true });
"""


@dataclass(frozen=True)
class Log:
    """What a run of a workflow said."""

    result: Result

    @cached_property
    def _lines(self) -> list[dict[str, Any]]:
        lines = (self.result.out + self.result.err).splitlines()
        return [json.loads(line) for line in lines if line.startswith(b"{")]

    @property
    def text(self) -> str:
        """All that the steps printed."""
        return "\n".join(str(line["msg"]) for line in self._lines)

    @property
    def steps(self) -> list[str]:
        """The names of the steps that ran and succeeded, in order, those that were skipped left out."""
        return [line["step"] for line in self._own_steps("Main") if line["stepResult"] == "success"]

    @property
    def post_steps(self) -> list[str]:
        """The names of the steps whose second half ran, after the job."""
        return [line["step"] for line in self._own_steps("Post") if line["stepResult"] == "success"]

    def _own_steps(self, stage: str) -> Iterable[dict[str, Any]]:
        for line in self._lines:
            if "stepResult" in line and line.get("stage") == stage and len(line["stepID"]) == 1:
                yield line

    def outputs(self, step: str) -> dict[str, str]:
        """Return the outputs of a step, by its id."""
        return {
            line["name"]: line["arg"]
            for line in self._lines
            if line.get("command") == "set-output" and line["stepID"] == [step]
        }

    def expect(self, code: int = 0) -> Log:
        """Fail with all that was said unless the job ended so."""
        assert self.result.code == code, f"exit {self.result.code}, not {code}:\n{self.text}"
        return self


@dataclass
class Runner:
    """A runner below `base` with a repository, a store, a cache server and a home of its own."""

    base: Path
    variables: dict[str, str] = field(default_factory=dict)
    runs: int = 0

    def __post_init__(self) -> None:
        for folder in (self.repository, self.base / "bin", self.base / "home/tmp", self.base / "home/run"):
            folder.mkdir(parents=True, mode=0o755)
        command = self.base / "bin/cachekit"
        command.write_text(f'#!/bin/sh\nPYTHONPATH="{PROJECT}" exec "{sys.executable}" -m cachekit "$@"\n')
        command.chmod(0o755)
        # The jobs of GitHub's own runners may call sudo without a password; here they are what the tests are.
        (self.base / "bin/sudo").write_text('#!/bin/sh\n[ "$1" = -E ] && shift\nexec "$@"\n')
        (self.base / "bin/sudo").chmod(0o755)
        left_out = shutil.ignore_patterns("__pycache__")
        for part in ("cachekit", "ci-snippets"):
            shutil.copytree(PROJECT / part, self.base / "actions" / part, ignore=left_out)
        self.actions = {"OWNER/cachekit": self.base / "actions", "actions/cache": self.base / "actions-cache"}
        for name in ("restore", "save"):
            self._stand_in(
                "actions/cache", name, "index.mjs", _CACHE_CLIENT % {"npm": tools.NPM, "name": name}
            )
        for name in ("docker/setup-buildx-action", "docker/login-action"):
            self._stand_in(name, "", "index.mjs", "")
        for name, script in (("upload", _UPLOAD), ("download", _DOWNLOAD)):
            text = script % {"artifacts": self.base / "artifacts"}
            self._stand_in(f"actions/{name}-artifact", "", "index.mjs", text)

    def _stand_in(self, name: str, below: str, main: str, script: str) -> None:
        """Make an action that is used instead of one that GitHub would fetch."""
        self.actions[name] = self.base / name.replace("/", "-")
        place = self.actions[name] / below
        place.mkdir(parents=True)
        action = {"name": name, "description": name, "runs": {"using": "node24", "main": main}}
        place.joinpath("action.yml").write_text(yaml.safe_dump(action))
        place.joinpath(main).write_text(script)

    @property
    def repository(self) -> Path:
        """The repository whose workflows are run."""
        return self.base / "shop"

    @property
    def home(self) -> Path:
        """The home of the runner's user."""
        return self.base / "home"

    @property
    def store(self) -> Path:
        """The store that the variable CACHEKIT_STORE of the repository names."""
        return self.base / "store"

    def environment(self) -> dict[str, str]:
        """Make the environment in which the runner works."""
        environment = tools.environment(self.home)
        environment.pop("PYTHONPATH")
        return environment | {"PATH": f"{self.base / 'bin'}:{environment['PATH']}"} | self.variables

    def make_node_project(self, version: str = "1.0.0") -> None:
        """Fill the repository with a package that has one dependency, which npm finds without a network."""
        left = self.base / f"left-{version}/package"
        left.mkdir(parents=True)
        (left / "package.json").write_text(json.dumps({"name": "left", "version": version}))
        (left / "index.js").write_text(f"module.exports = 'left {version}';\n")
        name = f"left-{version}.tgz"
        self._call("tar", "-czf", str(self.repository / name), "-C", str(left.parent), "package")
        package = _PACKAGE | {"dependencies": {"left": f"file:{name}"}}
        (self.repository / "package.json").write_text(json.dumps(package))
        self._call("npm", "install", "--package-lock-only", "--no-audit", "--no-fund", "--loglevel=error")

    def make_image_project(self) -> None:
        """Fill the repository with an image that is built without a network."""
        folder = self.repository / "docker"
        folder.mkdir()
        shutil.copy("/bin/busybox", folder)
        (folder / "Dockerfile").write_text(
            'FROM scratch\nCOPY busybox /bin/busybox\nCMD ["/bin/busybox", "echo", "the image ran"]\n'
        )

    def commit(self) -> None:
        """Commit what is in the repository."""
        if not (self.repository / ".git").exists():
            self._call("git", "init", "-q", "-b", "main")
            self._call("git", "remote", "add", "origin", "https://github.com/shop/shop.git")
            (self.repository / ".git/info/exclude").write_text("node_modules\n")
        self._call("git", "add", "--all")
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        self._call("git", *identity, "commit", "-q", "--allow-empty", "-m", "x")

    def __call__(self, workflow: Path, *options: str, event: str = "push") -> Log:
        """Run a workflow, as it stands in the file, to its end."""
        place = self.repository / ".github/workflows"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(workflow, place)
        self.commit()
        act = tools.program("act")
        assert act is not None
        arguments = [event, "-W", f".github/workflows/{workflow.name}", "--pull=false", "--json"]
        arguments += [word for name in _RUNS_HERE for word in ("-P", f"{name}=-self-hosted")]
        arguments += ["--cache-server-addr", "127.0.0.1", "--cache-server-path", str(self.base / "carried")]
        arguments += ["--var", f"CACHEKIT_STORE={self.store}"]
        for name, commit in sorted(_actions(workflow)):
            if (copy := self.actions.get(name)) is not None:
                arguments += ["--local-repository", f"{name}@{commit}={copy}"]
        shutil.rmtree(self.base / "artifacts", ignore_errors=True)
        self.runs += 1  # each has a number, and artifacts, of its own, as on GitHub
        for name, value in {"GITHUB_RUN_ID": str(self.runs), **self.variables}.items():
            arguments += ["--env", f"{name}={value}"]
        return Log(
            run(
                [act, *arguments, *options],
                env=self.environment(),
                cwd=self.repository,
                seconds=tools.SECONDS,
            )
        )

    def change_carried(self, change: Callable[[str, bytes], bytes | None]) -> None:
        """Change the newest archive that the cache server carries: `change` gets each file's name and content.

        It returns the content that the file shall have, None for no file.
        """
        newest = max(
            (self.base / "carried/cache").rglob("*"),
            key=lambda path: (path.is_file(), path.stat().st_mtime_ns),
        )
        plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(newest.read_bytes())).read()
        made = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(plain)) as old, tarfile.open(fileobj=made, mode="w") as new:
            for member in old:
                file = old.extractfile(member) if member.isfile() else None
                content = change(member.name, file.read()) if file else b""
                if content is not None:
                    member.size = len(content)
                    new.addfile(member, io.BytesIO(content))
        newest.write_bytes(zstandard.ZstdCompressor().compress(made.getvalue()))

    def new_machine(self) -> None:
        """Make the runner one that was never there: what is not carried is gone."""
        for gone in (self.home, self.store):
            shutil.rmtree(gone, ignore_errors=True)
        for folder in (self.home / "tmp", self.home / "run"):
            folder.mkdir(parents=True)

    def _call(self, *command: str) -> None:
        found = tools.program(command[0])
        assert found is not None
        run([found, *command[1:]], env=self.environment(), cwd=self.repository).expect()


def _actions(workflow: Path) -> set[tuple[str, str]]:
    """Return the repositories of the actions that a workflow uses, each with its commit."""
    document = yaml.safe_load(workflow.read_text())
    found = set()
    for job in document["jobs"].values():
        for step in job["steps"]:
            if "uses" in step:
                name, _, commit = step["uses"].partition("@")
                found.add(("/".join(name.split("/")[:2]), commit))
    return found


def entries(store: Path) -> list[Path]:
    """Find the entries of a store, of whatever namespace."""
    return sorted(path for path in store.rglob("entries/*") if path.is_file())
