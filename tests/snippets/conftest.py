"""Fixtures: real engines, for the snippets that build images."""

from __future__ import annotations

from tests.support.engines import engine_of, running_engines

__all__ = ["engine_of", "running_engines"]
