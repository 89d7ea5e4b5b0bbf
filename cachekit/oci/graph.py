"""What an OCI layout's index.json leads to: every blob that is named, from where, and what is wrong with the documents.

A walk goes by media types, not by places: BuildKit's local cache is an image manifest with a config of its own (newer
ones), or an image *index* whose ``manifests`` are layers and that config. Pure: documents are asked for.

Sources: OCI image specification 1.1 (layout, descriptor, index, manifest), Docker's schema 2, BuildKit's exporter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["DOCUMENT_BYTES", "Blob", "Graph", "Reference", "Role", "walk"]

#: index: leads to manifests; manifest: leads to config and layers; config and layer: lead nowhere.
Role = Literal["index", "manifest", "config", "layer"]

#: The longest document that is read: a manifest of 1,000 layers has 300 KB.
DOCUMENT_BYTES = 16 << 20
_DEEPEST = 8
#: So many blobs are enough for anybody; a hostile layout must not fill the memory.
_MOST_BLOBS = 1_000_000

_DIGEST = re.compile(r"(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")
_INDEXES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
_MANIFESTS = {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}
_CACHE_CONFIG = "application/vnd.buildkit.cacheconfig.v0"
#: How the media types begin that lead nowhere, wherever they stand.
_LEAVES = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
    "application/vnd.oci.image.config.",
    "application/vnd.docker.container.image.",
    _CACHE_CONFIG,
)
_REF = "org.opencontainers.image.ref.name"
_NAME = "io.containerd.image.name"


@dataclass(slots=True)
class Blob:
    """A blob that something names: how long it is to be, what it is, and which references need it (by position)."""

    digest: str
    size: int
    media_type: str
    role: Role
    references: set[int] = field(default_factory=set)
    #: It may be fetched from elsewhere (a descriptor's ``urls``), so it need not be here.
    elsewhere: bool = False
    #: It is only what a manifest is about (its ``subject``), so it need not be here either.
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Reference:
    """An entry of index.json, in its order: BuildKit puts what was exported last at the end."""

    name: str
    digest: str
    media_type: str
    #: The descriptor as it stands.
    descriptor: dict[str, Any]
    cache: bool = False


@dataclass(slots=True)
class Graph:
    """All of it. ``faults``: (digest or "", what is wrong); of a blob that is missing it says nothing.

    ``opaque``: media types in an index that are not known, so that what is named by them may lead on.
    """

    references: list[Reference] = field(default_factory=list)
    blobs: dict[str, Blob] = field(default_factory=dict)
    faults: list[tuple[str, str]] = field(default_factory=list)
    opaque: dict[str, None] = field(default_factory=dict)

    def needed_by(self, digest: str) -> list[str]:
        """Return the names of the references that need a blob."""
        blob = self.blobs.get(digest)
        return [self.references[number].name for number in sorted(blob.references)] if blob else []


def walk(index: bytes, read: Callable[[str, int], bytes | None]) -> Graph:
    """Walk from the bytes of index.json. ``read`` gives a document by digest and size, None if it is not to be had.

    Never raises for what the documents hold.
    """
    graph = Graph()
    document = _parse(index)
    rows = document.get("manifests") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        graph.faults.append(("", "index.json is no index: it may be cut"))
        return graph
    for row in rows:
        descriptor = row if isinstance(row, dict) else {}
        digest = descriptor.get("digest")
        media_type = descriptor.get("mediaType")
        graph.references.append(
            Reference(
                _name(descriptor, digest),
                digest if isinstance(digest, str) else "",
                media_type if isinstance(media_type, str) else "",
                descriptor,
            )
        )
    for number, reference in enumerate(graph.references):
        found = _Walk(graph, number, read)
        found.follow(reference.descriptor, "index.json", 0)
        if found.cache:
            graph.references[number] = Reference(
                reference.name, reference.digest, reference.media_type, reference.descriptor, cache=True
            )
    return graph


class _Walk:
    """What one reference leads to."""

    def __init__(self, graph: Graph, number: int, read: Callable[[str, int], bytes | None]) -> None:
        self._graph, self._number, self._read = graph, number, read
        self.cache = False
        self._walked: set[tuple[str, Role]] = set()

    def follow(
        self,
        descriptor: object,
        where: str,
        depth: int,
        role: Role | None = None,
        *,
        optional: bool = False,
        leaves: bool = False,
    ) -> None:
        """Follow a descriptor. ``leaves``: it stands in an index that holds layers side by side."""
        graph = self._graph
        facts = descriptor if isinstance(descriptor, dict) else {}
        digest, size, media_type = facts.get("digest"), facts.get("size"), facts.get("mediaType")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            graph.faults.append(("", f"{where} names a blob without a digest that is known"))
            return
        if type(size) is not int or not 0 <= size < 1 << 62:
            graph.faults.append((digest, f"{where} names a blob without a size"))
            return
        media_type = media_type if isinstance(media_type, str) else ""
        if role is None:
            role = _role(media_type)
            if role == "layer" and not (leaves or media_type.startswith(_LEAVES)):
                graph.opaque[media_type] = None
        if media_type == _CACHE_CONFIG:
            self.cache, role = True, "config"
        known = graph.blobs.get(digest)
        if known is None:
            if len(graph.blobs) >= _MOST_BLOBS:
                graph.faults.append((digest, "the layout names more blobs than can be"))
                return
            known = graph.blobs[digest] = Blob(digest, size, media_type, role, optional=optional)
        elif known.size != size:
            graph.faults.append(
                (digest, f"{where} gives a blob another size ({size}) than others do ({known.size})")
            )
        known.elsewhere = known.elsewhere or bool(facts.get("urls"))
        known.optional = known.optional and optional
        known.references.add(self._number)
        if role in {"index", "manifest"}:
            if known.role not in {"index", "manifest"}:
                known.role = role  # it was named before as something that leads nowhere
            if (digest, role) in self._walked:
                return  # also what leads back to itself, which no digest can
            self._walked.add((digest, role))
            self._document(digest, size, media_type, role, depth)

    def _document(self, digest: str, size: int, media_type: str, role: Role, depth: int) -> None:
        graph = self._graph
        about = f"the {role} {digest[:19]}"
        if depth > _DEEPEST:
            graph.faults.append((digest, f"{about} has too many levels above it"))
            return
        if size > DOCUMENT_BYTES:
            graph.faults.append((digest, f"{about} is too long for a document"))
            return
        data = self._read(digest, size)
        if data is None:
            return
        document = _parse(data)
        if not isinstance(document, dict):
            graph.faults.append((digest, f"{about} is not JSON: it may be cut"))
            return
        said = document.get("mediaType")
        if isinstance(said, str) and media_type and said != media_type:
            graph.faults.append((digest, f"{about} says that it is {said}, and is named as {media_type}"))
        if role == "index":
            rows = _rows(graph, digest, about, document.get("manifests"))
            leaves = any(isinstance(row, dict) and row.get("mediaType") == _CACHE_CONFIG for row in rows)
            for row in rows:
                self.follow(row, about, depth + 1, leaves=leaves)
            return
        self.follow(document.get("config"), about, depth + 1, "config")
        for row in _rows(graph, digest, about, document.get("layers")):
            self.follow(row, about, depth + 1, "layer")
        if isinstance(document.get("subject"), dict):
            self.follow(document["subject"], about, depth + 1, optional=True)


def _rows(graph: Graph, digest: str, about: str, value: object) -> list[Any]:
    if isinstance(value, list):
        return value
    graph.faults.append((digest, f"{about} has no list of what it holds"))
    return []


def _role(media_type: str) -> Role:
    """Return what an entry of an index is: a manifest, unless its media type says that it leads nowhere."""
    if media_type in _INDEXES:
        return "index"
    return "manifest" if media_type in _MANIFESTS or not media_type else "layer"


def _name(descriptor: dict[str, Any], digest: object) -> str:
    annotations = descriptor.get("annotations")
    for key in (_NAME, _REF):
        name = annotations.get(key) if isinstance(annotations, dict) else None
        if isinstance(name, str) and name:
            return name
    return digest[:19] if isinstance(digest, str) else "?"


def _parse(data: bytes) -> object:
    try:
        value = json.loads(data)
        json.dumps(value, ensure_ascii=False).encode(
            "utf-8"
        )  # half of a surrogate pair, which nobody could print
    except (ValueError, RecursionError):
        return None
    found: object = value
    return found
