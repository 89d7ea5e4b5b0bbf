"""A store to be pruned, and the command line in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.in_process import Here
from tests.support.shelf import Shelf


@pytest.fixture
def here(tmp_path: Path, clean_surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line in this process, in `tmp_path/work`, with its store below a private home."""
    root = tmp_path / "work"
    root.mkdir()
    monkeypatch.chdir(root)
    return Here(root, clean_surroundings)


@pytest.fixture
def shelf(here: Here) -> Shelf:
    """The default namespace of the store of `here`."""
    return Shelf(here.store)
