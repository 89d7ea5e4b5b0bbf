"""``cachekit store``: take one entry out of the store, for something else to carry, and into another store."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

import click

from cachekit.cache.carry.exporting import ExportReport, ExportRequest, export
from cachekit.cache.carry.importing import ImportedFile, ImportReport, ImportRequest, import_carried
from cachekit.cache.carry.place import default_place
from cachekit.cache.config.model import Cache
from cachekit.cli.caches import Asked, Result, restore_key_option, run_each
from cachekit.cli.options import (
    common,
    json_option,
    parse_bytes,
    parse_directory,
    parse_seconds,
    parse_text,
    soft_fail,
    trust_option,
    with_trust,
)
from cachekit.cli.outputs import warn, write_outputs
from cachekit.cli.progress import ProgressBar
from cachekit.cli.prune import after_save
from cachekit.cli.render import details, printable, size, to_json
from cachekit.cli.saving import limits
from cachekit.cli.settings import Settings, settings_option
from cachekit.errors import CachekitError, InvalidRequest, Missed, Refused, Unreadable
from cachekit.trust import TrustMode

__all__ = ["store"]

_min_free_option = click.option(
    "--min-free", type=parse_bytes, default=0, metavar="SIZE", help="Keep so much free besides."
)
_lock_option = click.option(
    "--lock-timeout",
    type=parse_seconds,
    default=60.0,
    show_default="60",
    metavar="SECONDS",
    help="How long to wait for another process that does the same.",
)


@click.group(short_help="Take an entry out of the store, or into it.", subcommand_metavar="COMMAND")
@common
def store() -> None:
    """For runners whose disk does not stay: the CI's own cache carries one entry, as it is stored.

    docs/carrying.md has the steps for GitHub and GitLab. Each command has --json.

    \b
    Examples:
      cachekit store import
      cachekit store export --key "npm-$HASH"
    """


@store.command("export", short_help="Put the entry of a key where something else carries it.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--key", type=parse_text, metavar="KEY", help="The key, matched exactly.")
@restore_key_option
@click.option("--all", "every", is_flag=True, help="All caches of the configuration.")
@click.option(
    "--to",
    metavar="FILE|DIR",
    type=parse_directory,
    envvar="CACHEKIT_CARRY",
    show_default="~/.cache/cachekit-carry",
    help="Where to. In a DIR it is cachekit-entry.tar.zst and replaces the one before; a FILE ends in .tar.zst.",
)
@click.option("--copy", is_flag=True, help="Copy, where a hard link to the stored file would do.")
@click.option("--any-platform", is_flag=True, help="Take entries made on another OS, architecture or libc.")
@click.option("--fail-on-miss", is_flag=True, help="Exit 3 if there is nothing to export.")
@_min_free_option
@_lock_option
@settings_option(scopes=True)
@trust_option
@soft_fail
@json_option
@common
def export_command(
    settings: Settings,
    names: tuple[str, ...],
    key: str | None,
    every: bool,
    restore_keys: tuple[str, ...],
    fail_on_miss: bool,
    trust: TrustMode | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Export one entry as it is: the same bytes, every frame checked, whole under its name or not there.

    Without such an entry what was exported before stays (exit 0, status "miss"). A damaged one is set aside, as by a
    restore; if no other will do that is exit 4. Entries of Docker images go the same way. Caches of the configuration
    are exported by NAME, each into the directory of its name in DIR.

    In GitHub Actions the outputs status, exported-key, path and bytes are written to $GITHUB_OUTPUT; of caches their
    names begin with the cache's (node-status).

    \b
    Examples:
      cachekit store export --key "npm-$HASH"
      cachekit store export --all
      cachekit store export --key "npm-$HASH" --restore-key npm- --to .cachekit
      cachekit store export --key "npm-$HASH" --to npm.tar.zst
    """
    if key is not None and names:
        raise InvalidRequest("--key means one entry: name no caches besides", found=list(names))
    asked = Asked(settings, key, names, every, restore_keys=restore_keys)

    def work(cache: Cache | None) -> Result:
        return _export_one(asked, cache, trust, dict(options), fail_on_miss=fail_on_miss)

    try:
        code, outputs = run_each(asked, work, _no_export, as_json=as_json)
    except CachekitError:
        if key is not None:
            write_outputs(_no_export(None))
        raise
    for name, values in outputs:
        write_outputs({f"{name}-{output}" if name else output: value for output, value in values.items()})
    return code


def _no_export(_cache: Cache | None) -> dict[str, object]:
    """Return the outputs of an export that failed."""
    return {"status": "error", "exported-key": "", "path": "", "bytes": 0}


def _export_one(
    asked: Asked,
    cache: Cache | None,
    trust: TrustMode | None,
    options: dict[str, Any],
    *,
    fail_on_miss: bool,
) -> Result:
    address = with_trust(asked.settings.address(cache), trust)
    what = asked.resolve(cache)
    if cache is not None:
        options["to"] = os.path.join(options["to"] or default_place(), cache.name, "")
    progress = ProgressBar("exporting")
    try:
        report = export(ExportRequest(what.key, address, what.restore_keys, progress=progress, **options))
    finally:
        progress.close()
    for line in report.tried:
        _tell(f"{line['entry']} was not exported ({line['verdict']}): {line['reason']}", line.get("error"))
    for warning in report.warnings:
        warn(warning)
    click.echo(_exported(report, address.path), err=True)
    code = 0
    if report.status == "miss":
        code = Missed.exit_code if fail_on_miss else 0
    elif not report.done:
        code = _softened((Unreadable if report.status == "unreadable" else Refused).exit_code)
    outputs = {
        "status": report.status,
        "exported-key": report.matched_key or "",
        "path": report.path or "",
        "bytes": report.archive_bytes,
    }
    return Result({field.name: getattr(report, field.name) for field in fields(report)}, code, outputs)


def _exported(report: ExportReport, store_path: str) -> str:
    key = printable(report.key)
    if report.status == "miss":
        return f"miss: no entry for {key} in {printable(store_path)}; nothing was exported"
    if not report.done:
        return f"{report.status}: no usable entry for {key}; nothing was exported"
    what = f"{printable(report.matched_key)}: {size(report.archive_bytes)} in {printable(report.path)}"
    if report.status == "unchanged":
        return f"unchanged: {printable(report.path)} is the entry of {printable(report.matched_key)} already"
    return f"exported {what} ({report.how}, {report.seconds:.2f} s)"


@store.command("import", short_help="Check entries that were carried, and file them in the store.")
@click.argument("places", nargs=-1, metavar="[FILE|DIR]...")
@click.option("--key", type=parse_text, metavar="KEY", help="Import only the entry of this key.")
@restore_key_option
@click.option("--force", is_flag=True, help="Replace what the store has under the key.")
@click.option("--fail-on-miss", is_flag=True, help="Exit 3 if there is nothing to import.")
@_min_free_option
@_lock_option
@settings_option(scopes=True)
@trust_option
@soft_fail
@json_option
@common
def import_command(
    settings: Settings,
    places: tuple[str, ...],
    restore_keys: tuple[str, ...],
    fail_on_miss: bool,
    trust: TrustMode | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Import exported entries: FILEs, and DIRs as export fills them; without one, ~/.cache/cachekit-carry.

    An entry is filed under its own key once its seal, its index, every frame and, with --trust hmac, its signature
    were right. Nothing there is a miss (exit 0). A damaged or forged one is refused (exit 4), and a DIR's
    cachekit-entry.tar.zst is removed then, so that it is not carried on; other files stay where they are.

    In GitHub Actions the outputs status, imported-key, cache-hit (true only for the exact --key) and bytes are written
    to $GITHUB_OUTPUT.

    \b
    Examples:
      cachekit store import
      cachekit store import --soft-fail .cachekit
      cachekit store import --key "npm-$HASH" downloaded.tar.zst
    """
    given = options.pop("key")
    progress = ProgressBar("importing")
    address, budget = with_trust(settings.address(), trust), limits(settings)
    if not places:
        places = _carry_from_environment()
    request = ImportRequest(
        store=address,
        places=list(places),
        key=given,
        restore_keys=list(restore_keys),
        progress=progress,
        **options,
    )
    try:
        report = import_carried(request)
    except CachekitError:
        write_outputs({"status": "error", "imported-key": "", "cache-hit": False, "bytes": 0})
        raise
    finally:
        progress.close()
    for file in report.files:
        progress.close()
        _tell_file(file)
    for warning in report.warnings:
        warn(warning)
    fresh = [file.entry for file in report.files if file.status == "imported" and file.entry is not None]
    if fresh:
        after_save(address, fresh[-1], budget)
    here = [file for file in report.files if file.status in {"imported", "exists"}]
    if not here:
        click.echo(f"{report.status}: nothing was imported, go on as after a miss", err=True)
    write_outputs(
        {
            "status": report.status,
            "imported-key": here[0].key or "" if here else "",
            "cache-hit": given is not None and any(file.key == given for file in here),
            "bytes": sum(file.archive_bytes for file in here),
        }
    )
    if as_json:
        click.echo(to_json(_fields(report)))
    if report.refused:
        return _softened(Refused.exit_code)
    if report.unreadable:
        return _softened(Unreadable.exit_code)
    return Missed.exit_code if fail_on_miss and not here else 0


def _carry_from_environment() -> tuple[str, ...]:
    chosen = os.environ.get("CACHEKIT_CARRY")
    return (chosen,) if chosen else ()


def _fields(report: ImportReport) -> dict[str, object]:
    return {field.name: getattr(report, field.name) for field in fields(report)}


def _tell_file(file: ImportedFile) -> None:
    name = printable(file.path)
    if file.status == "imported":
        click.echo(f"imported {printable(file.key)}: {size(file.archive_bytes)} from {name}", err=True)
    elif file.status == "exists":
        click.echo(f"exists: the store has {printable(file.key)}, {name} is not needed", err=True)
    elif file.status == "other-key":
        click.echo(f"{name} holds {printable(file.key)}, which was not asked for", err=True)
    elif file.status != "miss":
        end = " and removed" if file.removed else ""
        reason = (file.error or {}).get("message", "")
        _tell(f"{file.path} was refused ({file.status}){end}: {reason}", file.error)


def _tell(message: str, error: object) -> None:
    facts = dict(error) if isinstance(error, dict) else {}
    facts.pop("path", None)
    warn(message, *details(facts, but=message))


def _softened(code: int) -> int:
    """Return 0 instead of the code with --soft-fail: what was refused has been told as a warning."""
    return 0 if click.get_current_context().find_root().ensure_object(dict).get("soft-fail") else code
