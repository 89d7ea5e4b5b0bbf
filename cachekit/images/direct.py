"""The archive that an engine would send, put together from its data root: same members, same documents, same digests.

The layout is the one that Docker writes from version 25 on (OCI layout and manifest.json), which every engine loads.
"""

from __future__ import annotations

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cachekit.archive.format import DIRECTORY, FILE
from cachekit.archive.stream import Incoming, StreamMember
from cachekit.engine.dataroot import ClassicStore, ContentStore, NotFromHere, store_of
from cachekit.engine.objects import Info
from cachekit.images.names import Wanted

__all__ = ["NotFromHere", "members_from_data_root"]

_OCI = "application/vnd.oci.image."
_INDEX_TYPE, _MANIFEST_TYPE = _OCI + "index.v1+json", _OCI + "manifest.v1+json"
_CONFIG_TYPE, _LAYER_TYPE = _OCI + "config.v1+json", _OCI + "layer.v1.tar"
_INDEXES = {_INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json"}
_MANIFESTS = {_MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json"}
_KIND = "vnd.docker.reference.type"
_BLOBS = b"blobs/sha256/"
_HUB = "docker.io/"


def members_from_data_root(
    info: Info, wanted: Sequence[Wanted], sizes: Mapping[str, int]
) -> Iterator[StreamMember]:
    """Yield the members of an archive of the wanted images. Raises NotFromHere, also while contents are read.

    ``sizes``: lengths of contents that are known by their digest (layers of earlier entries), to save looking.
    """
    store = store_of(info)
    collected = _Contained(store) if isinstance(store, ContentStore) else _Classic(store, sizes)
    for one in wanted:
        collected.add(one)
    return collected.members()


class _Archive(ABC):
    """Blobs by digest, what index.json and manifest.json say."""

    def __init__(self) -> None:
        self._blobs: dict[str, tuple[int, Callable[[], Incoming]]] = {}
        self._index: list[dict[str, Any]] = []
        self._manifest: dict[str, dict[str, Any]] = {}

    @abstractmethod
    def add(self, one: Wanted) -> None:
        """Take in an image. Raises NotFromHere."""

    def members(self) -> Iterator[StreamMember]:
        """Yield directories, blobs by digest, then the documents, as Docker orders them."""
        yield StreamMember(b"blobs", DIRECTORY)
        yield StreamMember(b"blobs/sha256", DIRECTORY)
        for digest, (size, source) in sorted(self._blobs.items()):
            yield StreamMember(
                _BLOBS + digest.removeprefix("sha256:").encode("ascii"),
                FILE,
                size,
                digest=digest,
                open=source,
            )
        index = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": self._index}
        for name, value in (
            (b"index.json", index),
            (b"manifest.json", list(self._manifest.values())),
            (b"oci-layout", {"imageLayoutVersion": "1.0.0"}),
        ):
            data = _json(value)
            yield StreamMember(name, FILE, len(data), open=_bytes(data))

    def _reference(self, one: Wanted, descriptor: dict[str, Any]) -> None:
        """Name a blob in index.json, as containerd does."""
        entry = {name: descriptor[name] for name in ("mediaType", "digest", "size")}
        if one.name:
            entry["annotations"] = {
                "io.containerd.image.name": _in_full(one.name),
                "org.opencontainers.image.ref.name": one.name.rpartition(":")[2],
            }
        self._index.append(entry)

    def _name(self, one: Wanted, config: str, layers: list[str]) -> None:
        """Name an image in manifest.json."""
        row = self._manifest.setdefault(
            config,
            {"Config": _path(config), "RepoTags": [], "Layers": [_path(layer) for layer in layers]},
        )
        if one.name:
            row["RepoTags"].append(one.name)

    def _keep(self, data: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._blobs[digest] = len(data), _bytes(data)
        return digest


class _Classic(_Archive):
    """Images of Docker's own store."""

    def __init__(self, store: ClassicStore, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self._store, self._sizes = store, sizes

    def add(self, one: Wanted) -> None:
        config = self._store.config(one.details.id)
        rootfs = _object(config).get("rootfs")
        diff_ids = (rootfs.get("diff_ids") if isinstance(rootfs, dict) else None) or []
        if diff_ids != list(one.details.diff_ids):
            raise NotFromHere("the engine names other layers than the config")
        layers = []
        for number, diff_id in enumerate(diff_ids, 1):
            layer = self._store.layer(diff_ids[:number])
            size = self._sizes.get(diff_id)
            size = layer.size() if size is None else size
            self._blobs[diff_id] = size, layer.open
            layers.append({"mediaType": _LAYER_TYPE, "digest": diff_id, "size": size})
        digest = self._keep(config)
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "config": {"mediaType": _CONFIG_TYPE, "digest": digest, "size": len(config)},
            "layers": layers,
        }
        data = _json(manifest)
        self._reference(one, {"mediaType": _MANIFEST_TYPE, "digest": self._keep(data), "size": len(data)})
        self._name(one, digest, list(diff_ids))


class _Contained(_Archive):
    """Images of containerd."""

    def __init__(self, store: ContentStore) -> None:
        super().__init__()
        self._store = store

    def add(self, one: Wanted) -> None:
        data = self._store.document(one.details.id)
        media_type = _media_type(_object(data))
        if media_type not in _INDEXES | _MANIFESTS:
            raise NotFromHere("the image is no manifest or index that is known")
        whole = self._walk({"mediaType": media_type, "digest": one.details.id, "size": len(data)}, set(), 0)
        chosen = [(config, layers) for config, layers, platform in whole if platform == one.details.platform]
        if len(chosen) != 1:
            raise NotFromHere("the image has no, or several, parts for its platform")
        self._reference(one, {"mediaType": media_type, "digest": one.details.id, "size": len(data)})
        self._name(one, *chosen[0])

    def _walk(
        self, descriptor: Mapping[str, Any], seen: set[str], depth: int
    ) -> list[tuple[str, list[str], str]]:
        """Take in all that a descriptor leads to; return config, layers and platform of each whole image in it.

        ``seen``: documents that are not walked again. Without it few of them, each naming the next often, take forever.
        """
        digest: str = descriptor["digest"]  # of a document that is here
        if depth > 4:
            raise NotFromHere("the image is of a shape that is not known")
        if digest in seen:
            return []
        seen.add(digest)
        data = self._store.document(digest)
        document = _object(data)
        self._blobs[digest] = len(data), _bytes(data)
        if (_media_type(document) or _media_type(descriptor)) in _INDEXES:
            found = []
            for child in _rows(document.get("manifests")):
                if (
                    self._store.size(str(child.get("digest"))) is not None
                ):  # else another platform's, not here
                    found += self._walk(child, seen, depth + 1)
            return found
        config, layers = document.get("config"), _rows(document.get("layers"))
        if not isinstance(config, dict):
            raise NotFromHere("a manifest names no config")
        for part in (config, *layers):
            self._take(part)
        notes = descriptor.get("annotations")
        if isinstance(notes, dict) and _KIND in notes:
            return []
        facts = _object(self._store.document(config["digest"]))
        parts = (facts.get("os"), facts.get("architecture"), facts.get("variant"))
        platform = "/".join(part for part in parts if isinstance(part, str) and part)
        return [(config["digest"], [layer["digest"] for layer in layers], platform)]

    def _take(self, part: Mapping[str, Any]) -> None:
        digest, size = part.get("digest"), part.get("size")
        if not isinstance(digest, str) or type(size) is not int or self._store.size(digest) != size:
            raise NotFromHere("a part of the image is not here, or has another length")
        store = self._store
        self._blobs[digest] = size, lambda: store.open(digest)


def _rows(value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise NotFromHere("a document of the image is of a shape that is not known")
    return value


def _object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise NotFromHere("a document of the image is of a shape that is not known")
    return value


def _media_type(value: Mapping[str, Any]) -> str:
    found = value.get("mediaType")
    return found if isinstance(found, str) else ""


def _in_full(name: str) -> str:
    """Return a name with its registry, which Docker leaves out where it is its own (as ``splitDockerDomain`` does)."""
    first, slash, _ = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        return name
    return _HUB + ("" if slash else "library/") + name


def _path(digest: str) -> str:
    return "blobs/sha256/" + digest.removeprefix("sha256:")


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _bytes(data: bytes) -> Callable[[], Incoming]:
    return lambda: io.BytesIO(data)
