"""Layers put together from a classic data root: right, or not from here, whatever is in it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachekit.engine.dataroot import ClassicStore, ContentStore, NotFromHere, Readable, store_of
from cachekit.engine.objects import Info

CACHE = "a" * 40


def digest(data: bytes) -> str:
    """Return the digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Root:
    """A data root with one layer that is put together from a recipe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = path / "overlay2" / CACHE / "diff"
        self.files.mkdir(parents=True)
        self.diff = digest(b"whatever")
        self.place = path / "image/overlay2/layerdb/sha256" / self.diff[7:]
        self.place.mkdir(parents=True)
        (self.place / "diff").write_text(self.diff)
        (self.place / "cache-id").write_text(CACHE)

    def recipe(self, *steps: Any, raw: bytes | None = None) -> None:
        """Write the recipe."""
        text = b"".join(json.dumps(step).encode() + b"\n" for step in steps) if raw is None else raw
        (self.place / "tar-split.json.gz").write_bytes(gzip.compress(text))

    def content(self) -> bytes:
        """Return the layer, read in small pieces."""
        layer = ClassicStore(str(self.path)).layer([self.diff])
        data = everything(layer.open())
        assert layer.size() == len(data)
        return data


def everything(source: Readable) -> bytes:
    """Read a content to its end."""
    buffer = memoryview(bytearray(777))
    found = b""
    while count := source.readinto(buffer):
        found += buffer[:count]
    return found


def segment(data: bytes) -> dict[str, Any]:
    """Return a step that gives bytes."""
    return {"type": 2, "payload": base64.b64encode(data).decode()}


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """An empty data root."""
    return Root(tmp_path / "data")


def test_segments_and_files(root: Root) -> None:
    """A layer is its recipe's segments and the contents of its files, in order."""
    (root.files / "d").mkdir()
    (root.files / "d" / "f").write_bytes(b"f" * 2000)
    (root.files / os.fsdecode(b"\xff")).write_bytes(b"raw")
    root.recipe(
        segment(b"begin"),
        {"type": 1, "name": "./d/f", "size": 2000, "payload": "x"},
        {"type": 1, "name": "d/", "payload": None},
        segment(b"middle"),
        {"type": 1, "name_raw": base64.b64encode(b"\xff").decode(), "size": 3},
        segment(b"end"),
    )
    assert root.content() == b"begin" + b"f" * 2000 + b"middle" + b"raw" + b"end"


@pytest.mark.parametrize(
    "step",
    [
        {"type": 1, "name": "missing", "size": 5},
        {"type": 1, "name": "../../../../etc/passwd", "size": 5},
        {"type": 1, "name": "/", "size": 5},
        {"type": 1, "name": "link", "size": 5},
        {"type": 1, "name": "short", "size": 5},
        {"type": 1, "name": "fifo", "size": 5},
        {"type": 1, "name": "a\0b", "size": 5},
        {"type": 1, "name": "short", "size": "5"},
        {"type": 1, "name": "short", "size": -1},
        {"type": 1, "size": 5},
        {"type": 3},
        {"type": 2, "payload": "no base64"},
        {"type": 2},
        [],
        5,
        None,
    ],
)
def test_steps_that_cannot_be(root: Root, step: Any) -> None:
    """A recipe that names what is not there, lies elsewhere, or makes no sense gives nothing, and nobody waits."""
    (root.files / "link").symlink_to("/etc/passwd")
    (root.files / "short").write_bytes(b"1")
    os.mkfifo(root.files / "fifo")
    root.recipe(segment(b"x"), step)
    with pytest.raises(NotFromHere):
        root.content()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(noise=st.binary(max_size=200), at=st.floats(0, 1), flip=st.integers(1, 255))
def test_damaged_recipes(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: float, flip: int
) -> None:
    """A recipe that is cut, flipped or noise gives nothing, or what it gives is for its reader to judge."""
    root = Root(tmp_path_factory.mktemp("root") / "data")
    root.recipe(segment(b"x" * 500), segment(os.urandom(300)))
    path = root.place / "tar-split.json.gz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[int(at * (len(whole) - 1))] ^= flip
    for data in (noise, whole[: int(at * (len(whole) - 1))], bytes(flipped), gzip.compress(noise)):
        path.write_bytes(data)
        try:
            root.content()
        except NotFromHere:
            continue
    root.recipe(raw=b"[" * 100_000)
    with pytest.raises(NotFromHere):
        root.content()


def test_the_layer_database(root: Root) -> None:
    """A layer database that names another layer, or a directory that is none, gives nothing."""
    store = ClassicStore(str(root.path))
    for diff_ids in ([], ["x"], [digest(b"other")], [root.diff, root.diff]):
        with pytest.raises(NotFromHere):
            store.layer(diff_ids)
    (root.place / "cache-id").write_text("../../etc")
    with pytest.raises(NotFromHere):
        store.layer([root.diff])
    (root.place / "cache-id").write_text(CACHE)
    (root.place / "diff").write_text(digest(b"other"))
    with pytest.raises(NotFromHere):
        store.layer([root.diff])


def test_documents_are_what_their_digest_says(tmp_path: Path) -> None:
    """A config or manifest with other bytes is not believed."""
    configs = tmp_path / "image/overlay2/imagedb/content/sha256"
    configs.mkdir(parents=True)
    for place, read in (
        (configs, ClassicStore(str(tmp_path)).config),
        (tmp_path / "blobs", ContentStore(str(tmp_path / "blobs")).document),
    ):
        place.mkdir(exist_ok=True)
        (place / digest(b"{}")[7:]).write_bytes(b"{}")
        assert read(digest(b"{}")) == b"{}"
        (place / digest(b"{}")[7:]).write_bytes(b"[]")
        with pytest.raises(NotFromHere):
            read(digest(b"{}"))
        for name in ("../x", "sha256:../x", digest(b"absent"), ""):
            with pytest.raises(NotFromHere):
                read(name)


def test_other_stores(tmp_path: Path) -> None:
    """Another driver, and a data root that is not on this machine, are not read."""
    for info in (
        Info("x", (str(tmp_path),), "btrfs"),
        Info("x", (str(tmp_path / "nowhere"),), "overlay2"),
        Info("x", (), "overlay2"),
        Info("x", (str(tmp_path),), "overlayfs", containerd=True),
    ):
        with pytest.raises(NotFromHere):
            store_of(info)
