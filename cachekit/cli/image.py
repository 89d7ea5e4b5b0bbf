"""``cachekit image``: save Docker images under a key, load them again."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

from cachekit.cli.caches import restore_key_option
from cachekit.cli.events import failures, record_restore, record_save
from cachekit.cli.options import (
    common,
    json_option,
    parse_bytes,
    parse_duration_option,
    parse_text,
    soft_fail,
    trust_option,
    with_trust,
)
from cachekit.cli.outputs import check_dotenv, warn, write_outputs
from cachekit.cli.progress import ProgressBar
from cachekit.cli.prune import after_save
from cachekit.cli.render import count, printable, size, to_json
from cachekit.cli.restore import MISSES, outputs_of, passed_over, why_missed
from cachekit.cli.saving import (
    force_option,
    limits,
    make_room_options,
    min_free_option,
    room_maker,
    wait_options,
)
from cachekit.cli.settings import Settings, settings_option
from cachekit.engine.streams import STALL_SECONDS
from cachekit.errors import CachekitError, Missed, Refused
from cachekit.images.load import ImageLoadReport, ImageLoadRequest, load_images, load_scoped
from cachekit.images.save import ImageSaveReport, ImageSaveRequest, save_images
from cachekit.trust import TrustMode

__all__ = ["image"]


@click.group(short_help="Save Docker images under a key, and load them again.", subcommand_metavar="COMMAND")
@common
def image() -> None:
    """Images of Docker or Podman as entries of the store: whole, or refused before the engine gets a byte.

    The engine is the one that docker uses: $DOCKER_HOST (unix:// or tcp://, with TLS as $DOCKER_TLS_VERIFY and
    $DOCKER_CERT_PATH say), else docker's current context, else the usual places; then Podman's ($CONTAINER_HOST, or the
    usual ones). docs/images.md has the steps for CI.
    Each command has --json.

    \b
    Examples:
      cachekit image save --key "images-$HASH" app:ci postgres:16
      cachekit image load --key "images-$HASH" --restore-key images-
    """


_key_option = click.option(
    "--key", type=parse_text, metavar="KEY", required=True, help="The key, matched exactly."
)
_stall_option = click.option(
    "--stall",
    type=parse_duration_option,
    default=f"{STALL_SECONDS:.0f}s",
    show_default=True,
    metavar="DURATION",
    help="Give up when the engine was silent for so long.",
)


@image.command(short_help="Save images of the engine under a key.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@_key_option
@settings_option(scopes=True)
@click.option("--level", type=int, default=3, show_default=True, help="zstd level, -50 (fast) to 22 (small).")
@force_option
@click.option(
    "--full", is_flag=True, help="Pack every layer anew instead of copying it from an earlier entry."
)
@wait_options
@click.option(
    "--family",
    type=parse_text,
    metavar="FAMILY",
    help="Entries expected to resemble this one.  [default: the key up to its last -]",
)
@min_free_option
@make_room_options
@click.option(
    "--source",
    type=click.Choice(["auto", "engine"]),
    default="auto",
    show_default=True,
    help="engine: take only what the engine sends, though its data root can be read faster.",
)
@_stall_option
@trust_option
@soft_fail
@json_option
@common
def save(
    settings: Settings,
    images: tuple[str, ...],
    trust: TrustMode | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Save IMAGEs, all in one entry; whole or not at all.

    They stream from the engine into the entry, whose decompressed tar is what docker load reads. On the way each layer
    and config is checked against its digest; if anything is missing, the engine fails or a disk fills up, nothing is
    saved. A layer that an earlier entry holds is copied. An existing key is left as it is (exit 0, status "exists").

    \b
    Examples:
      cachekit image save --key "images-$HASH" app:ci
      cachekit image save --key "images-$HASH" app:ci postgres:16 --make-room
    """
    store = with_trust(settings.address(), trust)
    budget = limits(settings)
    plan, make_room = options.pop("plan"), options.pop("make_room")
    progress = ProgressBar("saving")
    request = ImageSaveRequest(
        images=list(images),
        store=store,
        progress=progress,
        make_room=room_maker(plan, store, progress, protected_images=images) if make_room else None,
        **options,
    )
    try:
        with failures("save", request.key, store, request.family):
            report = save_images(request)
    finally:
        progress.close()
    for warning in report.warnings:
        warn(warning)
    click.echo(saved_line(report), err=True)
    record_save(store, report, request.family)
    if report.status == "saved":
        after_save(store, report.entry, budget)
    if as_json:
        click.echo(to_json({**_values(report), "ratio": round(report.ratio, 3)}))
    return 0


@image.command(short_help="Load the images of a key into the engine.")
@_key_option
@restore_key_option
@settings_option(scopes=True)
@click.option("--any-platform", is_flag=True, help="Take entries made on another OS or architecture.")
@click.option("--force", is_flag=True, help="Load images that the engine has already, too.")
@click.option("--fail-on-miss", is_flag=True, help="Exit 3 if nothing was loaded.")
@click.option(
    "--min-free",
    type=parse_bytes,
    default=0,
    metavar="SIZE",
    help="Keep so much free in the engine's data root.",
)
@click.option(
    "--dotenv",
    metavar="FILE",
    envvar="CACHEKIT_DOTENV",
    help="Write the outputs as NAME=value lines (a GitLab dotenv report).",
)
@_stall_option
@trust_option
@soft_fail
@json_option
@common
def load(
    settings: Settings,
    restore_keys: tuple[str, ...],
    fail_on_miss: bool,
    dotenv: str | None,
    trust: TrustMode | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Load the images of a key, or of the newest entry that a restore key finds.

    The whole entry is verified before the engine gets a byte, and each part again as it is sent. An entry that is
    damaged is set aside, the engine is left as it was, and the exit code is 4, for later steps would need the images:
    with --soft-fail the job goes on as after a miss. A miss is exit 0. Images that the engine has already, under the
    same names and ids, are not loaded again.

    In GitHub Actions the outputs cache-hit (true only for the exact key), status, matched-key, bytes, files and
    seconds are written to $GITHUB_OUTPUT.

    \b
    Examples:
      cachekit image load --key "images-$HASH"
      cachekit image load --key "images-$HASH" --restore-key images- --soft-fail
    """
    base, store = (with_trust(place, trust) for place in (settings.base(), settings.address()))
    check_dotenv(dotenv)
    progress = ProgressBar("loading")
    request = ImageLoadRequest(store=store, restore_keys=list(restore_keys), progress=progress, **options)
    try:
        try:
            with failures("restore", request.key, store):
                report = load_images(request) if settings.scope is None else load_scoped(request, base)
        finally:
            progress.close()
    except CachekitError:
        write_outputs(outputs_of(ImageLoadReport("miss", ""), "error"), dotenv)
        raise
    passed_over(report)
    click.echo(loaded_line(report, request.restore_keys, store.path), err=True)
    why_missed(report)
    record_restore(store, report)
    write_outputs(outputs_of(report, report.status), dotenv)
    if as_json:
        click.echo(to_json({**_values(report), "cache_hit": report.status == "exact"}))
        click.get_current_context().find_root().ensure_object(dict)["answered"] = True
    if report.status not in {"exact", "partial", "miss"}:
        refused = next(line for line in report.tried if line["verdict"] not in MISSES)
        raise Refused(
            f"no images were loaded: {refused['entry']} was not used ({refused['verdict']})",
            hint="build or pull them and save them again; --soft-fail goes on as after a miss",
        )
    return Missed.exit_code if fail_on_miss and not report.hit else 0


def _values(report: ImageSaveReport | ImageLoadReport) -> dict[str, object]:
    return {item.name: getattr(report, item.name) for item in fields(report)}


def saved_line(report: ImageSaveReport) -> str:
    """Return what a save did in one line."""
    key = printable(report.key)
    if report.status == "in-progress":
        return f"{key}: another process is saving this key right now; left to it (--wait waits)"
    if report.status == "exists":
        return f"{key}: exists already ({size(report.archive_bytes)}); left as it is (--force replaces)"
    copied = ""
    if report.copied_bytes:
        share = report.copied_bytes / max(1, report.archive_bytes)
        copied = f"; {share:.0%} copied from {printable(report.base)}"
    return (
        f"saved {key}: {count(len(report.images), 'image')}, {size(report.content_bytes)} as "
        f"{size(report.archive_bytes)} (ratio {report.ratio:.1f}) in {report.seconds:.2f} s{copied}"
    )


def loaded_line(report: ImageLoadReport, restore_keys: list[str], store: str) -> str:
    """Return what a load did in one line."""
    key = printable(report.key)
    if report.status == "miss":
        further = f", nor one that begins with {printable(restore_keys)}" if restore_keys else ""
        return f"miss: no entry with images for {key}{further} in {printable(store)}"
    if not report.hit:
        return f"{report.status}: no usable entry for {key}; the engine was left as it was"
    hit = "exact hit" if report.status == "exact" else f"partial hit for {key}"
    done = {str(one["done"]) for one in report.images}
    words = (
        "there already" if done == {"present"} else "there already, named" if "named" in done else "loaded"
    )
    names = (
        ", ".join(printable(name) for one in report.images for name in _names(one)) or "images without a name"
    )
    return (
        f"{words}: {names} from {printable(report.matched_key)} ({hit}), {size(report.content_bytes)} in "
        f"{report.seconds:.2f} s"
    )


def _names(one: dict[str, object]) -> list[str]:
    names = one["names"]
    return [str(name) for name in names] if isinstance(names, list) else []
