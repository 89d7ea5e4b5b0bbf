"""The walk through a layout's documents: what they lead to, and what is wrong with them, whatever they hold."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from cachekit.oci import graph as graphs
from cachekit.oci.graph import DOCUMENT_BYTES, Graph, walk
from tests.support.layouts import CACHE_CONFIG, CONFIG, INDEX, LAYER, MANIFEST

CONTAINERD_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"


class Documents:
    """Documents by their digest; `read` says which were asked for."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.read: list[str] = []

    def raw(self, data: bytes, media_type: object = MANIFEST, **more: Any) -> dict[str, Any]:
        """Keep bytes; return their descriptor."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.data[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def put(self, value: object, media_type: object = MANIFEST, **more: Any) -> dict[str, Any]:
        """Keep a document; return its descriptor."""
        return self.raw(json.dumps(value).encode(), media_type, **more)

    def walk(self, *rows: object) -> Graph:
        """Walk from an index.json with these rows."""

        def read(digest: str, size: int) -> bytes | None:
            self.read.append(digest)
            return self.data.get(digest)

        return walk(json.dumps({"manifests": rows}).encode(), read)


@pytest.fixture
def documents() -> Documents:
    """None yet."""
    return Documents()


def blob(name: str, media_type: str = LAYER, size: int = 5, **more: Any) -> dict[str, Any]:
    """Return the descriptor of a blob that is no document."""
    return {
        "mediaType": media_type,
        "digest": f"sha256:{hashlib.sha256(name.encode()).hexdigest()}",
        "size": size,
        **more,
    }


IMAGE = {"config": blob("config", CONFIG), "layers": [blob("one"), blob("two")]}
WRONG_DESCRIPTORS = {
    "no object": (["x"], "without a digest"),
    "no digest": ({"size": 5}, "without a digest"),
    "a number": ({"digest": 5, "size": 5}, "without a digest"),
    "too short": ({"digest": "sha256:" + "a" * 63, "size": 5}, "without a digest"),
    "too long": ({"digest": "sha256:" + "a" * 65, "size": 5}, "without a digest"),
    "capitals": ({"digest": "sha256:" + "A" * 64, "size": 5}, "without a digest"),
    "a path": ({"digest": "sha256:../../" + "a" * 58, "size": 5}, "without a digest"),
    "unknown": ({"digest": "md5:" + "a" * 32, "size": 5}, "without a digest"),
    "no size": ({"digest": "sha256:" + "a" * 64}, "without a size"),
    "a text as size": ({"digest": "sha256:" + "a" * 64, "size": "5"}, "without a size"),
    "yes as size": ({"digest": "sha256:" + "a" * 64, "size": True}, "without a size"),
    "below nothing": ({"digest": "sha256:" + "a" * 64, "size": -1}, "without a size"),
    "no file's size": ({"digest": "sha256:" + "a" * 64, "size": 1 << 62}, "without a size"),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", WRONG_DESCRIPTORS)
def test_descriptors_that_name_no_blob(documents: Documents, kind: str, *, inside: bool) -> None:
    """A row without a digest or size that can be is told of, once, and the other rows are walked all the same."""
    row, words = WRONG_DESCRIPTORS[kind]
    if inside:
        graph = documents.walk(documents.put({**IMAGE, "layers": [row, blob("two")]}))
    else:
        graph = documents.walk(row, documents.put(IMAGE))
    (fault,) = graph.faults
    assert words in fault[1]
    assert blob("two")["digest"] in graph.blobs
    assert len(graph.references) == (1 if inside else 2)


@pytest.mark.parametrize("size", [0, (1 << 62) - 1])
def test_sizes_that_can_be(documents: Documents, size: int) -> None:
    """An empty blob is one, and so is the longest that a file system might hold."""
    graph = documents.walk(documents.put({**IMAGE, "layers": [blob("x", size=size)]}))
    assert graph.faults == []
    assert graph.blobs[blob("x")["digest"]].size == size


@pytest.mark.parametrize(
    "data", [b"{", b"", b"[]", b"\xff", b'{"layers":"\\ud800"}', b"[" * 200_000], ids=repr
)
def test_what_is_no_document(documents: Documents, data: bytes) -> None:
    """What is not JSON, is none of our kind, or could not be printed, is told of as cut."""
    graph = documents.walk(documents.raw(data))
    assert [text for _, text in graph.faults] == [
        f"the manifest {documents.raw(data)['digest'][:19]} is not JSON: it may be cut"
    ]
    whole = walk(data, lambda digest, size: None)
    assert whole.faults == [("", "index.json is no index: it may be cut")]


@pytest.mark.parametrize(("kind", "key"), [(MANIFEST, "layers"), (INDEX, "manifests")])
@pytest.mark.parametrize("value", [None, {}, "x", 5])
def test_documents_without_their_list(documents: Documents, kind: str, key: str, value: object) -> None:
    """An index without manifests, and a manifest without layers, is told of."""
    graph = documents.walk(documents.put({**IMAGE, key: value}, kind))
    assert [text for _, text in graph.faults if "has no list of what it holds" in text]
    assert len(graph.faults) == 1


def test_two_sizes_of_one_blob(documents: Documents) -> None:
    """One of two lengths is wrong, so it is told."""
    graph = documents.walk(documents.put({**IMAGE, "layers": [blob("x"), blob("x", size=6)]}))
    assert ["another size (6)" in text for _, text in graph.faults] == [True]
    assert documents.walk(documents.put({**IMAGE, "layers": [blob("x"), blob("x")]})).faults == []


def test_a_document_that_says_to_be_another(documents: Documents) -> None:
    """A media type in a document that is not the one it is named by is told; where one of both is silent it is not."""
    said = {**IMAGE, "mediaType": INDEX}
    assert "is named as" in documents.walk(documents.put(said)).faults[0][1]
    same = {**IMAGE, "mediaType": MANIFEST}
    for kind, row in (
        (MANIFEST, same),
        (MANIFEST, IMAGE),
        ("", said),
        (None, said),
        (MANIFEST, {**IMAGE, "mediaType": 5}),
    ):
        assert documents.walk(documents.put(row, kind)).faults == []


@pytest.mark.parametrize("media_type", [None, 5, "", ["x"]])
def test_a_row_without_a_media_type(documents: Documents, media_type: object) -> None:
    """It is taken for a manifest, as older tools leave the type out."""
    graph = documents.walk(documents.put(IMAGE, media_type))
    assert (graph.references[0].media_type, graph.opaque) == ("", {})
    assert blob("one")["digest"] in graph.blobs


def test_levels(documents: Documents) -> None:
    """Eight indexes above a manifest are walked; one more is told, and ends there."""
    row = documents.put(IMAGE)
    for level in range(1, 10):
        row = documents.put({"manifests": [row]}, INDEX)
        graph = documents.walk(row)
        assert bool(graph.faults) == (level > 8)
        assert (blob("one")["digest"] in graph.blobs) == (level <= 8)
    assert "too many levels" in graph.faults[0][1]


def test_a_document_that_is_too_long(documents: Documents) -> None:
    """It is told, and is not even read."""
    long = blob("long", MANIFEST, DOCUMENT_BYTES + 1)
    assert "too long for a document" in documents.walk(long).faults[0][1]
    assert documents.read == []
    assert documents.walk({**long, "size": DOCUMENT_BYTES}).faults == []
    assert documents.read == [long["digest"]]


def test_more_blobs_than_can_be(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a number on no more are taken in; those that are known count once."""
    monkeypatch.setattr(graphs, "_MOST_BLOBS", 4)
    graph = documents.walk(documents.put(IMAGE), documents.put(IMAGE))
    assert (len(graph.blobs), graph.faults) == (4, [])
    graph = documents.walk(documents.put({**IMAGE, "layers": [*IMAGE["layers"], blob("three")]}))
    assert (len(graph.blobs), [text for _, text in graph.faults]) == (
        4,
        ["the layout names more blobs than can be"],
    )


def test_each_document_is_read_once_for_a_reference(documents: Documents) -> None:
    """Indexes that name the next one twice do not take twice as long at each level."""
    row = documents.put(IMAGE)
    for _ in range(7):
        row = documents.put({"manifests": [row, row]}, INDEX)
    assert documents.walk(row).faults == []
    assert len(documents.read) == 8


def test_each_document_is_read_once_for_all_references(documents: Documents) -> None:
    """However many references, or indexes between, lead to one document: it is read once, and told once."""
    image = documents.put({**IMAGE, "mediaType": INDEX})
    rows = [image | {"annotations": {REF_NAME: f"direct {number}"}} for number in range(50)]
    for number in range(50):
        index = documents.put({"manifests": [image], "annotations": {"number": str(number)}}, INDEX)
        rows.append(index | {"annotations": {REF_NAME: f"index {number}"}})
    graph = documents.walk(*rows)
    assert len(documents.read) == len(set(documents.read)) == 51
    assert len(graph.faults) == 1
    names = [row["annotations"][REF_NAME] for row in rows]
    assert graph.needed_by(blob("one")["digest"]) == graph.needed_by(image["digest"]) == names
    assert graph.needed_by(rows[70]["digest"]) == ["index 20"]


def test_a_document_is_judged_under_each_of_its_names(documents: Documents) -> None:
    """A document that was right by one name is told if another reference calls it something else."""
    image = documents.put({**IMAGE, "mediaType": MANIFEST})
    docker = "application/vnd.docker.distribution.manifest.v2+json"
    for wrong, says in (
        (image | {"mediaType": docker}, "is named as"),
        (image | {"mediaType": INDEX}, "is named as"),
        (image | {"size": image["size"] + 1}, "another size"),
    ):
        for rows in ([image, wrong], [wrong, image]):
            assert says in "".join(text for _, text in documents.walk(*rows).faults)


def test_who_needs_a_blob(documents: Documents) -> None:
    """Each reference that leads to a blob needs it, in their order; the last of them is known for every blob."""
    first = documents.put({**IMAGE, "layers": [blob("one"), blob("shared")]})
    second = documents.put({**IMAGE, "layers": [blob("two"), blob("shared")]})
    rows = [first, documents.put({"manifests": [second, second]}, INDEX), first, blob("two")]
    for number, row in enumerate(rows):
        rows[number] = row | {"annotations": {REF_NAME: str(number)}}
    graph = documents.walk(*rows)
    needs = {
        first["digest"]: "02",
        second["digest"]: "1",
        rows[1]["digest"]: "1",
        blob("config", CONFIG)["digest"]: "012",
        blob("one")["digest"]: "02",
        blob("two")["digest"]: "13",
        blob("shared")["digest"]: "012",
    }
    assert {digest: "".join(graph.needed_by(digest)) for digest in graph.blobs} == needs
    assert graph.last_needed_by() == {digest: int(names[-1]) for digest, names in needs.items()}


def test_documents_that_lead_to_each_other(documents: Documents) -> None:
    """No digest can, but who only looks at sizes does not know: both walks come to an end."""
    one, two = blob("one index", INDEX, 7), blob("two index", INDEX, 7)
    documents.data[one["digest"]] = json.dumps({"manifests": [two]}).encode()
    documents.data[two["digest"]] = json.dumps({"manifests": [one, blob("x")]}).encode()
    graph = documents.walk(one | {"annotations": {REF_NAME: "a"}}, two | {"annotations": {REF_NAME: "b"}})
    assert graph.needed_by(blob("x")["digest"]) == graph.needed_by(one["digest"]) == ["a", "b"]
    assert set(graph.last_needed_by().values()) == {1}


def test_which_references_are_caches(documents: Documents) -> None:
    """A reference that leads to BuildKit's config is a cache, also if it is the config, or an index lies between."""
    config = blob("cache config", CACHE_CONFIG)
    cache = documents.put({"config": config, "layers": []})
    rows = [cache, documents.put(IMAGE), documents.put({"manifests": [cache]}, INDEX), config]
    assert [reference.cache for reference in documents.walk(*rows).references] == [True, False, True, True]


def test_a_blob_that_need_not_be_here(documents: Documents) -> None:
    """What a manifest is about is optional until something needs it; one descriptor with urls is enough of them."""
    subject = documents.put(IMAGE)
    attached = documents.put({**IMAGE, "subject": subject})
    for rows, optional in (([attached], True), ([attached, subject], False), ([subject, attached], False)):
        graph = documents.walk(*rows)
        assert graph.blobs[subject["digest"]].optional is optional
        assert not graph.blobs[blob("one")["digest"]].optional
    for odd in ("x", 5):
        assert documents.walk(documents.put({**IMAGE, "subject": odd})).faults == []
    there, away = blob("x"), blob("x", urls=["https://example.com/x"])
    for layers in ([there, away], [away, there]):
        graph = documents.walk(documents.put({**IMAGE, "layers": layers}))
        assert graph.blobs[there["digest"]].elsewhere
    assert not documents.walk(documents.put({**IMAGE, "layers": [there]})).blobs[there["digest"]].elsewhere


def test_a_blob_in_two_roles(documents: Documents) -> None:
    """A document that is named as a layer too is walked, and stays a document."""
    manifest = documents.put(IMAGE)
    other = documents.put({**IMAGE, "layers": [manifest]})
    for rows in ([other, manifest], [manifest, other]):
        graph = documents.walk(*rows)
        assert graph.blobs[manifest["digest"]].role == "manifest"
        assert blob("two")["digest"] in graph.blobs


def test_the_parts_of_a_manifest_lead_nowhere(documents: Documents) -> None:
    """What a manifest has as its config or a layer is that, whatever type it says that it has."""
    odd = blob("odd", MANIFEST)
    graph = documents.walk(documents.put({"config": odd, "layers": [blob("x", "application/odd")]}))
    assert (graph.faults, graph.opaque, len(documents.read)) == ([], {}, 1)
    assert graph.blobs[odd["digest"]].role == "config"


def test_types_that_are_not_known(documents: Documents) -> None:
    """A row of an unknown type may lead on, so its type is told; beside a cache's config it is a layer."""
    odd = blob("odd", "application/odd")
    assert list(documents.walk(odd).opaque) == ["application/odd"]
    assert list(documents.walk(documents.put({"manifests": ["x", odd]}, INDEX)).opaque) == ["application/odd"]
    cache = documents.put({"manifests": [odd, blob("config", CACHE_CONFIG)]}, INDEX)
    graph = documents.walk(cache, documents.put(IMAGE))
    assert graph.opaque == {}
    assert [reference.cache for reference in graph.references] == [True, False]
    for known in (LAYER, CONFIG, CACHE_CONFIG):
        assert documents.walk(blob("x", known)).opaque == {}


def test_names(documents: Documents) -> None:
    """A reference is called by containerd's name, else the OCI's, else by the beginning of its digest."""
    for notes, name in (
        ({CONTAINERD_NAME: "full", REF_NAME: "short"}, "full"),
        ({REF_NAME: "short"}, "short"),
        ({CONTAINERD_NAME: "", REF_NAME: "short"}, "short"),
        ({CONTAINERD_NAME: 5, REF_NAME: "short"}, "short"),
        ({}, blob("x")["digest"][:19]),
        (["x"], blob("x")["digest"][:19]),
        (None, blob("x")["digest"][:19]),
    ):
        row = blob("x", annotations=notes)
        graph = documents.walk(row)
        (reference,) = graph.references
        assert (reference.name, reference.digest, reference.media_type) == (name, row["digest"], LAYER)
        assert graph.needed_by(row["digest"]) == [name]
    assert documents.walk({"digest": 5}).references[0].name == "?"
    assert documents.walk({"digest": 5}).references[0].digest == ""
    assert documents.walk().needed_by("sha256:" + "a" * 64) == []
