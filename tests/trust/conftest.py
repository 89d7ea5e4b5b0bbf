"""The command line in this process, with a tree to save."""

from __future__ import annotations

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
