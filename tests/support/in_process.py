"""The command line inside this process: fifty times as fast as a child, and open to monkeypatching.

What depends on the process itself (signals, terminals, closed streams, imports) needs `tests.support.cli`.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cachekit.cli.main import run
from cachekit.store.directory import DirectoryStore
from tests.support.processes import Arg, Result

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Here:
    """The command line in the current directory `root`, with its store below the private home."""

    root: Path
    home: Path

    def __call__(self, *args: Arg) -> Result:
        """Run it to its end."""
        out, err = _stream(), _stream()
        with _handlers_kept(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run([os.fsdecode(arg) for arg in args])
        return Result(args, code, _written(out), _written(err))

    def save(self, key: str, *args: Arg) -> dict[str, Any]:
        """Save, which must succeed, and return the report."""
        report = self("save", "--json", f"--key={key}", *args).expect().json()
        assert isinstance(report, dict)
        return report

    def restore(self, key: str, *args: Arg, code: int = 0) -> dict[str, Any]:
        """Restore, which must end with `code`, and return the report."""
        report = self("restore", "--json", f"--key={key}", *args).expect(code).json()
        assert isinstance(report, dict)
        return report

    @property
    def store(self) -> Path:
        """The store's directory."""
        return self.home / ".cache" / "cachekit"

    def entries(self) -> list[Path]:
        """Find the entry files of the store."""
        return sorted((self.store / "v1" / "default" / "entries").glob("*"))

    def entry(self, key: str) -> Path:
        """Find the entry file of a key, whatever it holds."""
        for candidate in DirectoryStore(str(self.store)).entries():
            if candidate.seal is not None and candidate.seal.key == key:
                return Path(os.fsdecode(candidate.path))
        raise AssertionError(f"no entry of {key}: {self.entries()}")

    def quarantine(self) -> list[str]:
        """List the names of what was set aside."""
        return sorted(path.name for path in (self.store / "v1" / "default" / "quarantine").glob("*"))


def cut(path: Path, share: float = 0.7) -> bytes:
    """Cut a file as a full disk does; return what it was."""
    whole = path.read_bytes()
    os.truncate(path, int(len(whole) * share))
    return whole


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape", write_through=True)


def _written(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    raw = stream.buffer
    assert isinstance(raw, io.BytesIO)
    return raw.getvalue()


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    before = [signal.getsignal(number) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)
