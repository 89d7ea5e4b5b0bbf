"""Options that several commands share, and their types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from cachekit.errors import InvalidRequest
from cachekit.model import parse_size
from cachekit.store.layout import default_store

__all__ = ["SIZE", "common", "json_option", "soft_fail", "store_option"]

F = TypeVar("F", bound=Callable[..., Any])


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except InvalidRequest as error:
            self.fail(f"{error.message} (try 500M or 2G)", param, ctx)


SIZE = _Size()


def common(function: F) -> F:
    """``--debug``, on every command."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_set_debug,
        is_eager=True,
        help="Show a traceback when something fails.",
    )(function)


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta["cachekit.debug"] = True


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")(
        function
    )


def store_option(function: F) -> F:
    return click.option(
        "--store",
        metavar="DIR",
        default=default_store,
        show_default="$CACHEKIT_STORE or ~/.cache/cachekit",
        help="Where the entries are kept.",
    )(function)


def soft_fail(function: F) -> F:
    return click.option(
        "--soft-fail",
        is_flag=True,
        expose_value=False,
        callback=_set_soft_fail,
        help="Turn the exit codes 4 to 9 into a warning and 0.",
    )(function)


def _set_soft_fail(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta["cachekit.soft-fail"] = True
