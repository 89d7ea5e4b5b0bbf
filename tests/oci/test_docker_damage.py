"""The inventory of image archives: every layout is whole as it is made, and no single damage passes."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachekit.oci.docker import ArchiveContents, Inventory
from tests.support.images import (
    STYLES,
    Made,
    Part,
    Style,
    archive_parts,
    layer,
    made_image,
    sha256,
)

EVERY = pytest.mark.parametrize("style", STYLES)
APP = made_image("app:1", "app:latest", layers=[layer({"a": b"a"}), layer({"b": b"b" * 3000})])
OTHER = made_image("other:1", layers=[APP.layers[0], layer({"c": b"c"})], command="/bin/other")


def contents(parts: list[Part], *requested: str) -> ArchiveContents:
    """Tell an inventory of some members."""
    inventory = Inventory()
    for part in parts:
        name = part.name.encode()
        kind = "directory" if part.directory else "symlink" if part.link else "file"
        keep = kind == "file" and inventory.wants(name, len(part.content))
        digest = sha256(part.content) if kind == "file" else ""
        inventory.add(
            name, kind, len(part.content), digest, part.link.encode(), part.content if keep else None
        )
    return inventory.contents(requested)


def oci(parts: list[Part]) -> list[Part]:
    """Leave what an OCI archive has."""
    return [part for part in parts if part.name != "manifest.json"]


@EVERY
def test_whole(style: Style) -> None:
    """Two images that share a layer: names, ids and layers as the config says, no fault."""
    found = contents(archive_parts([APP, OTHER], style), "app:1", "app:latest", "other:1")
    assert found.faults == ()
    assert found.kind == "docker-archive"
    first, second = sorted(found.images, key=lambda image: image.names)
    assert (set(first.names), first.config, first.platform) == (
        {"app:1", "app:latest"},
        APP.id,
        "linux/amd64",
    )
    assert list(first.diff_ids) == APP.diff_ids
    assert list(second.diff_ids) == OTHER.diff_ids
    assert first.layers[0].member == second.layers[0].member
    if style != "containerd":
        assert [one.digest for one in first.layers] == APP.diff_ids
    assert APP.id in first.ids
    assert len(first.ids) == {"legacy": 1, "classic": 2, "containerd": 3}[style]


@pytest.mark.parametrize("style", STYLES[1:])
def test_oci_archive(style: Style) -> None:
    """Without manifest.json it is an OCI archive, which is whole by its index."""
    found = contents(oci(archive_parts([APP], style)), "app:1")
    assert (found.kind, found.faults, len(found.images)) == ("oci-archive", (), 1)


def test_podman() -> None:
    """Podman's docker-archive has its layers as HEX.tar, and names with their registry."""
    parts = [Part(f"{sha256(tar)}.tar", tar) for tar in APP.layers]
    parts.append(Part(f"{sha256(APP.config)}.json", APP.config))
    row = {
        "Config": parts[-1].name,
        "RepoTags": ["localhost/app:1"],
        "Layers": [part.name for part in parts[:-1]],
    }
    parts.append(Part("manifest.json", json.dumps([row]).encode()))
    assert contents(parts, "localhost/app:1").faults == ()


@EVERY
def test_each_member_that_matters_is_missed(style: Style) -> None:
    """Without any one of its configs, manifests and layers an archive is not whole."""
    parts = [
        part
        for part in archive_parts([APP, OTHER], style)
        if not part.directory and part.name != "repositories" and not part.name.endswith(("VERSION", "/json"))
    ]
    for gone in parts:
        left = [part for part in parts if part is not gone]
        if style != "legacy" and gone.name == "manifest.json":
            assert contents(left).faults == ()  # an OCI archive
        elif style == "classic" and gone.name == "index.json":
            assert contents(left).images  # as old engines wrote them, with another place for the layers
        else:
            assert contents(left).faults, gone.name


@EVERY
def test_each_change_of_a_member_is_seen(style: Style) -> None:
    """A blob, layer or config that is another one is not taken for the one that is named."""
    parts = archive_parts([APP, OTHER], style)
    for number, part in enumerate(parts):
        if not part.content or part.name in {"repositories", "manifest.json", "index.json", "oci-layout"}:
            continue
        if part.name.endswith(("VERSION", "/json")):
            continue
        changed = bytearray(part.content)
        changed[len(changed) // 2] ^= 1
        for content in (bytes(changed), part.content[:-1], part.content + b"\0"):
            damaged = [*parts[:number], replace(part, content=content), *parts[number + 1 :]]
            assert contents(damaged).faults, part.name


@EVERY
def test_a_config_of_another_image(style: Style) -> None:
    """A manifest that names another image's config is refused: the layers are not those of the config."""
    strange = made_image("strange:1", layers=[layer({"x": b"x"}), layer({"y": b"y"})])

    def swap(text: bytes) -> bytes:
        return text.replace(sha256(APP.config).encode(), sha256(strange.config).encode())

    parts = [
        replace(part, content=swap(part.content)) if part.name == "manifest.json" else part
        for part in archive_parts([APP], style)
    ]
    prefix, suffix = ("", ".json") if style == "legacy" else ("blobs/sha256/", "")
    parts.append(Part(f"{prefix}{sha256(strange.config)}{suffix}", strange.config))
    faults = contents(parts).faults
    if style == "containerd":
        return  # the layers are compressed: what is in them is told by nothing but their content
    assert any("not the one that the config names" in fault for fault in faults)


@EVERY
def test_a_number_of_layers_that_does_not_fit(style: Style) -> None:
    """A manifest with a layer less than its config is refused."""
    parts = archive_parts([APP], style)
    at = next(number for number, part in enumerate(parts) if part.name == "manifest.json")
    rows = json.loads(parts[at].content)
    rows[0]["Layers"].pop()
    parts[at] = Part("manifest.json", json.dumps(rows).encode())
    assert any("has 1 layers, its config names 2" in fault for fault in contents(parts).faults)


@EVERY
def test_twice_and_not_requested(style: Style) -> None:
    """A member that is there twice is refused, and a name that was asked for and is not there is told."""
    parts = archive_parts([APP], style)
    assert any("is there twice" in fault for fault in contents([*parts, parts[-1]]).faults)
    assert contents(parts, "absent:1").faults == ("the image 'absent:1' is not in it",)


def test_absent_platforms_and_attestations() -> None:
    """Manifests of absent platforms are no fault while one is whole; if none is there, that is one."""
    parts = archive_parts([APP], "containerd")
    assert contents(parts).faults == ()
    index = next(json.loads(part.content) for part in parts if part.name == "index.json")
    manifest = json.loads(
        next(part.content for part in parts if part.name.endswith(index["manifests"][0]["digest"][7:]))
    )
    inner = manifest["manifests"][0]["digest"][7:]
    faults = contents([part for part in parts if not part.name.endswith(inner)]).faults
    assert any("none is there" in fault for fault in faults)


def test_small_layers_leave_room_for_documents() -> None:
    """Many small layers, which are no documents, do not make the config behind them unreadable."""
    rnd = random.Random(1)
    sizes = [4_188_160 - 10_240] * 16 + [10_000 - 1536] * 12
    image = made_image("app:1", layers=[layer({"f": rnd.randbytes(size)}) for size in sizes])
    found = contents(archive_parts([image], "classic"), "app:1")
    assert found.faults == ()


def document_archive(name: str, value: object, image: Made = APP) -> list[Part]:
    """Return an archive with one of its documents replaced, every digest right again."""
    config = json.dumps(value).encode() if name == "config" else image.config
    blobs = {f"blobs/sha256/{sha256(tar)}": tar for tar in image.layers}
    blobs[f"blobs/sha256/{sha256(config)}"] = config
    manifest: object = {
        "config": described(config),
        "layers": [described(tar) for tar in image.layers],
    }
    text = json.dumps(value if name == "manifest" else manifest).encode()
    blobs[f"blobs/sha256/{sha256(text)}"] = text
    index: object = value if name == "index" else {"manifests": [described(text)]}
    rows: object = (
        value
        if name == "rows"
        else [{"Config": f"blobs/sha256/{sha256(config)}", "RepoTags": ["app:1"], "Layers": list(blobs)[:2]}]
    )
    parts = [Part(path, content) for path, content in blobs.items()]
    parts.append(Part("index.json", json.dumps(index).encode()))
    parts.append(Part("manifest.json", json.dumps(rows).encode()))
    parts.append(
        Part(
            "oci-layout", json.dumps(value if name == "layout" else {"imageLayoutVersion": "1.0.0"}).encode()
        )
    )
    return parts


def described(content: bytes) -> dict[str, Any]:
    """Describe a blob."""
    return {"digest": f"sha256:{sha256(content)}", "size": len(content)}


_WORDS = (
    "manifests config layers digest size mediaType annotations Config RepoTags Layers rootfs diff_ids".split()
)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just("sha256:" + "0" * 64),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(_WORDS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(["config", "manifest", "index", "rows", "layout"]), JUNK)
def test_hostile_documents(name: str, value: object) -> None:
    """Whatever a document says, it is a fault or an image, never an exception."""
    found = contents(document_archive(name, value))
    assert found.faults or found.images


@pytest.mark.parametrize(
    "value",
    [
        [{"Config": "c", "RepoTags": 5, "Layers": []}],
        {"manifests": [{"digest": "sha256:" + "0" * 64, "annotations": 5}]},
        {"mediaType": ["x"], "config": {}, "layers": []},
        {"mediaType": {}, "manifests": [5]},
    ],
)
@pytest.mark.parametrize("name", ["manifest", "index", "rows"])
def test_wrong_types(name: str, value: object) -> None:
    """Numbers where there are lists, lists where there are names: faults."""
    assert contents(document_archive(name, value)).faults


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe",
        b'"\\ud800"',
        b"",
        b"9" * 10_000,
        b"{}" + b" " * (5 << 20),
    ],
)
@pytest.mark.parametrize("name", ["manifest.json", "index.json", "oci-layout"])
def test_documents_that_are_none(name: str, text: bytes) -> None:
    """Deep, huge, not JSON, not printable: faults."""
    parts = [
        replace(part, content=text) if part.name == name else part for part in archive_parts([APP], "classic")
    ]
    assert contents(parts).faults


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c/d", "c/e"]), st.sampled_from(["a", "b", "../a", "c/d", "e", ""])
    )
)
def test_links_that_go_round(links: dict[str, str]) -> None:
    """Links in circles, outwards or to nothing end as a missing layer."""
    row = {"Config": "a", "Layers": ["b"]}
    parts = [Part(name, link=link or "x") for name, link in links.items()]
    assert contents([*parts, Part("manifest.json", json.dumps([row]).encode())]).faults


def test_documents_that_lead_to_each_other_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few small indexes that name the next one a hundred times each are refused, not walked for hours."""
    monkeypatch.setattr("cachekit.oci.docker._MOST_PARSED", 16 << 20)
    parts = {part.name: part for part in archive_parts([APP], "containerd")}
    (row, *_) = json.loads(parts["index.json"].content)["manifests"]
    kind = row["mediaType"]
    for _ in range(3):
        data = json.dumps({"mediaType": kind, "manifests": [row] * 100}).encode()
        row = {"mediaType": kind, "digest": f"sha256:{sha256(data)}", "size": len(data)}
        parts[f"blobs/sha256/{sha256(data)}"] = Part(f"blobs/sha256/{sha256(data)}", data)
    parts["index.json"] = Part("index.json", json.dumps({"manifests": [row]}).encode())
    found = contents(list(parts.values()))
    assert found.faults == ("its documents lead to each other too often",)
