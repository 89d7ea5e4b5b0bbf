"""Options that several commands share, and their types."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cachekit.cli.settings import Settings, settings_option, store_directory, trust_of
from cachekit.errors import InvalidRequest
from cachekit.model import StoreAddress, parse_duration, parse_size
from cachekit.trust import ANYONE, TrustMode

__all__ = [
    "common",
    "json_option",
    "parse_bytes",
    "parse_directory",
    "parse_duration_option",
    "parse_seconds",
    "parse_text",
    "soft_fail",
    "store_directory_option",
    "store_option",
    "trust_of",
    "trust_option",
    "whole_store_option",
    "with_trust",
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
    """``--store``, ``--namespace``, ``--config``, ``--trust-store``: the command gets ``store``, a StoreAddress."""
    return settings_option()(_with_address(function))


def whole_store_option(function: F) -> F:
    """As ``store_option`` without ``--namespace``, for commands that look at all of them."""
    return settings_option(namespace=False)(_with_address(function))


def _with_address(function: F) -> F:
    @functools.wraps(function)
    def command(*args: Any, settings: Settings, **options: Any) -> Any:
        return function(*args, store=settings.address(), **options)

    return command  # type: ignore[return-value]


def store_directory_option(function: F) -> F:
    """``--store`` alone, for commands that only look at the disk that it is on: they get ``store``, a path."""
    return click.option(
        "--store",
        metavar="DIR",
        type=parse_directory,
        default=store_directory,
        show_default="$CACHEKIT_STORE, the configuration's or ~/.cache/cachekit",
        help="Where the entries are kept.",
    )(function)


def trust_option(function: F) -> F:
    """``--trust``."""
    return click.option(
        "--trust",
        type=click.Choice(["hmac", "none"]),
        envvar="CACHEKIT_TRUST",
        help="hmac: use only entries signed with a key of $CACHEKIT_HMAC_KEY (or ..._FILE); none: any whole entry.  "
        "[default: hmac if there is a key]",
    )(function)


def with_trust(store: StoreAddress | str, mode: TrustMode | None) -> StoreAddress:
    """Return the store's address with the policy that was chosen, else that of the configuration.

    Raises InvalidRequest for a bad key.
    """
    address = StoreAddress.of(store)
    if mode is None and address.trust != ANYONE:
        return address
    return dataclasses.replace(address, trust=trust_of(mode))


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
