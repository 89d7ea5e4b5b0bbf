"""The store that this version of cachekit wrote to be kept: tests/data/store-1.tar.xz and store-1.json.

Later versions must read it for ever, so it is never made again. How it was made::

    python -m tests.support.golden_store tests/data

Should the layout become version 2, make a store-2 beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cachekit.cache.listing import manifest
from cachekit.cache.restore import RestoreRequest, restore
from cachekit.cache.save import SaveRequest, save
from cachekit.cli.render import plain
from cachekit.model import Namespace, Platform, StoreAddress
from cachekit.store import layout
from cachekit.store.directory import DirectoryStore
from cachekit.trust import Trust
from tests.support.archives import save_tree
from tests.support.in_process import cut
from tests.support.signing import trust_in
from tests.support.trees import Dir, File, HardLink, Sparse, Symlink, make_tree

SECRET = "the key of the golden store"
PLATFORM = Platform("linux", "x86_64", "glibc")
OTHER_PLATFORM = Platform("linux", "arm64", "musl")
SERVICE = Namespace("project/env/service")
USED_NS = 1_700_000_000_000_000_000
TREE: Dir = Dir(
    {
        "a": File(b"a" * 600, 0o755),
        "empty": b"",
        b"\xff\n": b"odd",
        "hard": HardLink("tree/a"),
        "hole": Sparse(200_000, {100_000: b"data" * 512}),
        "link": Symlink("sub/file"),
        "sub": Dir({"file": b"file", "n" * 200: Dir({"m" * 200: b"deep"})}, 0o700),
    }
)
#: Namespace, key, platform, signed: what the store holds. A tree's file `which` tells them apart.
ENTRIES = (
    (Namespace(), "golden-1", PLATFORM, False),
    (Namespace(), "golden-2", PLATFORM, True),
    (Namespace(), "golden-1", OTHER_PLATFORM, False),
    (SERVICE, "golden-1", PLATFORM, True),
    (SERVICE.scoped("pr-1"), "golden-1", PLATFORM, False),
)


def tree_of(path: Path, namespace: Namespace, key: str, platform: Platform) -> Path:
    """Make the tree that an entry was saved from."""
    return make_tree(path, {"tree": TREE, "which": f"{namespace} {key} {platform}"})


def describe(store: Path, trust: Trust) -> dict[str, Any]:
    """Tell of every namespace what is in it, as store-1.json has it."""
    told = {}
    for namespace in layout.namespaces(str(store)):
        directory = DirectoryStore(StoreAddress(str(store), namespace, trust))
        told[namespace.text] = {
            "entries": {
                candidate.name: {
                    name: value
                    for name, value in plain(manifest(candidate.path, trust)).items()
                    if name != "roots"  # of the machine that made it
                }
                for candidate in directory.entries()
            },
            "quarantine": [[name, size] for name, size, _ in directory.quarantined()],
        }
    return told


def make(store: Path, scratch: Path) -> None:
    """Make the store."""
    for number, (namespace, key, platform, signed) in enumerate(ENTRIES):
        address = StoreAddress(str(store), namespace, trust_in(SECRET) if signed else Trust())
        tree = tree_of(scratch / str(number), namespace, key, platform)
        with (
            patch("cachekit.cache.save.this_platform", lambda platform=platform: platform),
            patch("cachekit.cache.save.host_name", lambda: "golden"),
        ):
            save(SaveRequest(key, ["."], address, root=str(tree)))
    address = StoreAddress(str(store))
    save_tree(address, scratch / "0", key="damaged-1")
    damaged = next(c for c in DirectoryStore(address).entries("damaged-1"))
    cut(Path(os.fsdecode(damaged.path)))
    (scratch / "out").mkdir()
    assert restore(RestoreRequest("damaged-1", address, root=str(scratch / "out"))).status == "refused"
    default = store / "v1" / "default"
    first = next(
        c for c in DirectoryStore(address).entries("golden-1") if c.seal and c.seal.platform == PLATFORM
    )
    os.utime(default / "used" / first.name, ns=(USED_NS, USED_NS))
    (default / "pinned" / next(c.name for c in DirectoryStore(address).entries("golden-2"))).touch()
    for locks in list(store.rglob("locks")):  # 257 empty files each, made again when they are missing
        shutil.rmtree(locks)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def main(folder: Path) -> None:
    """Write the two files, but never over those that are there."""
    with tempfile.TemporaryDirectory() as base:
        store = Path(base, "store")
        make(store, Path(base))
        with tarfile.open(folder / "store-1.tar.xz", "x:xz") as tar:
            tar.add(store, "store", filter=_plain)
        text = json.dumps(describe(store, trust_in(SECRET, required=False)), indent=1, sort_keys=True)
        with (folder / "store-1.json").open("x") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
