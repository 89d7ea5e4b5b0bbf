"""Options that several commands share, and their types."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cachekit.errors import InvalidRequest
from cachekit.model import parse_duration, parse_size
from cachekit.store.layout import default_store

__all__ = [
    "common",
    "json_option",
    "parse_bytes",
    "parse_directory",
    "parse_duration_option",
    "parse_seconds",
    "parse_text",
    "soft_fail",
    "store_option",
]

F = TypeVar("F", bound=Callable[..., Any])


def parse_bytes(value: str | int) -> int:
    """Read the SIZE of an option."""
    try:
        return value if isinstance(value, int) else parse_size(value)
    except InvalidRequest as error:
        raise click.BadParameter(f"{error.message} (try 500M or 2G)") from None


def parse_text(value: str) -> str:
    """Read a key: UTF-8, whatever the locale is in which the argument was read."""
    return os.fsencode(value).decode("utf-8", "surrogateescape")


def parse_seconds(value: str | float) -> float:
    """Read the SECONDS of an option. Not "nan": waiting until then would never end."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if math.isnan(seconds) or seconds < 0:
        raise click.BadParameter(f"{value!r} is not a number of seconds")
    return seconds


def parse_duration_option(value: str | float) -> float:
    """Read the DURATION of an option, in seconds."""
    try:
        return value if isinstance(value, (int, float)) else parse_duration(value)
    except InvalidRequest as error:
        raise click.BadParameter(f"{error.message} (try 30s, 5m or 14d)") from None


def parse_directory(value: str) -> str:
    """Refuse an empty DIR: it would quietly mean the current directory."""
    if not value:
        raise click.BadParameter("it is empty (a variable that is not set?)")
    return value


def _flag(name: str) -> Callable[[click.Context, click.Parameter, bool], bool]:
    """Return a callback that keeps a flag for whoever reports errors (``cli.main``)."""

    def keep(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
        if value:
            ctx.find_root().ensure_object(dict)[name] = True
        return value

    return keep


def common(function: F) -> F:
    """``--debug``, on every command."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_flag("debug"),
        is_eager=True,
        help="Show a traceback when something fails.",
    )(function)


def json_option(function: F) -> F:
    """``--json``: the report, or the error, as one JSON document on stdout."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        callback=_flag("json"),
        is_eager=True,
        help="Print the report as JSON on stdout.",
    )(function)


def store_option(function: F) -> F:
    """``--store``."""
    return click.option(
        "--store",
        metavar="DIR",
        type=parse_directory,
        default=default_store,
        show_default="$CACHEKIT_STORE or ~/.cache/cachekit",
        help="Where the entries are kept.",
    )(function)


def soft_fail(function: F) -> F:
    """``--soft-fail``."""
    return click.option(
        "--soft-fail",
        is_flag=True,
        expose_value=False,
        callback=_flag("soft-fail"),
        is_eager=True,
        help="Turn the exit codes 4 to 9 into a warning and 0.",
    )(function)
