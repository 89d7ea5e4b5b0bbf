"""What earlier cleans freed and how long it took, by rule: better than any prior. Best effort, never required."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from cachekit.clean.model import Rule
from cachekit.system.files import replace_file
from cachekit.system.state import make_as_owner, state_directory

__all__ = ["Expectation", "Ledger", "cheapest_first"]

_NAME = "clean-ledger.json"
_KEPT = 5
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a rule is expected to free, and in how many seconds; ``measured`` if earlier runs say so, else the prior."""

    size: int
    seconds: float
    measured: bool

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.size / max(self.seconds, 0.01)


@dataclass(slots=True)
class Ledger:
    """Runs by ``plan/rule``: (bytes freed, seconds) of the last five, oldest first."""

    runs: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    @classmethod
    def load(cls) -> Ledger:
        """Read it from the state directory; empty if it is not there or cannot be understood."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
            with open(os.path.join(state_directory(), _NAME), "rb") as file:
                data = json.loads(file.read(_MAX_BYTES))
            if data["ledger"] == 1:
                return cls(
                    {
                        str(name): [(max(0, int(size)), max(0.0, float(seconds))) for size, seconds in rows][
                            -_KEPT:
                        ]
                        for name, rows in data["runs"].items()
                    }
                )
        return cls()

    def expect(self, plan: str, rule: Rule) -> Expectation:
        """Return the median of earlier runs, else the rule's prior."""
        rows = self.runs.get(f"{plan}/{rule.id}")
        if not rows:
            return Expectation(rule.expect_bytes, rule.expect_seconds, measured=False)
        sizes, seconds = zip(*rows, strict=True)
        return Expectation(int(statistics.median(sizes)), statistics.median(seconds), measured=True)

    def note(self, plan: str, rule: Rule, size: int, seconds: float) -> None:
        """Add a run that was carried out."""
        rows = self.runs.setdefault(f"{plan}/{rule.id}", [])
        rows.append((max(0, size), round(seconds, 3)))
        del rows[:-_KEPT]

    def save(self) -> None:
        """Write it if that is possible: a full disk or a read-only home is no reason to fail."""
        with contextlib.suppress(OSError):
            directory = state_directory()
            make_as_owner(directory)
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                replace_file(_NAME, json.dumps({"ledger": 1, "runs": self.runs}).encode(), fd)
            finally:
                os.close(fd)


def cheapest_first(plan: str, rules: Iterable[Rule], ledger: Ledger) -> list[Rule]:
    """Return the rules by expected bytes a second, most first; the author's order decides between equals."""
    return sorted(rules, key=lambda rule: -ledger.expect(plan, rule).rate)
