"""The command line in this process, with a tree that is saved as k-1, and further stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.in_process import Here
from tests.support.trees import make_tree


@pytest.fixture
def here(tmp_path: Path, clean_surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line in `tmp_path/work`, where a tree `t` is that was saved as k-1."""
    root = tmp_path / "work"
    make_tree(root, {"t": {"file": b"one" * 1000, "sub": {"more": b"m"}}})
    monkeypatch.chdir(root)
    place = Here(root, clean_surroundings)
    place.save("k-1", "t")
    return place


@pytest.fixture
def carry(clean_surroundings: Path) -> Path:
    """The directory from which an entry is carried, unless a test names one."""
    return clean_surroundings / ".cache" / "cachekit-carry"


@contextmanager
def another_machine(monkeypatch: pytest.MonkeyPatch, store: Path) -> Iterator[None]:
    """Let the commands of a block have this store."""
    with monkeypatch.context() as patch:
        patch.setenv("CACHEKIT_STORE", str(store))
        yield
