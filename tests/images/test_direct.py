"""Images put together from a data root: what an engine would send, or not from here, whatever lies there."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachekit.archive.format import FILE
from cachekit.archive.images import HeldImage
from cachekit.archive.stream import StreamMember
from cachekit.engine.objects import ImageDetails, Info
from cachekit.images.direct import NotFromHere, members_from_data_root
from cachekit.images.incoming import Look
from cachekit.images.names import Wanted
from tests.support.images import Made, archive_parts, layer, made_image, sha256

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ONE = made_image("app:1", layers=[layer({"a": b"a" * 3000}), layer({"b": b"b" * 700})])
OTHER_LAYER = layer({"c": b"c" * 900})


class Contained:
    """A data root of containerd: blobs by digest."""

    def __init__(self, path: Path) -> None:
        self.info = Info("x", (str(path),), "overlayfs", containerd=True)
        self.blobs = path / "containerd/daemon/io.containerd.content.v1.content/blobs/sha256"
        self.blobs.mkdir(parents=True, exist_ok=True)

    def blob(self, data: bytes) -> dict[str, Any]:
        """Keep a blob; return its descriptor, without a media type."""
        (self.blobs / sha256(data)).write_bytes(data)
        return {"digest": f"sha256:{sha256(data)}", "size": len(data)}

    def document(self, value: object, **more: object) -> dict[str, Any]:
        """Keep a JSON document."""
        return self.blob(json.dumps(value).encode()) | more

    def manifest(self, image: Made, **more: object) -> dict[str, Any]:
        """Keep an image's manifest and all that it names."""
        value = {
            "mediaType": MANIFEST,
            "config": self.blob(image.config),
            "layers": [self.blob(tar) for tar in image.layers],
        }
        return self.document(value | more, mediaType=MANIFEST)

    def add(self, image: Made) -> list[Wanted]:
        """Keep an image as an engine does; return what is wanted of it, by each of its names."""
        parts = {part.name: part.content for part in archive_parts([image], "containerd")}
        for name, content in parts.items():
            if name.startswith("blobs/sha256/") and content:
                self.blob(content)
        top = json.loads(parts["index.json"])["manifests"][0]
        return [wanted(top["digest"], name, image.diff_ids) for name in image.names or ("",)]


class Classic:
    """A data root of Docker's own store, each layer as one segment of its recipe."""

    def __init__(self, path: Path) -> None:
        self.info = Info("x", (str(path),), "overlay2")
        self.path = path
        self.configs = path / "image/overlay2/imagedb/content/sha256"
        self.configs.mkdir(parents=True)

    def config(self, data: bytes) -> str:
        """Keep a config; return the id of its image."""
        (self.configs / sha256(data)).write_bytes(data)
        return f"sha256:{sha256(data)}"

    def add(self, image: Made) -> list[Wanted]:
        """Keep an image; return what is wanted of it, by each of its names."""
        chain = ""
        for tar in image.layers:
            diff = f"sha256:{sha256(tar)}"
            chain = f"sha256:{sha256(f'{chain} {diff}'.encode())}" if chain else diff
            place = self.path / "image/overlay2/layerdb/sha256" / chain[7:]
            place.mkdir(parents=True, exist_ok=True)
            (place / "diff").write_text(diff)
            (place / "cache-id").write_text(chain[7:])
            (self.path / "overlay2" / chain[7:] / "diff").mkdir(parents=True, exist_ok=True)
            step = {"type": 2, "payload": base64.b64encode(tar).decode()}
            (place / "tar-split.json.gz").write_bytes(gzip.compress(json.dumps(step).encode() + b"\n"))
        identity = self.config(image.config)
        return [wanted(identity, name, image.diff_ids) for name in image.names or ("",)]


def wanted(
    identity: str, name: str = "", diff_ids: Sequence[str] = (), platform: str = "linux/amd64"
) -> Wanted:
    """Want an image, as an engine has described it."""
    names = (name,) if name else ()
    return Wanted(name or identity, name, ImageDetails(identity, names, tuple(diff_ids), 1, platform))


def read(members: Iterator[StreamMember]) -> dict[bytes, bytes]:
    """Read every file, checked as a save does; the rest is not looked at."""
    found = {}
    for member in members:
        if member.kind == FILE:
            assert member.open is not None
            source, buffer, data = member.open(), memoryview(bytearray(5000)), b""
            while count := source.readinto(buffer):
                data += buffer[:count]
            assert len(data) == member.size
            assert member.digest in {"", f"sha256:{sha256(data)}"}
            assert member.name not in found
            found[member.name] = data
    return found


def images(
    root: Contained | Classic, *wishes: Wanted, sizes: Mapping[str, int] | None = None
) -> list[HeldImage]:
    """Put an archive together and return the images that are in it, if all of them is."""
    look = Look()
    for name, data in read(members_from_data_root(root.info, wishes, sizes or {})).items():
        small = data if look.wants(name, len(data)) else None
        look.seen(StreamMember(name, FILE, len(data)), f"sha256:{sha256(data)}", small)
    return look.images(wishes)


@pytest.fixture(params=[Contained, Classic])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Contained | Classic:
    """An empty data root of each kind."""
    made: Contained | Classic = request.param(tmp_path / "root")
    return made


@pytest.fixture
def contained(tmp_path: Path) -> Contained:
    """An empty data root of containerd."""
    return Contained(tmp_path / "root")


@pytest.fixture
def classic(tmp_path: Path) -> Classic:
    """An empty data root of Docker's own store."""
    return Classic(tmp_path / "root")


def test_images_are_put_together(root: Contained | Classic) -> None:
    """Two images that share a layer, one of them under two names and one without: whole, and known by their ids."""
    two = made_image("b:2", "b:latest", layers=[ONE.layers[0], OTHER_LAYER], command="/bin/two")
    bare = made_image(layers=[OTHER_LAYER], command="/bin/bare")
    wishes = [*root.add(ONE), *root.add(two), *root.add(bare)]
    found = {image.names: image for image in images(root, *wishes)}
    assert set(found) == {("app:1",), ("b:2", "b:latest"), ()}
    for image, wish in ((ONE, wishes[0]), (two, wishes[1]), (bare, wishes[3])):
        held = found[image.names]
        assert wish.details.id in held.ids
        assert list(held.diff_ids) == image.diff_ids
        assert (held.config, held.platform) == (image.id, "linux/amd64")


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("app:1", "docker.io/library/app:1"),
        ("me/app:1", "docker.io/me/app:1"),
        ("example.org/app:1", "example.org/app:1"),
        ("host:5000/app:1", "host:5000/app:1"),
        ("host:5000/me/app:1", "host:5000/me/app:1"),
        ("localhost/app:1", "localhost/app:1"),
        ("Host/app:1", "Host/app:1"),
        ("me.you/app:1", "me.you/app:1"),
        ("me/app.you:1", "docker.io/me/app.you:1"),
    ],
)
def test_names_in_full(root: Contained | Classic, name: str, full: str) -> None:
    """index.json names an image with its registry, as engines with containerd's store read it."""
    files = read(members_from_data_root(root.info, root.add(made_image(name, layers=[OTHER_LAYER])), {}))
    (entry,) = json.loads(files[b"index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == full
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "1"
    assert json.loads(files[b"manifest.json"])[0]["RepoTags"] == [name]


def test_a_length_that_is_known_is_not_looked_up(classic: Classic) -> None:
    """The length of a layer that an earlier entry holds is believed: nothing of the layer is read for it."""
    wishes = classic.add(ONE)
    sizes = {f"sha256:{sha256(tar)}": len(tar) for tar in ONE.layers}
    for recipe in classic.path.rglob("tar-split.json.gz"):
        recipe.unlink()
    members = list(members_from_data_root(classic.info, wishes, sizes))
    assert {m.digest: m.size for m in members if m.digest in sizes} == sizes
    with pytest.raises(NotFromHere):
        members_from_data_root(classic.info, wishes, {})


def test_only_what_is_here_of_an_index(contained: Contained) -> None:
    """Parts for other platforms are passed over where they are not here, and taken along where they are."""
    arm = made_image(layers=[OTHER_LAYER])
    config = json.dumps(json.loads(arm.config) | {"architecture": "arm64", "variant": "v8"}).encode()
    other = Made((), arm.layers, config)
    rows = [contained.manifest(ONE), contained.manifest(other), {"digest": "sha256:" + "0" * 64, "size": 9}]
    top = contained.document({"mediaType": INDEX, "manifests": rows})["digest"]
    for image, platform in ((ONE, "linux/amd64"), (other, "linux/arm64/v8")):
        wish = wanted(top, "app:1", image.diff_ids, platform)
        assert {held.config for held in images(contained, wish)} == {ONE.id, other.id}
        manifest = json.loads(read(members_from_data_root(contained.info, [wish], {}))[b"manifest.json"])
        assert [row["Config"] for row in manifest] == [f"blobs/sha256/{image.id[7:]}"]
    with pytest.raises(NotFromHere, match="its platform"):
        images(contained, wanted(top, "app:1", (), "linux/s390x"))
    twice = contained.manifest(made_image(layers=[OTHER_LAYER], command="/bin/again"))
    top = contained.document({"mediaType": INDEX, "manifests": [*rows, twice]})["digest"]
    with pytest.raises(NotFromHere, match="its platform"):
        images(contained, wanted(top, "app:1"))


def test_an_attestation_is_no_image(contained: Contained) -> None:
    """What is attached to an image is taken along, and is not taken for the image of a platform."""
    notes = {"vnd.docker.reference.type": "attestation-manifest"}
    about = contained.manifest(made_image(layers=[OTHER_LAYER], command="/none")) | {"annotations": notes}
    rows = [contained.manifest(ONE), about]
    top = contained.document({"mediaType": INDEX, "manifests": rows})["digest"]
    (held,) = images(contained, wanted(top, "app:1", ONE.diff_ids))
    assert held.config == ONE.id
    files = read(members_from_data_root(contained.info, [wanted(top, "app:1")], {}))
    assert f"blobs/sha256/{sha256(OTHER_LAYER)}".encode() in files


@pytest.mark.parametrize("part", ["config", "layers"])
@pytest.mark.parametrize("fault", ["missing", "cut", "text", "digest"])
def test_a_part_that_is_not_as_named(contained: Contained, part: str, fault: str) -> None:
    """A config or layer that is not here, or is longer or shorter than its manifest says, is asked of the engine."""
    document = json.loads((contained.blobs / contained.manifest(ONE)["digest"][7:]).read_bytes())
    row = document["config"] if part == "config" else document["layers"][1]
    file = contained.blobs / row["digest"][7:]
    if fault == "missing":
        file.unlink()
        row["size"] = None  # as long as what is not there
    elif fault == "cut":
        row["size"] -= 1
    elif fault == "text":
        row["size"] = str(row["size"])
    else:
        row["digest"] = [row["digest"]]
    top = contained.document(document)["digest"]
    with pytest.raises(NotFromHere, match="a part of the image"):
        images(contained, wanted(top, "app:1", ONE.diff_ids))


def test_indexes_in_indexes(contained: Contained) -> None:
    """A few levels are walked; more of them are of no shape that an engine has."""
    top = contained.manifest(ONE)
    for level in range(1, 6):
        top = contained.document({"mediaType": INDEX, "manifests": [top]}, mediaType=INDEX)
        if level < 5:
            assert images(contained, wanted(top["digest"], "app:1", ONE.diff_ids))[0].config == ONE.id
    with pytest.raises(NotFromHere, match="shape"):
        images(contained, wanted(top["digest"], "app:1", ONE.diff_ids))


def test_an_index_that_names_one_part_often(contained: Contained) -> None:
    """Small documents that name the next one a hundred times each are read once each."""
    top = contained.manifest(ONE)
    for _ in range(4):
        top = contained.document({"mediaType": INDEX, "manifests": [top] * 100}, mediaType=INDEX)
    files = read(members_from_data_root(contained.info, [wanted(top["digest"], "app:1", ONE.diff_ids)], {}))
    assert len(files) == 4 + len(ONE.layers) + 2 + 3


@pytest.mark.parametrize("kind", [None, 5, [], {}, "", "application/vnd.oci.artifact.manifest.v1+json"])
def test_other_kinds_of_documents(contained: Contained, kind: object) -> None:
    """A document that does not say that it is a manifest or an index is not taken for one."""
    document = json.loads((contained.blobs / contained.manifest(ONE)["digest"][7:]).read_bytes())
    top = contained.document(document | {"mediaType": kind})["digest"]
    with pytest.raises(NotFromHere, match="no manifest or index"):
        images(contained, wanted(top, "app:1", ONE.diff_ids))


def test_a_config_with_other_layers(classic: Classic) -> None:
    """What the engine says of an image, and what its config says, must be the same."""
    (wish,) = classic.add(ONE)
    for diff_ids in ((), ONE.diff_ids[:1], ONE.diff_ids[::-1]):
        with pytest.raises(NotFromHere, match="other layers"):
            images(classic, wanted(wish.details.id, "app:1", diff_ids))


@pytest.mark.parametrize("rootfs", [None, [], "x", 5, {}, {"diff_ids": None}, {"diff_ids": "x"}])
def test_a_config_without_layers(classic: Classic, rootfs: object) -> None:
    """A config that names none, in whatever way, is not an image with layers."""
    classic.add(ONE)
    config = json.dumps(json.loads(ONE.config) | {"rootfs": rootfs}).encode()
    with pytest.raises(NotFromHere, match="other layers"):
        images(classic, wanted(classic.config(config), "app:1", ONE.diff_ids))


def test_an_image_of_no_layers(classic: Classic) -> None:
    """An image from scratch has no list of layers at all, and is an image."""
    classic.add(ONE)
    config = json.dumps(json.loads(ONE.config) | {"rootfs": {"type": "layers"}, "history": []}).encode()
    (held,) = images(classic, wanted(classic.config(config), "app:1"))
    assert (held.names, held.layers) == (("app:1",), ())


@pytest.mark.parametrize("digest", [None, 5, [], {}])
def test_rows_without_a_digest(contained: Contained, digest: object) -> None:
    """An index with a row that names no blob is asked of the engine."""
    rows = [{"mediaType": MANIFEST, "digest": digest, "size": 5}, contained.manifest(ONE)]
    top = contained.document({"mediaType": INDEX, "manifests": rows})["digest"]
    with pytest.raises(NotFromHere, match="no digest that is known"):
        images(contained, wanted(top, "app:1", ONE.diff_ids))


@pytest.mark.parametrize("where", ["row", "document", "both"])
def test_where_an_index_says_that_it_is_one(contained: Contained, where: str) -> None:
    """An index inside an index may say it in its own document, or in the row that names it, or in both."""
    said: dict[str, object] = {} if where == "row" else {"mediaType": INDEX}
    inner = contained.document(said | {"manifests": [contained.manifest(ONE)]})
    row = inner if where == "document" else inner | {"mediaType": INDEX}
    data = {"mediaType": INDEX, "manifests": [row]}
    files = read(
        members_from_data_root(contained.info, [wanted(contained.document(data)["digest"], "a:1")], {})
    )
    assert f"blobs/sha256/{ONE.id[7:]}".encode() in files


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | st.text(max_size=4) | st.sampled_from([MANIFEST, INDEX]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
_FIELDS = ["mediaType", "config", "layers", "manifests", "annotations", "rootfs", "os", "digest", "size"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_hostile_documents(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever an index, a manifest or a config holds: an archive, or not from here; never another error."""
    place = tmp_path_factory.mktemp("root")
    root, other = Contained(place / "one"), Classic(place / "two")

    def spoilt(value: object) -> Any:
        if not isinstance(value, dict):
            return data.draw(_JSON)
        return value | data.draw(st.dictionaries(st.sampled_from(_FIELDS), _JSON, max_size=2))

    config = json.dumps(spoilt(json.loads(ONE.config))).encode()
    manifest = {
        "mediaType": MANIFEST,
        "config": spoilt(root.blob(config)) if data.draw(st.booleans()) else root.blob(config),
        "layers": [root.blob(tar) for tar in ONE.layers],
    }
    row = root.document(spoilt(manifest), mediaType=MANIFEST)
    index = {"mediaType": INDEX, "manifests": [spoilt(row), row]}
    for identity in (row["digest"], root.document(index)["digest"], root.document(spoilt(index))["digest"]):
        try:
            read(members_from_data_root(root.info, [wanted(identity, "app:1", ONE.diff_ids)], {}))
        except NotFromHere:
            continue
    other.add(ONE)
    try:
        read(members_from_data_root(other.info, [wanted(other.config(config), "a:1", ONE.diff_ids)], {}))
    except NotFromHere:
        pass
    with pytest.raises(NotFromHere):
        members_from_data_root(root.info, [wanted(root.blob(b"[" * 100_000)["digest"])], {})
