"""A store with an older entry and a newer one, and a target to restore them to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.scene import Scene, Store
from tests.support.cli import Cli
from tests.support.processes import clean_environment


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two entries, made once, for tests that hardly change the store."""
    base = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clean_environment(base / "home").items():
            if name == "HOME" or name.startswith("XDG_"):
                patch.setenv(name, value)
        return Store.make(base)


@pytest.fixture
def scene(cli: Cli, tmp_path: Path, shared_store: Store) -> Scene:
    """The target `tree` below a root of its own, and the shared store."""
    return Scene.make(cli, tmp_path, shared_store)


@pytest.fixture
def own_scene(cli: Cli, tmp_path: Path) -> Scene:
    """The same with a store of its own, for tests that save and verify."""
    return Scene.make(cli, tmp_path, Store.make(tmp_path))
