"""OCI layouts made by hand: images, and BuildKit's local cache in both of its forms."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
CACHE_CONFIG = "application/vnd.buildkit.cacheconfig.v0"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
HOUR = 3600


SIGNS = ("blob", "ingest", "index")
"""By what a collection sees that somebody writes beside it."""


class MadeLayout:
    """A layout in a directory; every blob is an hour old, as if no build had been here lately."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.references: list[dict[str, Any]] = []
        (path / "blobs" / "sha256").mkdir(parents=True)
        (path / "ingest").mkdir()
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.write_index()

    def blob(self, data: bytes, media_type: str = LAYER, age: float = HOUR, **more: Any) -> dict[str, Any]:
        """Write a blob; return its descriptor."""
        name = hashlib.sha256(data).hexdigest()
        file = self.path / "blobs" / "sha256" / name
        file.write_bytes(data)
        self.age(file, age)
        return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data), **more}

    @staticmethod
    def age(file: Path, seconds: float) -> None:
        """Make a file so many seconds old."""
        then = os.stat(file).st_ctime_ns - int(seconds * 1e9)
        os.utime(file, ns=(then, then))

    def document(self, value: object, media_type: str, **more: Any) -> dict[str, Any]:
        """Write a JSON document as a blob."""
        return self.blob(json.dumps(value).encode(), media_type, **more)

    def image(self, name: str, layers: Sequence[bytes], config: bytes = b"{}") -> dict[str, Any]:
        """Write an image, or a newer BuildKit's cache if `config` is one of those, and name it last."""
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(config, CONFIG),
            "layers": [self.blob(layer) for layer in layers],
        }
        return self.name(name, self.document(manifest, MANIFEST))

    def cache(self, name: str, layers: Sequence[bytes], *, old: bool = False) -> dict[str, Any]:
        """Write BuildKit's cache: an image manifest, or (old) an index of layers."""
        parts = [self.blob(layer) for layer in layers]
        config = self.document({"layers": [part["digest"] for part in parts]}, CACHE_CONFIG)
        if old:
            value = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*parts, config]}
            return self.name(name, self.document(value, INDEX))
        value = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": parts}
        return self.name(name, self.document(value, MANIFEST))

    def name(self, name: str, descriptor: dict[str, Any]) -> dict[str, Any]:
        """Name a blob in index.json, last, as an export does; one of that name goes."""
        annotation = {"org.opencontainers.image.ref.name": name}
        self.references = [one for one in self.references if one.get("annotations") != annotation]
        self.references.append({**descriptor, "annotations": annotation})
        self.write_index()
        return descriptor

    def write_index(self) -> None:
        """Write index.json."""
        value = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self.references}
        (self.path / "index.json").write_text(json.dumps(value))

    def file(self, descriptor: dict[str, Any]) -> Path:
        """Return where a blob lies."""
        digest: str = descriptor["digest"]
        return self.path / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def digests(self) -> set[str]:
        """Return the digests of all blobs that are there."""
        return {f"sha256:{file.name}" for file in (self.path / "blobs" / "sha256").iterdir()}

    def ingest(self, size: int, age: float) -> Path:
        """Leave an unfinished blob."""
        directory = self.path / "ingest" / hashlib.sha256(str((size, age)).encode()).hexdigest()
        directory.mkdir()
        for name, data in (("data", bytes(size)), ("ref", b"x"), ("startedat", b"t")):
            (directory / name).write_bytes(data)
            self.age(directory / name, age)
        self.age(directory, age)
        return directory

    def written_to(self, sign: str) -> None:
        """Leave one sign of a writer, of `SIGNS`."""
        if sign == "blob":
            self.blob(content(99))
        elif sign == "ingest":
            self.ingest(10, 0)
        else:
            self.name("again", self.references[0])


def content(seed: int, size: int = 1000) -> bytes:
    """Return bytes that are the same for each seed."""
    return random.Random(seed).randbytes(size)
