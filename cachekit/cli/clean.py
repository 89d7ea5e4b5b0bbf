"""``cachekit clean``."""

from __future__ import annotations

import os
from typing import Any

import click

from cachekit.clean.execute import clean as clean_up
from cachekit.clean.goals import parse_goal
from cachekit.clean.model import STAGES, Rule
from cachekit.clean.prepare import Wish, prepare
from cachekit.clean.report import CleanReport
from cachekit.cli.cleaning import human_report, markdown_report, not_met
from cachekit.cli.options import (
    common,
    json_option,
    parse_directory,
    parse_seconds,
    parse_text,
    soft_fail,
    store_directory_option,
)
from cachekit.cli.outputs import warn, write_outputs, write_summary
from cachekit.cli.render import printable, to_json
from cachekit.errors import InvalidRequest

__all__ = ["clean"]


@click.command(short_help="Free disk space by a staged plan, until a goal is met.")
@click.option(
    "--stage",
    type=click.Choice(STAGES),
    default="pre",
    show_default=True,
    help="pre: before a job. post: before the cache save. emergency: the disk is full. cron: between jobs.",
)
@click.option(
    "--plan",
    metavar="FILE|NAME",
    type=parse_directory,
    help="The plan.  [default: a shipped one, by where this runs; see cachekit plan list]",
)
@click.option(
    "--free", metavar="SIZE|%", help="Stop when so much is free: 20G, 15%.  [default: the plan's goal]"
)
@click.option("--below", metavar="%", help="Clean only if more than this is used: 80%.")
@click.option("--until", metavar="%", help="With --below: then clean until no more than this is used: 70%.")
@click.option("--free-inodes", metavar="N|%", help="Stop when so many inodes are free.")
@click.option(
    "--filesystem",
    "filesystems",
    multiple=True,
    metavar="DIR",
    type=parse_directory,
    help="What shall have room; may be repeated.  [default: the filesystems of workspace, store and Docker]",
)
@click.option(
    "--for-save",
    "for_save",
    multiple=True,
    metavar="PATH",
    help="Make the room that saving PATH needs, and never touch it; may be repeated.",
)
@click.option(
    "--root",
    metavar="DIR",
    type=parse_directory,
    help="What a relative --for-save is relative to.  [default: .]",
)
@click.option(
    "--key", type=parse_text, metavar="KEY", help="With --for-save: judge by the last entry of its family."
)
@store_directory_option
@click.option(
    "--keep", multiple=True, metavar="NAMES", help="Rules, tools or categories to leave alone: dotnet,go."
)
@click.option(
    "--keep-image",
    "keep_images",
    multiple=True,
    metavar="GLOB",
    help="Docker images to leave alone, by name; may be repeated.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Change nothing; show every rule and what it would free.")
@click.option(
    "--background",
    is_flag=True,
    help="Carry out at once what a job could miss, and the rest beside the job (see --wait).",
)
@click.option("--wait", is_flag=True, help="Wait for the clean in the background and report what it did.")
@click.option(
    "--lock-timeout",
    type=parse_seconds,
    default=60.0,
    show_default="60",
    metavar="SECONDS",
    help="How long to wait for another clean, and (30 at most) for a package manager at work.",
)
@soft_fail
@json_option
@common
def clean(as_json: bool, background: bool, wait: bool, **options: Any) -> int:
    """Free disk space: cheapest first, stop at the goal, say what was freed.

    Nothing is touched if the goal is met already. What is in use, locked, mounted, to be saved or needed by the system
    is left alone. Exit 7 if the goal was not met.

    \b
    Examples:
      cachekit clean --stage pre --dry-run
      sudo -E env "PATH=$PATH" cachekit clean --free 20G --keep dotnet
      cachekit clean --stage post --for-save node_modules --for-save ~/.npm
      cachekit clean --stage cron --below 80% --until 70%
    """
    from cachekit.cli import background as beside

    if wait:
        if background or options["dry_run"]:
            raise InvalidRequest("--wait waits for a clean that was started before: give it alone")
        report = beside.wait_for(options["lock_timeout"])
        return _tell(report, as_json=as_json)
    wish = _wish(options)
    request = prepare(wish)
    request.started = None if wish.dry_run else _started
    request.part = beside.part(background=background)
    beside.begin()
    report = clean_up(request)
    beside.finish(report)
    going_on = background and not report.met and not wish.dry_run and beside.go_on(report)
    return _tell(report, as_json=as_json, going_on=going_on)


def _started(rule: Rule) -> None:
    """Say what is being done; the report says how it ended."""
    click.echo(
        f"cleaning: {printable(rule.id)}" + (f" ({printable(rule.title)})" if rule.title else ""), err=True
    )


def _wish(options: dict[str, Any]) -> Wish:
    goal = parse_goal(options["free"], options["below"], options["until"], options["free_inodes"])
    keep = [name.strip() for text in options["keep"] for name in text.split(",") if name.strip()]
    wish = Wish(
        options["stage"],
        options["plan"],
        goal,
        options["store"],
        options["filesystems"],
        keep=keep,
        keep_images=options["keep_images"],
        dry_run=options["dry_run"],
        lock_timeout=options["lock_timeout"],
    )
    for place in options["filesystems"]:
        if not os.path.isdir(place):
            raise InvalidRequest(f"--filesystem {place!r} is no directory", path=place)
    if options["for_save"]:
        # Imported here: an emergency on a bare machine must not need the archive's libraries.
        from cachekit.cache.estimate import estimate_save

        estimate = estimate_save(
            options["for_save"], options["store"], root=options["root"], key=options["key"]
        )
        wish.extra_bytes = estimate.need
        wish.untouchable = {os.fsdecode(place): "what is to be saved" for place in estimate.places}
    return wish


def _tell(report: CleanReport, *, as_json: bool, going_on: bool = False) -> int:
    """Print the report, hand it to the CI system, and raise GoalNotMet if it was not met and nothing goes on."""
    if as_json:
        click.echo(to_json(report))
    else:
        click.echo(human_report(report))
    for warning in report.warnings:
        warn(warning)
    write_summary(markdown_report(report))
    write_outputs({"freed": report.freed, "goal-met": report.met, "seconds": round(report.seconds, 3)})
    if report.dry_run or report.met or going_on:
        return 0
    context = click.get_current_context().find_root().ensure_object(dict)
    context["answered"] = True
    raise not_met(report)
