"""What the seal of an entry with Docker images says of them. Its tar is the archive that ``docker load`` reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeGuard

from cachekit.errors import Damaged

__all__ = ["HeldImage", "HeldLayer", "decode_images", "encode_images"]

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HeldLayer:
    """A layer: the member that holds it, sha256 and length of that member's content, and the layer's diff id.

    The diff id is the digest of the layer's tar; ``digest`` differs from it where the member is compressed.
    """

    member: bytes
    digest: str
    size: int
    diff_id: str


@dataclass(frozen=True, slots=True)
class HeldImage:
    """An image: its names (``repository:tag``) and every id under which an engine may know it.

    ``ids`` are the digests of config, manifest and index, as far as the archive has them: an engine with the classic
    image store calls an image by its config, one with containerd's by its manifest or index. Sorted.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]
    config: str
    platform: str
    layers: tuple[HeldLayer, ...]

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """What every engine says of a loaded image's layers (``RootFS.Layers``)."""
        return tuple(layer.diff_id for layer in self.layers)


def encode_images(images: list[HeldImage]) -> list[dict[str, Any]]:
    """Return the seal's ``images``."""
    return [
        {
            "names": list(image.names),
            "ids": list(image.ids),
            "config": image.config,
            "platform": image.platform,
            "layers": [
                [layer.member.decode("latin-1"), layer.digest, layer.size, layer.diff_id]
                for layer in image.layers
            ],
        }
        for image in images
    ]


def decode_images(value: object) -> list[HeldImage]:
    """Return what ``encode_images`` wrote. Raises Damaged for anything else."""
    if not isinstance(value, list) or not value:
        raise _wrong()
    return [_image(item) for item in value]


def _image(item: object) -> HeldImage:
    if not isinstance(item, dict) or not isinstance(item.get("layers"), list):
        raise _wrong()
    names, ids = item.get("names"), item.get("ids")
    if not (_texts(names) and _texts(ids) and ids):
        raise _wrong()
    config, platform = item.get("config"), item.get("platform")
    if not (_is_digest(config) and all(map(_is_digest, ids)) and isinstance(platform, str)):
        raise _wrong()
    return HeldImage(tuple(names), tuple(ids), config, platform, tuple(map(_layer, item["layers"])))


def _layer(item: object) -> HeldLayer:
    if not isinstance(item, list) or len(item) != 4:
        raise _wrong()
    member, digest, size, diff_id = item
    if not (isinstance(member, str) and _is_digest(digest) and _is_digest(diff_id)):
        raise _wrong()
    if type(size) is not int or not 0 <= size < 1 << 60:
        raise _wrong()
    try:
        return HeldLayer(member.encode("latin-1"), digest, size, diff_id)
    except UnicodeEncodeError:
        raise _wrong() from None


def _is_digest(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _wrong() -> Damaged:
    return Damaged("the seal's images are not what they must be", rung="seal")
