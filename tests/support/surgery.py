"""A surgeon's tools for entry files: where the parts lie, and cuts that nobody closes again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cachekit.archive import seal
from cachekit.archive.format import SEAL_TRAILER, SEEK_FOOTER, SKIPPABLE_HEADER
from cachekit.archive.read import open_archive
from cachekit.trust import ANYONE


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of an entry file lie, in bytes from its beginning."""

    frames: tuple[int, ...]
    """Where each data frame begins, and where the last one ends."""
    index: int
    seal: int
    json: int
    auth: int
    """Where signatures are, or would be."""
    trailer: int
    seek_table: int
    footer: int
    size: int

    def edges(self) -> Iterator[tuple[str, int]]:
        """Every place where one structure ends and the next begins."""
        for number, offset in enumerate(self.frames):
            yield f"frame {number}", offset
        for name in ("index", "seal", "json", "auth", "trailer", "seek_table", "footer", "size"):
            yield name, getattr(self, name)


def anatomy(path: Path) -> Anatomy:
    """Find the parts of a whole entry file."""
    with open_archive(bytes(path), ANYONE) as archive:
        facts = archive.seal
        tail = seal.parse_tail(archive.size, archive.read)
        return Anatomy(
            frames=tuple(archive.index.frame_offsets()),
            index=facts.data_bytes,
            seal=tail.seal_offset,
            json=tail.seal_offset + SKIPPABLE_HEADER.size,
            auth=tail.seal_offset + SKIPPABLE_HEADER.size + len(tail.json),
            trailer=tail.seek_table_offset - SEAL_TRAILER.size,
            seek_table=tail.seek_table_offset,
            footer=archive.size - SEEK_FOOTER.size,
            size=archive.size,
        )


def flip(data: bytes, offset: int, bit: int = 0) -> bytes:
    """Return the bytes with one bit the other way round."""
    return data[:offset] + bytes([data[offset] ^ 1 << bit]) + data[offset + 1 :]


def swap_frames(data: bytes, parts: Anatomy, first: int, second: int) -> bytes:
    """Return the file with two data frames in each other's place."""
    pieces = [data[a:b] for a, b in zip(parts.frames, parts.frames[1:], strict=False)]
    pieces[first], pieces[second] = pieces[second], pieces[first]
    return b"".join(pieces) + data[parts.index :]


def graft(body: bytes, body_parts: Anatomy, tail: bytes, tail_parts: Anatomy) -> bytes:
    """Return the data frames of one entry with the index, seal and seek table of another."""
    return body[: body_parts.index] + tail[tail_parts.index :]
