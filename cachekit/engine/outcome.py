"""How speaking to an engine can end; apart from the speaking, slow to import."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Answer",
    "EngineRefused",
    "EngineUnavailable",
    "Outcome",
    "complaint",
    "most_telling",
]

#: no-engine: there is none on this machine. no-permission: there is one, but not for this user. no-answer: it is there
#: but does not answer in time, or answers what is not HTTP or JSON.
Outcome = Literal["no-engine", "no-permission", "no-answer"]


class EngineUnavailable(Exception):
    """No engine can be spoken to.

    ``outcome`` says which of the three cases, the text why, in one sentence; ``hint`` what to do, if the case alone
    does not tell.
    """

    def __init__(self, outcome: Outcome, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.outcome: Outcome = outcome
        self.reason, self.hint = reason, hint


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


def most_telling(problems: Sequence[EngineUnavailable]) -> EngineUnavailable:
    """Return the problem of the first engine that is there, else one that names every place without one."""
    for problem in problems:
        if problem.outcome != "no-engine":
            return problem
    if len(problems) == 1:
        return problems[0]
    reasons = (problem.reason.removeprefix("no engine: ") for problem in problems)
    return EngineUnavailable("no-engine", f"no engine: {'; '.join(reasons)}")


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
