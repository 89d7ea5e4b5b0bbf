"""A store with an older entry and a newer one, and a target to restore them to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.busy import Sources
from tests.crash.scene import Scene, Store
from tests.support.cli import Cli
from tests.support.processes import clean_environment
from tests.support.samples import MIB


@contextmanager
def _home(home: Path) -> Iterator[None]:
    """Keep the fixtures of a session out of the user's home, as the tests are."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clean_environment(home).items():
            if name == "HOME" or name.startswith("XDG_"):
                patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two entries, made once, for tests that hardly change the store."""
    base = tmp_path_factory.mktemp("shared")
    with _home(base / "home"):
        return Store.make(base)


@pytest.fixture(scope="session")
def small_sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Trees of some 6 MiB, enough for workers."""
    base = tmp_path_factory.mktemp("small")
    with _home(base / "home"):
        return Sources.make(base, files=100, large=5 * MIB)


@pytest.fixture(scope="session")
def large_sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Trees of some 35 MiB, enough to be caught in the middle."""
    base = tmp_path_factory.mktemp("large")
    with _home(base / "home"):
        return Sources.make(base, files=1000, large=24 * MIB)


@pytest.fixture
def scene(cli: Cli, tmp_path: Path, shared_store: Store) -> Scene:
    """The target `tree` below a root of its own, and the shared store."""
    return Scene.make(cli, tmp_path, shared_store)


@pytest.fixture
def own_scene(cli: Cli, tmp_path: Path) -> Scene:
    """The same with a store of its own, for tests that save and verify."""
    return Scene.make(cli, tmp_path, Store.make(tmp_path))
