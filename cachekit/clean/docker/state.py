"""What the Docker rules of one run share: the engine, connected once, and what was learned about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cachekit.clean.model import Docker
from cachekit.engine.client import Engine
from cachekit.engine.objects import Image
from cachekit.engine.outcome import EngineUnavailable
from cachekit.system.state import state_directory

__all__ = ["DockerSurroundings", "GoneError", "StaysError", "Task"]

#: An engine that does not say hello in this time will not remove anything either.
_GREETING_SECONDS = 10.0


class StaysError(Exception):
    """A unit stays after all; the text says why."""


class GoneError(Exception):
    """A unit is not there any more."""


@dataclass(slots=True)
class DockerSurroundings:
    """What the Docker rules of one run are told, and what they found out.

    ``keep_images``: patterns (``*``, ``?``, ``[]``) on ``repository:tag``, ``repository`` or an id, or the beginning of
    an id. ``protected_images``: names or ids that a saver is about to archive. ``state``: where the ledger of images
    lies. ``pauses``: seconds between tries while another prune runs.
    """

    now_ns: int
    keep_images: tuple[str, ...] = ()
    protected_images: frozenset[str] = frozenset()
    dry_run: bool = False
    state: str = field(default_factory=state_directory)
    pauses: tuple[float, ...] = (1.0, 2.0, 4.0)
    connect: Callable[[float], Engine] = Engine.connect
    #: Why the ledger could not be written, if so: the clean goes on without.
    ledger_problem: str = ""
    #: The images of the last survey, less what was removed since.
    images: dict[str, Image] = field(default_factory=dict)
    #: The id of the image that a name or digest in a container stands for, asked of the engine once.
    resolved: dict[str, str] = field(default_factory=dict)
    _engine: Engine | EngineUnavailable | None = None

    def engine(self, timeout: float) -> Engine:
        """Return the engine, connected at the first call; ``timeout`` for each request. Raises EngineUnavailable."""
        if self._engine is None:
            try:
                self._engine = self.connect(min(timeout, _GREETING_SECONDS))
            except EngineUnavailable as error:
                self._engine = error
        if isinstance(self._engine, EngineUnavailable):
            raise self._engine
        self._engine.timeout = timeout
        return self._engine

    def give_up(self, reason: EngineUnavailable) -> None:
        """Do not ask this engine again in this run: every further rule would wait just as long."""
        self._engine = reason


@dataclass(frozen=True, slots=True)
class Task:
    """One rule's work at the engine."""

    engine: Engine
    target: Docker
    around: DockerSurroundings
