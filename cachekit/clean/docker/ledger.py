"""When each image of an engine was last used, as far as we saw it: engines do not keep that themselves.

Seen at each look: images of containers of any state are used now, and the engine's events since the last look tell of
containers and pulls in between. An image that was never seen before counts as used now, whatever its build date is. Not
seen: a use between two looks that the engine has forgotten (it keeps 256 events), and a build's FROM.

On disk: ``docker-images.json`` in the state directory. A damaged one is started anew; then everything counts as new.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cachekit.engine.objects import Event
from cachekit.system.files import opened, replace_file
from cachekit.system.state import make_as_owner

__all__ = ["LEDGER_NAME", "ImageLedger", "Seen", "load", "observe", "store"]

LEDGER_NAME = "docker-images.json"

_FORMAT = 1
_LARGEST = 32 << 20

#: A host has one engine, or a few with rootless ones; test hosts make new ones all the time.
_ENGINES = 16

#: What happens to an image without anybody using it.
_NO_USE = frozenset({"delete", "untag", "prune"})


@dataclass(frozen=True, slots=True)
class Seen:
    """When an image was seen first and used last, in nanoseconds since 1970."""

    first_ns: int
    used_ns: int


@dataclass(frozen=True, slots=True)
class ImageLedger:
    """What is known of one engine's images by id; ``observed_ns`` is the last look, 0 before the first."""

    observed_ns: int = 0
    images: Mapping[str, Seen] = field(default_factory=dict)


def observe(
    ledger: ImageLedger,
    names: Mapping[str, Iterable[str]],
    in_use: Iterable[str],
    events: Iterable[Event],
    now_ns: int,
) -> ImageLedger:
    """Return the ledger after a look at the engine.

    ``names`` has every image's id with the names and digests it goes by. Those that vanished are forgotten. Times that
    lie in the future (the clock was set back) become now.
    """
    images = {}
    for identity in names:
        old = ledger.images.get(identity, Seen(now_ns, now_ns))
        images[identity] = Seen(min(old.first_ns, now_ns), min(old.used_ns, now_ns))
    called = {name: identity for identity, others in names.items() for name in (identity, *others)}
    uses = [(called.get(identity, ""), now_ns) for identity in in_use]
    for event in events:
        if event.kind == "image" and event.action in _NO_USE:
            continue
        subject = event.subject
        named = called.get(subject) or called.get(f"sha256:{subject}") or called.get(f"{subject}:latest")
        uses.append((named or "", min(event.time_ns, now_ns)))
    for identity, when_ns in uses:
        known = images.get(identity)
        if known is not None and when_ns > known.used_ns:
            images[identity] = Seen(known.first_ns, when_ns)
    return ImageLedger(now_ns, images)


def load(directory: str, engine: str) -> ImageLedger:
    """Return what is known of an engine's images; nothing if the ledger is missing, unreadable or damaged."""
    row = _read(directory).get(engine)
    if not isinstance(row, dict) or not isinstance(row.get("images"), dict):
        return ImageLedger()
    images = {}
    for identity, times in row["images"].items():
        if isinstance(times, list) and len(times) == 2 and all(_is_time(time) for time in times):
            images[identity] = Seen(*times)
    return ImageLedger(_observed(row), images)


def store(directory: str, engine: str, ledger: ImageLedger) -> str:
    """Write one engine's ledger beside those of the others; return why that failed, "" if it did not.

    A clean must go on where it cannot write: on a full disk it is what makes room.
    """
    rows = _read(directory)
    rows[engine] = {
        "observed": ledger.observed_ns,
        "images": {identity: [seen.first_ns, seen.used_ns] for identity, seen in ledger.images.items()},
    }
    latest = sorted(rows.items(), key=lambda item: _observed(item[1]), reverse=True)
    rows = {name: row for name, row in latest if name == engine} | dict(latest[:_ENGINES])
    try:
        make_as_owner(directory)
        with opened(os.fsencode(directory), follow=True) as fd:
            replace_file(LEDGER_NAME, json.dumps({"format": _FORMAT, "engines": rows}).encode(), fd)
    except OSError as error:
        return f"the ledger of images could not be written: {error.strerror}"
    return ""


def _read(directory: str) -> dict[str, object]:
    """Return the rows of all engines as they stand in the file."""
    try:
        fd = os.open(os.path.join(directory, LEDGER_NAME), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            data = file.read(_LARGEST + 1)
        whole = json.loads(data) if len(data) <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(whole, dict) or whole.get("format") != _FORMAT:
        return {}
    rows = whole.get("engines")
    return rows if isinstance(rows, dict) else {}


def _is_time(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _observed(row: object) -> int:
    when = row.get("observed") if isinstance(row, dict) else None
    return when if type(when) is int and 0 <= when < 1 << 63 else 0
