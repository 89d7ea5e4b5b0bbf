"""Processes that save to and restore from one store at once, each checking what it gets."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
import traceback
from pathlib import Path
from typing import Literal

from cachekit.cache.restore import RestoreRequest, restore
from cachekit.cache.save import SaveRequest, save
from cachekit.targets.journal import target_lock

SECONDS = 8
KEYS = 3
FILES = 40


class Crowd:
    """A store, and a root in which every key has its own target."""

    def __init__(self, base: Path) -> None:
        self.store, self.root, self._log = base / "store", base / "root", base / "log"
        self._base = base
        self.root.mkdir()
        self._log.mkdir()

    def start(self, number: int) -> int:
        """Start one, a saver or a restorer in turn; it ends by itself, with 0 if all was well."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            signal.alarm(SECONDS + 25)
            count = self._work(number)
            (self._log / f"{number}.{'saved' if number % 2 else 'restored'}").write_text(str(count))
            code = 0
        except BaseException:  # noqa: BLE001 - told by the parent
            (self._log / f"{number}.error").write_text(traceback.format_exc())
        finally:
            os._exit(code)

    def _work(self, number: int) -> int:
        chance, count, turn = random.Random(number), 0, 0
        begin = time.monotonic()
        while time.monotonic() - begin < SECONDS:
            key = f"key-{chance.randrange(KEYS)}"
            count += self._save(number, turn, key) if number % 2 else self._restore(chance, key)
            turn += 1
        return count

    def _save(self, number: int, turn: int, key: str) -> int:
        root = self._base / f"source-{number}"
        tree = root / key
        tree.mkdir(parents=True, exist_ok=True)
        for file in range(FILES):
            (tree / f"file-{file}").write_text(f"{number}-{turn} " * 300)
        report = save(SaveRequest(key, [key], str(self.store), root=str(root), force=turn % 4 > 0))
        assert report.status in {"saved", "exists", "in-progress"}
        return report.status == "saved"

    def _restore(self, chance: random.Random, key: str) -> int:
        mode: Literal["merge", "replace"] = chance.choice(["merge", "replace"])
        report = restore(RestoreRequest(key, str(self.store), root=str(self.root), mode=mode))
        assert report.status in {"exact", "miss"}, report.tried
        if report.status == "miss":
            return 0
        target = self.root / key
        with target_lock(os.fsencode(target), shared=True, timeout=20):
            found = {path.read_text() for path in target.iterdir()}
            assert len(found) == 1, f"a mixture: {sorted(text[:20] for text in found)}"
            assert len(list(target.iterdir())) == FILES
        return 1

    def done(self, what: str) -> int:
        """How often that was done, by all together."""
        return sum(int(path.read_text()) for path in self._log.glob(f"*.{what}"))

    def told(self) -> str:
        """What went wrong."""
        with contextlib.suppress(OSError):
            return "\n".join(path.read_text() for path in self._log.glob("*.error"))
        return ""
