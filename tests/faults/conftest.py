"""Stores and disks for the fault tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scenes import NEW, saved, tree_at
from tests.support.cli import give
from tests.support.flaky import Flaky, flaky


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Flaky]:
    """A flaky mount; what it shows lies in ``backing``."""
    with flaky(tmp_path / "backing") as mounted:
        yield mounted


@pytest.fixture
def open_store(open_path: Path) -> Path:
    """An ordinary user's store with the tree NEW under k-1; ``source/tree`` beside it is that tree."""
    tree_at(open_path / "source", NEW)
    saved(open_path / "store", open_path / "source", "k-1")
    if os.geteuid() == 0:
        give(open_path / "store")
    return open_path / "store"
