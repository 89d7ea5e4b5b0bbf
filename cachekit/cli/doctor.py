"""``cachekit doctor``: what a filesystem does, measured."""

from __future__ import annotations

import os

import click

from cachekit.cli.options import common, json_option, parse_directory, parse_duration_option
from cachekit.cli.outputs import warn
from cachekit.cli.render import printable, to_json
from cachekit.doctor.measure import DoctorReport, examine
from cachekit.doctor.peer import PeerReport
from cachekit.model import format_duration
from cachekit.store.layout import default_store

__all__ = ["doctor"]

_MARK = {True: "ok", False: "BAD", None: "-"}


@click.command(short_help="Measure what a filesystem does, and what follows.")
@click.argument("directory", metavar="[DIR]", type=parse_directory, required=False)
@click.option(
    "--peer",
    is_flag=True,
    help="Meet the doctor of another host in DIR, and measure what crosses between the two.",
)
@click.option(
    "--peer-timeout",
    type=parse_duration_option,
    default="60s",
    show_default=True,
    metavar="DURATION",
    help="How long to wait for the other host.",
)
@json_option
@common
def doctor(directory: str | None, peer: bool, peer_timeout: float, as_json: bool) -> int:
    """Measure the filesystem of DIR (default: the store) with several processes, and say what cachekit does there.

    Takes some seconds and 16 MiB for a moment. Whether flock excludes is remembered for this user, by mount, and used
    by lock run and by the store. Only two hosts can find out whether it excludes between hosts: start it with --peer
    on both, within a minute, for the same shared directory.

    \b
    Examples:
      cachekit doctor
      cachekit doctor /mnt/shared/cache --json
      cachekit doctor /mnt/shared/cache --peer
    """
    place = directory
    if place is None:
        place = default_store()
        os.makedirs(place, mode=0o750, exist_ok=True)
    report = examine(place, peer=peer, peer_timeout=peer_timeout)
    for text in report.warnings:
        warn(text)
    if as_json:
        click.echo(to_json(report))
    else:
        click.echo("\n".join(_lines(report)))
    return 0


def _lines(report: DoctorReport) -> list[str]:
    mount = report.mount
    on = f"{printable(mount.point)} ({printable(mount.kind)}, {printable(mount.source)})"
    lines = [f"{printable(report.directory)} on {on}"]
    lines += [f"  {_MARK[one.good]:<4}{one.id}: {one.text}" for one in report.findings]
    if report.peer is not None:
        lines += _together(report.peer)
    lines.append("so cachekit will do this there:")
    lines += [f"  {text}" for text in report.follows]
    return lines


def _together(peer: PeerReport) -> list[str]:
    host = printable(peer.host)
    lines = [f"together with {host}:"]
    for name, value in (
        ("flock", peer.flock),
        ("fcntl", peer.fcntl),
        ("exclusive create", peer.exclusive_create),
    ):
        lines.append(
            f"  {_MARK[value]:<4}{name}: {'excludes' if value else 'does NOT exclude'} the other host"
        )
    for name, seconds in (("a new name is seen", peer.new_name), ("an old name is gone", peer.old_name)):
        after = "not within 3 s" if seconds is None else f"after {format_duration(seconds)}"
        lines.append(f"  -   rename: {name} there {after}")
    if peer.clock_difference is not None:
        way = "ahead of" if peer.clock_difference > 0 else "behind"
        lines.append(f"  -   clock: {host} is {format_duration(abs(peer.clock_difference))} {way} us")
    return lines
