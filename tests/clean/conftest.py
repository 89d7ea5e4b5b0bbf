"""What tests of the cleaner share: a small filesystem in memory to be cleaned."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import capabilities, filesystems
from tests.support.cleaning import MIB, Scene
from tests.support.cli import Cli


@pytest.fixture
def scene(cli: Cli) -> Iterator[Scene]:
    """A filesystem of 64 MiB in memory, and the command line that cleans it; needs `tmpfs`."""
    capabilities.need("tmpfs")
    with filesystems.tmpfs(64 * MIB) as mounted:
        yield Scene(cli, mounted.path)
