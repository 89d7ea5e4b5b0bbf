"""``cachekit pin`` and ``cachekit unpin``."""

from __future__ import annotations

import click

from cachekit.cache.pins import PinLine, pin_keys, unpin_keys
from cachekit.cli.options import common, json_option, parse_text, store_option
from cachekit.cli.render import printable, to_json
from cachekit.errors import Missed
from cachekit.model import StoreAddress

__all__ = ["pin", "unpin"]


@click.command(short_help="Keep an entry whatever the limits of the store say.")
@click.argument("keys", nargs=-1, required=True, type=parse_text, metavar="KEY...")
@store_option
@json_option
@common
def pin(keys: tuple[str, ...], store: StoreAddress | str, as_json: bool) -> int:
    """Pin entries: no prune removes them, until they are unpinned. Exit 3 if there is none with a KEY.

    A pin belongs to the key (on each platform that has an entry now): it stays when the entry is saved anew.

    \b
    Examples:
      cachekit pin release-2.1-deps
    """
    return _tell(pin_keys(store, keys), as_json=as_json)


@click.command(short_help="Let an entry be pruned again.")
@click.argument("keys", nargs=-1, required=True, type=parse_text, metavar="KEY...")
@store_option
@json_option
@common
def unpin(keys: tuple[str, ...], store: StoreAddress | str, as_json: bool) -> int:
    """Take pins away. A KEY that is not pinned is fine; exit 3 if there is neither entry nor pin.

    \b
    Examples:
      cachekit unpin release-2.1-deps
    """
    return _tell(unpin_keys(store, keys), as_json=as_json)


def _tell(lines: list[PinLine], *, as_json: bool) -> int:
    if as_json:
        click.echo(to_json(lines))
    for line in lines:
        name = printable(line.key) + (f" ({printable(line.platform)})" if line.platform else "")
        click.echo(f"{name}: {line.result}", err=True)
    return Missed.exit_code if any(line.result == "no such entry" for line in lines) else 0
