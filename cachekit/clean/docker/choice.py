"""Which of an engine's objects may go, in which order, and why the others stay. Pure: lists and times in, units out.

In doubt an object stays: one whose name cannot be read, a container in a state nobody knows, an image that a container
of any state may mean.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from cachekit.clean.docker.ledger import ImageLedger
from cachekit.clean.model import Found, Unit
from cachekit.engine.client import can_be_named
from cachekit.engine.objects import Container, Image, Volume

__all__ = [
    "choose_containers",
    "choose_images",
    "choose_volumes",
    "container_names",
    "image_name",
    "references",
    "why_image_stays",
]

KEEP_LABEL = "cachekit.keep"

#: A container in one of these does nothing and can only be started again or removed.
_STOPPED = frozenset({"exited", "dead", "created"})

_HEX = re.compile(r"[0-9a-f]{4,64}", re.ASCII)
_ANONYMOUS = re.compile(r"[0-9a-f]{64}", re.ASCII)


def image_name(image: Image) -> str:
    """Return what people call an image."""
    return ", ".join(image.tags or image.digests) or image.id.removeprefix("sha256:")[:12]


def container_names(containers: Iterable[Container]) -> str:
    """Return up to three containers' names in one text."""
    names = sorted({container.name for container in containers})
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def references(images: Sequence[Image], containers: Iterable[Container]) -> dict[str, list[Container]]:
    """Return the containers that each image's id is referenced by.

    A container names its image by id, by a manifest's digest (containerd store), or only by the name it was made with;
    each that fits counts.
    """
    called: dict[str, list[str]] = {}
    for image in images:
        for name in {image.id, *image.manifests, *image.tags, *image.digests}:
            called.setdefault(name, []).append(image.id)
        for name in image.digests:
            called.setdefault(name.partition("@")[2], []).append(image.id)
    found: dict[str, list[Container]] = {}
    for container in containers:
        name = container.image_name
        calls = {container.image, *container.references, name, f"{name}:latest", f"sha256:{name}"}
        for prefix in ("docker.io/library/", "docker.io/"):
            calls |= {call.removeprefix(prefix) for call in calls}
        hits = {identity for call in calls - {""} for identity in called.get(call, ())}
        if not hits and _HEX.fullmatch(name) and len(name) >= 12:
            hits = {image.id for image in images if image.id.removeprefix("sha256:").startswith(name)}
        for identity in hits:
            found.setdefault(identity, []).append(container)
    return found


def choose_containers(containers: Iterable[Container], *, older: float, now_ns: int) -> Found:
    """Choose the containers that stopped (or were made and never started) longer than ``older`` seconds ago."""
    found = Found("ready")
    for container in containers:
        name = _bytes(container.name)
        reason = _kept_by_label(container.labels)
        since = container.finished_ns or container.created_ns
        if container.state not in _STOPPED:
            reason = container.state or "in an unknown state"
        elif not reason and since is None:
            reason = "nobody knows when it stopped"
        elif not reason and since is not None and now_ns - since < older * 1e9:
            happened = "stopped" if container.finished_ns else "made"
            reason = f"{happened} {_ago(now_ns - since)}"
        elif not reason and not can_be_named(container.id):
            reason = "its id is none that an engine gives"
        if reason:
            found.left.append((name, reason))
        else:
            found.units.append(Unit(name, None, since, container.id))
    return _in_order(found)


def choose_volumes(
    volumes: Iterable[Volume],
    unused: Collection[str],
    containers: Iterable[Container],
    *,
    older: float,
    now_ns: int,
) -> Found:
    """Choose the anonymous volumes on this disk that no container of any state uses, made over ``older`` seconds ago.

    ``unused`` are the names that the engine itself says no container uses; both must agree.
    """
    users: dict[str, list[Container]] = {}
    for container in containers:
        for name in container.volumes:
            users.setdefault(name, []).append(container)
    found = Found("ready")
    for volume in volumes:
        if volume.name in users:
            reason = f"used by container {container_names(users[volume.name])}"
        elif volume.name not in unused:
            reason = "used by a container"
        elif not (_ANONYMOUS.fullmatch(volume.name) or "com.docker.volume.anonymous" in volume.labels):
            reason = "has a name"
        elif volume.driver != "local":
            reason = f"its driver is {volume.driver or 'unknown'}"
        elif not can_be_named(volume.name):
            reason = "its name is none that an engine gives"
        elif older > 0 and volume.created_ns is None:
            reason = "nobody knows how old it is"
        elif older > 0 and volume.created_ns is not None and now_ns - volume.created_ns < older * 1e9:
            reason = f"made {_ago(now_ns - volume.created_ns)}"
        else:
            reason = _kept_by_label(volume.labels)
        if reason:
            found.left.append((_bytes(volume.name), reason))
        else:
            found.units.append(Unit(_bytes(volume.name), None, volume.created_ns, volume.name))
    return _in_order(found)


def choose_images(
    images: Sequence[Image],
    containers: Iterable[Container],
    ledger: ImageLedger,
    *,
    older: float,
    now_ns: int,
    nameless: bool = False,
    keep: Sequence[str] = (),
    protected: Collection[str] = (),
    steps: Collection[str] = (),
) -> Found:
    """Choose the images that nothing needs and nobody used for ``older`` seconds, least recently used first.

    ``nameless``: only those without any name. ``images`` holds the intermediate ones of the classic builder too,
    ``steps`` their ids: they are no units, they go with the last image made of them. An image that another was made of
    counts as used when that one was, and goes only after it. ``keep``: patterns, ``protected``: exact names or ids.
    """
    used_by = references(images, containers)
    idle = _last_uses(images, ledger, now_ns)
    children: dict[str, list[Image]] = {}
    for image in images:
        children.setdefault(image.parent, []).append(image)
    depths = _depths(images)
    found = Found("ready")
    going: set[str] = set()
    # Of equally old ones the deepest first: children before what they were made of.
    for image in sorted(images, key=lambda image: (idle[image.id], -depths[image.id], image.id)):
        reason = why_image_stays(image, used_by.get(image.id, []), keep, protected)
        since = ledger.images.get(image.id)
        if not reason and nameless and (image.tags or image.digests):
            reason = "has a name" if image.tags else "has a name with a digest"
        if not reason and since is None:
            reason = "first seen now" if older > 0 else ""
        if not reason and since is not None and now_ns - max(since.first_ns, since.used_ns) < older * 1e9:
            used = since.used_ns > since.first_ns
            reason = f"{'used' if used else 'first seen'} {_ago(now_ns - max(since.first_ns, since.used_ns))}"
        staying = [child for child in children.get(image.id, []) if child.id not in going]
        if not reason and staying:
            reason = f"{image_name(staying[0])} was made of it"
        if image.id in steps:
            if not reason:
                going.add(image.id)
        elif reason:
            found.left.append((_bytes(image_name(image)), reason))
        else:
            going.add(image.id)
            # The whole size would be a promise that shared layers break.
            found.units.append(Unit(_bytes(image_name(image)), image.own, idle[image.id], image.id))
    return found


def why_image_stays(
    image: Image, users: Sequence[Container], keep: Sequence[str], protected: Collection[str]
) -> str:
    """Return why an image stays whatever its age is, "" if it may go."""
    if users:
        return f"referenced by container {container_names(users)}"
    if image.containers:
        return f"referenced by {image.containers} containers"
    for called in _calls(image):
        if called in protected:
            return "about to be saved"
    if any(_means_id(name, image.id) for name in protected):
        return "about to be saved"
    for pattern in keep:
        if _means_id(pattern, image.id) or any(fnmatchcase(called, pattern) for called in _calls(image)):
            return f"kept by {pattern}"
    if not can_be_named(image.id) or not all(map(can_be_named, image.tags)):
        return "its name is none that an engine gives"
    return _kept_by_label(image.labels or {})


def _calls(image: Image) -> list[str]:
    """Return all that an image may be called by: with and without tag or digest, registry and id's prefix."""
    calls = [
        image.id,
        image.id.removeprefix("sha256:"),
        image.id.removeprefix("sha256:")[:12],
        *image.manifests,
    ]
    for name in (*image.tags, *image.digests):
        repository = name.partition("@")[0]
        head, _, tag = repository.rpartition(":")
        if head and "/" not in tag:
            repository = head
        for call in (name, repository):
            short = call.removeprefix("docker.io/").removeprefix("library/")
            calls += [call, short, f"docker.io/{short}", f"docker.io/library/{short}", f"library/{short}"]
    return list(dict.fromkeys(calls))


def _means_id(text: str, identity: str) -> bool:
    """Tell whether ``text`` is the beginning of an image's id; 4 digits are enough to keep it."""
    start = text.removeprefix("sha256:")
    return _HEX.fullmatch(start) is not None and identity.removeprefix("sha256:").startswith(start)


def _last_uses(images: Sequence[Image], ledger: ImageLedger, now_ns: int) -> dict[str, int]:
    """Return when each image, or one that was made of it, was last used."""
    parents = {image.id: image.parent for image in images}
    last: dict[str, int] = {}
    for image in images:
        seen = ledger.images.get(image.id)
        last[image.id] = max(seen.first_ns, seen.used_ns) if seen is not None else now_ns
    for image in images:
        when, above, steps = last[image.id], parents[image.id], 0
        while above in last and steps < len(parents):  # a broken engine's parents may go round in circles
            last[above] = max(last[above], when)
            above, steps = parents[above], steps + 1
    return last


def _depths(images: Sequence[Image]) -> dict[str, int]:
    """Return how many images each was made of, one on top of the other."""
    parents = {image.id: image.parent for image in images}
    depths = {}
    for image in images:
        depth, above = 0, image.parent
        while above in parents and depth < len(parents):
            depth, above = depth + 1, parents[above]
        depths[image.id] = depth
    return depths


def _in_order(found: Found) -> Found:
    found.units.sort(key=lambda unit: (unit.newest_ns or 0, unit.name))
    return found


def _kept_by_label(labels: Mapping[str, str]) -> str:
    value = labels.get(KEEP_LABEL)
    return "" if value is None or value.strip().lower() in {"false", "0"} else f"has the label {KEEP_LABEL}"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _ago(nanoseconds: int) -> str:
    seconds = max(0, nanoseconds) // 10**9
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
