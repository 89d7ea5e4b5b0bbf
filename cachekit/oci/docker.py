"""What an archive of images holds, from its members as they go by: every layout that ``docker save`` and Podman write.

Docker up to 24 (and Podman's docker-archive) name a config and layers in ``manifest.json``; Docker from 25 adds an OCI
layout (``index.json``, ``oci-layout``, ``blobs/``) to it; an OCI archive has that alone. What is there is checked:
blobs have the digest that they are called by, configs and layers are all there and are the ones that are named.

Sources: the image specification 1.2 of Docker (moby/docker-image-spec), the OCI image layout and manifest 1.1.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ArchiveContents", "ArchiveImage", "ArchiveLayer", "Inventory"]

#: The longest document that is read, and all of them together; a config with 100 layers has 30 KB.
_LONGEST = 4 << 20
_LONGEST_TOGETHER = 64 << 20
#: The most levels of indexes below ``index.json``.
_DEEPEST = 4
#: So much is parsed at most, each document as often as another leads to it and as if it were a page longer: a hundred
#: lines that name the next document, which does the same, would never end.
_MOST_PARSED = 512 << 20
_PAGE = 4096
_NAME = "io.containerd.image.name"
_REF = "org.opencontainers.image.ref.name"
_KIND = "vnd.docker.reference.type"
_HUB = ("docker.io/library/", "docker.io/")
_INDEXES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
_CONFIGS = {
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
}
_CACHE = "application/vnd.buildkit.cacheconfig.v0"
_BLOBS = b"blobs/"
_FIXED = {b"manifest.json", b"index.json", b"oci-layout", b"repositories"}


@dataclass(frozen=True, slots=True)
class ArchiveLayer:
    """A layer: the member that holds it, the digest and length of its content, and the digest of the layer's tar."""

    member: bytes
    digest: str
    size: int
    diff_id: str


@dataclass(frozen=True, slots=True)
class ArchiveImage:
    """An image with all its parts. ``ids``: the digests of config, manifest and index, as far as there are any."""

    names: tuple[str, ...]
    ids: tuple[str, ...]
    config: str
    platform: str
    layers: tuple[ArchiveLayer, ...]

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The digests of the layers' tars, lowest first."""
        return tuple(layer.diff_id for layer in self.layers)


@dataclass(frozen=True, slots=True)
class ArchiveContents:
    """The whole images, and what is wrong: a sentence for each fault.

    ``kind``: docker-archive or oci-archive; ``recognised``: it was made to hold images, whatever is left of them, and
    is no archive of something else that has a manifest.json as well.
    """

    kind: str
    recognised: bool
    images: tuple[ArchiveImage, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Member:
    kind: str
    size: int
    digest: str
    link: bytes
    document: bytes | None
    content: str | None


@dataclass(slots=True)
class _Image:
    """An image while its parts are put together."""

    config: str
    platform: str
    layers: tuple[ArchiveLayer, ...]
    names: dict[str, None] = field(default_factory=dict)
    ids: dict[str, None] = field(default_factory=dict)


class _Fault(Exception):
    """Something of one image is wrong; the text says what."""


class Inventory:
    """Is told of every member, then says what they are together. Never raises for what an archive holds."""

    def __init__(self) -> None:
        self._members: dict[bytes, _Member] = {}
        self._faults: dict[str, None] = {}
        self._read = self._parsed = 0
        self._images: dict[str, _Image] = {}
        self._media: dict[str, str] = {}
        self._others = 0

    def wants(self, name: bytes, size: int) -> bool:
        """Return True if the content of this member, a document, is to be kept for ``add``."""
        named = name in _FIXED or name.startswith(_BLOBS) or (name.endswith(b".json") and b"/" not in name)
        if not named or size > _LONGEST:
            return False
        if name not in _FIXED and self._read + size > _LONGEST_TOGETHER:
            return False
        self._read += size
        return True

    def add(
        self,
        name: bytes,
        kind: str,
        size: int,
        sha256: str,
        link: bytes = b"",
        document: bytes | None = None,
        content: str | None = None,
    ) -> None:
        """Take note of a member: ``kind`` is file, directory, symlink or another; ``sha256`` in hex, of a file.

        ``content``: the sha256 of a file once it is decompressed, if it is compressed; empty if it cannot be
        decompressed; None if nobody looked, so that a compressed layer is taken by its own digest.
        """
        name = name.removeprefix(b"./")
        if kind == "directory" or name in {b"", b"."}:
            return
        if document is not None and name not in _FIXED and document.lstrip()[:1] != b"{":
            # A small layer: it must not take the room of a config that comes later.
            self._read -= size
            document = None
        if name in self._members:
            self._fault(f"{_text(name)} is there twice")
            return
        digest = f"sha256:{sha256}" if kind == "file" else ""
        self._members[name] = _Member(
            kind, size, digest, link, document, f"sha256:{content}" if content else content
        )
        if name.startswith(_BLOBS):
            algorithm, _, hexadecimal = name[len(_BLOBS) :].partition(b"/")
            if algorithm == b"sha256" and hexadecimal != sha256.encode():
                self._fault(
                    f"{_text(name)} has another content than its name says: sha256 {sha256 or 'none'}"
                )

    def contents(self, requested: Sequence[str] = ()) -> ArchiveContents:
        """Return what the members are together; every name in ``requested`` must be there."""
        layout = b"index.json" in self._members
        docker = b"manifest.json" in self._members
        if layout:
            self._walk_layout()
        if docker:
            self._walk_docker()
        if not (layout or docker):
            self._fault(
                "it lacks manifest.json and index.json: this is no archive of images, or it ends too early"
            )
        images = tuple(
            ArchiveImage(tuple(image.names), tuple(image.ids), image.config, image.platform, image.layers)
            for image in self._images.values()
        )
        if not (images or self._others or self._faults):
            self._fault("it names no image")
        there = {name for image in images for name in image.names}
        for name in requested:
            if name not in there:
                self._fault(f"the image {name!r} is not in it")
        kind = "docker-archive" if docker else "oci-archive"
        recognised = bool(images) or any(map(_of_images, self._members)) or self._has_rows()
        return ArchiveContents(kind, recognised, images, tuple(self._faults))

    def _has_rows(self) -> bool:
        try:
            rows = self._document(b"manifest.json")
        except _Fault:
            return False
        return isinstance(rows, list) and any(isinstance(row, dict) and "Config" in row for row in rows)

    def _fault(self, text: str) -> None:
        self._faults[text] = None

    # manifest.json

    def _walk_docker(self) -> None:
        try:
            rows = self._document(b"manifest.json")
            if not isinstance(rows, list) or not rows:
                raise _Fault("manifest.json is no list of images")
        except _Fault as fault:
            self._fault(str(fault))
            return
        for row in rows:
            try:
                self._docker_image(row)
            except _Fault as fault:
                self._fault(str(fault))

    def _docker_image(self, row: object) -> None:
        if not isinstance(row, dict) or not isinstance(row.get("Config"), str):
            raise _Fault("manifest.json has an image without a config")
        path = row["Config"].encode("utf-8", "surrogatepass")
        tags = row.get("RepoTags") or []
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise _Fault("manifest.json has an image whose names are none")
        about = f"the image {tags[0]!r}" if tags else "an image without a name"
        member = self._file(path, f"the config of {about}")
        stem = posixpath.basename(path).removesuffix(b".json").decode("ascii", "replace")
        if len(stem) == 64 and member.digest != f"sha256:{stem}":
            raise _Fault(f"the config of {about} has another content than its name says: {member.digest}")
        config = self._document(path)
        diff_ids, platform = _config(config, about)
        paths = row.get("Layers")
        if not isinstance(paths, list) or not all(isinstance(layer, str) for layer in paths):
            raise _Fault(f"{about} has no list of layers")
        if len(paths) != len(diff_ids):
            raise _Fault(f"{about} has {len(paths)} layers, its config names {len(diff_ids)}")
        layers = tuple(
            self._layer(text.encode("utf-8", "surrogatepass"), diff_id, f"layer {number} of {about}")
            for number, (text, diff_id) in enumerate(zip(paths, diff_ids, strict=True), 1)
        )
        self._note(member.digest, platform, layers, tags, [member.digest])

    def _layer(self, path: bytes, diff_id: str, about: str) -> ArchiveLayer:
        member = self._file(path, about)
        _require_content(member, diff_id, self._media.get(member.digest, ""), about)
        return ArchiveLayer(self._place(path), member.digest, member.size, diff_id)

    # index.json

    def _walk_layout(self) -> None:
        try:
            layout = self._document(b"oci-layout")
            if not isinstance(layout, dict) or not str(layout.get("imageLayoutVersion")).startswith("1."):
                raise _Fault("oci-layout names no version that is known")
            index = self._document(b"index.json")
            self._index(index, "index.json", (), (), 0)
        except _Fault as fault:
            self._fault(str(fault))

    def _index(
        self, index: object, about: str, names: tuple[str, ...], ids: tuple[str, ...], depth: int
    ) -> int:
        """Walk an index; return how many images below it are whole. Raises _Fault."""
        rows = index.get("manifests") if isinstance(index, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise _Fault(f"{about} is no list of manifests")
        if depth > _DEEPEST:
            raise _Fault(f"{about} has too many levels below it")
        if any(row.get("mediaType") == _CACHE for row in rows):
            return self._cache(rows, about)
        whole = 0
        for row in rows:
            digest = row.get("digest")
            if not isinstance(digest, str):
                raise _Fault(f"{about} names a manifest without a digest")
            path = _blob(digest)
            if depth and path not in self._members:
                continue  # another platform's, which the engine does not have
            called = tuple(dict.fromkeys((*names, *_names(row))))
            whole += self._manifest(row, path, digest, called, ids, depth)
        if depth and not whole:
            raise _Fault(f"of the manifests that {about} names none is there")
        return whole

    def _manifest(
        self,
        row: dict[str, Any],
        path: bytes,
        digest: str,
        names: tuple[str, ...],
        ids: tuple[str, ...],
        depth: int,
    ) -> int:
        about = f"the manifest {digest[:19]}"
        if names:
            about += f" ({names[0]})"
        member = self._file(path, about)
        self._fits(row, member, about)
        document = self._document(path)
        if not isinstance(document, dict):
            raise _Fault(f"{about} is no manifest")
        kind = document.get("mediaType") or row.get("mediaType")
        if kind is not None and not isinstance(kind, str):
            raise _Fault(f"{about} has a media type that is none")
        if kind in _INDEXES or (kind is None and "manifests" in document):
            return self._index(document, about, names, (*ids, digest), depth + 1)
        config, layers = document.get("config"), document.get("layers")
        if not isinstance(config, dict) or not isinstance(layers, list):
            raise _Fault(f"{about} names no config or no layers")
        annotations = row.get("annotations")
        attached = isinstance(annotations, dict) and _KIND in annotations
        parts = []
        for number, layer in enumerate(layers, 1):
            if not isinstance(layer, dict) or not isinstance(layer.get("digest"), str):
                raise _Fault(f"{about} names a layer without a digest")
            named = f"layer {number} of {about}"
            if layer.get("urls") and _blob(layer["digest"]) not in self._members:
                raise _Fault(f"{named} lies elsewhere, not in the archive")
            found = self._file(_blob(layer["digest"]), named)
            self._fits(layer, found, named)
            self._media[layer["digest"]] = str(layer.get("mediaType"))
            parts.append((_blob(layer["digest"]), layer["digest"], found.size))
        if not isinstance(config.get("digest"), str):
            raise _Fault(f"{about} names a config without a digest")
        found = self._file(_blob(config["digest"]), f"the config of {about}")
        self._fits(config, found, f"the config of {about}")
        if isinstance(config.get("mediaType"), str) and config["mediaType"] not in _CONFIGS:
            self._others += 1  # a cache of BuildKit's, a chart: its parts are here, and it is no image
            return 1
        if attached:
            return 0  # what is said about an image, such as its provenance
        diff_ids, platform = _config(self._document(_blob(config["digest"])), about)
        if len(diff_ids) != len(parts):
            raise _Fault(f"{about} has {len(parts)} layers, its config names {len(diff_ids)}")
        made = tuple(ArchiveLayer(*part, diff_id) for part, diff_id in zip(parts, diff_ids, strict=True))
        for number, layer in enumerate(made, 1):
            named = f"layer {number} of {about}"
            _require_content(self._file(layer.member, named), layer.diff_id, self._media[layer.digest], named)
        self._note(config["digest"], platform, made, names, (*ids, digest, config["digest"]))
        return 1

    def _cache(self, rows: list[dict[str, Any]], about: str) -> int:
        """Look for the parts of a cache of BuildKit's, which its index names side by side. Raises _Fault."""
        for number, row in enumerate(rows, 1):
            named = f"part {number} of {about}"
            if not isinstance(row.get("digest"), str):
                raise _Fault(f"{named} has no digest")
            self._fits(row, self._file(_blob(row["digest"]), named), named)
        self._others += 1
        return 1

    # Both

    def _note(
        self,
        config: str,
        platform: str,
        layers: tuple[ArchiveLayer, ...],
        names: Sequence[str],
        ids: Sequence[str],
    ) -> None:
        image = self._images.setdefault(config, _Image(config, platform, layers))
        image.names |= dict.fromkeys(names)
        image.ids |= dict.fromkeys(ids)

    def _place(self, path: bytes) -> bytes:
        """Return the member at the end of the links that begin with ``path``: layers that are the same are links."""
        path = posixpath.normpath(path)
        for _ in range(8):
            member = self._members.get(path)
            if member is None or member.kind != "symlink":
                break
            path = posixpath.normpath(posixpath.join(posixpath.dirname(path), member.link))
        return path

    def _file(self, path: bytes, about: str) -> _Member:
        member = self._members.get(self._place(path))
        if member is None:
            raise _Fault(f"{about} is missing: {_text(path)}")
        if member.kind != "file":
            raise _Fault(f"{about} is no file: {_text(path)}")
        return member

    def _fits(self, descriptor: dict[str, Any], member: _Member, about: str) -> None:
        digest, size = descriptor.get("digest"), descriptor.get("size")
        if digest != member.digest:
            raise _Fault(f"{about} has another content than its digest says: {member.digest}, not {digest}")
        if size != member.size:
            raise _Fault(f"{about} is {member.size} bytes long, not {size}")

    def _document(self, path: bytes) -> object:
        member = self._file(path, _text(path))
        if member.document is None:
            raise _Fault(f"{_text(path)} is not JSON, or too long for a document")
        self._parsed += len(member.document) + _PAGE
        if self._parsed > _MOST_PARSED:
            raise _Fault("its documents lead to each other too often")
        try:
            value = json.loads(member.document)
            json.dumps(
                value, ensure_ascii=False
            ).encode()  # half of a surrogate pair, which nobody could print
        except (ValueError, RecursionError):
            raise _Fault(f"{_text(path)} is not JSON") from None
        found: object = value
        return found


def _config(config: object, about: str) -> tuple[list[str], str]:
    """Return the diff ids and the platform that a config names. Raises _Fault."""
    facts = config if isinstance(config, dict) else {}
    rootfs = facts.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if diff_ids is None and isinstance(rootfs, dict):
        diff_ids = []  # an image without layers
    if not isinstance(diff_ids, list) or not all(map(_is_digest, diff_ids)):
        raise _Fault(f"the config of {about} names no layers (rootfs.diff_ids)")
    parts = (facts.get("os"), facts.get("architecture"), facts.get("variant"))
    return diff_ids, "/".join(part for part in parts if isinstance(part, str) and part)


def _names(descriptor: dict[str, Any]) -> Iterator[str]:
    """Yield the names that a descriptor of index.json gives, as engines show them."""
    annotations = descriptor.get("annotations")
    if not isinstance(annotations, dict):
        return
    name, ref = annotations.get(_NAME), annotations.get(_REF)
    if isinstance(name, str):
        yield next((name.removeprefix(hub) for hub in _HUB if name.startswith(hub)), name)
    elif isinstance(ref, str) and ":" in ref:
        yield next((ref.removeprefix(hub) for hub in _HUB if ref.startswith(hub)), ref)


def _require_content(member: _Member, diff_id: str, media_type: str, about: str) -> None:
    """Raise _Fault unless a layer is the one that a config names by the digest of its tar."""
    if member.digest == diff_id or media_type.endswith("+encrypted"):
        return
    if member.content is None and _packed(media_type):
        return
    if member.content == "":
        raise _Fault(f"{about} cannot be decompressed: it was damaged before it got its digest")
    found = member.content or member.digest
    if found != diff_id:
        raise _Fault(f"{about} is not the one that the config names: {found}, not {diff_id}")


def _packed(media_type: str) -> bool:
    """Return True if a layer of this media type is compressed, and so has another digest than its tar."""
    return media_type.endswith(("+gzip", "+zstd", ".gzip", ".zstd"))


def _blob(digest: str) -> bytes:
    algorithm, _, hexadecimal = digest.partition(":")
    return _BLOBS + f"{algorithm}/{hexadecimal}".encode("utf-8", "surrogatepass")


def _of_images(name: bytes) -> bool:
    """Return True for a name that only archives of images use: a blob's, a layer's, a config's."""
    stem = name.removeprefix(b"blobs/sha256/")
    for suffix in (b"/layer.tar", b".tar", b".json") if stem == name else (b"",):
        digest = stem.removesuffix(suffix)
        if len(digest) == 64 and not digest.strip(b"0123456789abcdef") and digest + suffix == stem:
            return True
    return name == b"oci-layout"


def _is_digest(value: object) -> bool:
    return (
        isinstance(value, str)
        and value.startswith("sha256:")
        and len(value) == 71
        and not set(value[7:]) - set("0123456789abcdef")
    )


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
