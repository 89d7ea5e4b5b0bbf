"""Processes that do everything at once to one store, each checking what it was promised."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import traceback
from collections import Counter
from pathlib import Path

from cachekit.cache.listing import list_entries
from cachekit.cache.pins import pin_keys, unpin_keys
from cachekit.cache.prune import PruneRequest, prune
from cachekit.cache.restore import RestoreRequest, restore
from cachekit.cache.save import SaveRequest, save
from cachekit.cache.verify import VerifyRequest, verify
from cachekit.retention.budget import Budget

KEYS = 6
FILES = 5


class Mixed:
    """A store, and for each process a source and a target of its own."""

    def __init__(self, base: Path, seconds: float) -> None:
        self.store, self._base, self._seconds = base / "store", base, seconds
        self._log = base / "log"
        self._log.mkdir()

    def start(self, number: int) -> int:
        """Start one; it ends by itself, with 0 if every promise was kept."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            signal.alarm(int(self._seconds) + 40)
            done = self._work(number)
            (self._log / f"{number}.done").write_text("\n".join(done.elements()))
            code = 0
        except BaseException:  # noqa: BLE001 - told by the parent
            (self._log / f"{number}.error").write_text(traceback.format_exc())
        finally:
            os._exit(code)

    def _work(self, number: int) -> Counter[str]:
        chance, done = random.Random(number), Counter[str]()
        (self._base / str(number)).mkdir()
        self._pinned: str | None = None
        begin = time.monotonic()
        while time.monotonic() - begin < self._seconds:
            what = chance.choice(["save", "save", "restore", "restore", "prune", "pin", "verify", "ls"])
            done[what] += getattr(self, f"_{what}")(number, chance)
        return done

    def _save(self, number: int, chance: random.Random) -> bool:
        root, key = self._base / str(number) / "source", f"key-{chance.randrange(KEYS)}"
        tree = root / "tree"
        tree.mkdir(parents=True, exist_ok=True)
        text = f"{number}-{chance.random()} " * 300
        for file in range(FILES):
            (tree / f"file-{file}").write_text(text)
        report = save(
            SaveRequest(key, ["tree"], str(self.store), root=str(root), force=chance.random() < 0.5)
        )
        assert report.status in {"saved", "exists", "in-progress"}, report
        return report.status == "saved"

    def _restore(self, number: int, chance: random.Random) -> bool:
        return self._get(number, f"key-{chance.randrange(KEYS)}")

    def _get(self, number: int, key: str) -> bool:
        root = self._base / str(number) / "target"
        root.mkdir(exist_ok=True)
        report = restore(RestoreRequest(key, str(self.store), root=str(root), mode="replace"))
        assert report.status in {"exact", "miss"}, report.tried
        if report.status == "miss":
            return False
        found = [path.read_text() for path in (root / "tree").iterdir()]
        assert len(found) == FILES
        assert len(set(found)) == 1
        return True

    def _prune(self, number: int, chance: random.Random) -> bool:
        report = prune(PruneRequest(str(self.store), Budget(max_entries=chance.randrange(4))))
        assert not report.failed, report.lines
        return not report.busy and report.removed > 0

    def _pin(self, number: int, chance: random.Random) -> bool:
        """Pin a key that nobody else pins or unpins: from then on it is always there."""
        if self._pinned is None:
            key, root = f"own-{number}", self._base / str(number) / "source"
            shutil.rmtree(root, ignore_errors=True)
            (root / "tree").mkdir(parents=True)
            for file in range(FILES):
                (root / "tree" / f"file-{file}").write_text(key)
            save(SaveRequest(key, ["tree"], str(self.store), root=str(root)))
            if pin_keys(str(self.store), [key])[0].result == "pinned":
                self._pinned = key
            return self._pinned is not None
        assert self._get(number, self._pinned), f"{self._pinned} was pinned, and is gone"
        if chance.random() < 0.3:
            assert [line.result for line in unpin_keys(str(self.store), [self._pinned])] == ["unpinned"]
            self._pinned = None
        return False

    def _verify(self, number: int, chance: random.Random) -> bool:
        reports = list(verify(VerifyRequest([], str(self.store), every=True)))
        assert all(report.ok or report.verdict == "missing" for report in reports), reports
        return bool(reports)

    def _ls(self, number: int, chance: random.Random) -> bool:
        lines = list_entries(str(self.store))
        assert all(line.problem is None for line in lines), lines
        return bool(lines)

    def done(self) -> Counter[str]:
        """How often what was done, by all together."""
        return Counter(word for path in self._log.glob("*.done") for word in path.read_text().split())

    def told(self) -> str:
        """What went wrong."""
        return "\n".join(path.read_text() for path in self._log.glob("*.error"))
