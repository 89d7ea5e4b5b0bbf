"""Rules that mean, at run time, what no plan may remove: refused and told, and the others are carried out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.capabilities import requires
from tests.support.cleaning import Scene, make_files, outcome
from tests.support.snapshots import unchanged

pytestmark = requires("tmpfs")


def beside(scene: Scene, rule: dict[str, object], env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a rule that is to be refused beside one that is fine; return its report."""
    fine = make_files(scene.root / "fine" / "a")
    scene.rules = {"refused": rule, "fine": {"paths": [f"{scene.root}/fine/*"]}}
    report = scene.report("--free", "1T", code=7, env=env)
    assert outcome(report, "fine")["result"] == "freed"
    assert not fine.exists()
    return outcome(report, "refused")


@pytest.mark.parametrize(
    ("value", "words"),
    [("", "no directory"), ("/", "no directory"), ("//", "no directory"), ("relative", "no directory")],
)
def test_a_variable_that_is_no_directory(scene: Scene, value: str, words: str) -> None:
    """A rule whose variable is empty, the root or relative is not carried out: $X/* must not become /*."""
    rule = beside(scene, {"paths": ["$PLACE/*"]}, {"PLACE": value})
    assert rule["result"] in {"blocked", "not-applicable"}
    assert words in rule["reason"]


def test_a_variable_that_is_not_set(scene: Scene) -> None:
    """A rule whose variable is not set does not apply here."""
    rule = beside(scene, {"paths": ["$NOT_SET_ANYWHERE/*"]})
    assert (rule["result"], rule["reason"]) == ("not-applicable", "$NOT_SET_ANYWHERE is not set")


@pytest.mark.parametrize("place", ["/etc", "/usr", "/home", "/var/lib", "/", "/root"])
def test_a_variable_that_leads_to_the_system(scene: Scene, place: str) -> None:
    """A rule whose variable leads to the system, or to home directories, is refused."""
    rule = beside(scene, {"paths": ["$PLACE/cachekit-no-such-*", "$PLACE/*"]}, {"PLACE": place})
    assert rule["result"] == "blocked"


def test_the_home_directory(scene: Scene) -> None:
    """The home directory and what contains it are refused, whatever names them."""
    home = scene.root / "people" / "me"
    make_files(home / "documents")
    with unchanged(home):
        rule = beside(scene, {"paths": [f"{scene.root}/people/*"]}, {"HOME": str(home)})
        assert rule["result"] == "blocked"
        assert "home directory" in rule["reason"]
        rule = beside(scene, {"paths": [f"{scene.root}/peopl*"]}, {"HOME": str(home)})
        assert "home directory" in rule["reason"]


@pytest.mark.parametrize("name", [".ssh", ".gnupg", ".aws", ".docker", ".kube", ".config"])
def test_credentials_below_home(scene: Scene, name: str) -> None:
    """Keys and credentials below a home directory are refused, themselves and what is in them."""
    home = scene.root / "people" / "me"
    make_files(home / name)
    make_files(home / "cache")
    with unchanged(home / name):
        paths = ["~/*/file-*", f"$PEOPLE/me/{name}", "~/cache"]
        rule = beside(scene, {"paths": paths}, {"HOME": str(home), "PEOPLE": str(home.parent)})
    assert f"~/{name} is never cleaned" in str(rule["left"])
    assert not (home / "cache").exists()


def test_the_root_of_the_filesystem(scene: Scene) -> None:
    """A mount point is refused, also by a pattern above it."""
    kept = make_files(scene.root / "kept")
    with unchanged(kept):
        rule = beside(scene, {"paths": [f"{scene.root.parent}/moun*"]})
    assert rule["left"] == [{"path": str(scene.root), "reason": "it is a mount point"}]


def test_outside_of_its_roots(scene: Scene) -> None:
    """What a link leads to outside of the directories that a rule is limited to is refused."""
    outside = make_files(scene.root / "outside")
    (scene.root / "units").mkdir()
    (scene.root / "units" / "link").symlink_to(outside)
    with unchanged(outside):
        rule = beside(scene, {"paths": [f"{scene.root}/units/*/*"]})
    assert rule["result"] == "blocked"
    assert "it lies outside of" in rule["reason"]


def test_outside_of_within(scene: Scene) -> None:
    """With `within`, what lies elsewhere stays although a pattern matches it."""
    inside, outside = make_files(scene.root / "a" / "in" / "x"), make_files(scene.root / "a" / "out" / "x")
    with unchanged(outside):
        rule = beside(scene, {"paths": [f"{scene.root}/a/*/x"], "within": [f"{scene.root}/a/in"]})
    assert [item["path"] for item in rule["left"]] == [str(outside)]
    assert not inside.exists()


def test_the_workspace_and_the_current_directory(scene: Scene) -> None:
    """The workspace and the current directory, and what contains them, are refused; what is in them may go."""
    workspace = scene.root / "job" / "workspace"
    build = make_files(workspace / "build")
    kept = make_files(workspace / "src")
    rule = beside(
        scene,
        {"paths": [f"{scene.root}/job", f"{workspace}", "$WORKSPACE/build"]},
        {"GITHUB_WORKSPACE": str(workspace)},
    )
    assert "it is or contains the workspace" in str(rule["left"])
    assert len(os.listdir(kept)) == 4
    assert not build.exists()


def test_the_store_and_the_state(scene: Scene) -> None:
    """The store of cachekit and its state are refused, themselves, what contains them, and what is in them."""
    store, state = scene.root / "caches" / "store", scene.root / "caches" / "state"
    make_files(store / "v1")
    make_files(state / "notes")
    env = {"CACHEKIT_STORE": str(store), "CACHEKIT_STATE_DIR": str(state)}
    rule = beside(
        scene, {"paths": [f"{scene.root}/cach*", f"{store}/*", f"{state}/*", f"{scene.root}/caches/*"]}, env
    )
    assert "the store" in str(rule["left"])
    assert "cachekit's own state" in str(rule["left"])
    assert len(os.listdir(store / "v1")) == 4
    assert len(os.listdir(state / "notes")) == 4


def test_a_directory_of_git(scene: Scene) -> None:
    """A .git is refused, and so is what is in it."""
    kept = make_files(scene.root / "repository" / ".git" / "objects")
    with unchanged(kept):
        rule = beside(scene, {"paths": [f"{scene.root}/repository/.*", f"{scene.root}/repository/*/*"]})
    assert "a .git is never cleaned" in str(rule["left"])


def test_excluded_names(scene: Scene) -> None:
    """What a rule excludes stays, by name and by path."""
    for name in ("a", "b", "c"):
        make_files(scene.root / "units" / name)
    beside(scene, {"paths": [f"{scene.root}/units/*"], "exclude": ["a", f"{scene.root}/units/b"]})
    assert sorted(os.listdir(scene.root / "units")) == ["a", "b"]


def test_a_rule_that_fails_does_not_keep_the_others(scene: Scene, tmp_path: Path) -> None:
    """A program that fails, and one that hangs, are told of, and the other rules are carried out."""
    assert beside(scene, {"command": ["false"]})["result"] == "failed"
    rule = beside(scene, {"command": ["sleep", "600"], "timeout": "1s"})
    assert rule["result"] == "failed"
    assert "stopped after 1 s" in rule["reason"]
    rule = beside(scene, {"command": ["cachekit-has-no-such-program"]})
    assert rule["result"] == "not-applicable"
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    rule = beside(scene, {"command": [str(broken)]})
    assert rule["result"] == "failed"
    assert "cannot be started" in rule["reason"]
