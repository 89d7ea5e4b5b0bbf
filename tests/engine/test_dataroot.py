"""Layers put together from a classic data root: right, or not from here, whatever is in it."""

from __future__ import annotations

import base64
import errno
import gc
import gzip
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachekit.engine.dataroot import ClassicStore, ContentStore, Layer, NotFromHere, Readable, store_of
from cachekit.engine.objects import Info
from tests.support.capabilities import requires
from tests.support.flaky import flaky

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

    def layer(self) -> Layer:
        """Return the layer."""
        return ClassicStore(str(self.path)).layer([self.diff])

    def content(self) -> bytes:
        """Return the layer's bytes, read in small pieces."""
        data = everything(self.layer().open())
        assert self.layer().size() == len(data)
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
    "name", ["missing", "../secret", "d/../../secret", "/", "link", "long", "short", "fifo", "a\0b", "d"]
)
def test_files_that_are_not_the_layers(root: Root, name: str) -> None:
    """A recipe's file that is missing, lies elsewhere, is a link or has another length gives nothing; nobody waits."""
    (root.files / "d").mkdir()
    (root.files.parent / "secret").write_bytes(b"12345")
    (root.files / "link").symlink_to(root.files.parent / "secret")
    (root.files / "short").write_bytes(b"1234")
    (root.files / "long").write_bytes(b"123456")
    os.mkfifo(root.files / "fifo")
    size = (root.files / name).stat().st_size if name == "d" else 0 if name == "fifo" else 5
    root.recipe(segment(b"x"), {"type": 1, "name": name, "size": size or 5})
    with pytest.raises(NotFromHere):
        everything(root.layer().open())


@pytest.mark.parametrize(
    "step",
    [
        {"type": 1, "name": "file", "size": "5"},
        {"type": 1, "name": "file", "size": -1},
        {"type": 1, "name": "file", "size": True},
        {"type": 1, "size": 5},
        {"type": 1, "name": "../file", "size": 5},
        {"type": 1, "name_raw": "no base64", "size": 5},
        {"type": 3},
        {"type": 2, "payload": "no base64"},
        {"type": 2},
        [],
        5,
        None,
    ],
)
def test_steps_that_cannot_be(root: Root, step: Any) -> None:
    """A recipe that makes no sense gives nothing, not even a length."""
    (root.files / "file").write_bytes(b"12345")
    root.recipe(segment(b"x"), step)
    with pytest.raises(NotFromHere):
        root.layer().size()
    with pytest.raises(NotFromHere):
        everything(root.layer().open())


def test_a_file_that_is_cut_while_it_is_read(root: Root) -> None:
    """A file of a layer that ends before the length that it had gives nothing."""
    (root.files / "f").write_bytes(bytes(100_000))
    root.recipe({"type": 1, "name": "f", "size": 100_000})
    source = root.layer().open()
    assert source.readinto(memoryview(bytearray(1000))) == 1000
    os.truncate(root.files / "f", 5000)
    with pytest.raises(NotFromHere, match="shorter"):
        everything(source)


@requires("fuse")
def test_a_disk_that_fails(root: Root) -> None:
    """An error while a content is read is no content."""
    (root.files / "f").write_bytes(bytes(5))
    root.recipe({"type": 1, "name": "f", "size": 5})
    with flaky(root.path) as disk:
        disk.set_fault("read", errno=errno.EIO, match="/f")
        source = ClassicStore(str(disk.mount)).layer([root.diff]).open()
        with pytest.raises(NotFromHere, match="a file of a layer cannot be read"):
            everything(source)
        del source
        disk.set_fault("read", errno=errno.EIO, match="diff")
        with pytest.raises(NotFromHere, match="database cannot be read"):
            ClassicStore(str(disk.mount)).layer([root.diff])
        blob = digest(b"x")
        (root.path / blob[7:]).write_bytes(b"x")
        disk.set_fault("read", errno=errno.EIO, match=blob[7:])
        with pytest.raises(NotFromHere, match="a content cannot be read"):
            ContentStore(str(disk.mount)).document(blob)
        gc.collect()  # what is left open goes before the disk does


@pytest.mark.parametrize("kind", ["missing", "link", "fifo", "file"])
def test_a_layers_directory_that_is_none(root: Root, tmp_path: Path, kind: str) -> None:
    """A layer whose directory is something else gives nothing; nobody waits for it or follows it."""
    root.recipe(segment(b"x"))
    root.files.rmdir()
    if kind == "link":
        root.files.symlink_to(tmp_path)
    elif kind == "fifo":
        os.mkfifo(root.files)
    elif kind == "file":
        root.files.touch()
    with pytest.raises(NotFromHere):
        root.layer().open()


def test_no_descriptor_is_left(root: Root) -> None:
    """However many files a layer has, reading it leaves none open."""
    for number in range(20):
        (root.files / str(number)).write_bytes(b"12345")
    root.recipe(*({"type": 1, "name": str(number), "size": 5} for number in range(20)))
    before = len(os.listdir("/proc/self/fd"))
    source = root.layer().open()
    assert len(everything(source)) == 100
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    del source
    assert len(os.listdir("/proc/self/fd")) == before
    content = ContentStore(str(root.files))
    (root.files / digest(b"x")[7:]).write_bytes(b"x")
    assert everything(content.open(digest(b"x"))) == b"x"
    assert len(os.listdir("/proc/self/fd")) == before


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
    for cache in (b"../../etc", b"a" * 19, b"\xff" * 40, b""):
        (root.place / "cache-id").write_bytes(cache)
        with pytest.raises(NotFromHere):
            store.layer([root.diff])
    (root.place / "cache-id").write_text(CACHE)
    store.layer([root.diff])
    (root.place / "diff").write_text(digest(b"other"))
    with pytest.raises(NotFromHere, match="another layer"):
        store.layer([root.diff])


def test_names_lead_nowhere_else(root: Root) -> None:
    """What an image calls its layers, its config or a blob is a digest before it is part of a path."""
    outside = root.place.parent.parent / "outside"
    outside.mkdir()
    (outside / "cache-id").write_text(CACHE)
    for name in ("../outside", "sha256:../outside"):
        (outside / "diff").write_text(name)
        with pytest.raises(NotFromHere, match="no diff id"):
            ClassicStore(str(root.path)).layer([name])
        with pytest.raises(NotFromHere, match="no image id"):
            ClassicStore(str(root.path)).config(name + "/diff")
        for read in (ContentStore(str(root.place)).size, ContentStore(str(root.place)).open):
            with pytest.raises(NotFromHere, match="no digest"):
                read(name.replace("outside", root.place.name) + "/diff")


def test_the_length_of_a_blob(tmp_path: Path) -> None:
    """Only a file is a blob: a link, a fifo or a directory under its name is none, and nobody opens it."""
    store, place = ContentStore(str(tmp_path)), tmp_path / digest(b"x")[7:]
    makers: list[Callable[[], object]] = [
        place.mkdir,
        lambda: place.symlink_to(tmp_path / "file"),
        lambda: os.mkfifo(place),
    ]
    for make in makers:
        (tmp_path / "file").write_bytes(b"x")
        assert store.size(digest(b"x")) is None
        make()
        assert store.size(digest(b"x")) is None
        with pytest.raises(NotFromHere):
            store.open(digest(b"x"))
        (place.rmdir if place.is_dir() and not place.is_symlink() else place.unlink)()
    place.write_bytes(b"123")
    assert store.size(digest(b"x")) == 3


def test_a_document_is_not_read_for_ever(tmp_path: Path) -> None:
    """What is longer than any document is none, whatever its digest."""
    for extra in (0, 1):
        data = bytes((16 << 20) + extra)
        (tmp_path / digest(data)[7:]).write_bytes(data)
        store = ContentStore(str(tmp_path))
        if extra:
            with pytest.raises(NotFromHere, match="too long"):
                store.document(digest(data))
        else:
            assert len(store.document(digest(data))) == len(data)


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


def test_which_store(tmp_path: Path) -> None:
    """The content of containerd in Docker's data root or in its own, Docker's own layers with overlay2; else none."""
    data = b"content"
    for place in ("containerd/daemon/", ""):
        root = tmp_path / (place or "own")
        blobs = (root if place else root / "").joinpath("io.containerd.content.v1.content/blobs/sha256")
        blobs.mkdir(parents=True)
        (blobs / digest(data)[7:]).write_bytes(data)
        roots = (str(tmp_path / "nowhere"), str(tmp_path) if place else str(root))
        store = store_of(Info("x", roots, "overlayfs", containerd=True))
        assert isinstance(store, ContentStore)
        assert store.document(digest(data)) == data
    (tmp_path / "image/overlay2/layerdb/sha256").mkdir(parents=True)
    assert isinstance(store_of(Info("x", (str(tmp_path),), "overlay2")), ClassicStore)
    for info, says in (
        (Info("x", (str(tmp_path),), "btrfs"), "btrfs"),
        (Info("x", (str(tmp_path / "nowhere"),), "overlay2"), "cannot be read"),
        (Info("x", (), "overlay2"), "overlay2"),
        (Info("x", (str(tmp_path / "image"),), "overlayfs", containerd=True), "containerd"),
    ):
        with pytest.raises(NotFromHere, match=says):
            store_of(info)
