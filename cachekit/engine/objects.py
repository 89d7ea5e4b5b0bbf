"""What an engine tells of its containers, images, volumes and build cache, as typed values.

Engines differ (20.10 to 29, podman's imitation), and a broken one may say anything: what is missing or of the wrong
type becomes empty or None here and never an exception. Times are nanoseconds since 1970.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

__all__ = [
    "CacheRecord",
    "Container",
    "Event",
    "Image",
    "ImageDetails",
    "Info",
    "Volume",
    "moment",
    "read_cache",
    "read_container",
    "read_event",
    "read_image",
    "read_image_details",
    "read_image_inspection",
    "read_info",
    "read_volume",
]

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?\d*(Z|[+-]\d\d:\d\d)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Info:
    """The engine itself. ``identity`` stays the same as long as its data directory does.

    ``roots``: the directories that its images may lie in; with a containerd of its own, that is inside the first.
    ``containerd``: images are kept by containerd, as they come from a registry; else unpacked, by the engine itself.
    ``podman``: it is Podman, which imitates Docker. ``remote``: it may be on another machine; then it has no ``roots``.
    """

    identity: str
    roots: tuple[str, ...]
    driver: str
    version: str = ""
    containerd: bool = False
    podman: bool = False
    remote: bool = False


@dataclass(frozen=True, slots=True)
class Container:
    """A container in any state. ``image`` is what it was made from, as an id, ``image_name`` as its maker wrote it.

    ``references``: digests of its image's manifest that the engine tells besides. The two last times are only known
    after an inspection, None where it never started or finished.
    """

    id: str
    name: str
    image: str
    image_name: str
    state: str
    created_ns: int | None
    labels: Mapping[str, str]
    volumes: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    started_ns: int | None = None
    finished_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """An image. ``size`` in bytes with shared layers, ``own`` without (None: unknown).

    ``parent`` only where the classic builder or a commit made it. ``manifests``: digests that a container may call it
    by in the containerd store. ``containers``: how many use it, None where the engine does not count.
    """

    id: str
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    size: int | None = None
    own: int | None = None
    parent: str = ""
    manifests: tuple[str, ...] = ()
    containers: int | None = None
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ImageDetails:
    """An image, inspected. ``diff_ids`` are the digests of its layers' tars, lowest first.

    ``size`` in bytes: of the unpacked layers in the classic image store, of the packed ones too or alone in
    containerd's. ``platform`` as in ``linux/arm64/v8``.
    """

    id: str
    names: tuple[str, ...]
    diff_ids: tuple[str, ...]
    size: int
    platform: str


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume."""

    name: str
    driver: str
    created_ns: int | None
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CacheRecord:
    """One record of BuildKit's cache."""

    id: str
    size: int
    in_use: bool
    shared: bool


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: ``kind`` is container or image, ``subject`` an id or a name of an image."""

    kind: str
    action: str
    subject: str
    time_ns: int


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _many(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _number(value: object, least: int = 0) -> int | None:
    return value if type(value) is int and least <= value < 1 << 63 else None


def _words(value: object) -> tuple[str, ...]:
    return tuple(word for word in _many(value) if isinstance(word, str) and word)


def _labels(value: object) -> Mapping[str, str]:
    return {name: text for name, text in _table(value).items() if isinstance(text, str)}


def moment(value: object) -> int | None:
    """Return a time as engines write it (RFC 3339, or whole seconds), None for none and for Go's zero time."""
    if type(value) is int:
        return value * 10**9 if 0 < value < 1 << 33 else None
    match = _TIME.fullmatch(_text(value))
    if match is None:
        return None
    seconds, fraction, zone = match.groups()
    try:
        passed = datetime.fromisoformat(seconds + ("+00:00" if zone in {None, "Z"} else zone)) - _EPOCH
    except ValueError:
        return None
    if passed <= timedelta(0):  # the year 1 stands for "never"
        return None
    return (passed.days * 86400 + passed.seconds) * 10**9 + int((fraction or "0").ljust(9, "0"))


def read_info(value: object, greeting: object = None) -> Info:
    """Read GET /info, and GET /version for what it tells besides."""
    facts = _table(value)
    root = _text(facts.get("DockerRootDir"))
    roots = [root] if root else []
    # The containerd image store keeps images with containerd, which is the system's unless dockerd started one.
    snapshotter = ["driver-type", "io.containerd.snapshotter.v1"] in _many(facts.get("DriverStatus"))
    address = _text(_table(facts.get("Containerd")).get("Address"))
    if snapshotter and address in {"", "/run/containerd/containerd.sock"}:
        roots.append("/var/lib/containerd")
    said = _table(greeting)
    podman = any("Podman" in _text(_table(part).get("Name")) for part in _many(said.get("Components")))
    # Podman makes up an id for each answer; and all engines of a host with Docker 20.10 or older have the same.
    parts = (root,) if podman else (_text(facts.get("ID")), root)
    identity = " ".join(filter(None, parts)) or "unknown"
    version = _text(said.get("Version"))
    return Info(identity, tuple(roots), _text(facts.get("Driver")), version, snapshotter, podman)


def read_container(value: object, inspection: object = None) -> Container | None:
    """Read one row of GET /containers/json, with times and state from GET /containers/ID/json if given."""
    row = _table(value)
    state = _table(_table(inspection).get("State"))
    name = next(iter(_words(row.get("Names"))), "").lstrip("/")
    mounts = [_table(mount) for mount in _many(row.get("Mounts")) + _many(_table(inspection).get("Mounts"))]
    manifest = _table(row.get("ImageManifestDescriptor"))
    identity = _text(row.get("Id"))
    if not identity:
        return None
    return Container(
        id=identity,
        name=name or identity[:12],
        image=_text(row.get("ImageID")),
        image_name=_text(row.get("Image")),
        state=_text(state.get("Status")) or _text(row.get("State")),
        created_ns=moment(row.get("Created")),
        labels=_labels(row.get("Labels")),
        volumes=tuple(_text(mount.get("Name")) for mount in mounts if mount.get("Name")),
        references=tuple(filter(None, (_text(manifest.get("digest")),))),
        started_ns=moment(state.get("StartedAt")),
        finished_ns=moment(state.get("FinishedAt")),
    )


def read_image(value: object) -> Image | None:
    """Read one row of GET /images/json."""
    row = _table(value)
    size, shared = _number(row.get("Size")), _number(row.get("SharedSize"))
    counts, manifests = [_number(row.get("Containers"))], []
    for manifest in map(_table, _many(row.get("Manifests"))):
        used_by = _many(_table(manifest.get("ImageData")).get("Containers"))
        counts.append(len(used_by))
        manifests += [_text(manifest.get("ID")), _text(_table(manifest.get("Descriptor")).get("digest"))]
    known = [count for count in counts if count is not None]
    identity = _text(row.get("Id"))
    if not identity:
        return None
    return Image(
        id=identity,
        tags=tuple(tag for tag in _words(row.get("RepoTags")) if tag != "<none>:<none>"),
        digests=tuple(name for name in _words(row.get("RepoDigests")) if not name.startswith("<none>@")),
        size=size,
        own=max(0, size - shared) if size is not None and shared is not None else None,
        parent=_with_algorithm(_text(row.get("ParentId"))),
        manifests=tuple(dict.fromkeys(filter(None, manifests))),
        containers=max(known) if known else None,
        labels=_labels(row.get("Labels")),
    )


def _with_algorithm(identity: str) -> str:
    """Return an id as Docker writes it: Podman leaves the algorithm out of some."""
    return identity if ":" in identity or not identity else f"sha256:{identity}"


def read_image_inspection(value: object, row: Image) -> Image | None:
    """Read GET /images/ID/json: ``row`` with the names that the image has now."""
    fresh = read_image(value)
    return fresh and replace(row, tags=fresh.tags, digests=fresh.digests)


def read_image_details(value: object) -> ImageDetails | None:
    """Read GET /images/NAME/json."""
    row = _table(value)
    identity = _text(row.get("Id"))
    if not identity:
        return None
    parts = (_text(row.get("Os")), _text(row.get("Architecture")), _text(row.get("Variant")))
    return ImageDetails(
        id=_with_algorithm(identity),
        names=tuple(tag for tag in _words(row.get("RepoTags")) if tag != "<none>:<none>"),
        diff_ids=_words(_table(row.get("RootFS")).get("Layers")),
        size=_number(row.get("Size")) or 0,
        platform="/".join(filter(None, parts)),
    )


def read_volume(value: object) -> Volume | None:
    """Read one row of GET /volumes."""
    row = _table(value)
    name = _text(row.get("Name"))
    if not name:
        return None
    return Volume(name, _text(row.get("Driver")), moment(row.get("CreatedAt")), _labels(row.get("Labels")))


def read_cache(value: object) -> CacheRecord | None:
    """Read one row of the build cache in GET /system/df."""
    row = _table(value)
    size = _number(row.get("Size"))
    if size is None:
        return None
    return CacheRecord(_text(row.get("ID")), size, row.get("InUse") is True, row.get("Shared") is True)


def read_event(value: object) -> Event | None:
    """Read one line of GET /events; None for what tells of no image's use."""
    row = _table(value)
    actor = _table(row.get("Actor"))
    attributes = _table(actor.get("Attributes"))
    kind = _text(row.get("Type"))
    if kind == "container":
        subject = _text(attributes.get("image")) or _text(row.get("from"))
    elif kind == "image":
        subject = _text(actor.get("ID")) or _text(row.get("id"))
    else:
        return None
    time_ns = _number(row.get("timeNano"), 1) or moment(row.get("time"))
    if not subject or time_ns is None:
        return None
    return Event(kind, _text(row.get("Action")) or _text(row.get("status")), subject, time_ns)
