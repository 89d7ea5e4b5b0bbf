"""``cachekit explain``."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

import click

from cachekit.cache.config.model import Cache
from cachekit.cache.explain import ExplainReport, explain_scoped
from cachekit.cache.explain import explain as explain_request
from cachekit.cache.restore import RestoreRequest
from cachekit.cli.caches import Asked, Result, asked_options, restore_key_option, run_each
from cachekit.cli.options import common, json_option, trust_option, with_trust
from cachekit.cli.render import plain, printable
from cachekit.cli.settings import Settings, settings_option
from cachekit.trust import TrustMode

__all__ = ["explain"]


@click.command(short_help="Say which entry a restore would use, and why.")
@asked_options
@restore_key_option
@settings_option(scopes=True)
@click.option("--all-targets", is_flag=True, help="As for restore.")
@click.option("--any-platform", is_flag=True, help="As for restore.")
@click.option("--images", is_flag=True, help="Say what image load would load.")
@trust_option
@json_option
@common
def explain(
    settings: Settings,
    key: str | None,
    arguments: tuple[str, ...],
    every: bool,
    expand: bool,
    root: str | None,
    restore_keys: tuple[str, ...],
    trust: TrustMode | None,
    images: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Say which entry a restore with the same options would use, and of every other candidate why not.

    Entries are read in full, as a restore reads them; nothing is changed, neither the store nor a target.

    \b
    Examples:
      cachekit explain --key "node-$HASH" --restore-key node- node_modules
      cachekit explain node --json
      cachekit explain --images --key "images-$HASH" --restore-key images-
    """
    asked = Asked(settings, key, arguments, every, expand, root, restore_keys)
    code, _ = run_each(
        asked,
        lambda cache: _one(asked, cache, trust, dict(options), images=images, as_json=as_json),
        as_json=as_json,
    )
    return code


def _one(
    asked: Asked,
    cache: Cache | None,
    trust: TrustMode | None,
    options: dict[str, Any],
    *,
    images: bool,
    as_json: bool,
) -> Result:
    settings = asked.settings
    base, store = (with_trust(place, trust) for place in (settings.base(cache), settings.address(cache)))
    what = asked.resolve(cache)
    request = RestoreRequest(
        what.key, store, restore_keys=what.restore_keys, paths=what.paths, root=what.root, **options
    )
    if settings.scope is None:
        report = explain_request(request, images=images)
    else:
        report = explain_scoped(request, base, images=images)
    if not as_json:
        for line in _lines(report, "load" if images else "restore"):
            click.echo(line)
    fields = {name: plain(getattr(report, name)) for name in ExplainReport.__slots__}
    return Result(fields)


def _lines(report: ExplainReport, verb: str) -> list[str]:
    if report.error is not None:
        head = f"the {verb} would end with exit code {report.error['exit_code']}: {report.error['message']}"
    elif report.entry is not None:
        head = f"would {verb} {report.matched_key} ({report.status})"
    else:
        head = f"would {verb} nothing ({report.status})"
    lines = [printable(head)]
    groups = itertools.groupby(report.lines, key=lambda line: (line.namespace, line.wanted, line.exact))
    for (namespace, wanted, exact), members in groups:
        lines.append(printable(f"{'key' if exact else 'restore key'} {wanted} in {namespace}"))
        for line in members:
            facts = [line.key or line.entry]
            if line.created_ns:
                moment = dt.datetime.fromtimestamp(line.created_ns // 1_000_000_000, tz=dt.UTC)
                facts.append(moment.strftime("%Y-%m-%d %H:%M:%SZ"))
            lines.append(f"  {line.verdict:<12} {printable('  '.join(facts))}: {printable(line.reason)}")
    return lines
