"""``cachekit save``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from cachekit.cache.config.model import Cache
from cachekit.cache.save import SaveRequest
from cachekit.cache.save import save as save_entry
from cachekit.cli.caches import Asked, Result, asked_options, kind_option, run_each
from cachekit.cli.events import failures, record_save
from cachekit.cli.options import (
    common,
    json_option,
    parse_seconds,
    parse_text,
    soft_fail,
    trust_option,
    with_trust,
)
from cachekit.cli.outputs import warn
from cachekit.cli.progress import ProgressBar
from cachekit.cli.prune import after_save
from cachekit.cli.render import count, printable, size
from cachekit.cli.saving import (
    force_option,
    limits,
    make_room_options,
    min_free_option,
    room_maker,
    wait_options,
)
from cachekit.cli.settings import Settings, settings_option
from cachekit.errors import NoSpace
from cachekit.model import SaveReport
from cachekit.trust import TrustMode

__all__ = ["save"]

#: What must be free before a save can find out what it needs: directories, lock files, a file to write to.
_TO_BEGIN = 4 << 20
_LEVEL = 3


@click.command(short_help="Save files and directories under a key.")
@asked_options
@settings_option(scopes=True)
@click.option("--level", type=int, show_default="3", help="zstd level, -50 (fast) to 22 (small).")
@click.option(
    "--exclude",
    "excludes",
    multiple=True,
    metavar="GLOB",
    help="Leave out names (*.log) or paths (pkg/*/test, ~/.m2/x); may be repeated.",
)
@kind_option
@force_option
@wait_options
@click.option(
    "--family",
    type=parse_text,
    metavar="FAMILY",
    help="Entries expected to resemble this one.  [default: the cache's name, or the key up to its last -]",
)
@min_free_option
@click.option(
    "--changed",
    type=click.Choice(["skip", "refuse"]),
    default="refuse",
    show_default=True,
    help="What to do about a file that keeps changing while it is read.",
)
@make_room_options
@click.option(
    "--full", is_flag=True, help="Write everything anew, instead of starting from an earlier entry."
)
@click.option(
    "--skip-unchanged",
    is_flag=True,
    help="If nothing changed, serve the earlier entry under this key as well (a hard link), without copying it.",
)
@click.option(
    "--trust-mtime",
    is_flag=True,
    help="Take files with the size and mtime of an earlier entry for unchanged, without reading them.",
)
@click.option("--allow-empty", is_flag=True, help="Save a tree without any file.")
@click.option(
    "--lock-timeout",
    type=parse_seconds,
    default=60.0,
    show_default="60",
    metavar="SECONDS",
    help="How long to wait for a restore of the same target.",
)
@trust_option
@soft_fail
@json_option
@common
def save(
    settings: Settings,
    key: str | None,
    arguments: tuple[str, ...],
    every: bool,
    expand: bool,
    root: str | None,
    trust: TrustMode | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Save PATHs under a key, or caches of the configuration by NAME; each whole or not at all.

    A PATH may be a file, a directory, a symlink (saved as a link) or a glob; ~ and absolute paths work. An existing
    key is left as it is (exit 0, status "exists"). Options given here go before what the configuration says. With
    a key in $CACHEKIT_HMAC_KEY the entry is signed.

    Of several caches each is saved by itself; the highest exit code is that of the command.

    \b
    Examples:
      cachekit save --key "node-$HASH" node_modules ~/.npm
      cachekit save --key "venv-$HASH" .venv --exclude __pycache__
      cachekit save node
      cachekit save --all
    """
    asked = Asked(settings, key, arguments, every, expand, root)
    options["excludes"] = list(options["excludes"])
    code, _ = run_each(asked, lambda cache: _save_one(asked, cache, trust, dict(options)), as_json=as_json)
    return code


def _save_one(asked: Asked, cache: Cache | None, trust: TrustMode | None, options: dict[str, Any]) -> Result:
    """Save one cache: what the options do not say comes from the configuration."""
    options["store"] = with_trust(asked.settings.address(cache), trust)
    what = asked.resolve(cache)
    options |= {"key": what.key, "paths": what.paths, "root": what.root}
    budget, file = limits(asked.settings), asked.settings.configuration()
    if options["level"] is None:
        levels = (cache and cache.level, file and file.level)
        options["level"] = next((level for level in levels if level is not None), _LEVEL)
    if cache is not None:
        options["excludes"] = options["excludes"] or list(cache.excludes)
        options["family"] = options["family"] or cache.family or cache.name
    options["kind"] = options["kind"] or (cache.kind if cache else "files")
    progress = ProgressBar("saving")
    plan, make_room = options.pop("plan"), options.pop("make_room")
    maker = options["make_room"] = _maker(plan, options, progress) if make_room else None
    request = SaveRequest(progress=progress, **options)
    try:
        with failures("save", request.key, request.store, request.family):
            report = _save(request, maker)
    finally:
        progress.close()
    for warning in report.warnings:
        warn(warning)
    click.echo(closing_line(report), err=True)
    record_save(request.store, report, request.family)
    if report.status in {"saved", "reused"}:
        after_save(request.store, report.entry, budget)
    return Result({**_fields(report), "ratio": round(report.ratio, 3)})


def _save(request: SaveRequest, maker: Callable[[int], None] | None) -> SaveReport:
    try:
        return save_entry(request)
    except NoSpace as error:
        if maker is None or "need" in error.fields:
            raise
    # So full that the store could not be opened to write: what the save needs is not known yet.
    maker(_TO_BEGIN)
    return save_entry(request)


def _maker(plan: str | None, options: dict[str, Any], progress: ProgressBar) -> Callable[[int], None]:
    """Return what makes room by a clean that leaves alone what is to be saved."""
    from cachekit.cache.estimate import places_of

    places = places_of(options["paths"], options["root"])
    untouchable = {os.fsdecode(place): "what is to be saved" for place in places}
    wish = {"untouchable": untouchable, "lock_timeout": options["lock_timeout"]}
    return room_maker(plan, options["store"], progress, **wish)


def _fields(report: SaveReport) -> dict[str, object]:
    return {name: getattr(report, name) for name in SaveReport.__slots__}


def closing_line(report: SaveReport) -> str:
    """Return what was done in one line."""
    key = printable(report.key)
    files = count(report.files, "file")
    if report.status == "in-progress":
        return f"{key}: another process is saving this key right now; left to it (--wait waits)"
    if report.status == "exists":
        return (
            f"{key}: exists already ({files}, {size(report.archive_bytes)}); left as it is (--force replaces)"
        )
    if report.status == "reused":
        return (
            f"{key}: nothing changed since {printable(report.base)}; its entry ({files}, "
            f"{size(report.archive_bytes)}) now serves both keys ({report.seconds:.2f} s)"
        )
    rate = size(report.content_bytes / max(report.seconds, 0.001))
    ratio = f"{report.ratio:.1f}" if report.ratio >= 1 else f"{report.ratio:.2f}"
    skipped = ", ".join(f"{number} ({reason})" for reason, number in report.skipped.items())
    return (
        f"saved {key}: {files}, {size(report.content_bytes)} as {size(report.archive_bytes)} "
        f"(ratio {ratio}) in {report.seconds:.2f} s, {rate}/s"
        + _taken_over(report)
        + (f"; left out: {skipped}" if skipped else "")
    )


def _taken_over(report: SaveReport) -> str:
    """Tell what an earlier entry spared."""
    if report.unchanged:
        return f"; nothing changed since {printable(report.base)}"
    if not report.copied_bytes:
        return ""
    return f"; {report.copied_bytes / max(1, report.archive_bytes):.0%} copied from {printable(report.base)}"
