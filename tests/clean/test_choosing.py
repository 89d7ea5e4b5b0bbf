"""Which rules are wanted, in which order, and which tools are kept: pure decisions."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.clean.decide import unwanted
from cachekit.clean.environment import Environment, choose_plan, look_around
from cachekit.clean.keeps import job_files, kept
from cachekit.clean.ledger import Ledger, cheapest_first
from cachekit.clean.model import Amount, Conditions, Paths, Rule
from cachekit.system.space import Room

ROOM = Room(1, 100, 90, 10, None, None)


def rule(name: str = "r", **more: object) -> Rule:
    """A rule whose paths do not matter."""
    return Rule(name, "toolchain", Paths(("/tmp/x",)), **more)  # type: ignore[arg-type]


def here(*names: str, image: str = "") -> Environment:
    """An environment with these names."""
    return Environment(frozenset(names), image, b"/w", b"/w", b"/h")


def decide(what: Rule, environment: Environment, *, keep: tuple[str, ...] = ()) -> str:
    """The reason why a rule is left out, empty if it is not."""
    no = unwanted(what, environment, keep=keep, job_texts={}, rooms=[ROOM])
    return "" if no is None else f"{no[0]}: {no[1]}"


@given(st.lists(st.tuples(st.integers(0, 10**12), st.floats(0, 1000)), max_size=12))
def test_cheapest_first(priors: list[tuple[int, float]]) -> None:
    """Rules come by bytes a second, most first, and equals in the author's order."""
    rules = [
        rule(str(number), expect_bytes=size, expect_seconds=seconds)
        for number, (size, seconds) in enumerate(priors)
    ]
    ordered = cheapest_first("p", rules, Ledger())
    rates = [Ledger().expect("p", item).rate for item in ordered]
    assert rates == sorted(rates, reverse=True)
    for first, second in itertools.pairwise(ordered):
        if Ledger().expect("p", first).rate == Ledger().expect("p", second).rate:
            assert int(first.id) < int(second.id)


def test_the_ledger_knows_better(clean_surroundings: Path) -> None:
    """What earlier runs measured counts, by their median, and not the prior; it is kept for the next run."""
    slow = rule("slow", expect_bytes=10**9, expect_seconds=1)
    quick = rule("quick", expect_bytes=10**6, expect_seconds=1)
    ledger = Ledger.load()
    for size in (0, 5 * 10**9, 7 * 10**9):
        ledger.note("p", quick, size, 1.0)
    ledger.note("p", slow, 10**6, 100.0)
    ledger.save()
    again = Ledger.load()
    assert again.expect("p", quick).size == 5 * 10**9
    assert again.expect("p", quick).measured
    assert [item.id for item in cheapest_first("p", [slow, quick], again)] == ["quick", "slow"]
    assert not again.expect("other", quick).measured


def test_the_ledger_forgets(clean_surroundings: Path) -> None:
    """Only the last five runs of a rule count."""
    ledger, some = Ledger(), rule()
    for size in range(10):
        ledger.note("p", some, size, 1.0)
    assert ledger.expect("p", some).size == 7


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"ledger": 2, "runs": {}}', b'{"ledger": 1, "runs": {"p/r": 3}}', b"\xff"]
)
def test_a_damaged_ledger(
    text: bytes, clean_surroundings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that cannot be understood is none, and no failure."""
    monkeypatch.setenv("CACHEKIT_STATE_DIR", str(tmp_path))
    (tmp_path / "clean-ledger.json").write_bytes(text)
    assert Ledger.load().runs == {}


def test_environment_condition() -> None:
    """A rule for GitHub's own runners does not apply elsewhere."""
    hosted = rule(when=Conditions(environment=("github-hosted",)))
    assert decide(hosted, here("local")).startswith("not-applicable: only for github-hosted")
    assert decide(hosted, here("github-hosted", "ci")) == ""


def test_image_condition() -> None:
    """A rule for one runner image does not apply on another, nor where the image is unknown."""
    only = rule(when=Conditions(image=("ubuntu24", "ubuntu26")))
    assert decide(only, here(image="ubuntu22"))
    assert decide(only, here())
    assert decide(only, here(image="ubuntu24")) == ""
    assert decide(only, here(image="ubuntu26-arm")) == ""


def test_free_below() -> None:
    """A drastic rule waits until less than its limit is free."""
    assert decide(rule(when=Conditions(free_below=Amount(5))), here())
    assert decide(rule(when=Conditions(free_below=Amount(percent=50))), here()) == ""


@pytest.mark.parametrize("name", ["r", "toolchain", "dotnet"])
def test_keep(name: str) -> None:
    """`--keep` names a rule, a category or a tool."""
    assert decide(rule(tools=("dotnet",)), here(), keep=(name,)) == f"skipped: --keep {name}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs both sides of being root")
def test_root_is_enough() -> None:
    """Root carries out what needs root."""
    assert decide(rule(root=True), here()) == ""


def test_parts() -> None:
    """The foreground leaves to the background what may run there, and the other way round."""
    for background, part in ((True, "foreground"), (False, "background")):
        no = unwanted(rule(background=background), here(), keep=(), job_texts={}, rooms=[ROOM], part=part)  # type: ignore[arg-type]
        assert no is not None
        assert no[0] == "skipped"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("      - run: sh build.sh", True),
        ("uses: actions/setup-sh@v4", True),
        ("run: sh", True),
        ("run: bash build", False),
        ("run: ./x.shell", False),
        ("run: push", False),
        ("run: build.sh", False),
    ],
)
def test_keeps_inferred(text: str, *, named: bool) -> None:
    """A tool that the job's files name as a word is kept, and only then."""
    reason = kept(rule(tools=("sh",)), (), {".github/workflows/ci.yml": text})
    assert (reason == "sh is named in .github/workflows/ci.yml") is named


def test_job_files(tmp_path: Path) -> None:
    """Only the running workflow's file is read where GitHub says which it is; else all of them."""
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    (folder / "a.yml").write_text("dotnet")
    (folder / "b.yml").write_text("go")
    (tmp_path / "Makefile").write_text("cargo")
    ref = {"GITHUB_WORKFLOW_REF": "me/repo/.github/workflows/b.yml@refs/heads/main"}
    assert set(job_files(os.fsencode(tmp_path), ref)) == {".github/workflows/b.yml", "Makefile"}
    assert set(job_files(os.fsencode(tmp_path), {})) == {
        ".github/workflows/a.yml",
        ".github/workflows/b.yml",
        "Makefile",
    }


def test_the_plan_for_a_hosted_runner(clean_surroundings: Path) -> None:
    """On GitHub's own runner its plan is chosen, and the reason names what was seen."""
    environment = look_around(
        {"GITHUB_ACTIONS": "true", "RUNNER_ENVIRONMENT": "github-hosted", "ImageOS": "ubuntu24"}
    )
    assert choose_plan(environment) == ("github-hosted", "RUNNER_ENVIRONMENT is github-hosted (ubuntu24)")
    assert {"ci", "github", "github-hosted"} <= environment.names


def test_the_plan_for_a_runner_of_ones_own(clean_surroundings: Path, tmp_path: Path) -> None:
    """In a job on a self-hosted runner, and in its cron, the self-hosted plan is chosen."""
    assert choose_plan(look_around({"GITHUB_ACTIONS": "true"}))[0] == "self-hosted"
    runner = tmp_path / "runner"
    runner.mkdir()
    (runner / ".runner").write_text('\ufeff{"workFolder": "work"}')
    (runner / "work").mkdir()
    environment = look_around({"CACHEKIT_RUNNER_ROOTS": str(runner)})
    name, why = choose_plan(environment)
    assert name == "self-hosted"
    assert str(runner) in why
    assert environment.variables["RUNNER_WORK"] == (str(runner / "work"),)


def test_the_plan_for_anything_else(clean_surroundings: Path) -> None:
    """Elsewhere the generic plan is chosen."""
    name, why = choose_plan(look_around({"CACHEKIT_RUNNER_ROOTS": "/no-such-place"}))
    assert name == "generic"
    assert "neither" in why


def test_no_workspace_without_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_surroundings: Path
) -> None:
    """The current directory of a cron job is no workspace to clean in; one with a checkout is."""
    monkeypatch.chdir(tmp_path)
    assert look_around({}).variables["WORKSPACE"] == ()
    (tmp_path / ".git").mkdir()
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    assert look_around({}).variables["WORKSPACE"] == (str(tmp_path),)
