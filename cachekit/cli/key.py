"""``cachekit key``."""

from __future__ import annotations

import os

import click

from cachekit.archive.names import find_roots
from cachekit.cache.keys.template import parse_template
from cachekit.cache.keys.values import Expansion, Surroundings, expand
from cachekit.cli.options import common, json_option, parse_directory, parse_text
from cachekit.cli.render import printable, to_json

__all__ = ["explanation", "key"]


@click.command(short_help="Print the key that a template gives.")
@click.argument("template", type=parse_text)
@click.option(
    "--root",
    metavar="DIR",
    type=parse_directory,
    help="Where names in {hash:...} begin, and where git is asked.  [default: current directory]",
)
@click.option(
    "--explain", is_flag=True, help="Also show, on stderr, what each placeholder stands for and why."
)
@json_option
@common
def key(template: str, root: str | None, explain: bool, as_json: bool) -> int:
    """Print the key that TEMPLATE gives here and now.

    \b
    {os} {arch} {libc}      this machine
    {python}                version of the python3 in PATH
    {branch} {commit}       from the CI's variables, else git
    {env.NAME}              a variable of the environment
    {date:%Y-%m}            the date, UTC
    {hash:GLOB,GLOB,!GLOB}  digest of the files' names and contents
    {{ }}                   braces

    {hash?:...}, {env.NAME?}, {branch?} and {commit?} are empty where there is nothing; else that is an error (exit 2).

    \b
    Examples:
      cachekit key 'npm-{os}-{hash:package-lock.json}'
      cachekit key --explain 'venv-{python}-{hash:requirements*.txt}'
    """
    directory = os.fsdecode(find_roots(root).root)
    expansion = expand(parse_template(template), Surroundings(directory))
    if as_json:
        click.echo(to_json({"key": expansion.text, "template": template, "values": _values(expansion)}))
    else:
        click.echo(expansion.text)
    if explain:
        for line in explanation(expansion):
            click.echo(line, err=True)
    return 0


def _values(expansion: Expansion) -> list[dict[str, object]]:
    return [
        {
            "placeholder": value.placeholder,
            "value": value.value,
            "origin": value.origin,
            "files": [{"path": os.fsdecode(name), "sha256": digest} for name, digest in value.files],
        }
        for value in expansion.values
    ]


def explanation(expansion: Expansion) -> list[str]:
    """Return what went into a key, a line each."""
    lines = []
    for value in expansion.values:
        lines.append(
            f"{printable(value.placeholder)} = {printable(value.value) or '(empty)'}  ({printable(value.origin)})"
        )
        lines += [f"  sha256 {digest}  {printable(name)}" for name, digest in value.files]
    return lines
