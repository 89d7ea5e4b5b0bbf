"""The command line in this process, with a tree to save, and somebody's files outside of the store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.in_process import Here
from tests.support.trees import make_tree


@pytest.fixture
def here(tmp_path: Path, clean_surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line in `tmp_path/work`, where a tree `t` is, with its store below a private home."""
    root = tmp_path / "work"
    make_tree(root, {"t": {"file": b"honest", "sub": {"more": b"m"}}})
    monkeypatch.chdir(root)
    return Here(root, clean_surroundings)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A directory that has nothing to do with the store, whose files are old and look like a store's."""
    names = ["diary", "0123.part", "k-x.tar.zst.1", "k-y.tar.zst.2", "k-z.tar.zst.3", "00", "store"]
    path = make_tree(tmp_path / "victim", dict.fromkeys(names, b"precious"))
    for name in names:
        os.utime(path / name, (1_000_000_000, 1_000_000_000))
    return path
