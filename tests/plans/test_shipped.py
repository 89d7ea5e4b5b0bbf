"""The plans that come with cachekit keep what their documentation promises."""

from __future__ import annotations

import importlib.resources
import re
import tomllib
from collections.abc import Iterator

import pytest

from cachekit.clean.environment import ENVIRONMENTS
from cachekit.clean.model import CATEGORIES, DOCKER_ACTIONS, STAGES, Command, Docker, Paths, Plan, Rule
from cachekit.clean.plan.file import load, problems, read_text, shipped
from cachekit.clean.protect import Protection, refuse_pattern
from tests.support.ordinary_user import PROJECT

PLANS = {name: load(name) for name in shipped()}
RULES = [(name, rule) for name, plan in PLANS.items() for rule in plan.rules.values()]

#: Paths that cleaners found elsewhere still name, and that no longer exist on the images.
STALE = ("/opt/ghc", "/usr/local/julia", "/usr/share/gradle", "aws-sam-cil", "/usr/share/az", "/mnt/swapfile")


def patterns(rule: Rule) -> tuple[str, ...]:
    """Return the patterns of a rule, none for a command or a Docker action."""
    return rule.target.patterns if isinstance(rule.target, Paths) else ()


def tables(name: str) -> Iterator[dict[str, object]]:
    """Yield the rules as they are written."""
    yield from tomllib.loads(read_text(name))["rule"]


@pytest.mark.parametrize("name", PLANS)
def test_nothing_to_complain_of(name: str) -> None:
    """A shipped plan has neither faults nor warnings, so each rule is in a stage."""
    assert problems(read_text(name), name) == []


@pytest.mark.parametrize("name", PLANS)
def test_stages(name: str) -> None:
    """A shipped plan has all four stages, each with a goal, and says what it is."""
    plan = PLANS[name]
    assert set(plan.stages) == set(STAGES)
    assert all(stage.goal is not None for stage in plan.stages.values())
    assert plan.name == plan.source == name
    assert plan.title
    assert len(plan.title) <= 80


def test_package_data() -> None:
    """The files are found as package data, and are exactly those that are listed."""
    folder = importlib.resources.files("cachekit.clean.plan") / "shipped"
    assert {file.name for file in folder.iterdir() if file.name.endswith(".toml")} == {
        f"{name}.toml" for name in shipped()
    }


@pytest.mark.parametrize("name", PLANS)
def test_every_rule_is_priced(name: str) -> None:
    """Every rule has a title and an explicit size and time, for these decide the order."""
    for table in tables(name):
        expect = table["expect"]
        assert isinstance(expect, dict)
        assert set(expect) == {"size", "seconds"}, table["id"]
        assert expect["seconds"] > 0
        assert isinstance(table["title"], str)
        assert len(table["title"]) <= 70


@pytest.mark.parametrize(("name", "rule"), RULES, ids=lambda value: getattr(value, "id", value))
def test_paths(name: str, rule: Rule) -> None:
    """A path is absolute or below a known variable, not stale, and not among what is never cleaned."""
    for pattern in patterns(rule):
        assert re.match(
            r"/|~/|\$(WORKSPACE|RUNNER_ROOT|RUNNER_WORK|RUNNER_TEMP|TMPDIR|DOCKER_ROOT)/", pattern
        )
        assert pattern not in STALE
        assert not any(stale in pattern for stale in ("aws-sam-cil", "/opt/ghc", "swapfile"))
        if pattern.startswith("/"):
            assert refuse_pattern(pattern) is None


@pytest.mark.parametrize(("name", "rule"), RULES, ids=lambda value: getattr(value, "id", value))
def test_toolchains(name: str, rule: Rule) -> None:
    """A toolchain goes on a GitHub-hosted runner only, and names the tools that go with it."""
    if rule.category == "toolchain":
        assert rule.when.environment == ("github-hosted",)
        assert name == "github-hosted"
        assert rule.tools
        assert not rule.background
    else:
        assert not rule.tools


@pytest.mark.parametrize(("name", "rule"), RULES, ids=lambda value: getattr(value, "id", value))
def test_careful(name: str, rule: Rule) -> None:
    """Commands on caches say which; temporary files go by age; what is in the checkout must be ignored by git."""
    if isinstance(rule.target, Command):
        assert rule.target.frees or rule.category == "toolchain"  # packages lie everywhere
        assert rule.target.timeout <= 600
    for pattern in patterns(rule):
        if pattern.startswith("$WORKSPACE"):
            assert rule.when.git_ignored
        if re.match(r"/tmp/|/var/tmp/|\$RUNNER_", pattern):
            assert rule.when.older
        if pattern == "$RUNNER_WORK/*":
            assert rule.when.idle_runner
            assert isinstance(rule.target, Paths)
            assert {"_actions", "_tool", "_temp", "_PipelineMapping"} <= set(rule.target.exclude)


@pytest.mark.parametrize("name", PLANS)
def test_post_leaves_package_caches(name: str) -> None:
    """Before a cache is saved, no rule empties what is most often saved: the caches of package managers."""
    for rule in PLANS[name].of_stage("post"):
        assert not any(".cache" in place or ".npm" in place for place in getattr(rule.target, "frees", ()))


def speed(rule: Rule) -> float:
    """Return the bytes that a rule is expected to free in a second."""
    return rule.expect_bytes / rule.expect_seconds


def test_removing_packages_comes_last() -> None:
    """Packages are removed through apt in the emergency stage only, as one of the slowest rules."""
    plan = PLANS["github-hosted"]
    assert [stage for stage in STAGES if "apt-packages" in plan.stages[stage].rules] == ["emergency"]
    slow = plan.rules["apt-packages"]
    faster = [rule for rule in plan.of_stage("emergency") if speed(rule) > speed(slow)]
    assert sum(rule.expect_bytes for rule in faster) > 40 << 30


def test_the_cheapest_make_the_goal() -> None:
    """On a hosted runner the goal of 20 GB is within half a minute, by the rules' own estimates."""
    left, seconds = 20 << 30, 0.0
    for rule in sorted(PLANS["github-hosted"].of_stage("pre"), key=speed, reverse=True):
        if left <= 0:
            break
        left -= rule.expect_bytes
        seconds += rule.expect_seconds
    assert left <= 0
    assert seconds <= 60


@pytest.mark.parametrize(
    ("image", "there"),
    [("ubuntu22", False), ("ubuntu24", True), ("ubuntu24-arm64", True), ("ubuntu26", True)],
)
def test_preinstalled_images(image: str, there: bool) -> None:
    """Docker images come with 24.04 and later only."""
    rule = PLANS["github-hosted"].rules["docker-preinstalled"]
    assert isinstance(rule.target, Docker)
    assert rule.target.action == "images"
    assert rule.target.older == 0
    assert image.startswith(rule.when.image) == there


def test_documented() -> None:
    """The example in docs/plans.md is a plan without faults, and the page names every word that a plan may use."""
    page = (PROJECT / "docs" / "plans.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert problems(example, "docs/plans.md") == []
    for word in (*STAGES, *CATEGORIES, *DOCKER_ACTIONS, *ENVIRONMENTS):
        assert re.search(rf"[`\".]{word}[`\"\]]", page), word


def test_protection_agrees() -> None:
    """Places that the toolchain rules name are let through by the protection that works on resolved paths."""
    examples = {"julia*": "julia1.11.2", "temurin-*": "temurin-21-jdk-amd64", "*": "1.2.3"}
    protection = Protection()
    for rule in PLANS["github-hosted"].rules.values():
        if rule.category == "toolchain":
            for pattern in patterns(rule):
                path = pattern
                for sign, example in examples.items():
                    path = path.replace(sign, example)
                assert protection.refuse(path.encode()) is None, path


def test_sizes_are_what_they_were_measured_as() -> None:
    """The large toolchains have the sizes that public logs show."""
    plan: Plan = PLANS["github-hosted"]
    for name, least, most in [("android", 9, 12), ("ghcup", 3.6, 6.5), ("dotnet", 1.6, 5), ("swift", 1.9, 4)]:
        assert least <= plan.rules[name].expect_bytes / (1 << 30) <= most
