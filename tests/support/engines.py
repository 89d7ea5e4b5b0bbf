"""Fixtures with real engines, to be named by a conftest: `from tests.support.engines import any_engine`.

Each engine is started once a session and emptied before every test. Mark the module with `pytest.mark.xdist_group`, or
every worker starts all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from tests.support.capabilities import need
from tests.support.docker import ENGINES, DockerHost, Release, docker_engine
from tests.support.podman import PODMAN, PodmanHost, podman_engine

__all__ = [
    "IMAGE_ENGINES",
    "any_engine",
    "any_image_engine",
    "engine_of",
    "release_id",
    "running_engines",
    "running_podman",
    "started",
]

Engines = Callable[[Release], DockerHost]

#: Those that images are saved from and loaded into: Docker's, and Podman.
IMAGE_ENGINES = (*ENGINES, PODMAN)


def started(release: Release, data: Path | None = None) -> AbstractContextManager[DockerHost]:
    """Start an engine of a release; `data` is its data root."""
    return podman_engine(data) if release == PODMAN else docker_engine(release=release, data=data)


def release_id(release: Release) -> str:
    """Name a test's parameter."""
    return release.name


@pytest.fixture(scope="session")
def running_engines() -> Iterator[Engines]:
    """Give a running engine of a release, started when it is first asked for."""
    with ExitStack() as stack:
        running: dict[Release, DockerHost] = {}

        def get(release: Release) -> DockerHost:
            need(release.capability)
            if release not in running:
                running[release] = stack.enter_context(started(release))
            return running[release]

        yield get


@pytest.fixture
def engine_of(running_engines: Engines) -> Engines:
    """Give an engine of a release with nothing in it."""

    def get(release: Release) -> DockerHost:
        host = running_engines(release)
        host.empty()
        return host

    return get


@pytest.fixture(params=ENGINES, ids=release_id)
def any_engine(request: pytest.FixtureRequest, engine_of: Engines) -> DockerHost:
    """Every Docker engine and image store in turn, with nothing in it."""
    release: Release = request.param
    return engine_of(release)


@pytest.fixture(params=IMAGE_ENGINES, ids=release_id)
def any_image_engine(request: pytest.FixtureRequest, engine_of: Engines) -> DockerHost:
    """Every Docker engine and image store in turn, and Podman, with nothing in it."""
    release: Release = request.param
    return engine_of(release)


@pytest.fixture(scope="module")
def running_podman() -> Iterator[PodmanHost]:
    """Give a Podman for all tests of a module."""
    need("podman")
    with podman_engine() as host:
        yield host
