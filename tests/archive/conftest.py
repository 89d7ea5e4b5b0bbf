"""Real entries to look at and to operate on, each made once a session and never changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.archives import save_tree
from tests.support.processes import clean_environment
from tests.support.samples import MIB, package_tree, sample_tree
from tests.support.signing import signed_store
from tests.support.surgery import Anatomy, anatomy
from tests.support.trees import make_tree


@dataclass(frozen=True)
class Whole:
    """A whole entry of a tree: its file, its bytes, and where its parts lie."""

    tree: Path
    path: Path
    data: bytes
    parts: Anatomy


@pytest.fixture(scope="session", autouse=True)
def _private_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the fixtures of a session out of the user's home, as the tests are."""
    home = tmp_path_factory.mktemp("session-home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in clean_environment(home).items():
            if name == "HOME" or name.startswith("XDG_"):
                patch.setenv(name, value)
        yield


def _whole(base: Path, tree: Path) -> Whole:
    path = save_tree(base / "store", tree)
    return Whole(tree, path, path.read_bytes(), anatomy(path))


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory, _private_state: None) -> Whole:
    """A small entry with every kind of member."""
    base = tmp_path_factory.mktemp("sample")
    return _whole(base, sample_tree(base / "tree"))


@pytest.fixture(scope="session")
def signed(tmp_path_factory: pytest.TempPathFactory, _private_state: None) -> Whole:
    """A small entry with every kind of member, signed with the key of `tests.support.signing`."""
    base = tmp_path_factory.mktemp("signed")
    tree = sample_tree(base / "tree")
    path = save_tree(signed_store(base / "store"), tree)
    return Whole(tree, path, path.read_bytes(), anatomy(path))


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory, _private_state: None) -> Whole:
    """An entry of several frames, some of which hold a large file's parts."""
    base = tmp_path_factory.mktemp("packages")
    return _whole(base, package_tree(base / "tree", files=400, large=20 * MIB))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A place to restore to, with a tree in it and a victim beside it."""
    make_tree(tmp_path / "place", {"root": {"tree": {"old": "old"}}, "victim": {"secret": "secret"}})
    return tmp_path / "place"
