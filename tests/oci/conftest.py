"""Fixtures: real engines whose BuildKit writes local caches, in both forms of it."""

from __future__ import annotations

import pytest

from tests.oci.builds import Builder
from tests.support.docker import Release
from tests.support.engines import Engines, engine_of, running_engines

__all__ = ["engine_of", "running_engines"]


@pytest.fixture(params=["trixie", "sid"])
def builder(
    request: pytest.FixtureRequest, engine_of: Engines, tmp_path_factory: pytest.TempPathFactory
) -> Builder:
    """BuildKit of trixie (the cache is an index of layers) and of sid (an image manifest), with nothing in it."""
    host = engine_of(Release(request.param, containerd=True))
    return Builder(host, tmp_path_factory.mktemp("context"))
