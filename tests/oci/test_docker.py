"""Archives of images: each layout is understood, and each single damage is found and said, never raised."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.errors import Damaged
from cachekit.oci.docker import ArchiveContents, Inventory
from tests.support.foreign import accepted, looked_at, refused
from tests.support.images import (
    STYLES,
    Made,
    Part,
    Style,
    archive_parts,
    layer,
    made_image,
    sha256,
    tar_of_parts,
)

SHARED = layer({"base": b"base" * 300})
IMAGES = [
    made_image("app:1", "app:latest", layers=[SHARED, layer({"one": b"1"})]),
    made_image("web:2", layers=[SHARED, layer({"two": b"2"}), layer({"three": b"3"})]),
]


def taken(parts: Sequence[Part], requested: Sequence[str] = ()) -> ArchiveContents:
    """Tell an inventory of some members; return what they are."""
    inventory = Inventory()
    for part in parts:
        name = part.name.encode("utf-8", "surrogateescape")
        kind = "directory" if part.directory else "symlink" if part.link else "file"
        digest = hashlib.sha256(part.content).hexdigest() if kind == "file" else ""
        wanted = kind == "file" and inventory.wants(name, len(part.content))
        inventory.add(
            name, kind, len(part.content), digest, part.link.encode(), part.content if wanted else None
        )
    return inventory.contents(requested)


def podman() -> list[Part]:
    """Return what podman save writes as docker-archive: layers by their digest, with links from numbered places."""
    parts: dict[str, Part] = {}
    rows = []
    for image in IMAGES:
        paths = [f"{sha256(tar)}.tar" for tar in image.layers]
        for path, tar in zip(paths, image.layers, strict=True):
            parts[path] = Part(path, tar)
            own = sha256(f"{image.id}{path}".encode())
            parts[own] = Part(f"{own}/layer.tar", link=f"../{path}")
        config = f"{sha256(image.config)}.json"
        parts[config] = Part(config, image.config)
        rows.append({"Config": config, "RepoTags": list(image.names), "Layers": paths})
    return [*parts.values(), Part("manifest.json", json.dumps(rows).encode())]


def oci(style: Style = "classic") -> list[Part]:
    """Return an OCI archive: a layout alone."""
    return [part for part in archive_parts(IMAGES, style) if part.name != "manifest.json"]


LAYOUTS: dict[str, list[Part]] = {
    **{style: archive_parts(IMAGES, style) for style in STYLES},
    "podman": podman(),
    "oci": oci(),
    "oci gzip": oci("containerd"),
}


def place_of(layout: str, content: bytes) -> int:
    """Find the member that holds a layer or a config."""
    packed = gzip.compress(content, 1, mtime=0)
    return next(
        i for i, part in enumerate(LAYOUTS[layout]) if part.content in {content, packed} and not part.link
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    """Of every layout the images come out: names, ids, platform, and every layer's digest."""
    found = taken(LAYOUTS[layout], ["app:1", "app:latest", "web:2"])
    assert found.faults == ()
    assert found.kind == ("oci-archive" if layout.startswith("oci") else "docker-archive")
    assert [
        (set(image.names), image.config, image.platform, list(image.diff_ids)) for image in found.images
    ] == [(set(made.names), made.id, "linux/amd64", made.diff_ids) for made in IMAGES]
    assert accepted(tar_of_parts(LAYOUTS[layout])).kind == found.kind


@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_is_nobodys_business(layout: str) -> None:
    """The members may stand in any order."""
    assert taken(LAYOUTS[layout][::-1]).faults == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_name_that_was_asked_for(layout: str) -> None:
    """A name that was asked for and is not there is a fault."""
    assert taken(LAYOUTS[layout], ["other:1"]).faults == ("the image 'other:1' is not in it",)


def _missing(parts: list[Part], at: int) -> list[Part]:
    return parts[:at] + parts[at + 1 :]


def _changed(parts: list[Part], at: int) -> list[Part]:
    content = bytearray(parts[at].content)
    content[len(content) // 2] ^= 1
    return [*parts[:at], replace(parts[at], content=bytes(content)), *parts[at + 1 :]]


def _short(parts: list[Part], at: int) -> list[Part]:
    return [*parts[:at], replace(parts[at], content=parts[at].content[:-1]), *parts[at + 1 :]]


def _emptied(parts: list[Part], at: int) -> list[Part]:
    return [*parts[:at], replace(parts[at], content=b""), *parts[at + 1 :]]


def _twice(parts: list[Part], at: int) -> list[Part]:
    return [*parts, parts[at]]


def _linked(parts: list[Part], at: int) -> list[Part]:
    part = parts[at]
    return [*parts[:at], replace(part, content=b"", link=part.name.rpartition("/")[2]), *parts[at + 1 :]]


DAMAGES = [_missing, _changed, _short, _emptied, _twice, _linked]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("what", ["shared layer", "own layer", "config"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_damage(layout: str, what: str, damage: Callable[[list[Part], int], list[Part]]) -> None:
    """A layer or a config that is missing, changed, short, empty, there twice or a link to itself is a fault."""
    image = IMAGES[0]
    content = {"shared layer": SHARED, "own layer": image.layers[1], "config": image.config}[what]
    parts = damage(LAYOUTS[layout], place_of(layout, content))
    found = taken(parts)
    assert found.faults
    assert found.recognised
    assert "images is not whole" in refused(tar_of_parts(parts))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_swapped_config(layout: str) -> None:
    """Two configs that changed places are faults, though both are there."""
    first, second = (place_of(layout, image.config) for image in IMAGES)
    parts = list(LAYOUTS[layout])
    parts[first] = replace(parts[first], content=IMAGES[1].config)
    parts[second] = replace(parts[second], content=IMAGES[0].config)
    assert len(taken(parts).faults) >= 2


@pytest.mark.parametrize("layout", ["legacy", "podman"])
def test_a_config_of_another_name(layout: str) -> None:
    """A row of manifest.json that names another image's config is a fault: its layers are others."""
    parts = list(LAYOUTS[layout])
    at = next(i for i, part in enumerate(parts) if part.name == "manifest.json")
    rows = json.loads(parts[at].content)
    rows[0]["Config"] = rows[1]["Config"]
    parts[at] = Part("manifest.json", json.dumps(rows).encode())
    assert "has 2 layers, its config names 3" in taken(parts).faults[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cut_before_its_documents(layout: str) -> None:
    """An archive without manifest.json and index.json, ended properly, is no tar of something else: refused."""
    parts = [part for part in LAYOUTS[layout] if part.name not in {"manifest.json", "index.json"}]
    assert "manifest.json" in refused(tar_of_parts(parts))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"null", b"[" * 100_000, b'["\\ud800"]', b"\xff"]
)
@pytest.mark.parametrize("name", ["manifest.json", "index.json", "oci-layout"])
def test_documents_that_are_none(name: str, content: bytes) -> None:
    """A document that is empty, cut, of another type, endlessly deep or no text is a fault."""
    parts = [replace(part, content=content) if part.name == name else part for part in LAYOUTS["classic"]]
    assert taken(parts).faults
    refused(tar_of_parts(parts))


def test_documents_that_are_huge() -> None:
    """A document of more than 4 MiB is not kept, and is a fault; nor are all together more than 64 MiB."""
    parts = [
        replace(part, content=b" " * (5 << 20)) if part.name == "manifest.json" else part
        for part in LAYOUTS["legacy"]
    ]
    assert "too long" in " ".join(taken(parts).faults)
    inventory = Inventory()
    assert sum(inventory.wants(b"blobs/sha256/%d" % number, 4 << 20) for number in range(40)) == 16


def test_an_index_in_itself() -> None:
    """Indexes below indexes end after some levels."""
    content = b"{}"
    parts = []
    row: dict[str, Any] = {}
    for _ in range(9):
        row = {
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": f"sha256:{sha256(content)}",
            "size": len(content),
        }
        parts.append(Part(f"blobs/sha256/{sha256(content)}", content))
        content = json.dumps({"manifests": [row]}).encode()
    parts += [Part("index.json", content), Part("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')]
    assert "too many levels" in " ".join(taken(parts).faults)


def test_something_else_with_a_manifest() -> None:
    """A tar of something else that begins with a manifest.json or an index.json is a tar, and whole."""
    for name in ("manifest.json", "index.json", "repositories"):
        found = accepted(tar_of_parts([Part(name, b'{"name": "an extension"}'), Part("code.js", b"1")]))
        assert found.kind == "tar"


@pytest.mark.parametrize("as_index", [True, False])
def test_a_cache_of_buildkit(as_index: bool) -> None:
    """A tar of BuildKit's cache directory, in either layout, is whole; without any part of it, it is not."""
    kind = "application/vnd.oci.image.{}.v1+json".format("index" if as_index else "manifest")
    blob, config = b"layer" * 100, b'{"layers": [], "records": []}'
    rows: list[dict[str, Any]] = [
        {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip"},
        {"mediaType": "application/vnd.buildkit.cacheconfig.v0"},
    ]
    for row, content in zip(rows, (blob, config), strict=True):
        row |= {"digest": f"sha256:{sha256(content)}", "size": len(content)}
    document = {"manifests": rows} if as_index else {"layers": rows[:1], "config": rows[1]}
    top = json.dumps({"schemaVersion": 2, "mediaType": kind} | document).encode()
    index = {"manifests": [{"mediaType": kind, "digest": f"sha256:{sha256(top)}", "size": len(top)}]}
    parts = [Part(f"blobs/sha256/{sha256(content)}", content) for content in (blob, config, top)]
    parts += [
        Part("index.json", json.dumps(index).encode()),
        Part("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
    ]
    accepted(tar_of_parts(parts))
    for at in range(len(parts)):
        refused(tar_of_parts(_missing(parts, at)))
        if at < 3:
            refused(tar_of_parts(_changed(parts, at)))


def test_links_in_circles() -> None:
    """Links that lead nowhere, outside or in a circle are faults."""
    for link in ("layer.tar", "../other/layer.tar", "/etc/passwd", "../../../../x"):
        rows = [{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["own/layer.tar"]}]
        config = {"rootfs": {"diff_ids": [f"sha256:{sha256(b'')}"]}}
        parts = [
            Part("own/layer.tar", link=link),
            Part("other/layer.tar", link="../own/layer.tar"),
            Part("c.json", json.dumps(config).encode()),
            Part("manifest.json", json.dumps(rows).encode()),
        ]
        assert taken(parts).faults


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def replaced(parts: Sequence[Part], at: int, content: bytes) -> list[Part]:
    """Give a member another content, and all that name it by its digest the new one, and so on."""
    parts = list(parts)
    todo = [(at, content)]
    while todo:
        at, content = todo.pop()
        old, new = parts[at], sha256(content)
        was = sha256(old.content)
        size = b'"size": %d' % len(old.content), b'"size": %d' % len(content)
        parts[at] = Part(old.name.replace(was, new), content)
        for i, part in enumerate(parts):
            if was.encode() in part.content:
                rows = part.content.split(b"{")
                rows = [
                    row.replace(was.encode(), new.encode()).replace(*size) if was.encode() in row else row
                    for row in rows
                ]
                todo.append((i, b"{".join(rows)))
    return parts


@pytest.mark.parametrize("value", [0, 1, 1.5, True, "text", [], ["x"], [[]], {}, {"x": []}, None, "sha256:"])
@pytest.mark.parametrize("layout", ["classic", "containerd", "legacy"])
def test_wrong_types_everywhere(layout: str, value: object) -> None:
    """A value of another type, at each place of each document, whose digests are right: faults or images."""
    for at, part in enumerate(LAYOUTS[layout]):
        if part.content[:1] not in {b"{", b"["} or part.name.endswith("/json"):
            continue
        for number in range(200):
            document = json.loads(part.content)
            places = [*_places(document)]
            if number >= len(places):
                break
            holder, key = places[number]
            holder[key] = value
            found = taken(replaced(LAYOUTS[layout], at, json.dumps(document).encode()))
            assert found.images or found.faults


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


@given(st.data())
def test_hostile_documents(data: st.DataObject) -> None:
    """Whatever stands at whatever place of a document: the images, or faults, never an exception."""
    layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
    parts = list(LAYOUTS[layout])
    documents = [i for i, part in enumerate(parts) if part.content[:1] in {b"{", b"["}]
    at = data.draw(st.sampled_from(documents))
    document = json.loads(parts[at].content)
    places = [*_places(document)]
    if places:
        holder, key = data.draw(st.sampled_from(places))
        holder[key] = data.draw(JSON)
    parts = replaced(parts, at, json.dumps(document if places else data.draw(JSON)).encode())
    found = taken(parts)
    assert found.images or found.faults
    assert isinstance(looked_at(tar_of_parts(parts)).problem, Damaged | None)


def test_an_image_without_layers() -> None:
    """An image from scratch, without a layer, is whole."""
    empty = Made(("none:1",), (), b'{"rootfs": {"type": "layers", "diff_ids": []}}')
    for style in STYLES:
        assert taken(archive_parts([empty], style)).faults == ()


def _edited(layout: str, find: Callable[[Part], bool], old: bytes, new: bytes) -> ArchiveContents:
    """Replace bytes of one document, with all digests put right."""
    at = next(i for i, part in enumerate(LAYOUTS[layout]) if find(part) and old in part.content)
    content = LAYOUTS[layout][at].content.replace(old, new, 1)
    return taken(replaced(LAYOUTS[layout], at, content))


@pytest.mark.parametrize("layout", ["oci", "oci gzip"])
def test_a_size_that_is_wrong(layout: str) -> None:
    """A manifest that gives a blob another size than it has is a fault."""
    found = _edited(layout, lambda part: b'"config"' in part.content, b'"size": ', b'"size": 9')
    assert any("bytes long, not" in fault for fault in found.faults)


def test_a_layer_of_another_image() -> None:
    """A layer whose digest is right, and which is not the one that the config names, is a fault."""
    other = sha256(layer({"other": b"other"})).encode()
    named = sha256(IMAGES[0].layers[1]).encode()
    found = _edited("oci", lambda part: b"diff_ids" in part.content, named, other)
    assert any("not the one that the config names" in fault for fault in found.faults)


def test_a_config_whose_name_is_not_its_digest() -> None:
    """A config that was changed where no layer is named is a fault: its name is its digest."""
    at = place_of("legacy", IMAGES[0].config)
    parts = list(LAYOUTS["legacy"])
    parts[at] = replace(parts[at], content=parts[at].content.replace(b"/bin/true", b"/bin/evil"))
    (fault,) = taken(parts).faults
    assert "another content than its name says" in fault


def test_an_index_of_absent_platforms_alone() -> None:
    """An index none of whose manifests is there is a fault."""
    manifests = [
        part for part in oci("containerd") if b'"config"' in part.content and b'"layers"' in part.content
    ]
    found = taken([part for part in oci("containerd") if part not in manifests])
    assert any("none is there" in fault for fault in found.faults)
