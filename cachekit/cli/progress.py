"""Progress for people: a bar on a terminal, a line every few seconds in a log, nothing when not wanted."""

from __future__ import annotations

import sys
import time

from cachekit.cli.render import size

__all__ = ["ProgressBar"]

_BAR_SECONDS = 0.1
_LOG_SECONDS = 5.0
_WIDTH = 24


class ProgressBar:
    """Call it with (done bytes, total bytes or 0, members); ``close`` clears the bar."""

    def __init__(self, verb: str, *, quiet: bool = False) -> None:
        self._verb = verb
        self._terminal = sys.stderr.isatty()
        self._quiet = quiet
        self._begin = time.monotonic()
        # In a log the first line comes after some seconds: a short save prints only its closing line.
        self._next = self._begin + (_BAR_SECONDS if self._terminal else _LOG_SECONDS)
        self._shown = False

    def __call__(self, done: int, total: int, members: int) -> None:
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        self._next = now + (_BAR_SECONDS if self._terminal else _LOG_SECONDS)
        rate = size(done / max(now - self._begin, 0.001))
        if total:
            share = min(1.0, done / total)
            text = f"{share:4.0%} of {size(total)}, {members} members, {rate}/s"
        else:
            share = 0.0
            text = f"{size(done)}, {members} members so far, {rate}/s"
        if not self._terminal:
            sys.stderr.write(f"{self._verb}: {text.strip()}\n")
        else:
            bar = "#" * int(share * _WIDTH)
            sys.stderr.write(f"\r{self._verb} [{bar:<{_WIDTH}}] {text}"[:79] + "\x1b[K")
            self._shown = True
        sys.stderr.flush()

    def close(self) -> None:
        """Clear the bar, so that what follows begins on a clean line."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = False
