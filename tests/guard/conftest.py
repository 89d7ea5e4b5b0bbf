"""Fixtures: the command line, and real engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.engines import any_engine, engine_of, running_engines
from tests.support.in_process import Here

__all__ = ["any_engine", "engine_of", "running_engines"]


@pytest.fixture
def here(tmp_path: Path, clean_surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line in this process, in an empty directory that is the current one."""
    root = tmp_path / "here"
    root.mkdir()
    monkeypatch.chdir(root)
    return Here(root, clean_surroundings)
