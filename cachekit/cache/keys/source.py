"""The branch and the commit that a job builds: from the CI's variables, else from git."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from cachekit.errors import InvalidRequest

__all__ = ["Fact", "branch", "commit"]

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_HINT = "set CACHEKIT_{name} in the job, or write {{{lower}?}} if it may be empty"
_GIT_SECONDS = 30

#: CI -> (the variable that tells it, those with the branch, those with the commit), the best first. A merge request's
#: own branch goes before the one that it goes to. Tekton gives steps no variables: there CACHEKIT_* are set.
_SYSTEMS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("GITHUB_ACTIONS", ("GITHUB_HEAD_REF", "GITHUB_REF_NAME"), ("GITHUB_SHA",)),
    ("GITLAB_CI", ("CI_MERGE_REQUEST_SOURCE_BRANCH_NAME", "CI_COMMIT_BRANCH"), ("CI_COMMIT_SHA",)),
    ("JENKINS_URL", ("CHANGE_BRANCH", "BRANCH_NAME", "GIT_BRANCH"), ("GIT_COMMIT",)),
    ("BUILDKITE", ("BUILDKITE_BRANCH",), ("BUILDKITE_COMMIT",)),
    ("CIRCLECI", ("CIRCLE_BRANCH",), ("CIRCLE_SHA1",)),
)
#: A build of a tag has no branch, though some systems put the tag's name where the branch's would be.
_TAGS = {
    "GITHUB_REF_NAME": ("GITHUB_REF_TYPE", "tag"),
    "BUILDKITE_BRANCH": ("BUILDKITE_TAG", None),
    "BRANCH_NAME": ("TAG_NAME", None),
}


@dataclass(frozen=True, slots=True)
class Fact:
    """A value and where it came from: a variable's name, or ``git``."""

    value: str
    origin: str


def branch(environ: Mapping[str, str], directory: str) -> Fact:
    """Return the branch. Raises InvalidRequest where there is none: a detached head, a tag, no repository."""
    found = _from_variables(environ, "CACHEKIT_BRANCH", 1)
    if found is not None:
        # Jenkins' git plugin writes origin/main.
        value = found.value.removeprefix("origin/") if found.origin == "GIT_BRANCH" else found.value
        return Fact(value, found.origin)
    code, output = _git(directory, "symbolic-ref", "--quiet", "--short", "HEAD")
    if code == 0 and output:
        return Fact(output, "git")
    reason = "the checkout is of a commit, not of a branch" if code == 1 else output or "git fails"
    raise InvalidRequest(
        f"there is no branch for {{branch}}: {reason}", hint=_HINT.format(name="BRANCH", lower="branch")
    )


def commit(environ: Mapping[str, str], directory: str) -> Fact:
    """Return the commit, as 40 or 64 hex digits. Raises InvalidRequest where there is none."""
    found = _from_variables(environ, "CACHEKIT_COMMIT", 2)
    # Buildkite says "HEAD" before the checkout.
    if found is not None and (found.origin != "BUILDKITE_COMMIT" or _COMMIT.fullmatch(found.value)):
        if _COMMIT.fullmatch(found.value):
            return found
        raise InvalidRequest(
            f"the variable {found.origin} is no commit",
            expected="40 or 64 hex digits",
            found=found.value[:100],
        )
    code, output = _git(directory, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if code == 0 and _COMMIT.fullmatch(output):
        return Fact(output, "git")
    reason = "the repository has none yet" if code == 1 else output or "git fails"
    raise InvalidRequest(
        f"there is no commit for {{commit}}: {reason}", hint=_HINT.format(name="COMMIT", lower="commit")
    )


def _from_variables(environ: Mapping[str, str], own: str, column: int) -> Fact | None:
    names = [own]
    for system in _SYSTEMS:
        if environ.get(system[0]):
            names += system[column]
    for name in names:
        variable, tag = _TAGS.get(name, ("", ""))
        if variable and (environ.get(variable) == tag if tag else environ.get(variable)):
            continue
        if environ.get(name):
            return Fact(environ[name], name)
    return None


def _git(directory: str, *arguments: str) -> tuple[int, str]:
    """Run git; return its code and what it said, in one line. -1 where it cannot be run."""
    try:
        done = subprocess.run(
            ["git", "-C", directory, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_GIT_SECONDS,
            env={**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"},
        )
    except FileNotFoundError:
        return -1, "git is not installed"
    except subprocess.TimeoutExpired:
        return -1, "git does not answer"
    except OSError as error:
        return -1, f"git cannot be run: {error.strerror}"
    said = done.stdout if done.returncode == 0 else done.stderr
    return done.returncode, os.fsdecode(said).strip().partition("\n")[0].removeprefix("fatal: ")[:300]
