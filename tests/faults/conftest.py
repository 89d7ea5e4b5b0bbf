"""Stores and disks for the fault tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scenes import NEW, saved, tree_at
from tests.support.flaky import Flaky, flaky


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Flaky]:
    """A flaky mount; what it shows lies in ``backing``."""
    with flaky(tmp_path / "backing") as mounted:
        yield mounted


@pytest.fixture
def open_store(open_path: Path) -> Path:
    """A store with the tree NEW under k-1, that everybody may write; ``source/tree`` beside it is that tree."""
    tree_at(open_path / "source", NEW)
    saved(open_path / "store", open_path / "source", "k-1")
    for folder, _, files in os.walk(open_path / "store"):
        os.chmod(folder, 0o777)
        for name in files:
            os.chmod(os.path.join(folder, name), 0o666)
    return open_path / "store"
