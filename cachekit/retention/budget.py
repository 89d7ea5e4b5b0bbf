"""What a store may keep: the limits that a plan of retention has to meet."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Budget"]


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a store; None means without that limit.

    ``max_bytes`` and ``max_entries`` are over the entries that the plan is about; bytes as allocated on disk, those in
    quarantine too. ``max_age_seconds`` is since the last use. ``min_free_bytes`` and ``min_free_percent`` (of what
    ordinary users can use of the filesystem, as df counts) are what must be free beside the store. ``keep_last``: so
    many newest entries of each family stay whatever else is asked for.
    """

    max_bytes: int | None = None
    max_entries: int | None = None
    max_age_seconds: float | None = None
    min_free_bytes: int | None = None
    min_free_percent: float | None = None
    keep_last: int = 0

    @property
    def unlimited(self) -> bool:
        """True if nothing could ever have to go."""
        return all(
            limit is None
            for limit in (
                self.max_bytes,
                self.max_entries,
                self.max_age_seconds,
                self.min_free_bytes,
                self.min_free_percent,
            )
        )

    def must_be_free(self, usable: int) -> int:
        """Return the bytes that must be free of a filesystem of which ``usable`` can be used; 0 if nothing is asked."""
        percent = 0 if self.min_free_percent is None else int(usable * self.min_free_percent / 100)
        return max(self.min_free_bytes or 0, percent)
