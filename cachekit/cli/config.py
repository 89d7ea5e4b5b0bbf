"""``cachekit config``: check and show the configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from cachekit.cache.config.model import Cache, Configuration
from cachekit.cli.options import common, json_option
from cachekit.cli.render import count, printable, to_json
from cachekit.cli.settings import Settings, settings_option
from cachekit.errors import InvalidRequest

__all__ = ["config"]


@click.group(short_help="Check or show the configuration.", invoke_without_command=True)
@common
@click.pass_context
def config(ctx: click.Context) -> int:
    """Check or show the configuration: cachekit.toml, or [tool.cachekit] in pyproject.toml.

    It is looked for upwards from the current directory, to the git root or the home directory. docs/configuration.md
    explains it.

    \b
    Examples:
      cachekit config check
      cachekit config show --json
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return InvalidRequest.exit_code
    return 0


@config.command(short_help="Check configuration files.")
@click.argument("files", metavar="[FILE]...", nargs=-1)
@json_option
@common
def check(files: tuple[str, ...], as_json: bool) -> int:
    """Check configuration files, the one that holds here without a FILE; show every fault with its line and key.

    Exit 2 if there is a fault.

    \b
    Examples:
      cachekit config check
      cachekit config check ci/cachekit.toml --json
    """
    from cachekit.cache.config.file import examine, fault_line

    reports: list[dict[str, Any]] = []
    for file in files or (_file(),):
        configuration, found = examine(file)
        reports.append(
            {"file": file, "ok": not found, "caches": list(configuration.caches), "problems": found}
        )
        if as_json:
            continue
        for problem in found:
            hint = f" ({problem.hint})" if problem.hint else ""
            click.echo(printable(fault_line(file, problem) + hint))
        if not found:
            click.echo(printable(f"{file}: fine, {count(len(configuration.caches), 'cache')}"))
    if as_json:
        click.echo(to_json(reports))
    return 0 if all(report["ok"] for report in reports) else InvalidRequest.exit_code


def _file() -> str:
    path = Settings.file()
    if path is None:
        raise InvalidRequest(
            "there is no configuration here",
            hint="write a cachekit.toml (docs/configuration.md), or name a file",
        )
    return path


@config.command(short_help="Show the configuration that holds here.")
@settings_option()
@json_option
@common
def show(settings: Settings, as_json: bool) -> int:
    """Show the configuration that holds here, with what options and variables make of it.

    \b
    Example:
      cachekit config show
    """
    file = settings.configuration()
    address = settings.base()
    if as_json:
        found = None if file is None else _values(file)
        click.echo(
            to_json({"store": address.path, "namespace": str(address.namespace), "configuration": found})
        )
        return 0
    lines = [
        ("file", file.path if file else "none here"),
        ("store", address.path),
        ("namespace", address.namespace),
    ]
    limits = {} if file is None else dataclasses.asdict(file.budget)
    lines += [(name.replace("_", "-"), value) for name, value in limits.items() if value]
    for label, value in lines:
        click.echo(f"{label:<16} {printable(value)}")
    for cache in file.caches.values() if file else ():
        click.echo(f"\n{cache.name}")
        for name, value in _cache_values(cache).items():
            if value not in (None, [], False):
                click.echo(f"  {name:<14} {printable(value)}")
    return 0


def _values(file: Configuration) -> dict[str, object]:
    return {
        "path": file.path,
        "store": file.store,
        "namespace": file.namespace and str(file.namespace),
        "trust_store": file.trust_store,
        "trust": file.trust,
        "level": file.level,
        "retention": file.budget,
        "caches": {cache.name: _cache_values(cache) for cache in file.caches.values()},
    }


def _cache_values(cache: Cache) -> dict[str, object]:
    return {
        "key": cache.key.text,
        "restore-keys": [key.text for key in cache.restore_keys],
        "paths": list(cache.paths),
        "excludes": list(cache.excludes),
        "mode": cache.mode,
        "in-place": cache.in_place,
        "namespace": cache.namespace and str(cache.namespace),
        "level": cache.level,
        "family": cache.family or cache.name,
        "trust": cache.trust,
    }
