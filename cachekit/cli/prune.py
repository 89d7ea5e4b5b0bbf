"""``cachekit prune``, and the prune after a save."""

from __future__ import annotations

import os
from collections import Counter

import click

from cachekit.cache.prune import PruneLine, PruneReport, PruneRequest, prune_after_save
from cachekit.cache.prune import prune as prune_store
from cachekit.cli.budget import budget_of, budget_options
from cachekit.cli.events import record_prune
from cachekit.cli.options import common, json_option, soft_fail
from cachekit.cli.outputs import warn
from cachekit.cli.render import count, printable, size, to_json
from cachekit.cli.settings import Settings, settings_option
from cachekit.errors import CachekitError, GoalNotMet, StoreUnavailable
from cachekit.model import Namespace, StoreAddress
from cachekit.retention.budget import Budget
from cachekit.retention.plan import Shortfall

__all__ = ["after_save", "prune"]


@click.command(short_help="Remove entries until the store is inside its limits.")
@budget_options
@click.option(
    "--namespace",
    "namespaces",
    multiple=True,
    metavar="NS",
    help="Only this namespace; may be repeated, then limits are over these together.  [default: all]",
)
@click.option(
    "--each", is_flag=True, help="The limits hold for each namespace by itself, not for all together."
)
@settings_option(namespace=False)
@click.option(
    "-n", "--dry-run", is_flag=True, help="Change nothing; show every entry and what would become of it."
)
@soft_fail
@json_option
@common
def prune(
    settings: Settings,
    namespaces: tuple[str, ...],
    each: bool,
    dry_run: bool,
    as_json: bool,
    **texts: str | None,
) -> int:
    """Remove entries, least recently used first, until the store is inside its limits.

    The newest entry of a family goes last. What is pinned is never removed, and readers of a removed entry finish.
    Without a limit here, those of the configuration hold; without any only what outstayed the quarantine goes.

    Exit 7 if a limit cannot be met because the rest is kept.

    \b
    Examples:
      cachekit prune --max-size 50G --max-age 14d --dry-run
      cachekit prune --min-free 10% --keep-last 1
      cachekit prune --each --max-size 5G --namespace shop/ci
    """
    store, limits = settings.base(), budget_of(texts)
    file = settings.configuration()
    if limits == Budget() and file is not None:
        limits = file.budget
    chosen = [Namespace(name) for name in namespaces] or None
    request = PruneRequest(
        store.path, limits, namespaces=chosen, dry_run=dry_run, open_to_all=store.open_to_all
    )
    if each:
        request.budget, request.every = Budget(keep_last=limits.keep_last), limits
    report = prune_store(request)
    record_prune(report)
    _tell(report, as_json=as_json)
    if report.busy:
        return 0
    problem = _problem(report)
    if problem is None or dry_run:
        return 0
    context = click.get_current_context().find_root().ensure_object(dict)
    context["answered"] = True
    raise problem


def _tell(report: PruneReport, *, as_json: bool) -> None:
    if as_json:
        click.echo(to_json({**_fields(report), "met": report.met}))
    else:
        for line in report.lines:
            # Of a long store, what just fits is only counted, unless the plan is what was asked for.
            if report.dry_run or line.reason != "fits" or line.result != "kept":
                click.echo(_line(line))
    for warning in report.warnings:
        warn(warning)
    if report.unreadable:
        warn(f"left out, for lack of permission: {printable(sorted(report.unreadable))}")
    for one in report.short if report.dry_run else ():
        warn("limit would not be met: " + _short(one))
    click.echo(closing_line(report), err=True)


def _fields(report: PruneReport) -> dict[str, object]:
    return {name: getattr(report, name) for name in PruneReport.__slots__}


def _line(line: PruneLine) -> str:
    name = printable(line.key if line.key is not None else line.entry)
    where = "" if line.namespace == "default" else f" in {line.namespace}"
    return (
        f"{line.result:<9}  {size(line.bytes):>10}  {name}{where}: {line.reason}: {printable(line.sentence)}"
    )


def closing_line(report: PruneReport) -> str:
    """Return what was done in one line."""
    where = printable(report.store)
    if report.busy:
        return f"another prune of {where} is running; left to it"
    kept = Counter(line.reason for line in report.lines if line.result == "kept")
    rest = ", ".join(f"{number} {reason}" for reason, number in sorted(kept.items())) or "nothing"
    removed = count(report.removed, "file")
    if report.dry_run:
        return f"would remove {removed}, {size(report.removed_bytes)}, from {where}; would keep: {rest}"
    # What others wrote meanwhile may be more than what was freed; a negative number would say nothing.
    seen = f"; {size(report.freed)} more are free" if report.removed_bytes and report.freed > 0 else ""
    return (
        f"removed {removed}, {size(report.removed_bytes)}, from {where} in {report.seconds:.2f} s{seen}; "
        f"kept: {rest}"
    )


_NOUNS = {"max-size": "size", "max-entries": "number of entries", "min-free": "free space"}


def _short(one: Shortfall) -> str:
    amount = count(one.short_by, "entry", "entries") if one.limit == "max-entries" else size(one.short_by)
    where = f" of {printable(one.scope)}" if one.scope else ""
    return f"{_NOUNS[one.limit]}{where}, by {amount}"


def _problem(report: PruneReport) -> CachekitError | None:
    """Return the error that the command ends with, None if every limit holds."""
    if report.failed:
        first = next(line for line in report.lines if line.result == "failed")
        return StoreUnavailable(
            f"{count(report.failed, 'file')} could not be removed from the store",
            path=os.path.join(report.store, first.namespace, first.entry),
            found=first.sentence,
            hint="check that you may write to the store",
        )
    if report.short:
        return GoalNotMet(
            "the store is not inside its limits: " + "; ".join(_short(one) for one in report.short),
            path=report.store,
            hint="what stays is pinned, among the last of its family, unreadable, or not the store's: "
            "cachekit prune --dry-run shows each with its reason",
            short_by=report.short[0].short_by,
        )
    return None


def after_save(store: StoreAddress | str, entry: str, budget: Budget) -> None:
    """Prune the store that an entry was just saved to, and tell of it in one line. Never fails."""
    report = prune_after_save(StoreAddress.of(store), budget, entry)
    if report is None:
        return
    record_prune(report)
    for warning in report.warnings:
        warn(warning)
    for one in report.short:
        warn("the store is not inside its limits: " + _short(one))
    if report.removed:
        click.echo(closing_line(report), err=True)
