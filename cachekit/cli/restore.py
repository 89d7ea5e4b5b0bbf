"""``cachekit restore``."""

from __future__ import annotations

from typing import Any

import click

from cachekit.cache.config.model import Cache
from cachekit.cache.restore import RestoreRequest
from cachekit.cache.restore import restore as restore_entry
from cachekit.cache.scoped import restore_scoped
from cachekit.cli.caches import Asked, Result, asked_options, kind_option, restore_key_option, run_each
from cachekit.cli.events import failures, record_restore
from cachekit.cli.options import (
    common,
    json_option,
    parse_bytes,
    parse_seconds,
    soft_fail,
    trust_option,
    with_trust,
)
from cachekit.cli.outputs import check_dotenv, warn, write_outputs
from cachekit.cli.progress import ProgressBar
from cachekit.cli.render import count, details, printable, size
from cachekit.cli.settings import Settings, settings_option
from cachekit.errors import CachekitError, InvalidRequest, Missed, Refused, Unreadable
from cachekit.model import RestoreReport
from cachekit.trust import TrustMode

__all__ = ["MISSES", "outputs_of", "passed_over", "restore", "why_missed"]

#: Verdicts on entries that are as they should be, but of no use here: told only if nothing was restored.
MISSES = frozenset({"miss", "wrong-kind", "other-paths"})
#: So many untrusted entries are told of one by one: a store that was never signed may be full of them.
_UNTRUSTED_LINES = 3


@click.command(short_help="Restore the entry of a key, or of a restore key.")
@asked_options
@restore_key_option
@settings_option(scopes=True)
@click.option("--replace", is_flag=True, help="The target becomes the entry: other files in it go.")
@click.option("--merge", is_flag=True, help="Files of the entry replace theirs, other files stay.  [default]")
@click.option(
    "--in-place",
    is_flag=True,
    help="File by file, where old and new do not fit beside each other; with --replace other files go first.",
)
@kind_option
@click.option("--all-targets", is_flag=True, help="Also write targets of the entry that were not named.")
@click.option("--any-platform", is_flag=True, help="Take entries made on another OS, architecture or libc.")
@click.option(
    "--lookup-only",
    is_flag=True,
    help="Say whether there is an entry, by its seal and index; restore nothing.",
)
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
    settings: Settings,
    key: str | None,
    arguments: tuple[str, ...],
    every: bool,
    expand: bool,
    root: str | None,
    restore_keys: tuple[str, ...],
    as_json: bool,
    dotenv: str | None,
    trust: TrustMode | None,
    **options: Any,
) -> int:
    """Restore PATHs (or all targets of the entry under the root), or caches of the configuration by NAME.

    Nothing is written unless the entry is whole: size, checksums, structure, every file. A damaged entry is refused
    and set aside (exit 0, status "refused"): the job goes on as after a miss. Options given here go before what the
    configuration says. With --trust hmac the same holds for an entry that is not signed with one of your
    keys, but it stays in the store for jobs that ask for no signature.

    In GitHub Actions the outputs cache-hit (true only for the exact key), status, matched-key, bytes, files and
    seconds are written to $GITHUB_OUTPUT. Of several caches each is restored by itself, its outputs begin with its name
    (node-cache-hit), cache-hit is true only if all are exact, and the highest exit code is that of the command.

    \b
    Examples:
      cachekit restore --key "node-$HASH" --restore-key node- node_modules
      cachekit restore --key "node-$HASH" --lookup-only
      cachekit restore --key "venv-$HASH" --replace .venv
      cachekit restore node
      cachekit restore --all
    """
    asked = Asked(settings, key, arguments, every, expand, root, restore_keys)
    if options["merge"] and (options["replace"] or options["in_place"]):
        raise InvalidRequest("--merge cannot be used together with --replace or --in-place")
    if options["lookup_only"] and (options["replace"] or options["in_place"]):
        raise InvalidRequest("--lookup-only restores nothing, and so takes neither --replace nor --in-place")
    check_dotenv(dotenv)
    try:
        code, outputs = run_each(
            asked,
            lambda cache: _restore_one(asked, cache, trust, dict(options)),
            _no_outputs,
            as_json=as_json,
        )
    except CachekitError:
        # Without this a step that asks for cache-hit after a failed restore (--soft-fail) would get an empty text.
        write_outputs({"cache-hit": False} if asked.several else _no_outputs(None), dotenv)
        raise
    if asked.several:
        every_exact = all(values["cache-hit"] for _, values in outputs)
        named = {f"{name}-{output}": value for name, values in outputs for output, value in values.items()}
        write_outputs({"cache-hit": every_exact, **named}, dotenv)
    else:
        write_outputs(outputs[0][1], dotenv)
    return code


def _restore_one(
    asked: Asked, cache: Cache | None, trust: TrustMode | None, options: dict[str, Any]
) -> Result:
    """Restore one cache: what the options do not say comes from the configuration."""
    settings = asked.settings
    base, store = (with_trust(place, trust) for place in (settings.base(cache), settings.address(cache)))
    what = asked.resolve(cache)
    options |= {"key": what.key, "restore_keys": what.restore_keys, "paths": what.paths, "root": what.root}
    replace, merge, in_place = options.pop("replace"), options.pop("merge"), options.pop("in_place")
    lookup_only = bool(options["lookup_only"])
    if cache is not None and not (replace or merge or in_place or lookup_only):
        replace, in_place = cache.mode == "replace", cache.in_place
    options["kind"] = options["kind"] or (cache.kind if cache else "files")
    fail_on_miss, strict = options.pop("fail_on_miss"), options.pop("strict")
    mode: Any = "in-place" if in_place else "replace" if replace else "merge"
    progress = ProgressBar("restoring")
    try:
        request = RestoreRequest(
            store=store, mode=mode, replace_extras=in_place and replace, progress=progress, **options
        )
        with failures("restore", request.key, store, cache.name if cache else None):
            report = restore_entry(request) if settings.scope is None else restore_scoped(request, base)
    finally:
        progress.close()
    _tell(report, what.restore_keys, store.path, lookup_only=lookup_only)
    fields = {name: getattr(report, name) for name in RestoreReport.__slots__}
    code = _code(report, fail_on_miss=fail_on_miss, strict=strict)
    if not lookup_only:  # the statistics are of restores
        record_restore(store, report, cache.name if cache else None)
    return Result({**fields, "cache_hit": report.status == "exact"}, code, outputs_of(report, report.status))


def _no_outputs(_cache: Cache | None) -> dict[str, object]:
    """Return the outputs of a restore that failed."""
    return outputs_of(RestoreReport("miss", ""), "error")


def outputs_of(report: RestoreReport, status: str) -> dict[str, object]:
    """Return what later steps of a CI job are told."""
    return {
        "cache-hit": report.status == "exact",
        "status": status,
        "matched-key": report.matched_key or "",
        "bytes": report.content_bytes,
        "files": report.files,
        "seconds": round(report.seconds, 3),
    }


def _tell(report: RestoreReport, restore_keys: list[str], store: str, *, lookup_only: bool) -> None:
    """Tell people: what was passed over and why, warnings, the closing line."""
    passed_over(report)
    click.echo(closing_line(report, restore_keys, store, lookup_only=lookup_only), err=True)
    why_missed(report)


def passed_over(report: RestoreReport) -> None:
    """Tell people which entries were not used and why, and the warnings."""
    untrusted = [line for line in report.tried if line["verdict"] == "untrusted"]
    for line in report.tried:
        if line["verdict"] not in MISSES and line not in untrusted[_UNTRUSTED_LINES:]:
            _tell_passed_over(line, aside=line["entry"] in report.quarantined)
    if (more := len(untrusted) - _UNTRUSTED_LINES) > 0:
        warn(f"{count(more, 'further entry', 'further entries')} not used (untrusted)")
    for warning in report.warnings:
        warn(warning)


def why_missed(report: RestoreReport) -> None:
    """Tell people which entries were no candidates, if there was no other."""
    if not report.hit:
        for line in report.tried:
            if line["verdict"] in MISSES:
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


def closing_line(
    report: RestoreReport, restore_keys: list[str], store: str, *, lookup_only: bool = False
) -> str:
    """Return what was done in one line."""
    key = printable(report.key)
    if report.status == "miss":
        further = f", nor one that begins with {printable(restore_keys)}" if restore_keys else ""
        return f"miss: no entry for {key}{further} in {printable(store)}"
    if not report.hit:
        return f"{report.status}: no usable entry for {key}; nothing was written, go on as after a miss"
    hit = "exact hit" if report.status == "exact" else f"partial hit for {key}"
    if lookup_only:
        holds = f"{count(report.files, 'file')}, {size(report.content_bytes)}"
        return f"found {printable(report.matched_key)} ({hit}): {holds}; nothing was restored, as asked"
    how = ", ".join(sorted(set(report.commit.values())))
    rate = size(report.content_bytes / max(report.seconds, 0.001))
    extra = f"; extra: {count(report.extra, 'file')} not in the entry" if report.extra else ""
    kept = f"; {report.unchanged} were right already" if report.unchanged else ""
    return (
        f"restored {printable(report.matched_key)} ({hit}): {count(report.files, 'file')}, "
        f"{size(report.content_bytes)} in {report.seconds:.2f} s, {rate}/s (commit: {how}){kept}{extra}"
    )


def _code(report: RestoreReport, *, fail_on_miss: bool, strict: bool) -> int:
    """Return 0, or what --strict and --fail-on-miss ask for."""
    if strict:
        verdicts = {str(line["verdict"]) for line in report.tried}
        if verdicts & {"damaged", "forged", "unsafe", "unsupported", "untrusted", "refused", "wrong-content"}:
            return Refused.exit_code
        if "unreadable" in verdicts:
            return Unreadable.exit_code
    if not report.hit and (strict or fail_on_miss):
        return Missed.exit_code
    return 0
