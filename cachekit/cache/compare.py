"""What differs between two entries: from their indexes alone, without unpacking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from cachekit.cache.listing import Member, members

__all__ = ["Comparison", "Difference", "compare"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A member that only one entry has, or that differs: ``what`` lists kind, content, link or mode. Sizes in bytes."""

    path: bytes
    change: Literal["added", "removed", "changed"]
    kind: str
    size_before: int = 0
    size: int = 0
    what: tuple[str, ...] = ()


@dataclass(slots=True)
class Comparison:
    """All differences by path, and totals of both entries. Bytes of files; a hard link has none of its own.

    ``bytes``: by change, those of added files, of removed ones, and of changed files' new content.
    """

    differences: list[Difference] = field(default_factory=list)
    counts: dict[str, int] = field(
        default_factory=lambda: {"added": 0, "removed": 0, "changed": 0, "same": 0}
    )
    bytes: dict[str, int] = field(default_factory=lambda: {"added": 0, "removed": 0, "changed": 0, "same": 0})

    @property
    def same(self) -> bool:
        """True if both hold the same: kinds, contents, links and modes. Times and owners do not count."""
        return not self.differences


def compare(before: bytes, after: bytes) -> Comparison:
    """Compare the archives at two paths by their members' names, below each root.

    Contents are compared by their digests; nothing but seal and index is read or checked. Raises Refused, Unreadable,
    Missed.
    """
    result = Comparison()
    old = {member.path: member for member in members(before)}
    new = {member.path: member for member in members(after)}
    for difference, size in _differences(old, new):
        if isinstance(difference, Difference):
            result.differences.append(difference)
        change = difference.change if isinstance(difference, Difference) else "same"
        result.counts[change] += 1
        result.bytes[change] += size
    return result


def _differences(
    old: dict[bytes, Member], new: dict[bytes, Member]
) -> Iterator[tuple[Difference | None, int]]:
    for path in sorted(old.keys() | new.keys()):
        before, after = old.get(path), new.get(path)
        if before is None:
            assert after is not None
            yield Difference(path, "added", after.kind, size=_size(after)), _size(after)
        elif after is None:
            yield Difference(path, "removed", before.kind, size_before=_size(before)), _size(before)
        elif what := tuple(_what(before, after)):
            changed = _size(after) if "content" in what else 0
            yield Difference(path, "changed", after.kind, _size(before), _size(after), what), changed
        else:
            yield None, _size(after)


def _size(member: Member) -> int:
    return member.size if member.kind == "file" else 0


def _what(before: Member, after: Member) -> Iterator[str]:
    if before.kind != after.kind:
        yield "kind"
    if (before.digest, _size(before)) != (after.digest, _size(after)):
        yield "content"
    if before.link != after.link:
        yield "link"
    if before.mode != after.mode:
        yield "mode"
