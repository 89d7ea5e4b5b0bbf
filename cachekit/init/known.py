"""The table of known caches, from known.toml beside this module."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from cachekit.init.model import Also, Tool

__all__ = ["snippet", "tools"]


@cache
def tools() -> tuple[Tool, ...]:
    """Return every known tool, in the order of the table."""
    text = (files("cachekit.init") / "known.toml").read_text(encoding="utf-8")
    return tuple(_tool(name, values) for name, values in tomllib.loads(text).items())


def _tool(name: str, values: dict[str, Any]) -> Tool:
    given: dict[str, Any] = {}
    for key, value in values.items():
        field = {"not": "never"}.get(key, key.replace("-", "_"))
        if field == "also":
            given[field] = tuple(Also(one["path"], one.get("file"), one.get("lock-text")) for one in value)
        else:
            given[field] = tuple(value) if isinstance(value, list) else value
    return Tool(name, **given)


def snippet(name: str) -> str:
    """Return a snippet that is shipped with the package."""
    return (files("cachekit.init") / "snippets" / name).read_text(encoding="utf-8")
