"""Progress for people: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import os
import shutil
import sys
import time

from cachekit.cli.render import size

__all__ = ["ProgressBar"]

_BAR_SECONDS = 0.1
_LOG_SECONDS = 5.0
_WIDTH = 24
#: Carriage return, and "erase to the end of the line" (ECMA-48, EL).
_START, _ERASE = "\r", "\x1b[K"


class ProgressBar:
    """Call it with (done bytes, total bytes or 0, members); ``close`` clears the bar."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._begin = time.monotonic()
        # In a log the first line comes after some seconds: a short save prints only its closing line.
        self._next = self._begin + (_BAR_SECONDS if self._terminal else _LOG_SECONDS)
        self._shown = False

    def __call__(self, done: int, total: int, members: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_BAR_SECONDS if self._terminal else _LOG_SECONDS)
        rate = size(done / max(now - self._begin, 0.001))
        share = min(1.0, done / total) if total else 0.0
        if total:
            inside = f", {members} members" if members else ""
            text = f"{share:4.0%} of {size(total)}{inside}, {rate}/s"
        else:
            text = f"{size(done)}, {members} members so far, {rate}/s"
        if self._terminal:
            bar = "#" * int(share * _WIDTH)
            line = f"{self._verb} [{bar:<{_WIDTH}}] {text}"
            # The last column stays free: a full line would wrap, and the next bar begin below it.
            columns = shutil.get_terminal_size().columns
            sys.stderr.write(_START + line[: max(10, columns - 1)] + _ERASE)
            self._shown = True
        else:
            sys.stderr.write(f"{self._verb}: {text.strip()}\n")
        sys.stderr.flush()

    def close(self) -> None:
        """Clear the bar, so that what follows begins on a clean line."""
        if self._shown:
            sys.stderr.write(_START + _ERASE)
            sys.stderr.flush()
            self._shown = False
