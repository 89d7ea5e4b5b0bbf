"""Fixtures: one real engine a session, empty for each test; a fake one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.fake_engine import FakeEngine, fake_engine
from tests.support.capabilities import need
from tests.support.docker import DockerHost, docker_engine
from tests.support.engines import running_podman

__all__ = ["running_podman"]


@pytest.fixture(scope="session")
def running_engine() -> Iterator[DockerHost]:
    """A real engine."""
    need("docker")
    with docker_engine() as host:
        yield host


@pytest.fixture
def host(running_engine: DockerHost) -> DockerHost:
    """A real engine with nothing in it."""
    running_engine.empty()
    return running_engine


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeEngine]:
    """A fake engine of API 1.45."""
    with fake_engine(tmp_path) as engine:
        yield engine
