"""A tree of many frames, its store, and the one question of all tests here: is it what a full save would write?"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_64_intdigest

from cachekit.archive import pack, record
from cachekit.archive.layout import CUT_THRESHOLD
from cachekit.archive.read import open_archive
from cachekit.cache import save as saving
from cachekit.cache.restore import RestoreRequest, restore
from cachekit.cache.save import SaveRequest, save
from cachekit.model import RestoreReport, SaveReport
from cachekit.trust import ANYONE
from tests.support.snapshots import Snapshot, assert_same_tree, snapshot
from tests.support.trees import File, Tree, make_tree

MIB = 1 << 20
CREATED_NS = 1_700_000_000_123_456_789
TICK_NS = 10_000_000
"""Longer than a tick of the kernel's clock, and shorter than what is waited for outside of tests."""


def cutter(directory: str) -> str:
    """Find a name of a file after which a frame is cut if it is long enough; it sorts behind others."""
    for number in range(100_000):
        name = f"z{number}"
        if xxh3_64_intdigest(os.path.join(directory, name).encode()) < CUT_THRESHOLD:
            return name
    raise AssertionError("no name cuts a frame")


def package(directory: str, seed: int) -> Tree:
    """Describe a directory that fills two frames: small files, one that ends a frame, and the same below."""
    sub = f"{directory}/sub"
    return {
        **{f"f{number}": File(bytes([seed, number]) * (100 + number)) for number in range(4)},
        cutter(directory): File(bytes([seed]) * MIB),
        "sub": {
            "g0": File(b"g" * (seed + 1)),
            "g1": File(b"h" * (seed + 1)),
            cutter(sub): File(bytes([seed + 100]) * MIB),
        },
    }


def packages(count: int = 4) -> dict[str, Tree]:
    """Describe packages p0, p1 and so on, for a target named ``tree``."""
    return {f"p{number}": package(f"tree/p{number}", number) for number in range(count)}


def settle() -> None:
    """Wait until no file that was changed before counts as just changed."""
    time.sleep(2 * TICK_NS / 1e9)


@dataclasses.dataclass(frozen=True)
class Scene:
    """The target ``tree`` below ``root``, and a store."""

    base: Path

    @property
    def root(self) -> Path:
        """The root of the target."""
        return self.base / "root"

    @property
    def tree(self) -> Path:
        """The target."""
        return self.root / "tree"

    @property
    def store(self) -> Path:
        """The store's directory."""
        return self.base / "store"

    @property
    def records(self) -> Path:
        """Where the records of this user are."""
        return Path(os.environ["CACHEKIT_STATE_DIR"], "records")

    def made(self, tree: Tree) -> Scene:
        """Make the target."""
        make_tree(self.tree, tree)
        return self

    def request(self, key: str, **more: Any) -> SaveRequest:
        """Ask for a save of the target."""
        asked: dict[str, Any] = {"paths": ["tree"], "store": str(self.store), "root": str(self.root)}
        return SaveRequest(key, **(asked | more))

    def save(self, key: str, **more: Any) -> SaveReport:
        """Save the target, when its files count as settled."""
        settle()
        report = save(self.request(key, **more))
        assert report.status == "saved"
        return report

    def proved(self, key: str, **more: Any) -> SaveReport:
        """Save the target from what the store has; fail unless a full save gives the same file."""
        settle()
        with other_state():
            elsewhere = self.base / "full-store"
            full = save(self.request(key, **(more | {"store": str(elsewhere), "full": True})))
        assert (full.status, full.base, full.copied_bytes) == ("saved", None, 0)
        report = save(self.request(key, **more))
        assert report.status == "saved"
        expected, found = entry_file(elsewhere, full), entry_file(self.store, report)
        assert differing(expected, found) == ""
        assert found.read_bytes() == expected.read_bytes()
        return report

    def listed(self, report: SaveReport) -> None:
        """Fail unless plain tar makes of the entry what the target is (with times in whole seconds)."""
        with tempfile.TemporaryDirectory(dir=self.base) as place:
            file = entry_file(self.store, report)
            owner = ["--same-owner", "--numeric-owner"] if os.geteuid() == 0 else []
            subprocess.run(["tar", "--zstd", "-xpf", file, *owner, "-C", place], check=True)
            assert_same_tree(in_seconds(self.tree), in_seconds(Path(place, "tree")))

    def restore(self, key: str, **more: Any) -> RestoreReport:
        """Restore the target."""
        report = restore(RestoreRequest(key, str(self.store), root=str(self.root), **more))
        assert report.status == "exact"
        return report

    def in_place(self, key: str, **more: Any) -> RestoreReport:
        """Restore the target in place."""
        return self.restore(key, mode="in-place", **more)

    def entry(self, report: SaveReport) -> Path:
        """Find the file of an entry that was saved."""
        return entry_file(self.store, report)

    def quarantine(self) -> list[str]:
        """List what was set aside."""
        return sorted(path.name for path in (self.store / "v1/default/quarantine").glob("*"))


@contextmanager
def other_state() -> Iterator[None]:
    """Work as if nothing were known of any target, and leave no record behind."""
    with tempfile.TemporaryDirectory() as state, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHEKIT_STATE_DIR", state)
        yield


@contextmanager
def prepared(state: Path) -> Iterator[None]:
    """One time of creation for all entries, a short time until files are settled, a state directory of its own."""
    describe = saving._describe

    def at_one_time(*args: Any) -> Any:
        return dataclasses.replace(describe(*args), created_ns=CREATED_NS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "_describe", at_one_time)
        patch.setattr(record, "_TICK_NS", TICK_NS)
        patch.setattr(pack, "_SETTLING_NS", TICK_NS)
        patch.setenv("CACHEKIT_STATE_DIR", str(state))
        yield


def entry_file(store: Path, report: SaveReport) -> Path:
    """Find the file of an entry that was saved."""
    return store / "v1/default/entries" / report.entry


def differing(expected: Path, found: Path) -> str:
    """Tell what of the seal and the index differs between two entries, for a message that helps."""
    with open_archive(bytes(expected), ANYONE) as one, open_archive(bytes(found), ANYONE) as two:
        lines = [
            f"{field.name}: {getattr(one.seal, field.name)!r} is {getattr(two.seal, field.name)!r}"
            for field in dataclasses.fields(one.seal)
            if getattr(one.seal, field.name) != getattr(two.seal, field.name)
        ]
        columns = [
            name for name in one.index.__slots__ if getattr(one.index, name) != getattr(two.index, name)
        ]
        return "\n".join([*lines, f"columns: {columns}"]) if lines or columns else ""


def in_seconds(tree: Path) -> Snapshot:
    """Take a snapshot with owners, and with times in whole seconds."""
    taken = snapshot(tree, owners=True)
    return {
        path: dataclasses.replace(node, mtime_ns=node.mtime_ns // 1_000_000_000)
        for path, node in taken.items()
    }


def rewrite(path: Path, content: bytes) -> None:
    """Write other bytes into a file and give it back its time."""
    info = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def flip_frame(path: Path, frame: int) -> None:
    """Flip a bit in the middle of a data frame of an entry."""
    with open_archive(bytes(path), ANYONE) as archive:
        begin, end = archive.index.frame_offsets()[frame : frame + 2]
    with path.open("r+b") as file:
        file.seek((begin + end) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
