"""Fixtures: real engines of three versions, with both image stores."""

from __future__ import annotations

from tests.support.engines import any_engine, engine_of, running_engines

__all__ = ["any_engine", "engine_of", "running_engines"]
