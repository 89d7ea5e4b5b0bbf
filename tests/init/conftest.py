"""The command line in this process, in an empty repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.in_process import Here


@pytest.fixture
def here(tmp_path: Path, clean_surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line in `tmp_path/work`, a repository without a file, with its store below a private home."""
    root = tmp_path / "work"
    (root / ".git").mkdir(parents=True)
    monkeypatch.chdir(root)
    return Here(root, clean_surroundings)
