"""Docker rules, and running them: look, then remove."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cachekit.clean.docker.rules import DockerSurroundings, carry_out, survey
from cachekit.clean.model import Docker, DockerAction, Done, Found, Rule
from cachekit.system.clock import now_ns
from tests.engine.fake_engine import FakeEngine
from tests.support.docker import DockerHost


def rule(action: DockerAction, **fields: object) -> Rule:
    """Make a rule with a Docker target."""
    return Rule("rule", "docker", Docker(action, **{"timeout": 20.0, **fields}))  # type: ignore[arg-type]


def around(
    engine: DockerHost | FakeEngine, state: Path, *, hours: float = 0, **fields: object
) -> DockerSurroundings:
    """Make what a run in `hours` from now would be told, with its ledger in `state`."""
    client = engine.client if isinstance(engine, DockerHost) else engine.connect()
    made = {"state": str(state), "connect": lambda _: client, "pauses": (0.0, 0.0, 0.0), **fields}
    return DockerSurroundings(now_ns() + int(hours * 3600 * 10**9), **made)  # type: ignore[arg-type]


def clean(
    made: Rule, surroundings: DockerSurroundings, enough: Callable[[], bool] = lambda: False
) -> tuple[Found, Done]:
    """Look and remove, as a run of the cleaner does."""
    found = survey(made, surroundings)
    return found, carry_out(made, found, surroundings, enough)


def reasons(left: list[tuple[bytes, str]]) -> dict[str, str]:
    """Return what stays, with the reason."""
    return {name.decode(): reason for name, reason in left}
