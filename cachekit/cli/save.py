"""``cachekit save``."""

from __future__ import annotations

from typing import Any

import click

from cachekit.cache.save import SaveRequest
from cachekit.cache.save import save as save_entry
from cachekit.cli.options import SIZE, common, json_option, soft_fail, store_option
from cachekit.cli.outputs import annotate
from cachekit.cli.progress import ProgressBar
from cachekit.cli.render import printable, size, to_json
from cachekit.model import SaveReport

__all__ = ["save"]


@click.command(short_help="Save files and directories under a key.")
@click.option("--key", required=True, help="The key, 1 to 512 bytes.")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@store_option
@click.option(
    "--root", metavar="DIR", help="What relative paths are relative to.  [default: current directory]"
)
@click.option("--level", type=int, default=3, show_default=True, help="zstd level, -50 (fast) to 22 (small).")
@click.option(
    "--exclude",
    "excludes",
    multiple=True,
    metavar="GLOB",
    help="Leave out names (*.log) or paths (pkg/*/test); may be repeated.",
)
@click.option("--force", is_flag=True, help="Replace the entry if the key exists.")
@click.option(
    "--wait",
    "wait_seconds",
    type=float,
    is_flag=False,
    flag_value=600.0,
    default=0.0,
    metavar="[SECONDS]",
    help="Wait for another save of this key instead of leaving it to it.  [600 if no number is given]",
)
@click.option("--family", help="Entries expected to resemble this one.  [default: the key up to its last -]")
@click.option(
    "--min-free", type=SIZE, default=0, metavar="SIZE", help="Keep so much free in the store besides."
)
@click.option(
    "--changed",
    type=click.Choice(["skip", "refuse"]),
    default="refuse",
    show_default=True,
    help="What to do about a file that keeps changing while it is read.",
)
@click.option("--allow-empty", is_flag=True, help="Save a tree without any file.")
@click.option(
    "--lock-timeout",
    type=float,
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a restore of the same target.",
)
@soft_fail
@json_option
@common
def save(as_json: bool, **options: Any) -> int:
    """Save PATHs under a key, whole or not at all.

    A PATH may be a file, a directory, a symlink (saved as a link) or a glob; ~ and absolute paths work. An existing
    key is left as it is (exit 0, status "exists").

    \b
    Examples:
      cachekit save --key "npm-$HASH" node_modules ~/.npm
      cachekit save --key "venv-$HASH" .venv --exclude __pycache__
    """
    options["paths"], options["excludes"] = list(options["paths"]), list(options["excludes"])
    progress = ProgressBar("saving")
    try:
        report = save_entry(SaveRequest(progress=progress, **options))
    finally:
        progress.close()
    if as_json:
        click.echo(to_json({**_fields(report), "ratio": round(report.ratio, 3)}))
    for warning in report.warnings:
        click.echo(f"cachekit: warning: {printable(warning)}", err=True)
        annotate("warning", warning)
    click.echo(closing_line(report), err=True)
    return 0


def _fields(report: SaveReport) -> dict[str, object]:
    return {name: getattr(report, name) for name in SaveReport.__slots__}


def closing_line(report: SaveReport) -> str:
    """Return what was done in one line."""
    key = printable(report.key)
    if report.status == "in-progress":
        return f"{key}: another process is saving this key right now; left to it (--wait waits)"
    if report.status == "exists":
        return f"{key}: exists already ({report.files} files, {size(report.archive_bytes)}); nothing to do"
    skipped = "".join(f", {count} {reason}" for reason, count in report.skipped.items())
    rate = size(report.content_bytes / max(report.seconds, 0.001))
    return (
        f"saved {key}: {report.files} files, {size(report.content_bytes)} as {size(report.archive_bytes)} "
        f"(ratio {report.ratio:.1f}) in {report.seconds:.1f} s, {rate}/s"
        + (f"; left out:{skipped[1:]}" if skipped else "")
    )
