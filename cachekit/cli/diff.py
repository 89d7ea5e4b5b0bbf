"""``cachekit diff``."""

from __future__ import annotations

import click

from cachekit.cache.compare import Comparison, Difference, compare
from cachekit.cache.listing import find_archive
from cachekit.cli.options import common, json_option, store_option
from cachekit.cli.render import count, plain, printable, size, to_json
from cachekit.model import StoreAddress

__all__ = ["diff"]

_SIGNS = {"added": "+", "removed": "-", "changed": "~"}


@click.command(short_help="Compare the files of two entries.")
@click.argument("before", metavar="KEY|FILE")
@click.argument("after", metavar="KEY|FILE")
@store_option
@click.option("--exit-code", is_flag=True, help="Exit 1 if they differ, as git diff does.")
@json_option
@common
def diff(before: str, after: str, store: StoreAddress, exit_code: bool, as_json: bool) -> int:
    """Show what the second entry has added, removed and changed: kinds, contents, links, modes; not times or owners.

    From the indexes alone: nothing is unpacked, contents are compared by their digests. Exit 0, whether they differ or
    not.

    \b
    Examples:
      cachekit diff npm-4f1c npm-99ab
      cachekit diff --exit-code npm-4f1c downloaded.tar.zst
    """
    found = compare(find_archive(before, store), find_archive(after, store))
    if as_json:
        click.echo(
            to_json({"same": found.same, **{n: plain(getattr(found, n)) for n in Comparison.__slots__}})
        )
    else:
        for difference in found.differences:
            click.echo(_line(difference))
    click.echo(_total(found), err=True)
    return 1 if exit_code and not found.same else 0


def _line(difference: Difference) -> str:
    slash = "/" if difference.kind == "directory" else ""
    text = f"{_SIGNS[difference.change]} {printable(difference.path)}{slash}"
    if difference.change != "changed":
        return (
            f"{text}  {size(difference.size or difference.size_before)}"
            if difference.kind == "file"
            else text
        )
    sizes = (
        f", {size(difference.size_before)} -> {size(difference.size)}" if "content" in difference.what else ""
    )
    return f"{text}  ({', '.join(difference.what)}{sizes})"


def _total(found: Comparison) -> str:
    if found.same:
        return f"the same: {count(found.counts['same'], 'member')}, {size(found.bytes['same'])}"
    parts = [f"{found.counts[name]} {name} ({size(found.bytes[name])})" for name in _SIGNS]
    return ", ".join(parts) + f"; {found.counts['same']} the same ({size(found.bytes['same'])})"
