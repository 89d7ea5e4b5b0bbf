"""The command line in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.in_process import Here


@pytest.fixture
def here(tmp_path: Path, clean_surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line in this process, in `tmp_path`, with a private home."""
    monkeypatch.chdir(tmp_path)
    return Here(tmp_path, clean_surroundings)
