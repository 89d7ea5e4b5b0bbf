"""``cachekit disk``: what fills the disk, what could be freed, and the reserve for when it is full."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from cachekit.clean.environment import look_around
from cachekit.clean.prepare import filesystems_that_matter
from cachekit.cli.cleaning import folded, possible
from cachekit.cli.options import (
    common,
    json_option,
    parse_bytes,
    parse_directory,
    parse_seconds,
    store_directory_option,
)
from cachekit.cli.render import count, printable, size, to_json
from cachekit.disk.filesystems import Filesystem
from cachekit.disk.reserve import ballasts, release, reserve
from cachekit.disk.usage import usage
from cachekit.errors import InvalidRequest, TargetNotWritable
from cachekit.system.state import state_directory
from cachekit.system.workers import worker_count

__all__ = ["disk"]

#: From here on a filesystem is called nearly full, and full: kubelet's and node_exporter's alerts are set there too.
_HIGH, _FULL = 85.0, 95.0


@click.group(
    invoke_without_command=True,
    short_help="Show what fills the disk, and keep a reserve.",
    subcommand_metavar="[COMMAND]",
)
@click.option(
    "--filesystem",
    "places",
    multiple=True,
    metavar="DIR",
    type=parse_directory,
    help="Look at this one; may be repeated.  [default: the filesystems of workspace, store and Docker]",
)
@click.option(
    "--top", type=click.IntRange(0, 100), default=10, show_default=True, help="How many directories to name."
)
@click.option(
    "--scan-seconds",
    type=parse_seconds,
    default=20.0,
    show_default="20",
    metavar="SECONDS",
    help="How long to look for the largest directories; 0 leaves that out.",
)
@click.option(
    "--clean/--no-clean",
    "with_clean",
    default=True,
    help="Also say what cachekit clean could free, by stage: a dry run.",
)
@store_directory_option
@json_option
@common
@click.pass_context
def disk(ctx: click.Context, /, as_json: bool, **options: Any) -> int:
    """Show free bytes and inodes, what takes the room, and what clean could free.

    \b
    Examples:
      cachekit disk
      cachekit disk --filesystem /var/lib/docker --top 20
      cachekit disk --no-clean --scan-seconds 0
      cachekit disk reserve 512M
    """
    if ctx.invoked_subcommand is not None:
        return 0
    environment = look_around()
    places = options["places"]
    for place in places:
        if not os.path.isdir(place):
            raise InvalidRequest(f"--filesystem {place!r} is no directory", path=place)
    filesystems = filesystems_that_matter(environment, options["store"], places)
    deadline = time.monotonic() + options["scan_seconds"]
    facts = [
        _facts(item, options["top"] if options["scan_seconds"] else 0, deadline, narrow=bool(places))
        for item in filesystems
    ]
    stages = possible(options["store"], places) if options["with_clean"] else None
    reserves: list[dict[str, Any]] = [
        {"path": item.path, "size": item.size}
        for item in ballasts([os.fsdecode(f.mount) for f in filesystems])
    ]
    if as_json:
        click.echo(to_json({"filesystems": facts, "reserves": reserves, "clean": stages}))
        return 0
    for item in facts:
        click.echo("\n".join(_filesystem(item)))
    for ballast in reserves:
        click.echo(f"reserve: {size(ballast['size'])} in {printable(ballast['path'])}")
    if stages is not None:
        click.echo("\n".join(_stages(stages)))
    return 0


def _facts(filesystem: Filesystem, top: int, deadline: float, *, narrow: bool) -> dict[str, Any]:
    room = filesystem.room
    facts: dict[str, Any] = {
        "mount": filesystem.mount,
        "kind": filesystem.kind,
        "why": filesystem.why,
        "total": room.total,
        "used": room.used,
        "available": room.available,
        "percent_used": round(room.percent, 1),
        "inodes": room.inodes,
        "inodes_free": room.inodes_free,
        "state": _state(room.percent, room.inodes, room.inodes_free),
    }
    if top:
        # A directory that was named is looked into; else the whole filesystem is.
        found = usage(
            filesystem.path if narrow else filesystem.mount, workers=worker_count(), deadline=deadline
        )
        facts["scan"] = {
            "complete": found.complete,
            "size": found.size,
            "files": found.files,
            "directories": found.directories,
            "unreadable": found.unreadable,
        }
        facts["top"] = [
            {"path": item.path, "size": item.size, "files": item.files} for item in found.top(top)
        ]
    return facts


def _state(percent: float, inodes: int | None, inodes_free: int | None) -> str:
    if inodes and inodes_free is not None:
        percent = max(percent, 100 * (inodes - inodes_free) / inodes)
    return "full" if percent >= _FULL else "nearly full" if percent >= _HIGH else "ok"


def _filesystem(facts: dict[str, Any]) -> list[str]:
    inodes = ""
    if facts["inodes"]:
        inodes = f", {facts['inodes_free']} of {facts['inodes']} inodes free"
    mount = printable(facts["mount"])
    what = ", ".join(name for name in map(printable, facts["why"]) if name != mount)
    head = (
        f"{mount} ({what}{'; ' if what else ''}{printable(facts['kind'])}): "
        f"{size(facts['available'])} free of {size(facts['total'])}, {facts['percent_used']:g}% used{inodes}: "
        f"{facts['state']}"
    )
    lines = folded(head)
    scan = facts.get("scan")
    if scan is not None:
        lines += [
            f"{size(item['size']):>11}  {item['files']:>8}  {printable(item['path'])}"
            for item in facts["top"]
        ]
        said = f"{size(scan['size'])} in {count(scan['files'], 'file')} seen"
        if not scan["complete"]:
            said += "; stopped there for lack of time (--scan-seconds)"
        if scan["unreadable"]:
            said += f"; {count(scan['unreadable'], 'directory', 'directories')} could not be read"
        lines.append(f"    {said}")
    return lines


def _stages(stages: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"what cachekit clean could free with the plan {printable(stages[0]['plan'])}:"
        if stages
        else "no plan"
    ]
    for item in stages:
        rules = ", ".join(f"{name} {size(number)}" for name, number in item["largest"])
        text = f"{item['stage']:<10} {size(item['size']):>10}  {rules}"
        lines += folded(text, following=" " * 23)
    return lines


@disk.command("reserve", short_help="Set room aside for when the disk is full.")
@click.argument("amount", metavar="SIZE", type=parse_bytes)
@click.option(
    "--in",
    "place",
    metavar="DIR",
    type=parse_directory,
    help="A directory on the filesystem to protect.  [default: cachekit's state directory]",
)
@json_option
@common
def reserve_command(amount: int, place: str | None, as_json: bool) -> int:
    """Make a file of SIZE that an emergency clean releases first; 0 removes it.

    \b
    Examples:
      cachekit disk reserve 512M
      cachekit disk reserve 1G --in /var/lib/docker
    """
    ballast = reserve(place or state_directory(), amount)
    if as_json:
        click.echo(to_json({"path": ballast.path, "size": ballast.size}))
    said = (
        f"{size(ballast.size)} reserved in {printable(ballast.path)}" if amount else "the reserve is removed"
    )
    click.echo(said, err=True)
    return 0


@disk.command("release", short_help="Give the reserve back.")
@json_option
@common
def release_command(as_json: bool) -> int:
    """Remove every reserve of this user.

    \b
    Example:
      cachekit disk release
    """
    mounts = [os.fsdecode(item.mount) for item in filesystems_that_matter(look_around(), "")]
    found = ballasts(mounts)
    for ballast in found:
        try:
            release(ballast)
        except OSError as error:
            raise TargetNotWritable(
                f"the reserve cannot be removed: {error.strerror}", path=ballast.path
            ) from None
    freed = sum(ballast.size for ballast in found)
    if as_json:
        click.echo(to_json({"freed": freed, "reserves": [ballast.path for ballast in found]}))
    click.echo(f"{size(freed)} released" if found else "there is no reserve", err=True)
    return 0
