"""What an OCI layout's index.json leads to: every blob that is named, from where, and what is wrong with the documents.

A walk goes by media types, not by places: BuildKit's local cache is an image manifest with a config of its own (newer
ones), or an image *index* whose ``manifests`` are layers and that config. Pure: documents are asked for.

Sources: OCI image specification 1.1 (layout, descriptor, index, manifest), Docker's schema 2, BuildKit's exporter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
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
    """A blob that something names: how long it is to be, what it is, and what names it.

    ``references``: entries of index.json (by position); ``documents``: digests. Only what names it itself: who needs
    it through others can be very many.
    """

    digest: str
    size: int
    media_type: str
    role: Role
    references: set[int] = field(default_factory=set)
    documents: set[str] = field(default_factory=set)
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
    _names: dict[tuple[frozenset[int], frozenset[str]], list[str]] = field(default_factory=dict)

    def needed_by(self, digest: str) -> list[str]:
        """Return the names of the references that need a blob. Not to be changed: others may share it."""
        blob = self.blobs.get(digest)
        if blob is None:
            return []
        key = (frozenset(blob.references), frozenset(blob.documents))
        if key not in self._names:  # the layers of one image have all the same
            self._names[key] = [self.references[number].name for number in sorted(self._leading_to([digest]))]
        return self._names[key]

    def last_needed_by(self) -> dict[str, int]:
        """Return for each blob the last of the references that need it."""
        parts: dict[str, list[str]] = {}
        for blob in self.blobs.values():
            for document in blob.documents:
                parts.setdefault(document, []).append(blob.digest)
        last: dict[str, int] = {}
        named = [(number, blob.digest) for blob in self.blobs.values() for number in blob.references]
        for number, digest in sorted(named, reverse=True):
            todo = [digest]
            while todo:
                one = todo.pop()
                if one not in last:
                    last[one] = number
                    todo += parts.get(one, [])
        return last

    def _leading_to(self, digests: Iterable[str]) -> set[int]:
        """Return the references that lead to any of the blobs."""
        found: set[int] = set()
        todo = set(digests)
        seen = set(todo)
        while todo:
            blob = self.blobs[todo.pop()]
            found |= blob.references
            todo |= blob.documents - seen
            seen |= blob.documents
        return found

    def mark_caches(self, sources: Iterable[int | str]) -> None:
        """Note which references are caches: those that are ``sources``, or lead to documents that are."""
        documents = {source for source in sources if isinstance(source, str)}
        numbers = {source for source in sources if isinstance(source, int)}
        for number in numbers | self._leading_to(documents):
            self.references[number] = replace(self.references[number], cache=True)


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
    found = _Walk(graph, read)
    for number, reference in enumerate(graph.references):
        found.follow(reference.descriptor, number, "index.json", 0)
    graph.mark_caches(found.caches)
    return graph


class _Walk:
    """What the references lead to. Each document is read once, however many lead to it."""

    def __init__(self, graph: Graph, read: Callable[[str, int], bytes | None]) -> None:
        self._graph, self._read = graph, read
        #: What names a config of BuildKit's as that.
        self.caches: set[int | str] = set()
        self._walked: set[tuple[str, int, str, Role]] = set()

    def follow(
        self,
        descriptor: object,
        source: int | str,
        where: str,
        depth: int,
        role: Role | None = None,
        *,
        optional: bool = False,
        leaves: bool = False,
    ) -> None:
        """Follow a descriptor that a reference (its position) or a document (its digest) holds.

        ``leaves``: it stands in an index that holds layers side by side.
        """
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
            role = "config"
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
        if isinstance(source, int):
            known.references.add(source)
        else:
            known.documents.add(source)
        if media_type == _CACHE_CONFIG:
            self.caches.add(source)
        if role in {"index", "manifest"}:
            if known.role not in {"index", "manifest"}:
                known.role = role  # it was named before as something that leads nowhere
            # What is wrong with it may depend on how it is named.
            if (named := (digest, size, media_type, role)) in self._walked:
                return  # also what leads back to itself, which no digest can
            self._walked.add(named)
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
                self.follow(row, digest, about, depth + 1, leaves=leaves)
            return
        self.follow(document.get("config"), digest, about, depth + 1, "config")
        for row in _rows(graph, digest, about, document.get("layers")):
            self.follow(row, digest, about, depth + 1, "layer")
        if isinstance(document.get("subject"), dict):
            self.follow(document["subject"], digest, about, depth + 1, optional=True)


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
