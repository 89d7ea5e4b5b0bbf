"""The archive that an engine sends, member by member as it streams past, and what it turned out to hold."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from cachekit.archive.format import DIRECTORY, FILE, SYMLINK
from cachekit.archive.images import HeldImage, HeldLayer
from cachekit.archive.stream import StreamMember
from cachekit.errors import Damaged, EngineFailed, SourceChanged
from cachekit.formats.tar import Source, TarMember, TarReader
from cachekit.images.names import Wanted
from cachekit.oci.docker import ArchiveImage, Inventory

__all__ = ["Look", "members_of"]

_KINDS = {"file": FILE, "directory": DIRECTORY, "symlink": SYMLINK}
_BLOBS = b"blobs/sha256/"
_LIST = b"manifest.json"


class Look:
    """Watches the members of an image archive go by, whoever sends them; says in the end what they are together."""

    def __init__(self) -> None:
        self._inventory = Inventory()
        self._listed = False

    def wants(self, name: bytes, size: int) -> bool:
        """Return True for a document that has to be read."""
        return self._inventory.wants(name, size)

    def seen(self, member: StreamMember, digest: str, content: bytes | None) -> None:
        """Take note of a member that went by."""
        self._listed = self._listed or member.name == _LIST
        kind = {FILE: "file", DIRECTORY: "directory", SYMLINK: "symlink"}[member.kind]
        self._inventory.add(
            member.name, kind, member.size, digest.removeprefix("sha256:"), member.link, content
        )

    def images(self, wanted: Sequence[Wanted]) -> list[HeldImage]:
        """Return the images, if everything is there and they are the wanted ones.

        Raises EngineFailed for an archive that lacks something, SourceChanged if a name means another image by now.
        """
        contents = self._inventory.contents([one.name for one in wanted if one.name])
        if contents.faults:
            more = f" (and {len(contents.faults) - 1} more)" if len(contents.faults) > 1 else ""
            raise EngineFailed(f"the engine sent no whole image: {contents.faults[0]}{more}")
        if not self._listed:  # every engine sends it, and those with a classic store read nothing else
            raise EngineFailed(f"the engine sent no whole image: {os.fsdecode(_LIST)} is missing")
        for one in wanted:
            found = [
                image
                for image in contents.images
                if (one.name in image.names if one.name else one.details.id in image.ids)
            ]
            if not found:
                raise EngineFailed(f"the engine did not send the image {one.asked!r}")
            # By id alone, and every engine sends the document that its id is the digest of: other images may be made of
            # the same layers, with another command or environment.
            if not any(one.details.id in image.ids for image in found):
                raise SourceChanged(
                    f"the image {one.asked!r} became another one while it was saved",
                    expected=one.details.id,
                    found=list(found[0].ids),
                    hint="save after the job has stopped building",
                )
        # A load would give them to the image.
        asked = {one.name for one in wanted}
        if names := sorted({name for image in contents.images for name in image.names} - asked):
            raise EngineFailed("the engine sent an image under a name that nobody asked for", names=names)
        return [_held(image) for image in contents.images]


def is_same(
    ids: Sequence[str], diff_ids: Sequence[str], engine_id: str, engine_diff_ids: Sequence[str]
) -> bool:
    """Return True if what an engine calls ``engine_id`` is the image with these ids.

    Engines with containerd's store make manifests of their own for archives without any: then the layers tell.
    """
    return engine_id in ids or (bool(diff_ids) and tuple(diff_ids) == tuple(engine_diff_ids))


def _held(image: ArchiveImage) -> HeldImage:
    layers = [HeldLayer(layer.member, layer.digest, layer.size, layer.diff_id) for layer in image.layers]
    return HeldImage(
        tuple(sorted(image.names)), tuple(sorted(image.ids)), image.config, image.platform, tuple(layers)
    )


def members_of(source: Source) -> Iterator[StreamMember]:
    """Yield the members of a tar as it is read. Raises Damaged for a tar that is not whole."""
    reader = TarReader(source)
    while (member := reader.next()) is not None:
        yield _member(member, reader)


def _member(member: TarMember, reader: TarReader) -> StreamMember:
    kind = _KINDS.get(member.kind)
    if kind is None:
        raise Damaged("a member of the image is neither file nor directory nor symlink", path=member.name)
    claim = ""
    if kind == FILE and member.name.startswith(_BLOBS) and len(member.name) == len(_BLOBS) + 64:
        claim = "sha256:" + member.name[len(_BLOBS) :].decode("ascii", "replace")
    size = member.size if kind == FILE else 0
    return StreamMember(member.name, kind, size, member.link, claim=claim, open=lambda: reader)
