"""A small store with an older entry and a newer one, and a child that can be told where to die."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.scene import Scene
from tests.support.cli import Cli


@pytest.fixture
def scene(cli: Cli, tmp_path: Path) -> Scene:
    """A store in which `old` and `new` are saved, two different trees for one target."""
    return Scene.make(cli, tmp_path)
