"""Stores and trees in trouble: what the fault tests do with them, and what they ask of them afterwards."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cachekit.cache.restore import RestoreRequest, restore
from cachekit.cache.save import SaveRequest, save
from cachekit.cache.verify import VerifyRequest, verify
from cachekit.errors import CachekitError
from cachekit.model import RestoreReport, SaveReport
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.flaky import Flaky
from tests.support.processes import Result, wait_until
from tests.support.snapshots import fingerprint
from tests.support.trees import Dir, File, Spec, Symlink, make_tree

KIB = 1 << 10
MIB = 1 << 20
KINDS = [pytest.param(kind, marks=requires(kind)) for kind in filesystems.KINDS]
PERCENTS = range(5, 100, 5)

NEW: dict[Any, Any] = {
    "same": b"the same in both",
    "changed": b"new",
    "sub": Dir({"deep": Dir({"leaf": b"new leaf"}), "link": Symlink("deep/leaf"), "was-dir": b"a file"}),
    "was-file": Dir({"inside": b"x"}),
    "fresh": Dir({"file": b"fresh"}, mode=0o750),
}
OLD: dict[Any, Any] = {
    "same": b"the same in both",
    "changed": b"old",
    "sub": Dir({"deep": Dir({"leaf": b"old leaf", "extra": b"1"}), "was-dir": Dir({"gone": b"x"})}),
    "was-file": b"a file",
    "extra-dir": Dir({"extra": b"2", "below": Dir({"extra": b"3"})}),
    "extra": b"4",
}
EXTRA = ("sub/deep/extra", "extra-dir/extra", "extra-dir/below/extra", "extra")


def random_files(count: int, size: int, seed: int = 1) -> dict[Any, Spec]:
    """Describe files that no compressor makes smaller."""
    source = random.Random(seed)
    return {f"file-{number:03}": File(source.randbytes(size)) for number in range(count)}


def text_files(count: int, size: int, seed: int = 1) -> dict[Any, Spec]:
    """Describe files that become about a sixth of their size."""
    source = random.Random(seed)
    return {
        f"text-{number:03}": File(source.randbytes(size // 7).hex(" ").encode()[: size // 3] * 3)
        for number in range(count)
    }


def zero_files(count: int, size: int) -> dict[Any, Spec]:
    """Describe files of zeros, really written: they become next to nothing."""
    return {f"zeros-{number:03}": File(bytes(size)) for number in range(count)}


SMALL = random_files(6, 30 * KIB) | {"sub": {"text": b"text\n" * 99}}


def large_files() -> dict[Any, Spec]:
    """Describe 40 MiB; not a constant, which every fork of every test would carry along."""
    return random_files(40, MIB)


def part_of_store(store: Path, name: str) -> Path:
    """Return one of the store's directories: entries, tmp, quarantine, locks, used."""
    return store / "v1" / "default" / name


def entries(store: Path) -> list[Path]:
    """Return the entry files, by name."""
    return sorted(part_of_store(store, "entries").iterdir())


def leftovers(store: Path) -> list[str]:
    """Return what lies in the store's directory for unfinished entries."""
    return sorted(path.name for path in part_of_store(store, "tmp").iterdir())


def quarantine(store: Path) -> list[Path]:
    """Return the entries that were set aside."""
    return sorted(part_of_store(store, "quarantine").iterdir())


def assert_clean(store: Path, entry_count: int) -> None:
    """Fail unless the store holds so many entries, each whole to the last byte, and nothing unfinished."""
    # A FUSE mount removes the last name of an open file only after it was closed.
    wait_until(lambda: not leftovers(store), f"no leftover in {store}")
    verdicts = list(verify(VerifyRequest([], str(store), every=True)))
    assert [verdict.error for verdict in verdicts] == [None] * entry_count


def is_clean(disk: Flaky, count: int) -> None:
    """Fail unless the store in the flaky mount holds so many whole entries, once the disk is well again."""
    disk.clear()
    assert_clean(disk.mount / "store", count)


@contextmanager
def same_entries(store: Path) -> Iterator[None]:
    """Fail unless the published entries are the very same files afterwards, and nothing unfinished is left."""
    folder = part_of_store(store, "entries")
    # As in assert_clean: until then an entry just saved has a second, hidden name, which its link count shows.
    wait_until(lambda: not leftovers(store), f"no leftover in {store}")
    before = fingerprint(folder)
    yield
    assert fingerprint(folder) == before
    wait_until(lambda: not leftovers(store), f"no leftover in {store}")


def try_save(store: Path, root: Path, key: str, *paths: str, **more: Any) -> SaveReport | CachekitError:
    """Save in this process; return the report, or the error."""
    request = SaveRequest(key=key, paths=list(paths) or ["tree"], store=str(store), root=str(root), **more)
    try:
        return save(request)
    except CachekitError as error:
        return error


def saved(store: Path, root: Path, key: str, *paths: str, **more: Any) -> SaveReport:
    """Save in this process what must be possible to save."""
    report = try_save(store, root, key, *paths, **more)
    assert isinstance(report, SaveReport), report
    assert report.status == "saved"
    return report


def try_restore(store: Path, root: Path, key: str, *paths: str, **more: Any) -> RestoreReport | CachekitError:
    """Restore in this process; return the report, or the error."""
    try:
        return restore(RestoreRequest(key=key, store=str(store), root=str(root), paths=list(paths), **more))
    except CachekitError as error:
        return error


def restored(store: Path, root: Path, key: str, *paths: str, **more: Any) -> RestoreReport:
    """Restore in this process what must be possible to restore."""
    report = try_restore(store, root, key, *paths, **more)
    assert isinstance(report, RestoreReport), report
    assert report.status == "exact", report
    return report


def error_of(result: Result) -> dict[str, Any]:
    """Return the error of a command that was run with --json."""
    error = result.json()["error"]
    assert isinstance(error, dict)
    return error


def staging_in(*directories: Path) -> list[Path]:
    """Return the staging directories directly in these directories."""
    return [path for directory in directories if directory.is_dir() for path in directory.glob(".cachekit-*")]


def cut(entry: Path, keep: float = 0.5) -> None:
    """Cut an entry in its middle, as a full disk would have done."""
    os.truncate(entry, int(entry.stat().st_size * keep))


def flip(entry: Path, offset: int = 1000) -> None:
    """Flip one bit of an entry: its seal stays right, a frame is damaged."""
    with entry.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def tree_at(root: Path, entries_: Mapping[Any, Spec], name: str = "tree") -> Path:
    """Make a tree with fixed modes and times at ``root/name``."""
    return make_tree(root / name, Dir(entries_))


def set_quota(subvolume: Path, limit: int) -> None:
    """Change how much a btrfs subvolume may hold."""
    subprocess.run(["btrfs", "qgroup", "limit", str(limit), str(subvolume)], check=True, capture_output=True)


def removed(path: Path) -> None:
    """Remove a tree if it is there."""
    if path.exists():
        shutil.rmtree(path)


def polled(condition: Callable[[], bool], what: str, alive: Callable[[], bool]) -> None:
    """Wait until ``condition()``; fail at once when what should bring it about has ended."""
    wait_until(lambda: condition() or not alive(), what, seconds=60)
    assert condition(), f"it ended before: {what}"
