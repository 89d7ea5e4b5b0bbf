"""Fixtures: real engines of three versions, with both image stores; an engine that is none; the command line."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engines import any_image_engine, engine_of, running_engines, running_podman
from tests.support.images import Made, MimicEngine, layer, made_image, mimic_engine
from tests.support.in_process import Here

__all__ = ["any_image_engine", "engine_of", "running_engines", "running_podman"]

MIB = 1 << 20


@pytest.fixture
def here(tmp_path: Path, clean_surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line in this process, in an empty directory that is the current one."""
    root = tmp_path / "here"
    root.mkdir()
    monkeypatch.chdir(root)
    return Here(root, clean_surroundings)


@pytest.fixture(scope="session")
def app() -> Made:
    """An image of three layers: two small ones, and one of several frames, half of it random."""
    large = random.Random(1).randbytes(9 * MIB) + b"text " * (2 * MIB)
    return made_image(
        "app:1", layers=[layer({"a": b"a"}), layer({"large": large}), layer({"c": b"c" * 9000})]
    )


@pytest.fixture
def mimic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MimicEngine]:
    """An engine that is none, which commands find by $DOCKER_HOST."""
    with mimic_engine(tmp_path) as engine:
        monkeypatch.setenv("DOCKER_HOST", f"unix://{engine.path}")
        yield engine
