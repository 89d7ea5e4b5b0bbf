"""Where an engine's socket may lie, and how speaking to it can end; apart from the speaking, slow to import."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Answer",
    "EngineRefused",
    "EngineUnavailable",
    "Outcome",
    "candidates",
    "complaint",
    "most_telling",
    "podman_places",
]

#: no-engine: there is none on this machine. no-permission: there is one, but not for this user. no-answer: it is there
#: but does not answer in time, or answers what is not HTTP or JSON.
Outcome = Literal["no-engine", "no-permission", "no-answer"]


class EngineUnavailable(Exception):
    """No engine can be spoken to. ``outcome`` says which of the three cases, the text why, in one sentence."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome: Outcome = outcome
        self.reason = reason


class EngineRefused(Exception):
    """The engine answered with an error: ``status`` of HTTP, ``message`` is its own sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP status and the whole body."""

    status: int
    body: bytes


def candidates(environment: Mapping[str, str]) -> list[str]:
    """Return the paths at which Docker's socket may lie, the first that answers wins.

    $DOCKER_HOST alone if it is set, whichever engine that is; else the system's, then the user's own. Raises
    EngineUnavailable (no-engine) if $DOCKER_HOST is not a unix socket: a remote engine's disk is not this machine's.
    """
    if host := environment.get("DOCKER_HOST"):
        return [_local("DOCKER_HOST", host) or "/var/run/docker.sock"]
    paths = ["/var/run/docker.sock"]
    if runtime_directory := environment.get("XDG_RUNTIME_DIR"):
        paths.append(os.path.join(runtime_directory, "docker.sock"))
    return paths


def podman_places(environment: Mapping[str, str]) -> list[str]:
    """Return the paths at which Podman's socket may lie, after Docker's; none if $DOCKER_HOST says which engine it is.

    $CONTAINER_HOST alone if it is set; else the user's own, then the system's: podman-system-service(1). Raises
    EngineUnavailable (no-engine) if $CONTAINER_HOST is not a unix socket.
    """
    if environment.get("DOCKER_HOST"):
        return []
    system = "/run/podman/podman.sock"
    if host := environment.get("CONTAINER_HOST"):
        return [_local("CONTAINER_HOST", host) or system]
    if runtime_directory := environment.get("XDG_RUNTIME_DIR"):
        return [os.path.join(runtime_directory, "podman/podman.sock"), system]
    return [system]


def most_telling(problems: Sequence[EngineUnavailable]) -> EngineUnavailable:
    """Return the problem of the first engine that is there, else one that names every place without one."""
    for problem in problems:
        if problem.outcome != "no-engine":
            return problem
    if len(problems) == 1:
        return problems[0]
    reasons = (problem.reason.removeprefix("no engine: ") for problem in problems)
    return EngineUnavailable("no-engine", f"no engine: {'; '.join(reasons)}")


def _local(variable: str, host: str) -> str:
    """Return the path of a unix socket out of its address. Raises EngineUnavailable (no-engine) for another one."""
    scheme, _, path = host.partition("://")
    if scheme != "unix":
        # Not the whole of it: a URL may hold a password.
        raise EngineUnavailable(
            "no-engine", f"{variable} is {scheme}://, a remote engine: its disk is not this machine's"
        )
    return path


def complaint(status: int, body: bytes) -> str:
    """Return the engine's own sentence out of the body of an error."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    message = said.get("message") if isinstance(said, dict) else None
    if not isinstance(message, str) or not message.strip():
        return f"the engine answered with status {status}"
    return " ".join(message.split())[:500].removeprefix("Error response from daemon: ")
