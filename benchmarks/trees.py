"""The trees that are measured: made once, the same on every machine, kept in a directory and stamped.

A tree is a directory that holds one target (`node_modules`, `.venv`, ...). Its content, names, modes and
times follow from its kind, its scale and VERSION alone; the digest in the stamp shows it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

VERSION = 1
"""Raised whenever the content of a generated tree changes, so that an older copy is not taken for it."""

EPOCH_NS = 1_700_000_000_000_000_000
"""Modification time of the first file of every tree, in nanoseconds; each next one is a little later."""


@dataclass(frozen=True)
class Tree:
    """A tree on disk: `root` holds `target`; counts and bytes are of regular files; `digest` covers all of
    it.
    """

    name: str
    root: Path
    target: str
    files: int
    directories: int
    links: int
    size: int
    digest: str


class Writer:
    """Writes the files of a tree with fixed modes and times, creating directories when first needed."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._directories: dict[str, None] = {}
        self.count = 0

    def _directory(self, path: str) -> None:
        missing = []
        while path and path not in self._directories:
            missing.append(path)
            path = path.rpartition("/")[0]
        for name in reversed(missing):
            os.mkdir(f"{self._root}/{name}", 0o755)
            self._directories[name] = None

    def file(self, path: str, *chunks: bytes, mode: int = 0o644) -> None:
        """A regular file at `path` (relative, with "/") made of `chunks` in order."""
        self._directory(path.rpartition("/")[0])
        full = f"{self._root}/{path}"
        descriptor = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(descriptor, view) :]
            self.count += 1
            moment = EPOCH_NS + self.count * 1_137_911
            os.utime(descriptor, ns=(moment, moment))
        finally:
            os.close(descriptor)

    def link(self, path: str, to: str) -> None:
        """A symbolic link at `path` with the text `to`."""
        self._directory(path.rpartition("/")[0])
        full = f"{self._root}/{path}"
        os.symlink(to, full)
        os.utime(full, ns=(EPOCH_NS, EPOCH_NS), follow_symlinks=False)

    def finish(self) -> None:
        """Give every directory its fixed time, the deepest first."""
        for number, path in enumerate(sorted(self._directories, reverse=True)):
            moment = EPOCH_NS + number * 2_411_003
            os.utime(f"{self._root}/{path}", ns=(moment, moment))


def cache_directory() -> Path:
    """Where generated trees are kept: $CACHEKIT_BENCH_DIR, else a directory of this user under the system's
    temp.
    """
    chosen = os.environ.get("CACHEKIT_BENCH_DIR")
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"cachekit-bench-{os.getuid()}"


def _walk(path: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every path below and including `path` with its own stat, in an order that depends on the names only."""
    entry = os.lstat(path)
    yield path, entry
    if stat.S_ISDIR(entry.st_mode):
        for name in sorted(os.listdir(path)):
            yield from _walk(f"{path}/{name}")


def survey(name: str, root: Path, target: str) -> Tree:
    """Count and digest `target` in `root`: names, kinds, modes, times in nanoseconds, link texts and
    contents.
    """
    total = hashlib.sha256()
    files = directories = links = size = 0
    base = str(root)
    for path, entry in _walk(f"{base}/{target}"):
        head = f"{path[len(base) :]}\0{entry.st_mode:o}\0{entry.st_mtime_ns}\0"
        content = b""
        if stat.S_ISREG(entry.st_mode):
            files += 1
            size += entry.st_size
            with open(path, "rb", buffering=0) as source:
                content = hashlib.file_digest(source, "sha256").digest()
        elif stat.S_ISLNK(entry.st_mode):
            links += 1
            content = os.fsencode(os.readlink(path))
        else:
            directories += 1
        total.update(os.fsencode(head) + content)
    return Tree(name, root, target, files, directories, links, size, total.hexdigest())


def read_through(tree: Tree) -> None:
    """Read every file once, so that a measurement that follows finds the tree in the page cache."""
    buffer = bytearray(1 << 20)
    for path, entry in _walk(f"{tree.root}/{tree.target}"):
        if stat.S_ISREG(entry.st_mode):
            with open(path, "rb", buffering=0) as source:
                while source.readinto(buffer):
                    pass


def prepare(name: str, target: str, build: Callable[[Writer], None], directory: Path) -> Tree:
    """The tree `name` below `directory`: the stamped copy if there is one, else built beside it and renamed."""
    home = directory / f"{name}-v{VERSION}"
    stamp = home / "stamp.json"
    if stamp.exists():
        known = json.loads(stamp.read_text(encoding="utf-8"))
        return Tree(root=home / "tree", **known)
    shutil.rmtree(home, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=directory))
    started = time.perf_counter()
    mask = os.umask(0o022)
    try:
        (scratch / "tree").mkdir()
        writer = Writer(scratch / "tree")
        build(writer)
        writer.finish()
        tree = survey(name, scratch / "tree", target)
        record = {key: value for key, value in asdict(tree).items() if key != "root"}
        (scratch / "stamp.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        scratch.chmod(0o755)
        scratch.rename(home)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        os.umask(mask)
    os.sync()
    log(f"made {name}: {tree.files} files, {tree.size / 1e6:.0f} MB, {time.perf_counter() - started:.0f} s")
    return Tree(root=home / "tree", **record)


def log(line: str) -> None:
    """A line of progress for people, on stderr: stdout is the table."""
    os.write(2, f"{line}\n".encode())
