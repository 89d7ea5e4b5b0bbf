"""Archives of images whose layers are compressed: what they hold must be what the config names."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from cachekit.errors import Damaged
from cachekit.guard import inspect as inspecting
from tests.support.images import Made, Part, image_archive, layer, made_image, sha256, tar_of_parts
from tests.support.in_process import Here

TARS = [layer({"a": b"a" * 90_000}), layer({"b": bytes(range(256)) * 9000})]
IMAGE = made_image("app:1", layers=TARS)
OTHER = made_image("app:1", layers=[TARS[0], layer({"c": b"c"})])
LAYER = "application/vnd.oci.image.layer.v1.tar"


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha256(blob)}", "size": len(blob)}


def oci_archive(blobs: list[bytes], kind: str, config: bytes = IMAGE.config) -> bytes:
    """Return an OCI archive of an image with these layers, in which every digest is right."""
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [_descriptor(kind, blob) for blob in blobs],
        }
    ).encode()
    index = {"manifests": [_descriptor("application/vnd.oci.image.manifest.v1+json", manifest)]}
    parts = [Part(f"blobs/sha256/{sha256(blob)}", blob) for blob in (*blobs, config, manifest)]
    parts += [
        Part("index.json", json.dumps(index).encode()),
        Part("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
    ]
    return tar_of_parts(parts)


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize(("pack", "kind"), [(gzip.compress, "+gzip"), (_zstd, "+zstd")])
@pytest.mark.parametrize("outside", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_a_config_of_other_layers(
    here: Here, pack: Callable[[bytes], bytes], kind: str, outside: Callable[[bytes], bytes]
) -> None:
    """A config that names other layers than those that are there is refused, though every digest is right."""
    blobs = [pack(tar) for tar in TARS]
    Path("i.tar").write_bytes(outside(oci_archive(blobs, LAYER + kind)))
    here("check", "i.tar").expect()
    Path("i.tar").write_bytes(outside(oci_archive(blobs, LAYER + kind, OTHER.config)))
    assert "layer 2" in here("check", "i.tar").expect(4).stderr
    here("seal", "i.tar").expect(4)
    assert not Path("i.tar.cachekit.json").exists()


def test_as_docker_writes_it(here: Here) -> None:
    """The same with manifest.json beside the layout, as docker save writes it with containerd's store."""
    Path("i.tar").write_bytes(image_archive([IMAGE], "containerd"))
    assert "1 image (app:1)" in here("check", "i.tar").expect().stderr
    swapped = Made(IMAGE.names, IMAGE.layers, OTHER.config)
    Path("i.tar").write_bytes(image_archive([swapped], "containerd"))
    assert "not the one that the config names" in here("check", "i.tar").expect(4).stderr


@pytest.mark.parametrize(
    "damage", [lambda blob: blob[:-9], lambda blob: blob + b"more", lambda blob: blob[:2]]
)
def test_a_layer_that_was_damaged_before_it_was_named(here: Here, damage: Callable[[bytes], bytes]) -> None:
    """A compressed layer that is cut, or goes on behind its end, is refused also under its own digest."""
    blobs = [gzip.compress(TARS[0]), damage(gzip.compress(TARS[1]))]
    Path("i.tar").write_bytes(oci_archive(blobs, LAYER + "+gzip"))
    assert "layer 2" in here("check", "i.tar").expect(4).stderr


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, _zstd])
def test_damage_of_the_archive_itself(here: Here, pack: Callable[[bytes], bytes]) -> None:
    """What is wrong with the archive is not taken for damage of the layer in which it shows."""
    whole = pack(oci_archive([gzip.compress(os.urandom(300_000)), gzip.compress(TARS[1])], LAYER + "+gzip"))
    Path("i.tar").write_bytes(whole[: len(whole) // 2])
    assert f"ends at byte {len(whole) // 2}" in here("check", "i.tar").expect(4).stderr or pack is bytes
    assert "layer" not in here("check", "i.tar").expect(4).stderr
    for place in range(len(whole) // 5, len(whole) // 2, len(whole) // 10):
        Path("i.tar").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        here("check", "i.tar").expect(4)


def test_layers_of_which_nobody_can_tell(here: Here) -> None:
    """An encrypted layer is checked by its digest alone."""
    blobs = [b"encrypted" * 100, b"too" * 1000]
    Path("i.tar").write_bytes(oci_archive(blobs, LAYER + "+gzip+encrypted"))
    here("check", "i.tar").expect()


def test_a_plain_layer_under_a_compressed_type(here: Here) -> None:
    """What a layer is, its bytes say: engines go by them, too."""
    Path("i.tar").write_bytes(oci_archive(TARS, LAYER + "+gzip"))
    here("check", "i.tar").expect()
    Path("i.tar").write_bytes(oci_archive([gzip.compress(tar) for tar in TARS], LAYER))
    here("check", "i.tar").expect()
    Path("i.tar").write_bytes(oci_archive([b"no tar" * 1000, TARS[1]], LAYER + "+gzip"))
    assert "layer 1" in here("check", "i.tar").expect(4).stderr


def test_compressed_layers_of_an_old_archive(here: Here) -> None:
    """An archive of manifest.json alone may have compressed layers: engines load it, and they are checked alike."""
    config = Part(f"{sha256(IMAGE.config)}.json", IMAGE.config)
    for tars, code in ((TARS, 0), ([TARS[1], TARS[0]], 4)):
        layers = [Part(f"{number}/layer.tar", gzip.compress(tar)) for number, tar in enumerate(tars)]
        rows = [{"Config": config.name, "RepoTags": ["app:1"], "Layers": [part.name for part in layers]}]
        parts = [config, *layers, Part("manifest.json", json.dumps(rows).encode())]
        Path("i.tar").write_bytes(tar_of_parts(parts))
        here("check", "i.tar").expect(code)


def test_a_fault_of_the_archive_is_not_passed_over() -> None:
    """A fault of the archive within a layer is told, also if what is read next would be well."""

    class Once:
        def __init__(self) -> None:
            self.pieces = [gzip.compress(os.urandom(5000))[:3000], None, b""]

        def readinto(self, buffer: memoryview) -> int:
            piece = self.pieces.pop(0)
            if piece is None:
                raise Damaged("of the archive")
            buffer[: len(piece)] = piece
            return len(piece)

    part = inspecting._Part(Once(), keep=False)  # type: ignore[arg-type]
    with pytest.raises(Damaged, match="of the archive"):
        part.digest_inside(memoryview(bytearray(1 << 16)))
