"""Images as people name them, and as the engine resolved them before anything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachekit.engine.client import Engine
from cachekit.engine.objects import ImageDetails
from cachekit.errors import InvalidRequest, NothingMatched
from cachekit.system.clock import image_platform

__all__ = ["Wanted", "image_platform", "resolve"]

#: What an engine leaves out of a name that it shows.
_HUB = ("docker.io/library/", "docker.io/", "index.docker.io/library/", "index.docker.io/")
#: What Podman puts before a short name when it looks for it among its images, in this order.
_COMPLETED = ("localhost/", "docker.io/library/", "docker.io/")


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image to be saved: ``name`` as the engine shows it (``repository:tag``), empty if only its id was given."""

    asked: str
    name: str
    details: ImageDetails

    @property
    def reference(self) -> str:
        """What the engine is asked for: the name, for an id alone would lose it."""
        return self.name or self.details.id


def resolve(engine: Engine, asked: Sequence[str]) -> list[Wanted]:
    """Ask the engine what each image is, in order, each only once. Raises NothingMatched for one that it has not."""
    if not asked:
        raise InvalidRequest("no image was named", hint="cachekit image save --key KEY IMAGE...")
    found: dict[str, Wanted] = {}
    for text in asked:
        details = engine.describe_image(text)
        if details is None:
            raise NothingMatched(
                f"the engine has no image {text!r}",
                hint="docker (or podman) image ls shows what it has; "
                "did the step that builds or pulls it run before this one?",
            )
        wanted = Wanted(text, shown_name(text, details.names), details)
        found.setdefault(wanted.reference, wanted)
    return list(found.values())


def shown_name(asked: str, names: Sequence[str]) -> str:
    """Return which of an image's names is meant; empty if none is, for an id or a digest was given."""
    name = asked.partition("@")[0]
    if ":" not in name.rpartition("/")[2]:
        name += ":latest"
    short = next((name.removeprefix(hub) for hub in _HUB if name.startswith(hub)), name)
    # Podman shows names in full; those of other registries come last, as it would take them last.
    for full in (name, short, *(prefix + name for prefix in _COMPLETED)):
        if full in names:
            return full
    return next((shown for shown in names if shown.endswith("/" + short)), "")


def name_to_give(name: str, *, podman: bool) -> str:
    """Return the name under which a load would have tagged an image: Podman's own for one without a registry."""
    registry, slash, _ = name.partition("/")
    full = slash and (registry == "localhost" or not {".", ":"}.isdisjoint(registry))
    return name if full or not podman else f"localhost/{name}"
