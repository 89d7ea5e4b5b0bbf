"""``cachekit oci``: verify, lock and collect OCI layouts, such as BuildKit's local cache."""

from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from typing import Any

import click

from cachekit.cli.lock import lock_options, run_under
from cachekit.cli.options import (
    common,
    json_option,
    parse_bytes,
    parse_duration_option,
    parse_seconds,
    store_directory_option,
)
from cachekit.cli.outputs import warn
from cachekit.cli.progress import ProgressBar
from cachekit.cli.render import count, printable, size, to_json
from cachekit.cli.running import Running
from cachekit.errors import Damaged, GoalNotMet, NotRun, SourceUnreadable
from cachekit.oci.collect import CollectReport, CollectRequest, collect
from cachekit.oci.held import LAYOUT_LOCK, layout_locked, lock_place
from cachekit.oci.layout import WHICH, Layout
from cachekit.oci.verify import LayoutReport, verify_layout
from cachekit.system.workers import worker_count

__all__ = ["layout_damaged", "oci"]

_directory = click.argument("path", metavar="DIR", type=click.Path())
#: So many lines of a kind are shown; --json has all.
_MOST_LINES = 20


@click.group(short_help="Verify, lock and collect OCI layouts.", subcommand_metavar="COMMAND")
@common
def oci() -> None:
    """Care for OCI layouts: what docker buildx writes with --cache-to type=local,dest=DIR. docs/oci.md has more.
    Each command has --json.

    \b
    Examples:
      cachekit oci verify .buildx-cache
      cachekit oci lock .buildx-cache -- ./build.sh
      cachekit oci gc .buildx-cache --max-size 20G
    """


@oci.command(short_help="Check that all that index.json leads to is there and right.")
@_directory
@click.option("--quick", is_flag=True, help="Look at existence and sizes only, not at contents.")
@json_option
@common
def verify(path: str, quick: bool, as_json: bool) -> int:
    """Verify the OCI layout in DIR: index, manifests, configs and layers by size and digest (exit 4 if not).

    One bad layer in BuildKit's local cache fails every build that needs it. What nothing leads to, and what killed
    exports left, is told and is no fault: cachekit oci gc removes it. Nothing is changed.

    \b
    Examples:
      cachekit oci verify .buildx-cache
      cachekit oci verify .buildx-cache --json
    """
    bar = ProgressBar("verifying")
    try:
        report = verify_layout(
            path, threads=worker_count(), quick=quick, progress=lambda done, total: bar(done, total, 0)
        )
    finally:
        bar.close()
    if as_json:
        click.echo(to_json({**asdict(report), "faults": [asdict(fault) for fault in report.faults]}))
        click.get_current_context().find_root().ensure_object(dict)["answered"] = True
    if not report.ok:
        for fault in report.faults[1:_MOST_LINES]:
            click.echo(f"  {printable(fault)}", err=True)
        raise layout_damaged(report)
    click.echo(_verified_line(report), err=True)
    return 0


def layout_damaged(report: LayoutReport) -> Damaged:
    """Return the error for a layout with faults."""
    more = f" (and {count(len(report.faults) - 1, 'more fault')})" if len(report.faults) > 1 else ""
    return Damaged(
        f"the OCI layout is damaged: {report.faults[0]}{more}",
        path=report.path,
        rung="oci",
        faults=[str(fault) for fault in report.faults],
        hint="remove it: the next build writes it anew; an image layout has to be made again"
        if report.recognised
        else f"nothing of a layout is here: {WHICH}",
    )


def _verified_line(report: LayoutReport) -> str:
    names = ", ".join(printable(one["name"]) for one in report.references) or "nothing"
    text = f"ok: {printable(report.path)}: {names}, {count(report.blobs, 'blob')}, {size(report.bytes)}"
    left = sum(number for _, number in report.unreferenced)
    if report.unreferenced:
        text += f"; {count(len(report.unreferenced), 'blob')} that nothing needs, {size(left)}"
    if report.ingest:
        waiting = sum(number for _, number in report.ingest)
        text += f"; {count(len(report.ingest), 'unfinished blob')}, {size(waiting)}"
    return text + (" (cachekit oci gc)" if report.unreferenced or report.ingest else "")


@oci.command(short_help="Remove what nothing leads to, and old references.")
@_directory
@click.option(
    "--keep-tags", type=click.IntRange(min=1), metavar="N", help="Keep only the N references exported last."
)
@click.option(
    "--max-size",
    type=parse_bytes,
    metavar="SIZE",
    help="Drop the references exported first until the rest is no larger; the last one stays.",
)
@click.option(
    "--grace",
    type=parse_duration_option,
    default="10m",
    show_default=True,
    metavar="DURATION",
    help="Leave alone what is younger: a build may be about to name it.",
)
@click.option(
    "--settle",
    type=parse_duration_option,
    default="3s",
    show_default=True,
    metavar="DURATION",
    help="How long to watch for a build between moving aside and removing.",
)
@click.option(
    "--lock-timeout",
    type=parse_seconds,
    default=60.0,
    show_default="60",
    metavar="SECONDS",
    help="How long to wait for a build that runs under cachekit oci lock.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go; change nothing.")
@json_option
@common
def gc(path: str, as_json: bool, lock_timeout: float, **options: Any) -> int:
    """Remove from the OCI layout in DIR what index.json does not lead to; BuildKit itself never does.

    Safe beside builds: those under cachekit oci lock are waited for, others noticed. If one writes to the layout,
    nothing is removed (exit 0, status "busy"). Left alone (exit 4) are damaged layouts, and directories with blobs and
    no index.json, such as containerd's own.

    \b
    Examples:
      cachekit oci gc .buildx-cache --dry-run
      cachekit oci gc .buildx-cache --max-size 20G
      cachekit oci gc .buildx-cache --keep-tags 3
    """
    request = CollectRequest(path, **options)
    with nullcontext() if request.dry_run else _held(path, lock_timeout):
        report = collect(request)
    if as_json:
        click.echo(to_json(asdict(report)))
        click.get_current_context().find_root().ensure_object(dict)["answered"] = True
    _tell(report)
    if report.short_by and report.status != "busy":
        raise GoalNotMet(
            f"the last reference alone needs {size(report.remaining)}, {size(report.short_by)} more than asked for",
            path=path,
            hint="it was kept; a larger --max-size, or a cache with mode=min, fits",
            short_by=report.short_by,
        )
    return 0


def _held(path: str, timeout: float) -> AbstractContextManager[object]:
    """Return the lock of a layout; none where there is no layout in which it could lie. Raises SourceUnreadable."""
    with Layout(path) as layout:
        if not layout.looks_like_one():
            return nullcontext()
    stack = ExitStack()
    try:
        stack.enter_context(layout_locked(path, shared=False, timeout=timeout))
    except OSError as error:
        # Without room for a lock nobody has made one, so nobody holds it; and a collection is what makes room.
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise SourceUnreadable(
                f"the layout cannot be locked: {error.strerror}",
                path=path,
                hint="it and its files must be yours to change; --dry-run only looks",
            ) from None
    return stack


def _tell(report: CollectReport) -> None:
    would = report.status == "dry-run"
    for line in [*report.references, *report.removed][:_MOST_LINES]:
        verb = "would remove" if would else "removed"
        click.echo(
            f"  {verb} {line.kind} {printable(line.name[:40])} ({size(line.size)}): {line.reason}", err=True
        )
    if (more := len(report.references) + len(report.removed) - _MOST_LINES) > 0:
        click.echo(f"  and {more} more (--json has all)", err=True)
    if report.status == "busy":
        warn(f"{report.path}: a build is writing here; nothing was removed")
        return
    kept = f"; {count(len(report.kept), 'young one')} kept" if report.kept else ""
    back = f"; {report.restored} put back" if report.restored else ""
    verb = "would free" if would else "freed"
    click.echo(
        f"{printable(report.path)}: {verb} {size(report.freed)} ({count(len(report.removed), 'blob')}), "
        f"{size(report.remaining)} in use{kept}{back}",
        err=True,
    )


@oci.command("lock", cls=Running, short_help="Run a command while holding the lock of a layout.")
@_directory
@click.argument("command", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@lock_options
@store_directory_option
@json_option
@common
def lock_command(path: str, command: tuple[str, ...], store: str, as_json: bool, **options: Any) -> int:
    """Run COMMAND while holding the lock of the OCI layout in DIR, which is made if it is missing.

    Two builds that export to one layout break each other; under the lock the second waits. It is the lock oci of
    cachekit lock run --dir DIR, with the same exit codes (122: somebody else held it for too long).

    \b
    Examples:
      cachekit oci lock cache -- docker buildx build --cache-to type=local,dest=cache .
      cachekit oci lock cache --shared -- ./build-that-only-imports.sh
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise NotRun(f"the directory cannot be made: {error.strerror}", path=path) from None
    return run_under(LAYOUT_LOCK, lock_place(path), command, store=store, as_json=as_json, **options)
