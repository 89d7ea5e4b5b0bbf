"""``cachekit restore``."""

from __future__ import annotations

from typing import Any

import click

from cachekit.cache.restore import RestoreRequest
from cachekit.cache.restore import restore as restore_entry
from cachekit.cli.events import failures, record_restore
from cachekit.cli.options import (
    common,
    json_option,
    parse_bytes,
    parse_directory,
    parse_seconds,
    parse_text,
    soft_fail,
    store_option,
    trust_option,
    with_trust,
)
from cachekit.cli.outputs import check_dotenv, warn, write_outputs
from cachekit.cli.progress import ProgressBar
from cachekit.cli.render import count, details, printable, size, to_json
from cachekit.errors import CachekitError, InvalidRequest, Missed, Refused, Unreadable
from cachekit.model import RestoreReport
from cachekit.trust import TrustMode

__all__ = ["restore"]

#: So many untrusted entries are told of one by one: a store that was never signed may be full of them.
_UNTRUSTED_LINES = 3


@click.command(short_help="Restore the entry of a key, or of a restore key.")
@click.option(
    "--key",
    required=True,
    type=parse_text,
    metavar="KEY",
    help="The key; matched exactly, never as a prefix.",
)
@click.option(
    "--restore-key",
    "restore_keys",
    multiple=True,
    type=parse_text,
    metavar="PREFIX",
    help="Else the newest entry whose key begins so; may be repeated, first match wins.",
)
@click.argument("paths", nargs=-1, metavar="[PATH...]")
@store_option
@click.option(
    "--root",
    metavar="DIR",
    type=parse_directory,
    help="Where relative targets go.  [default: current directory]",
)
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
@click.option("--min-free", type=parse_bytes, default=0, metavar="SIZE", help="Keep so much free besides.")
@click.option(
    "--dotenv",
    metavar="FILE",
    envvar="CACHEKIT_DOTENV",
    help="Write the outputs as NAME=value lines (a GitLab dotenv report).",
)
@click.option(
    "--lock-timeout",
    type=parse_seconds,
    default=60.0,
    show_default="60",
    metavar="SECONDS",
    help="How long to wait for another restore of the same target.",
)
@trust_option
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
    trust: TrustMode | None,
    **options: Any,
) -> int:
    """Restore PATHs (or all targets of the entry under the root) from the cache.

    Nothing is written unless the entry is whole: size, checksums, structure, every file. A damaged entry is refused
    and set aside (exit 0, status "refused"): the job goes on as after a miss. With --trust hmac the same holds for an
    entry that is not signed with one of your keys, but it stays in the store for jobs that ask for no signature.

    In GitHub Actions the outputs cache-hit (true only for the exact key), status, matched-key, bytes, files and
    seconds are written to $GITHUB_OUTPUT.

    \b
    Examples:
      cachekit restore --key "npm-$HASH" --restore-key npm- node_modules
      cachekit restore --key "venv-$HASH" --replace .venv
    """
    if merge and (replace or in_place):
        raise InvalidRequest("--merge cannot be used together with --replace or --in-place")
    check_dotenv(dotenv)
    options["paths"], options["restore_keys"] = list(options["paths"]), list(options["restore_keys"])
    mode: Any = "in-place" if in_place else "replace" if replace else "merge"
    asked = options | {"store": with_trust(options["store"], trust)}
    progress = ProgressBar("restoring")
    try:
        with failures("restore", options["key"], options["store"]):
            report = restore_entry(
                RestoreRequest(mode=mode, replace_extras=in_place and replace, progress=progress, **asked)
            )
    except CachekitError:
        # Without this a step that asks for cache-hit after a failed restore (--soft-fail) would get an empty text.
        _write_outputs(RestoreReport("miss", options["key"]), "error", dotenv)
        raise
    finally:
        progress.close()
    if as_json:
        fields = {name: getattr(report, name) for name in RestoreReport.__slots__}
        click.echo(to_json({**fields, "cache_hit": report.status == "exact"}))
    _tell(report, options["restore_keys"], options["store"])
    _write_outputs(report, report.status, dotenv)
    record_restore(options["store"], report)
    return _code(report, fail_on_miss=fail_on_miss, strict=strict)


def _write_outputs(report: RestoreReport, status: str, dotenv: str | None) -> None:
    write_outputs(
        {
            "cache-hit": report.status == "exact",
            "status": status,
            "matched-key": report.matched_key or "",
            "bytes": report.content_bytes,
            "files": report.files,
            "seconds": round(report.seconds, 3),
        },
        dotenv,
    )


def _tell(report: RestoreReport, restore_keys: list[str], store: str) -> None:
    """Tell people: what was passed over and why, warnings, the closing line."""
    untrusted = [line for line in report.tried if line["verdict"] == "untrusted"]
    for line in report.tried:
        if line["verdict"] != "miss" and line not in untrusted[_UNTRUSTED_LINES:]:
            _tell_passed_over(line, aside=line["entry"] in report.quarantined)
    if (more := len(untrusted) - _UNTRUSTED_LINES) > 0:
        warn(f"{count(more, 'further entry', 'further entries')} not used (untrusted)")
    for warning in report.warnings:
        warn(warning)
    click.echo(closing_line(report, restore_keys, store), err=True)
    if not report.hit:
        for line in report.tried:
            if line["verdict"] == "miss":
                click.echo(f"  {printable(line['entry'])}: {printable(line['reason'])}", err=True)


def _tell_passed_over(line: dict[str, object], *, aside: bool) -> None:
    """Say why an entry was not used, what was wrong, and what to do (mostly nothing)."""
    known = line.get("error")
    facts = dict(known) if isinstance(known, dict) else {}
    facts.pop("path", None)
    if aside:
        facts["hint"] = (
            "nothing to do: the next save under its key puts a whole one in its place; until then it is kept aside "
            "(cachekit ls --quarantine)"
        )
    verdict = "refused and set aside" if aside else f"not used ({line['verdict']})"
    message = f"{line['entry']} was {verdict}: {line['reason']}"
    warn(message, *details(facts, but=message))


def closing_line(report: RestoreReport, restore_keys: list[str], store: str) -> str:
    """Return what was done in one line."""
    key = printable(report.key)
    if report.status == "miss":
        further = f", nor one that begins with {printable(restore_keys)}" if restore_keys else ""
        return f"miss: no entry for {key}{further} in {printable(store)}"
    if not report.hit:
        return f"{report.status}: no usable entry for {key}; nothing was written, go on as after a miss"
    how = ", ".join(sorted(set(report.commit.values())))
    rate = size(report.content_bytes / max(report.seconds, 0.001))
    extra = f"; extra: {count(report.extra, 'file')} not in the entry" if report.extra else ""
    kept = f"; {report.unchanged} were right already" if report.unchanged else ""
    hit = "exact hit" if report.status == "exact" else f"partial hit for {key}"
    return (
        f"restored {printable(report.matched_key)} ({hit}): {count(report.files, 'file')}, "
        f"{size(report.content_bytes)} in {report.seconds:.2f} s, {rate}/s (commit: {how}){kept}{extra}"
    )


def _code(report: RestoreReport, *, fail_on_miss: bool, strict: bool) -> int:
    """Return 0, or what --strict and --fail-on-miss ask for."""
    if strict:
        verdicts = {str(line["verdict"]) for line in report.tried}
        if verdicts & {"damaged", "forged", "unsafe", "unsupported", "untrusted", "refused"}:
            return Refused.exit_code
        if "unreadable" in verdicts:
            return Unreadable.exit_code
    if not report.hit and (strict or fail_on_miss):
        return Missed.exit_code
    return 0
