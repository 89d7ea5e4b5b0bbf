"""What the ecosystem's own tools say of the snippets; each is shown to find something: its silence means something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import tools
from tests.support.capabilities import requires
from tests.support.ordinary_user import PROJECT

SNIPPETS = PROJECT / "ci-snippets"
WORKFLOWS = [*sorted((SNIPPETS / "github/workflows").glob("*.yml")), SNIPPETS / "init/github.yml"]
ACTIONS = sorted((SNIPPETS / "github").rglob("action.yml"))
SCRIPTS = sorted(
    path for path in SNIPPETS.rglob("*") if path.is_file() and path.read_bytes().startswith(b"#!")
)
DOCKERFILES = sorted(SNIPPETS.rglob("Dockerfile*"))


def shown(path: Path) -> str:
    """Name a file in a test's name."""
    return str(path.relative_to(SNIPPETS))


def steps(path: Path) -> list[dict[str, Any]]:
    """Return all steps of a workflow or a composite action."""
    document = yaml.safe_load(path.read_text())
    if "runs" in document:
        return list(document["runs"].get("steps", []))
    return [step for job in document["jobs"].values() for step in job.get("steps", [])]


@requires("actionlint")
def test_actionlint(tmp_path: Path) -> None:
    """Actionlint finds nothing in the workflows, and does find a step's output that does not exist."""
    assert WORKFLOWS
    assert tools.actionlint(*WORKFLOWS) == []
    bad = tmp_path / "bad.yml"
    bad.write_text(
        "on: push\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps: [{run: 'echo ${{ steps.gone.outputs.hit }}'}]\n"
    )
    assert any("gone" in finding for finding in tools.actionlint(bad))


@requires("zizmor")
def test_zizmor(tmp_path: Path) -> None:
    """zizmor, pedantic, finds nothing in workflows and actions, and does find an unpinned action and an injection."""
    assert tools.zizmor(*WORKFLOWS, *ACTIONS) == []
    bad = tmp_path / "bad.yml"
    bad.write_text(
        "on: pull_request_target\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n      - uses: some/action@v1\n"
        "      - run: echo ${{ github.head_ref }}\n"
    )
    found = " ".join(tools.zizmor(bad))
    assert "unpinned-uses" in found
    assert "template-injection" in found


@requires("check_jsonschema")
@pytest.mark.parametrize(
    ("schema", "files", "bad"),
    [
        ("github-workflows", WORKFLOWS, "on: push\njobs: {a: {runs-on: x, stepps: []}}\n"),
        ("github-actions", ACTIONS, "name: a\ndescription: b\nruns: {using: composite, stepps: []}\n"),
    ],
    ids=["workflows", "actions"],
)
def test_schemas(schema: str, files: list[Path], bad: str, tmp_path: Path) -> None:
    """GitHub's schemas take the workflows and actions, and refuse a key that does not exist."""
    assert files
    assert tools.json_schema(schema, *files) == ""
    (tmp_path / "bad.yml").write_text(bad)
    assert tools.json_schema(schema, tmp_path / "bad.yml") != ""


@requires("shellcheck")
@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS, *SCRIPTS], ids=shown)
def test_shellcheck(path: Path) -> None:
    """Shellcheck finds nothing in the scripts, nor in the shell steps of workflows and actions."""
    scripts = (
        [path.read_text()] if path in SCRIPTS else [step["run"] for step in steps(path) if "run" in step]
    )
    for script in scripts:
        assert tools.shellcheck(script) == ""


@requires("shellcheck")
def test_shellcheck_finds_something() -> None:
    """Shellcheck does find an unquoted variable."""
    assert "SC2086" in tools.shellcheck("rm -r $DIRECTORY/x\n")


@requires("hadolint")
def test_hadolint(tmp_path: Path) -> None:
    """Hadolint finds nothing in the Dockerfiles, and does find an image without a version."""
    for path in DOCKERFILES:
        assert tools.hadolint(path) == ""
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp\n")
    assert "DL3006" in tools.hadolint(tmp_path / "Dockerfile")


@pytest.mark.parametrize("path", [*WORKFLOWS, *ACTIONS], ids=shown)
def test_rules_of_the_house(path: Path) -> None:
    """Workflows grant nothing by default and stop in time; no expression is in a script, all actions are pinned."""
    document = yaml.safe_load(path.read_text())
    for step in steps(path):
        assert "${{" not in step.get("run", ""), (
            "an expression in a script is an injection; hand it over in env"
        )
        if "uses" in step:
            name, _, commit = step["uses"].partition("@")
            assert name.startswith("./") or len(commit) == 40, f"not pinned to a commit: {step['uses']}"
    if "jobs" in document:
        assert document["permissions"] in ({}, {"contents": "read"})
        assert all("timeout-minutes" in job for job in document["jobs"].values())
