"""Where a clean runs: which CI, whose runner, which directories. Looked at once, then passed on."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from cachekit.system.keyring import without_keys

__all__ = ["ENVIRONMENTS", "Environment", "choose_plan", "look_around"]

#: Names that a rule's ``environment`` condition may have.
ENVIRONMENTS = (
    "buildkite",
    "ci",
    "circleci",
    "container",
    "github",
    "github-hosted",
    "github-self-hosted",
    "gitlab",
    "jenkins",
    "local",
    "root",
    "self-hosted",
)

#: The variable that says where a job's checkout is, by CI system.
_WORKSPACES = (
    "GITHUB_WORKSPACE",
    "CI_PROJECT_DIR",
    "WORKSPACE",
    "BUILDKITE_BUILD_CHECKOUT_PATH",
    "CIRCLE_WORKING_DIRECTORY",
)
#: Where people unpack GitHub's runner; it writes ``.runner`` when it is registered.
_RUNNERS = (
    "/home/*/actions-runner*",
    "/home/*/runner*",
    "/opt/actions-runner*",
    "/opt/runner*",
    "/actions-runner*",
)
_RUNNER_MARK = ".runner"


@dataclass(slots=True)
class Environment:
    """What is known of the place. ``names``: those of ENVIRONMENTS that hold. ``variables``: what a pattern may use.

    ``image``: the runner image as ``ubuntu24``, empty if unknown. ``workspace`` may be the current directory.
    """

    names: frozenset[str]
    image: str
    workspace: bytes
    here: bytes
    home: bytes
    runner_roots: tuple[bytes, ...] = ()
    variables: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def look_around(environ: Mapping[str, str] | None = None) -> Environment:
    """Find out where this process runs. Reads the environment, the current directory and a few well-known places."""
    environ = without_keys() if environ is None else environ
    here = _here()
    home = os.path.expanduser("~")
    workspace = next(
        (
            environ[name]
            for name in _WORKSPACES
            if environ.get(name, "").startswith("/") and os.path.isdir(environ[name])
        ),
        None,
    )
    roots = _runner_roots(environ)
    names = _names(environ, roots)
    top = workspace or _checkout(here)
    variables: dict[str, tuple[str, ...]] = {name: (value,) for name, value in environ.items()}
    variables["HOME"] = (home,)
    # Without a checkout there is no workspace: the current directory of a cron job is no place to clean.
    variables["WORKSPACE"] = (top,) if top else ()
    variables["RUNNER_ROOT"] = tuple(roots)
    variables["RUNNER_WORK"] = tuple(
        path for root in roots if os.path.isdir(path := os.path.join(root, _work(root)))
    )
    variables.setdefault("TMPDIR", ("/tmp",))  # noqa: S108 - the place itself
    docker = environ.get("DOCKER_ROOT") or "/var/lib/docker"
    variables["DOCKER_ROOT"] = (docker,)
    return Environment(
        frozenset(names),
        environ.get("ImageOS", ""),
        os.fsencode(top or here),
        os.fsencode(here),
        os.fsencode(home),
        tuple(os.fsencode(root) for root in roots),
        variables,
    )


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return "/"


def _checkout(here: str) -> str | None:
    """Return the Git working tree that ``here`` lies in, None if in none."""
    place = here
    while place != "/":
        if os.path.lexists(os.path.join(place, ".git")):
            return place
        place = os.path.dirname(place)
    return None


def _work(root: str) -> str:
    """Return the name of a runner's work directory, ``_work`` unless it was registered with another."""
    try:
        with open(os.path.join(root, _RUNNER_MARK), encoding="utf-8-sig") as file:
            import json

            name = json.load(file).get("workFolder", "_work")
            return name if isinstance(name, str) and name else "_work"
    except (OSError, ValueError, AttributeError):
        return "_work"


def _runner_roots(environ: Mapping[str, str]) -> list[str]:
    if environ.get("RUNNER_ENVIRONMENT") == "github-hosted":
        return []
    given = [path for path in environ.get("CACHEKIT_RUNNER_ROOTS", "").split(":") if path]
    found = given or [path for pattern in _RUNNERS for path in sorted(glob.glob(pattern))]
    own = os.path.expanduser("~/actions-runner")
    roots: dict[str, None] = {}
    for path in [*found, *([] if given else [own])]:
        if os.path.isfile(os.path.join(path, _RUNNER_MARK)):
            roots.setdefault(os.path.realpath(path))
    return list(roots)


def _names(environ: Mapping[str, str], roots: list[str]) -> set[str]:
    names = set()
    if environ.get("GITHUB_ACTIONS") == "true":
        names |= {"ci", "github"}
        hosted = environ.get("RUNNER_ENVIRONMENT") == "github-hosted"
        names |= {"github-hosted"} if hosted else {"github-self-hosted", "self-hosted"}
    for name, variable in (
        ("gitlab", "GITLAB_CI"),
        ("jenkins", "JENKINS_URL"),
        ("buildkite", "BUILDKITE"),
        ("circleci", "CIRCLECI"),
    ):
        if environ.get(variable):
            names |= {"ci", name}
    if environ.get("CI", "").lower() in {"1", "true"}:
        names.add("ci")
    if roots:
        names.add("self-hosted")
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        names.add("container")
    if os.geteuid() == 0:
        names.add("root")
    if not names & {"ci", "self-hosted"}:
        names.add("local")
    return names


def choose_plan(environment: Environment) -> tuple[str, str]:
    """Return the name of the shipped plan that fits, and why."""
    if "github-hosted" in environment.names:
        image = f" ({environment.image})" if environment.image else ""
        return "github-hosted", f"RUNNER_ENVIRONMENT is github-hosted{image}"
    if "github-self-hosted" in environment.names:
        return "self-hosted", "a GitHub job on a runner that is not GitHub's own"
    if environment.runner_roots:
        place = os.fsdecode(environment.runner_roots[0])
        return "self-hosted", f"a GitHub runner is installed at {place}"
    return "generic", "neither a GitHub-hosted runner nor a runner's directory was found"
