"""``cachekit restore``."""

from __future__ import annotations

from typing import Any

import click

from cachekit.cache.restore import RestoreRequest
from cachekit.cache.restore import restore as restore_entry
from cachekit.cli.options import SIZE, common, json_option, soft_fail, store_option
from cachekit.cli.outputs import annotate, write_outputs
from cachekit.cli.progress import ProgressBar
from cachekit.cli.render import printable, size, to_json
from cachekit.errors import InvalidRequest, Missed, Refused, Unreadable
from cachekit.model import RestoreReport

__all__ = ["restore"]


@click.command(short_help="Restore the entry of a key, or of a restore key.")
@click.option("--key", required=True, help="The key; matched exactly, never as a prefix.")
@click.option(
    "--restore-key",
    "restore_keys",
    multiple=True,
    metavar="PREFIX",
    help="Else the newest entry whose key begins so; may be repeated, first match wins.",
)
@click.argument("paths", nargs=-1, metavar="[PATH...]")
@store_option
@click.option("--root", metavar="DIR", help="Where relative targets go.  [default: current directory]")
@click.option("--replace", is_flag=True, help="The target becomes the entry: other files in it go.")
@click.option("--merge", is_flag=True, help="Files of the entry replace theirs, other files stay.  [default]")
@click.option(
    "--in-place",
    is_flag=True,
    help="File by file, where old and new do not fit beside each other; with --replace other files go first.",
)
@click.option("--all-targets", is_flag=True, help="Also write targets of the entry that were not named.")
@click.option("--any-platform", is_flag=True, help="Take entries made on another OS, architecture or libc.")
@click.option("--fail-on-miss", is_flag=True, help="Exit 3 if nothing was restored.")
@click.option("--strict", is_flag=True, help="Exit 4 if an entry was refused, 3 if nothing was restored.")
@click.option(
    "--durable", is_flag=True, help="Sync before the commit: safe against power loss, not only against kill."
)
@click.option("--same-owner", is_flag=True, help="As root: give files the owners recorded in the entry.")
@click.option("--keep-setuid", is_flag=True, help="Keep setuid and setgid bits of files.")
@click.option("--min-free", type=SIZE, default=0, metavar="SIZE", help="Keep so much free besides.")
@click.option(
    "--dotenv",
    metavar="FILE",
    envvar="CACHEKIT_DOTENV",
    help="Write the outputs as NAME=value lines (a GitLab dotenv report).",
)
@click.option(
    "--lock-timeout",
    type=float,
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for another restore of the same target.",
)
@soft_fail
@json_option
@common
def restore(
    as_json: bool,
    replace: bool,
    merge: bool,
    in_place: bool,
    fail_on_miss: bool,
    strict: bool,
    dotenv: str | None,
    **options: Any,
) -> int:
    """Restore PATHs (or all targets of the entry under the root) from the cache.

    Nothing is written unless the entry is whole: size, checksums, structure, every file. A damaged entry is refused
    and set aside (exit 0, status "refused"): the job goes on as after a miss.

    \b
    Examples:
      cachekit restore --key "npm-$HASH" --restore-key npm- node_modules
      cachekit restore --key "venv-$HASH" --replace .venv
    """
    if (merge and replace) or (merge and in_place):
        raise InvalidRequest("--merge cannot be used together with --replace or --in-place")
    options["paths"], options["restore_keys"] = list(options["paths"]), list(options["restore_keys"])
    mode: Any = "in-place" if in_place else "replace" if replace else "merge"
    progress = ProgressBar("restoring")
    try:
        report = restore_entry(
            RestoreRequest(mode=mode, replace_extras=in_place and replace, progress=progress, **options)
        )
    finally:
        progress.close()
    _tell(report, as_json=as_json, dotenv=dotenv)
    return _code(report, fail_on_miss=fail_on_miss, strict=strict)


def _tell(report: RestoreReport, *, as_json: bool, dotenv: str | None) -> None:
    if as_json:
        click.echo(
            to_json(
                {
                    **{name: getattr(report, name) for name in RestoreReport.__slots__},
                    "cache_hit": report.status == "exact",
                }
            )
        )
    for line in report.tried:
        if line["verdict"] != "miss":
            message = f"{line['entry']} was not used: {line['verdict']}: {line['reason']}"
            click.echo(f"cachekit: warning: {printable(message)}", err=True)
            annotate("warning", message)
    for warning in report.warnings:
        click.echo(f"cachekit: warning: {printable(warning)}", err=True)
        annotate("warning", warning)
    click.echo(closing_line(report), err=True)
    write_outputs(
        {
            "cache-hit": report.status == "exact",
            "status": report.status,
            "matched-key": report.matched_key or "",
            "bytes": report.content_bytes,
            "files": report.files,
            "seconds": round(report.seconds, 3),
        },
        dotenv,
    )


def closing_line(report: RestoreReport) -> str:
    """Return what was done in one line."""
    key = printable(report.key)
    if report.status == "miss":
        return f"miss: no entry for {key}"
    if not report.hit:
        aside = ", set aside" if report.quarantined else ""
        return f"{report.status}: the entry for {key} was not used{aside}; nothing was written"
    how = ", ".join(sorted(set(report.commit.values())))
    rate = size(report.content_bytes / max(report.seconds, 0.001))
    extra = f"; extra: {report.extra} files not in the entry" if report.extra else ""
    kept = f"; {report.unchanged} were right already" if report.unchanged else ""
    hit = "exact" if report.status == "exact" else f"partial, {printable(report.matched_key)}"
    return (
        f"restored {key} ({hit}): {report.files} files, {size(report.content_bytes)} in {report.seconds:.1f} s, "
        f"{rate}/s (commit: {how}){kept}{extra}"
    )


def _code(report: RestoreReport, *, fail_on_miss: bool, strict: bool) -> int:
    """Return 0, or what --strict and --fail-on-miss ask for."""
    if strict and report.tried:
        for line in report.tried:
            if line["verdict"] in {"damaged", "unsafe", "unsupported", "refused"}:
                return Refused.exit_code
            if line["verdict"] == "unreadable":
                return Unreadable.exit_code
    if not report.hit and (strict or fail_on_miss):
        return Missed.exit_code
    return 0
