"""What the commands that add entries have in common: options, room made by a clean, the store's limits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from cachekit.cli.budget import budget_from_environment
from cachekit.cli.options import parse_bytes, parse_directory, parse_seconds
from cachekit.cli.progress import ProgressBar
from cachekit.cli.render import size
from cachekit.cli.settings import Settings
from cachekit.model import StoreAddress
from cachekit.retention.budget import Budget

__all__ = ["force_option", "limits", "make_room_options", "min_free_option", "room_maker", "wait_options"]

F = TypeVar("F", bound=Callable[..., Any])


def force_option(function: F) -> F:
    """``--force``."""
    return click.option("--force", is_flag=True, help="Replace the entry if the key exists.")(function)


def wait_options(function: F) -> F:
    """``--wait``, ``--wait-timeout``: the command gets ``wait_seconds``, 0 without ``--wait``."""

    @functools.wraps(function)
    def command(*args: Any, wait: bool, wait_timeout: float, **options: Any) -> Any:
        return function(*args, wait_seconds=wait_timeout if wait else 0.0, **options)

    decorated: Any = command
    decorated = click.option(
        "--wait-timeout",
        type=parse_seconds,
        default=600.0,
        show_default="600",
        metavar="SECONDS",
        help="How long --wait waits.",
    )(decorated)
    return click.option(  # type: ignore[no-any-return]
        "--wait", is_flag=True, help="Wait while another process saves this key, instead of leaving it to it."
    )(decorated)


def min_free_option(function: F) -> F:
    """``--min-free``."""
    return click.option(
        "--min-free",
        type=parse_bytes,
        default=0,
        metavar="SIZE",
        help="Keep so much free in the store besides.",
    )(function)


def make_room_options(function: F) -> F:
    """``--make-room``, ``--plan``: see ``room_maker``."""
    function = click.option(
        "--plan",
        metavar="FILE|NAME",
        type=parse_directory,
        help="With --make-room: the plan, as for cachekit clean.",
    )(function)
    return click.option(
        "--make-room",
        is_flag=True,
        help="Short of space, clean for exactly what is missing (stage post), then check once more.",
    )(function)


def room_maker(
    plan: str | None, store: StoreAddress, progress: ProgressBar, **wish: Any
) -> Callable[[int], None]:
    """Return what makes room: a clean of the stage post, for so many free bytes in the store and nothing else.

    ``wish``: what else a clean is asked for (``clean.prepare.Wish``), above all what it has to leave alone.
    """

    def make_room(need: int) -> None:
        from cachekit.clean.execute import clean
        from cachekit.clean.prepare import Wish, prepare
        from cachekit.cli.cleaning import gone, rule_line

        progress.close()
        request = prepare(
            Wish("post", plan, store=store.path, filesystems=[store.path], extra_bytes=need, **wish)
        )
        request.finished = lambda outcome: click.echo(rule_line(outcome), err=True) if gone(outcome) else None
        report = clean(request)
        click.echo(f"made room: freed {size(report.freed)} in {report.seconds:.1f} s", err=True)

    return make_room


def limits(settings: Settings) -> Budget:
    """Return the limits that a store is brought inside of at the end: the environment's, else the configuration's.

    To be asked first: one that cannot be read shall not come up when all else is done. Raises InvalidRequest,
    ConfigInvalid.
    """
    budget = budget_from_environment()
    file = settings.configuration()
    return file.budget if budget.unlimited and file is not None else budget
