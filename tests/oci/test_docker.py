"""What an archive of images holds, in every layout, and what is wrong with a damaged one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.oci.docker import ArchiveContents, Inventory
from tests.support.images import STYLES, Made, Part, Style, archive_parts, layer, made_image

SHARED = layer({"shared": b"s" * 1000})
IMAGES = [
    made_image("app:1", "app:latest", layers=[SHARED, layer({"a": b"a"})]),
    made_image("db:16", layers=[SHARED, layer({"b": b"b"})]),
]


def look(parts: list[Part], *requested: str) -> ArchiveContents:
    """Feed an inventory with members."""
    inventory = Inventory()
    for part in parts:
        name = part.name.encode()
        if part.directory:
            inventory.add(name, "directory", 0, "")
        elif part.link:
            inventory.add(name, "symlink", 0, "", part.link.encode())
        else:
            keep = inventory.wants(name, len(part.content))
            digest = hashlib.sha256(part.content).hexdigest()
            inventory.add(name, "file", len(part.content), digest, b"", part.content if keep else None)
    return inventory.contents(requested)


@pytest.fixture(params=STYLES)
def style(request: pytest.FixtureRequest) -> Style:
    """Each layout in turn."""
    found: Style = request.param
    return found


def test_a_whole_archive(style: Style) -> None:
    """Names, ids, platform and layers of every image, and no fault."""
    found = look(archive_parts(IMAGES, style), "app:1", "db:16")
    assert found.faults == ()
    assert found.kind == "docker-archive"
    by_name = {name: image for image in found.images for name in image.names}
    assert set(by_name) == {"app:1", "app:latest", "db:16"}
    for made in IMAGES:
        image = by_name[made.names[0]]
        assert image.config == made.id
        assert made.id in image.ids
        assert list(image.diff_ids) == made.diff_ids
        assert image.platform == "linux/amd64"
        assert len(image.ids) == {"legacy": 1, "classic": 2, "containerd": 3}[style]


def test_without_manifest_json() -> None:
    """An OCI archive is known by index.json alone; what Docker 20.10 writes is nothing without manifest.json."""
    parts = [part for part in archive_parts(IMAGES, "containerd") if part.name != "manifest.json"]
    found = look(parts)
    assert found.faults == ()
    assert found.kind == "oci-archive"
    legacy = [part for part in archive_parts(IMAGES, "legacy") if part.name != "manifest.json"]
    assert "ends too early" in look(legacy).faults[0]


def test_a_name_that_is_not_there(style: Style) -> None:
    """A requested name that the archive lacks is a fault."""
    assert look(archive_parts(IMAGES, style), "other:1").faults == ("the image 'other:1' is not in it",)


def needed(parts: list[Part]) -> list[int]:
    """Return the positions of members that some image needs."""
    fixed = {"repositories", "oci-layout", "index.json"}
    return [
        number
        for number, part in enumerate(parts)
        if not part.directory and part.name not in fixed and not part.name.endswith(("VERSION", "/json"))
    ]


def test_each_missing_member(style: Style) -> None:
    """Whatever a layer, config, manifest or list is missing, there is a fault."""
    parts = archive_parts(IMAGES, style)
    for number in needed(parts):
        without = parts[:number] + parts[number + 1 :]
        if parts[number].name == "manifest.json" and style != "legacy":
            continue  # then it is an OCI archive
        assert look(without).faults, parts[number].name


def test_each_member_cut_or_flipped(style: Style) -> None:
    """Whatever layer, config or manifest has other bytes, there is a fault that names it or what needs it."""
    parts = archive_parts(IMAGES, style)
    for number in needed(parts):
        part = parts[number]
        if part.link:
            continue
        flipped = bytearray(part.content)
        flipped[len(flipped) // 2] ^= 1
        for content in (part.content[:-1], bytes(flipped)):
            changed = [*parts[:number], replace(part, content=content), *parts[number + 1 :]]
            assert look(changed).faults, part.name


def test_a_swapped_config(style: Style) -> None:
    """The config of another image in the place of this one's is a fault."""
    one, other = IMAGES
    parts = archive_parts([one], style)
    path = next(part.name for part in parts if part.content == one.config)
    swapped = [replace(part, content=other.config) if part.name == path else part for part in parts]
    assert look(swapped).faults


def test_swapped_layers() -> None:
    """Layers in another order than the config has them are a fault, though each is whole."""
    one = IMAGES[0]
    swapped = Made(one.names, one.layers[::-1], one.config)
    for style in ("legacy", "classic"):
        assert "is not the one that the config names" in look(archive_parts([swapped], style)).faults[0]


def test_a_member_twice(style: Style) -> None:
    """A member that is there twice is a fault: which one would an engine take?"""
    parts = archive_parts(IMAGES, style)
    assert any("twice" in fault for fault in look([*parts, parts[-1]]).faults)


def test_links_that_lead_nowhere() -> None:
    """A layer that is a link to itself, or to nothing, is missing."""
    parts = archive_parts(IMAGES, "legacy")
    for target in ("layer.tar", "../nowhere/layer.tar", "../../../../etc/passwd"):
        changed = [replace(part, link=target) if part.link else part for part in parts]
        assert look(changed).faults


_VALUES = st.recursive(
    st.none()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["blobs/sha256/x", "sha256:" + "0" * 64]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "Config",
                    "RepoTags",
                    "Layers",
                    "manifests",
                    "digest",
                    "size",
                    "config",
                    "layers",
                    "annotations",
                    "rootfs",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(_VALUES, _VALUES, _VALUES)
def test_hostile_documents(manifest: Any, index: Any, config: Any) -> None:
    """Whatever the documents say: a fault, never an exception, and no image out of nothing."""
    data = json.dumps(config).encode()
    blob = f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"
    row = {"Config": blob, "RepoTags": manifest, "Layers": manifest}
    for value in (manifest, [row]):
        found = look(
            [
                Part(blob, data),
                Part("manifest.json", json.dumps(value).encode()),
                Part("index.json", json.dumps(index).encode()),
                Part("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
            ]
        )
        assert found.faults or all(image.config == f"sha256:{blob[-64:]}" for image in found.images)
    assert look([Part("manifest.json", b"[" * 100_000)]).faults
