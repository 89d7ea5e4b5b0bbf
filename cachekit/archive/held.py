"""Layers that earlier image entries of the store hold: their frames are copied instead of packed again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachekit.archive import header
from cachekit.archive.check import check_archive
from cachekit.archive.format import FRAME_SIZE, parts
from cachekit.archive.images import HeldLayer
from cachekit.archive.read import Archive, decompress
from cachekit.errors import Refused, Unreadable

__all__ = ["Held", "HeldContent"]


@dataclass(frozen=True, slots=True)
class HeldContent:
    """A member of an earlier entry whose content has frames of its own, from ``first`` on."""

    archive: Archive
    layer: HeldLayer
    first: int

    @property
    def frames(self) -> range:
        """The frames with the content; the first begins with the member's header."""
        return range(self.first, self.first + parts(self.layer.size))

    def first_part(self) -> bytes:
        """Return the part of the content that follows the header in the first frame. Raises Damaged, Unreadable."""
        import zstandard

        head = header.length(self.layer.member, 0, 0, 0, 0, self.layer.size, b"")
        size = self.archive.index.raw_sizes[self.first]
        raw = decompress(zstandard.ZstdDecompressor(), self.archive.frame(self.first), size, "frames")
        return raw[head:]


class Held:
    """What may be copied, of opened entries; the first one that has a layer is taken.

    The entries must stay open as long as this is used. One that is damaged, or cannot be read, has nothing.
    """

    def __init__(self, archives: Sequence[Archive] = ()) -> None:
        self._by_digest: dict[str, HeldContent] = {}
        self._by_member: dict[bytes, HeldContent] = {}
        for archive in archives:
            try:
                check_archive(archive)
            except (Refused, Unreadable):
                continue
            self._add(archive)

    def _add(self, archive: Archive) -> None:
        index = archive.index
        rows = {path: row for row, path in enumerate(index.paths)}
        for image in archive.seal.images or []:
            for layer in image.layers:
                if layer.size > FRAME_SIZE:  # which is that member's size too: the check has seen to it
                    content = HeldContent(archive, layer, index.frames[rows[layer.member]])
                    self._by_digest.setdefault(layer.digest, content)
                    self._by_member.setdefault(layer.member, content)

    def with_digest(self, digest: str) -> HeldContent | None:
        """Return the member with this content (``sha256:`` and hex)."""
        return self._by_digest.get(digest)

    def sizes(self) -> dict[str, int]:
        """Return the length of every content that may be copied, by its digest."""
        return {digest: content.layer.size for digest, content in self._by_digest.items()}

    def called(self, member: bytes) -> HeldContent | None:
        """Return the member of this name; whether its content is meant is for the caller to find out."""
        return self._by_member.get(member)
