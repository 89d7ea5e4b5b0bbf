"""A tree of many frames and its store, for each test anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.delta.scene import Scene, packages, prepared


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A target of four packages, not yet saved."""
    with prepared(tmp_path / "state"):
        yield Scene(tmp_path).made(packages())
