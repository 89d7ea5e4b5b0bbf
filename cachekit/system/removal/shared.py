"""A few numbers in memory that a process shares with the workers it forks: what is wanted, what is done."""

from __future__ import annotations

import mmap

__all__ = ["Tally", "Wanted"]


class Wanted:
    """How many workers have nothing to do, set by the one that leads them. Made before the fork."""

    def __init__(self, more: int = 0) -> None:
        self._memory = memoryview(mmap.mmap(-1, 8 * (1 + more))).cast("q")

    def want(self, count: int) -> None:
        """Say how many pieces of work are wanted."""
        self._memory[0] = count

    def take(self) -> bool:
        """Return whether a piece is wanted, which is then to be given.

        Two workers may see the same wish: then somebody has one piece more to begin with.
        """
        if self._memory[0] <= 0:
            return False
        self._memory[0] -= 1
        return True


class Tally(Wanted):
    """Sums of three numbers, each process adding in a place of its own: what one did is known even if it was killed."""

    def __init__(self, workers: int) -> None:
        super().__init__(3 * (workers + 1))
        #: This process's place: 0 for the one that leads.
        self.place = 0

    def add(self, items: int, size: int, left: int) -> None:
        """Add to this process's sums."""
        memory, own = self._memory, 1 + 3 * self.place
        memory[own] += items
        memory[own + 1] += size
        memory[own + 2] += left

    @property
    def items(self) -> int:
        return sum(self._memory[1::3])

    @property
    def size(self) -> int:
        return sum(self._memory[2::3])

    @property
    def left(self) -> int:
        return sum(self._memory[3::3])
