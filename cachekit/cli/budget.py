"""The limits of a store, as options and as environment variables."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cachekit.clean.goals import parse_amount
from cachekit.errors import InvalidRequest
from cachekit.model import parse_duration, parse_size
from cachekit.retention.budget import Budget

__all__ = ["VARIABLES", "budget_from_environment", "budget_of", "budget_options"]

F = TypeVar("F", bound=Callable[..., Any])

#: Option -> (variable, what it is written like, help).
VARIABLES: dict[str, tuple[str, str, str]] = {
    "max_size": ("CACHEKIT_MAX_SIZE", "SIZE", "At most so many bytes on disk, quarantine included: 50G."),
    "max_entries": ("CACHEKIT_MAX_ENTRIES", "N", "At most so many entries."),
    "max_age": (
        "CACHEKIT_MAX_AGE",
        "TIME",
        "Nothing that was not used for so long, each up to a tenth later: 14d.",
    ),
    "min_free": ("CACHEKIT_MIN_FREE", "SIZE|%", "So much must be free on the store's filesystem: 20G, 10%."),
    "keep_last": (
        "CACHEKIT_KEEP_LAST",
        "N",
        "The N newest entries of each family stay, even if a limit is missed.",
    ),
}


def budget_options(function: F) -> F:
    """``--max-size``, ``--max-entries``, ``--max-age``, ``--min-free``, ``--keep-last``; texts, see ``budget_of``."""
    for name, (variable, metavar, text) in reversed(VARIABLES.items()):
        option = "--" + name.replace("_", "-")
        function = click.option(option, name, metavar=metavar, envvar=variable, show_envvar=True, help=text)(
            function
        )
    return function


def budget_of(texts: dict[str, str | None]) -> Budget:
    """Return the budget that options of these names mean, None being no limit. Raises InvalidRequest."""
    free = _read("min_free", texts, parse_amount)
    return Budget(
        max_bytes=_read("max_size", texts, parse_size),
        max_entries=_read("max_entries", texts, _number),
        max_age_seconds=_read("max_age", texts, parse_duration),
        min_free_bytes=None if free is None or free.percent is not None else free.number,
        min_free_percent=None if free is None else free.percent,
        keep_last=_read("keep_last", texts, _number) or 0,
    )


def budget_from_environment() -> Budget:
    """Return the budget of the environment variables; an empty one is none. Raises InvalidRequest."""
    return budget_of({name: os.environ.get(variable) or None for name, (variable, _, _) in VARIABLES.items()})


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InvalidRequest(f"{text!r} is not a number", expected="a whole number, 0 or more", found=text)
    return int(text)


def _read(name: str, texts: dict[str, str | None], parse: Callable[[str], Any]) -> Any:
    text = texts.get(name)
    if text is None:
        return None
    try:
        return parse(text)
    except InvalidRequest as error:
        error.message = f"--{name.replace('_', '-')} ({VARIABLES[name][0]}): {error.message}"
        raise
