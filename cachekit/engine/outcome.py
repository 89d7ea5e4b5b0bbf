"""Where an engine's socket may lie, and how speaking to it can end; apart from the speaking, slow to import."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Literal

__all__ = ["Answer", "EngineRefused", "EngineUnavailable", "Outcome", "candidates", "complaint"]

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


def candidates(host: str | None, runtime_directory: str | None) -> list[str]:
    """Return the paths at which the engine's socket may lie, the first that answers wins.

    ``host`` is $DOCKER_HOST, which alone counts if it is set. Raises EngineUnavailable (no-engine) if that is not a
    unix socket: a remote engine's disk is not this machine's.
    """
    if host:
        scheme, _, path = host.partition("://")
        if scheme != "unix":
            # Not the whole of it: a URL may hold a password.
            raise EngineUnavailable(
                "no-engine", f"DOCKER_HOST is {scheme}://, a remote engine: its disk is not this machine's"
            )
        return [path or "/var/run/docker.sock"]
    paths = ["/var/run/docker.sock"]
    if runtime_directory:
        paths.append(os.path.join(runtime_directory, "docker.sock"))
    return paths


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
