"""Image archives as engines write them, made here, and an engine that gives and takes them without being one.

::

    with mimic_engine(tmp_path) as engine:
        engine.add(made_image("app:1", layers=[layer({"file": b"content"})]))
        save_images(ImageSaveRequest("key", ["app:1"], store, engine=engine.connect))
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from tests.engine.fake_engine import FakeEngine, fake_engine

Style = Literal["legacy", "classic", "containerd"]
STYLES: tuple[Style, ...] = ("legacy", "classic", "containerd")
"""What `docker save` of 20.10 writes, of 25 and later with the classic store, and with containerd's."""

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


def sha256(data: bytes) -> str:
    """Return the digest in hex."""
    return hashlib.sha256(data).hexdigest()


def layer(files: Mapping[str, bytes]) -> bytes:
    """Return the tar of a layer with these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@dataclass(frozen=True)
class Made:
    """An image: its names, the tars of its layers, its config."""

    names: tuple[str, ...]
    layers: tuple[bytes, ...]
    config: bytes

    @property
    def id(self) -> str:
        """What the classic store calls it."""
        return f"sha256:{sha256(self.config)}"

    @property
    def diff_ids(self) -> list[str]:
        """The digests of its layers."""
        return [f"sha256:{sha256(tar)}" for tar in self.layers]


def made_image(
    *names: str,
    layers: Sequence[bytes],
    command: str = "/bin/true",
    labels: Mapping[str, str] | None = None,
) -> Made:
    """Make an image; another `command` gives another image of the same layers."""
    settings: dict[str, object] = {"Cmd": [command]} | ({"Labels": dict(labels)} if labels else {})
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": settings,
        "history": [{"created_by": "test"} for _ in layers],
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(tar)}" for tar in layers]},
    }
    return Made(names, tuple(layers), json.dumps(config).encode())


@dataclass(frozen=True)
class Part:
    """A member of an image archive."""

    name: str
    content: bytes = b""
    link: str = ""
    directory: bool = False


def archive_parts(images: Sequence[Made], style: Style = "classic") -> list[Part]:
    """Return the members of an archive in an engine's order, every file once."""
    parts: dict[str, Part] = {}
    for part in _legacy(images) if style == "legacy" else _layout(images, packed=style == "containerd"):
        parts.setdefault(part.name, part)
    return list(parts.values())


def tar_of_parts(parts: Sequence[Part], *, end: bool = True) -> bytes:
    """Return the tar of some members; without `end` also without its two blocks of zeros."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for part in parts:
            member = tarfile.TarInfo(part.name)
            member.mtime = 1_700_000_000
            if part.directory:
                member.type = tarfile.DIRTYPE
            elif part.link:
                member.type, member.linkname = tarfile.SYMTYPE, part.link
            else:
                member.size = len(part.content)
            tar.addfile(member, io.BytesIO(part.content) if part.content else None)
        length = out.tell()
    return out.getvalue() if end else out.getvalue()[:length]


def image_archive(images: Sequence[Made], style: Style = "classic") -> bytes:
    """Return what an engine writes for these images."""
    return tar_of_parts(archive_parts(images, style))


def _legacy(images: Sequence[Made]) -> Iterator[Part]:
    places: dict[str, str] = {}
    rows = []
    for image in images:
        paths = []
        for number, tar in enumerate(image.layers):
            own = sha256(f"{image.id} {number}".encode())
            paths.append(f"{own}/layer.tar")
            yield Part(own, directory=True)
            yield Part(f"{own}/VERSION", b"1.0")
            yield Part(f"{own}/json", json.dumps({"id": own}).encode())
            first = places.setdefault(sha256(tar), own)
            link = "" if first == own else f"../{first}/layer.tar"
            yield Part(paths[-1], b"" if link else tar, link)
        config = f"{sha256(image.config)}.json"
        yield Part(config, image.config)
        rows.append({"Config": config, "RepoTags": list(image.names) or None, "Layers": paths})
    yield Part("manifest.json", json.dumps(rows).encode())
    yield Part("repositories", b"{}")


def _layout(images: Sequence[Made], *, packed: bool) -> Iterator[Part]:
    yield Part("blobs", directory=True)
    yield Part("blobs/sha256", directory=True)
    rows, index = [], []
    for image in images:
        blobs = [gzip.compress(tar, 1, mtime=0) if packed else tar for tar in image.layers]
        kind = _LAYER + "+gzip" if packed else _LAYER
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": _descriptor(_CONFIG, image.config),
                "layers": [_descriptor(kind, blob) for blob in blobs],
            }
        )
        documents = [image.config, manifest]
        top = _descriptor(_MANIFEST, manifest)
        if packed:
            absent = _descriptor(_MANIFEST, b"of another platform, which is not here")
            documents.append(_json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [top, absent]}))
            top = _descriptor(_INDEX, documents[-1])
        for blob in (*blobs, *documents):
            yield Part(f"blobs/sha256/{sha256(blob)}", blob)
        for name in image.names or ("",):
            notes = {"io.containerd.image.name": f"docker.io/library/{name}"} if name else {}
            index.append(top | ({"annotations": notes} if notes else {}))
        rows.append(
            {
                "Config": f"blobs/sha256/{sha256(image.config)}",
                "RepoTags": list(image.names) or None,
                "Layers": [f"blobs/sha256/{sha256(blob)}" for blob in blobs],
            }
        )
    yield Part("index.json", _json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": index}))
    yield Part("manifest.json", json.dumps(rows).encode())
    yield Part("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha256(blob)}", "size": len(blob)}


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


@dataclass
class Loading:
    """What came in one load: `whole` if the request ended in order."""

    data: bytes
    whole: bool


@dataclass
class Plan:
    """How the next exports and loads go."""

    style: Style = "classic"
    #: The archive that is sent, whatever was asked for.
    archive: bytes | None = None
    #: After so many bytes the connection breaks; or the answer ends in order, with `words` as its last bytes.
    breaks_at: int | None = None
    ends_at: int | None = None
    words: bytes = b""
    #: What a load is answered, and whether the images are there then.
    load_status: int = 200
    load_words: bytes = b'{"stream":"Loaded image"}\r\n'
    keeps: bool = True
    #: How large it says that each image is; None for its layers' lengths.
    size: int | None = None
    #: After so many bytes an export sets `stalled` and says nothing more until `go_on` is set.
    stall_at: int | None = None
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


@dataclass
class _State:
    images: dict[str, Made] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    loads: list[Loading] = field(default_factory=list)
    tagged: list[str] = field(default_factory=list)
    plan: Plan = field(default_factory=Plan)


class MimicEngine(FakeEngine):
    """Has images, exports and loads them; `plan` says how well. Calls an image by its config, as the classic store."""

    def __init__(self, path: Path, api: str) -> None:
        super().__init__(path, api)
        self.state = _State()

    @property
    def plan(self) -> Plan:
        """How it behaves, to be changed."""
        return self.state.plan

    @property
    def loads(self) -> list[Loading]:
        """What was sent to it."""
        return self.state.loads

    def add(self, *images: Made) -> None:
        """Give it images."""
        for image in images:
            self.state.images[image.id] = image
            self.state.names |= dict.fromkeys(image.names, image.id)

    def forget(self) -> None:
        """Take all images away, and what it remembers of loads."""
        self.state.images.clear()
        self.state.names.clear()
        self.state.loads.clear()

    def snapshot(self) -> dict[str, str]:
        """Its list of images."""
        return dict.fromkeys(self.state.images, "") | self.state.names

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer what images need; the rest as usual."""
        parts = urlsplit(handler.path)
        path = unquote(parts.path.partition("/v1.")[2].partition("/")[2])
        query = parse_qs(parts.query)
        if path == "images/get":
            self.requests.append(("GET /images/get", query))
            self._export(handler, query.get("names", []))
        elif path == "images/load":
            self._load(handler)
        elif path.startswith("images/") and path.endswith("/tag"):
            name = f"{query['repo'][0]}:{query['tag'][0]}"
            self.state.names[name] = self._found(path[len("images/") : -len("/tag")]).id
            self.state.tagged.append(name)
            _reply(handler, 201, b"")
        elif path.startswith("images/") and path.endswith("/json") and path != "images/json":
            self._inspect(handler, path[len("images/") : -len("/json")])
        else:
            super().answer(handler)

    def _found(self, reference: str) -> Made:
        name = reference.removeprefix("docker.io/library/")
        name = name if ":" in name else f"{name}:latest"
        known = self.state.names
        return self.state.images[known.get(reference, known.get(name, reference))]

    def _inspect(self, handler: BaseHTTPRequestHandler, reference: str) -> None:
        try:
            image = self._found(reference)
        except KeyError:
            _reply(handler, 404, b'{"message":"No such image"}')
            return
        names = [name for name, identity in self.state.names.items() if identity == image.id]
        _reply(
            handler,
            200,
            _json(
                {
                    "Id": image.id,
                    "RepoTags": names,
                    "Size": sum(map(len, image.layers)) if self.plan.size is None else self.plan.size,
                    "Os": "linux",
                    "Architecture": "amd64",
                    "RootFS": {"Type": "layers", "Layers": image.diff_ids},
                }
            ),
        )

    def _export(self, handler: BaseHTTPRequestHandler, references: list[str]) -> None:
        plan = self.plan
        images: dict[str, Made] = {}
        for reference in references:
            image = self._found(reference)
            known = images.setdefault(image.id, replace(image, names=()))
            if reference in self.state.names:
                images[image.id] = replace(known, names=(*known.names, reference))
        data = plan.archive if plan.archive is not None else image_archive(list(images.values()), plan.style)
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        data = data[: plan.breaks_at if plan.breaks_at is not None else plan.ends_at] + plan.words
        for offset in range(0, len(data), 1 << 18):
            piece = data[offset : offset + (1 << 18)]
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            if plan.stall_at is not None and offset >= plan.stall_at:
                plan.stalled.set()
                plan.go_on.wait(30)
        if plan.breaks_at is None:
            handler.wfile.write(b"0\r\n\r\n")
        handler.close_connection = True

    def _load(self, handler: BaseHTTPRequestHandler) -> None:
        loading = _received(handler)
        self.state.loads.append(loading)
        handler.close_connection = True
        if not loading.whole:
            return
        if self.plan.load_status == 200 and self.plan.keeps:
            self.add(*read_archive(loading.data))
        _reply(handler, self.plan.load_status, self.plan.load_words)


def read_archive(data: bytes) -> list[Made]:
    """Return the images of an archive, by manifest.json."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for row in json.loads(_member(tar, "manifest.json")):
            layers = [_member(tar, path) for path in row["Layers"]]
            unpacked = [gzip.decompress(one) if one.startswith(b"\x1f\x8b") else one for one in layers]
            found.append(Made(tuple(row["RepoTags"] or ()), tuple(unpacked), _member(tar, row["Config"])))
    return found


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None
    return file.read()


def _received(handler: BaseHTTPRequestHandler) -> Loading:
    pieces: list[bytes] = []
    while True:
        line = handler.rfile.readline()
        if not line.endswith(b"\r\n"):
            return Loading(b"".join(pieces), whole=False)
        size = int(line, 16)
        piece = handler.rfile.read(size)
        pieces.append(piece)
        if len(piece) < size or handler.rfile.read(2) != b"\r\n":
            return Loading(b"".join(pieces), whole=False)
        if not size:
            return Loading(b"".join(pieces), whole=True)


def _reply(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def mimic_engine(directory: Path) -> Iterator[MimicEngine]:
    """Serve one on a socket in `directory`."""
    with fake_engine(directory, make=MimicEngine) as engine:
        assert isinstance(engine, MimicEngine)
        try:
            yield engine
        finally:
            engine.plan.go_on.set()
