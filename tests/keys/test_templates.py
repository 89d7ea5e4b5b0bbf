"""`cachekit key`: what a template may say, and what its placeholders stand for."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.cache.keys.template import Template, parse_template, placeholders_in
from cachekit.cache.keys.values import Surroundings, expand
from cachekit.errors import InvalidRequest
from cachekit.model import Platform
from tests.support.in_process import Here

MAY_4 = 1_777_852_800_000_000_000  # 2026-05-04, a Monday
SHA = "0123456789abcdef0123456789abcdef01234567"


def key(text: str, directory: Path | str = "/", **variables: str) -> str:
    """Expand a template in an environment of `variables` alone."""
    around = Surroundings(str(directory), variables, platform=Platform("linux", "aarch64", "musl"), now=MAY_4)
    return expand(parse_template(text), around).text


def git(*arguments: str) -> str:
    """Run git in the current directory."""
    names = ["-c", "user.name=n", "-c", "user.email=e"]
    done = subprocess.run(["git", *names, *arguments], capture_output=True, check=True, text=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("{os}-{arch}-{libc}", "linux-aarch64-musl"),
        ("{{os}}", "{os}"),
        ("{{{os}}}", "{linux}"),
        ("{date:%Y-%m}", "2026-05"),
        ("{date:%G-W%V}", "2026-W19"),
        ("{date:%%Y}x", "%Yx"),
        ("{env.A}{env.B?}", "a"),
    ],
)
def test_values(text: str, expected: str) -> None:
    """Placeholders are replaced, double braces are braces, the rest stays as it is."""
    assert key(text, A="a", B="") == expected


WRONG = "{ } {} {OS} {os os} {os?} {env.} {env.A-B} {hash:} {hash} {hash:{os}} {date:%B} {date:%-d} {date:} {date:%}"


@pytest.mark.parametrize("text", [*WRONG.split(), "{ os }", pytest.param("x" * 9000, id="long")])
def test_wrong_templates(text: str) -> None:
    """What is no placeholder is refused with those that there are, never taken literally."""
    with pytest.raises(InvalidRequest) as caught:
        parse_template(text)
    assert caught.value.expected


@given(st.text(max_size=40))
def test_literal_text_survives(text: str) -> None:
    """Any text can be written in a template by doubling its braces."""
    template = parse_template(text.replace("{", "{{").replace("}", "}}"))
    assert template.parts == ((text,) if text else ())


@given(st.text(st.sampled_from("{}os:env.hash?%Y,*"), max_size=20))
def test_any_text(text: str) -> None:
    """Any text is a template or one clear error, and what it holds of placeholders is found in both ways."""
    try:
        parsed: Template | None = parse_template(text)
    except InvalidRequest:
        parsed = None
    if parsed is not None and not re.search(r"\{\{|\}\}", text):
        written = [part.written for part in parsed.parts if not isinstance(part, str)]
        assert placeholders_in(text) == written


@pytest.mark.parametrize(
    ("variables", "branch", "commit"),
    [
        ({"GITHUB_ACTIONS": "true", "GITHUB_REF_NAME": "main", "GITHUB_SHA": SHA}, "main", SHA),
        (
            {
                "GITHUB_ACTIONS": "true",
                "GITHUB_REF_NAME": "7/merge",
                "GITHUB_HEAD_REF": "fix",
                "GITHUB_SHA": SHA,
            },
            "fix",
            SHA,
        ),
        (
            {"GITHUB_ACTIONS": "true", "GITHUB_REF_NAME": "v1", "GITHUB_REF_TYPE": "tag", "GITHUB_SHA": SHA},
            None,
            SHA,
        ),
        ({"GITLAB_CI": "true", "CI_COMMIT_BRANCH": "main", "CI_COMMIT_SHA": SHA}, "main", SHA),
        ({"GITLAB_CI": "true", "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME": "mr", "CI_COMMIT_SHA": SHA}, "mr", SHA),
        ({"GITLAB_CI": "true", "CI_COMMIT_TAG": "v1", "CI_COMMIT_SHA": SHA}, None, SHA),
        ({"JENKINS_URL": "x", "GIT_BRANCH": "origin/main", "GIT_COMMIT": SHA}, "main", SHA),
        (
            {"JENKINS_URL": "x", "BRANCH_NAME": "PR-3", "CHANGE_BRANCH": "fix/a", "GIT_COMMIT": SHA},
            "fix/a",
            SHA,
        ),
        ({"JENKINS_URL": "x", "BRANCH_NAME": "v1", "TAG_NAME": "v1", "GIT_COMMIT": SHA}, None, SHA),
        ({"BUILDKITE": "true", "BUILDKITE_BRANCH": "main", "BUILDKITE_COMMIT": SHA}, "main", SHA),
        ({"BUILDKITE": "true", "BUILDKITE_BRANCH": "main", "BUILDKITE_COMMIT": "HEAD"}, "main", None),
        ({"CIRCLECI": "true", "CIRCLE_BRANCH": "main", "CIRCLE_SHA1": SHA}, "main", SHA),
        ({"CACHEKIT_BRANCH": "tekton", "CACHEKIT_COMMIT": SHA}, "tekton", SHA),
        ({"GITHUB_REF_NAME": "left over", "GITHUB_SHA": SHA}, None, None),
        ({"CIRCLECI": "true", "CIRCLE_BRANCH": "main", "CIRCLE_SHA1": "'; rm -rf /"}, "main", None),
    ],
)
def test_ci_variables(
    tmp_path: Path, variables: dict[str, str], branch: str | None, commit: str | None
) -> None:
    """Each CI's variables tell branch and commit; a tag has no branch; another CI's do not count."""
    for name, expected in (("{branch}", branch), ("{commit}", commit)):
        if expected is not None:
            assert key(name, tmp_path, **variables) == expected
            continue
        with pytest.raises(InvalidRequest) as caught:
            key(name, tmp_path, **variables)
        assert caught.value.exit_code == 2


def test_git(here: Here) -> None:
    """Without a CI git tells branch and commit; a detached head has no branch, a new repository no commit."""
    assert "not a git repository" in here("key", "{branch}").expect(2).stderr
    git("init", "-q", "-b", "feature/x")
    assert here("key", "{branch}").expect().stdout == "feature/x\n"
    assert "none yet" in here("key", "{commit}").expect(2).stderr
    git("commit", "-q", "--allow-empty", "-m", "m")
    assert here("key", "{branch}-{commit}").expect().stdout == f"feature/x-{git('rev-parse', 'HEAD')}\n"
    git("checkout", "-q", "--detach")
    assert "of a commit, not of a branch" in here("key", "{branch}").expect(2).stderr
    assert here("key", "a{branch?}b").expect().stdout == "ab\n"


def test_no_git(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git and Python the placeholders that need them are errors that say so."""
    monkeypatch.setenv("PATH", str(here.root))
    assert "git is not installed" in here("key", "{branch}").expect(2).stderr
    assert "no python3 in PATH" in here("key", "{python}").expect(2).stderr


@pytest.mark.parametrize(
    "branch", ["a\nb", "a\x1b[31m", "b" * 5000, "::set-output name=x::y", "##[error]x", "\udcff"]
)
def test_hostile_branches(here: Here, monkeypatch: pytest.MonkeyPatch, branch: str) -> None:
    """A branch name that makes no key is one error that names where it came from, and is printed harmlessly."""
    monkeypatch.setenv("CACHEKIT_BRANCH", branch)
    result = here("key", "{branch}").expect(2)
    assert result.stdout == ""
    assert "{branch}" in result.stderr
    assert "\x1b" not in result.stderr
    assert "\n::" not in result.stderr
    assert len(result.stderr) < 1000


def test_python(here: Here) -> None:
    """{python} is what the python3 in PATH says of itself."""
    version = subprocess.run(["python3", "--version"], capture_output=True, text=True, check=True).stdout
    assert here("key", "{python}").expect().stdout.strip() == version.split()[1]


def test_explain(here: Here) -> None:
    """--explain shows each value, its origin and the files of a hash on stderr, and leaves stdout to the key."""
    Path("lock").write_bytes(b"1")
    plain = here("key", "n-{hash:lock}-{os}").expect().stdout
    result = here("key", "n-{hash:lock}-{os}", "--explain").expect()
    assert result.stdout == plain
    sha = "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert f"sha256 {sha}  lock" in result.stderr
    report = json.loads(here("key", "n-{hash:lock}-{os}", "--json").expect().stdout)
    assert report["key"] == plain.strip()
    assert report["values"][0]["files"] == [{"path": "lock", "sha256": sha}]


def test_no_match(here: Here) -> None:
    """A hash of nothing is exit 2, with ? it is empty; --root says where names begin."""
    assert "no file matches {hash:*.lock}" in here("key", "n-{hash:*.lock}").expect(2).stderr
    assert here("key", "n-{hash?:*.lock}").expect().stdout == "n-\n"
    Path("sub").mkdir()
    Path("sub/a.lock").touch()
    assert here("key", "n-{hash:*.lock}", "--root", "sub").expect().stdout != "n-\n"


@pytest.mark.parametrize(("variables", "state"), [({}, "not set"), ({"A": ""}, "empty")])
def test_unset_variables(variables: dict[str, str], state: str) -> None:
    """A variable that is not set or empty is an error that says which and how."""
    with pytest.raises(InvalidRequest, match=f"the variable A of {{env.A}} is {state}"):
        key("x-{env.A}", "/", **variables)


def test_one_state(tmp_path: Path) -> None:
    """Templates that are expanded together see one state of the files."""
    (tmp_path / "f").write_bytes(b"1")
    around = Surroundings(str(tmp_path))
    before = expand(parse_template("{hash:f}"), around).text
    (tmp_path / "f").write_bytes(b"2")
    assert expand(parse_template("x{hash:f}"), around).text == "x" + before
    assert expand(parse_template("{hash:f}"), Surroundings(str(tmp_path))).text != before
