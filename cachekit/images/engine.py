"""The engine that images come from and go to, its troubles as errors of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cachekit.engine.client import Engine
from cachekit.engine.outcome import EngineRefused, EngineUnavailable
from cachekit.errors import EngineFailed, NoEngine

__all__ = ["connected", "engine_errors"]


def connected() -> Engine:
    """Return the engine that is named, else this machine's. Raises NoEngine saying why none can be spoken to."""
    try:
        return Engine.connect(60.0, podman=True, remote=True)
    except EngineUnavailable as error:
        hint = error.hint or {
            "no-permission": "add the user to the socket's group (docker), run as root, "
            "or start a Podman of one's own (systemctl --user start podman.socket)",
            "no-answer": "the engine may be starting or overloaded; its log says more",
        }.get(error.outcome)
        raise NoEngine(error.reason, hint=hint) from None


@contextlib.contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Turn what an engine says, or that it says nothing any more, into EngineFailed."""
    try:
        yield
    except EngineRefused as error:
        raise EngineFailed(f"the engine failed to {doing}: {error.message}") from None
    except EngineUnavailable as error:
        raise EngineFailed(f"the engine failed to {doing}: {error.reason}") from None
