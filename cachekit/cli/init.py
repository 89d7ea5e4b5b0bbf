"""``cachekit init``: propose a configuration and a snippet for a repository, and write them if asked."""

from __future__ import annotations

import os
from typing import Any

import click

from cachekit.cli.options import common, json_option, parse_directory
from cachekit.cli.render import count, printable, to_json
from cachekit.errors import InvalidRequest, TargetNotWritable
from cachekit.init.apply import read_text, write
from cachekit.init.look import look
from cachekit.init.model import CIS, FileChange, ProposedCache
from cachekit.init.propose import propose
from cachekit.init.text import CONFIGURATION, configuration, diff, missing, snippets, tables

__all__ = ["init"]

_PROJECT = "pyproject.toml"


@click.command(short_help="Propose caches and a CI snippet for a repository.")
@click.argument("ci", required=False, type=click.Choice(CIS), metavar="[github|gitlab|jenkins|systemd|cron]")
@click.option(
    "--root",
    metavar="DIR",
    type=parse_directory,
    help="The repository.  [default: upwards from the current directory to where .git is]",
)
@click.option("--yes", is_flag=True, help="Write the files that are shown.")
@click.option("--force", is_flag=True, help="Replace a snippet's file that holds something else.")
@json_option
@common
def init(ci: Any, root: str | None, yes: bool, force: bool, as_json: bool) -> int:
    """Look at a repository's lock files, Dockerfiles and CI files; show what caches it needs, as a diff.

    Proposed are cachekit.toml, with keys that follow the lock files and the paths where each tool keeps its downloads,
    and a snippet for the CI (without an argument the one that the repository has). Nothing is written without --yes.
    An existing cachekit.toml only gets the caches that it lacks.

    Known: npm, pnpm, yarn, pip, uv, poetry, cargo, go, gradle, maven, ccache, sccache, buildx.

    \b
    Examples:
      cachekit init
      cachekit init github --yes
      cachekit init systemd
    """
    place = _root(root)
    try:
        listing = look(place)
    except OSError as error:
        raise InvalidRequest(f"the repository cannot be read: {error.strerror}", path=place) from None
    proposal = propose(listing, frozenset(os.environ), ci)
    notes = list(proposal.notes)
    changes, added = _configuration(place, proposal.caches, notes)
    if proposal.ci is not None:
        files, by_hand = snippets(proposal.ci, listing, proposal)
        for path, text in files.items():
            old = read_text(place, path)
            if old != text:
                changes.append(FileChange(path, old, text))
        notes += by_hand
    else:
        notes.append("no CI was found: name one to get a snippet (cachekit init github)")
    if not proposal.caches:
        notes.append(
            "no lock file of a known tool was found; docs/configuration.md shows how to write a cache"
        )
    in_the_way = [change for change in changes if change.old is not None and change.path != CONFIGURATION]
    if yes:
        if in_the_way and not force:
            raise TargetNotWritable(
                "the file is there and holds something else; nothing was written",
                path=os.path.join(place, in_the_way[0].path),
                hint="look at the diff (cachekit init), then pass --force to replace it, or move the file away",
            )
        write(place, changes)
    if as_json:
        click.echo(to_json(_report(place, proposal.ci, proposal.caches, added, changes, notes, written=yes)))
    else:
        for change in changes:
            for line in diff(change).splitlines():
                click.echo(printable(line))
    _tell(proposal.caches, changes, notes, yes=yes, in_the_way=bool(in_the_way))
    return 0


def _root(root: str | None) -> str:
    """Return the repository that is meant."""
    if root is not None:
        return os.path.abspath(root)
    try:
        here = place = os.getcwd()
    except FileNotFoundError:
        raise InvalidRequest(
            "the current directory is gone", hint="name the repository with --root"
        ) from None
    while not os.path.lexists(os.path.join(place, ".git")):
        above = os.path.dirname(place)
        if above == place:
            place = here
            break
        place = above
    if place in {"/", os.path.realpath(os.path.expanduser("~"))}:
        raise InvalidRequest("this is no repository", path=place, hint="go into one, or name it with --root")
    return place


def _configuration(
    place: str, caches: tuple[ProposedCache, ...], notes: list[str]
) -> tuple[list[FileChange], list[ProposedCache]]:
    """Return how the configuration changes, and what is added; what it is not ours to change goes into the notes."""
    old = read_text(place, CONFIGURATION)
    if old is None:
        project = read_text(place, _PROJECT)
        if project is not None and "cachekit" in project:
            lacking = missing(project, caches, _PROJECT, project=True)
            if len(lacking) < len(caches) or "[tool.cachekit" in project:
                if lacking:
                    notes.append(f"add to {_PROJECT}:\n{tables(lacking, 'tool.cachekit.caches')}")
                return [], []
    change, added = configuration(old, caches)
    return ([change] if change is not None else []), added


def _report(
    place: str,
    ci: str | None,
    caches: tuple[ProposedCache, ...],
    added: list[ProposedCache],
    changes: list[FileChange],
    notes: list[str],
    *,
    written: bool,
) -> dict[str, object]:
    return {
        "root": place,
        "ci": ci,
        "written": written,
        "caches": [
            {
                "name": cache.name,
                "key": cache.key,
                "paths": list(cache.paths),
                "lock_files": list(cache.locks),
                "source": cache.source,
                "added": cache in added,
            }
            for cache in caches
        ],
        "files": [
            {
                "path": change.path,
                "action": "create"
                if change.old is None
                else "extend"
                if change.path == CONFIGURATION
                else "replace",
                "diff": diff(change),
            }
            for change in changes
        ],
        "notes": notes,
    }


def _tell(
    caches: tuple[ProposedCache, ...],
    changes: list[FileChange],
    notes: list[str],
    *,
    yes: bool,
    in_the_way: bool,
) -> None:
    for cache in caches:
        follows = ", ".join(cache.locks[:3]) + (" ..." if len(cache.locks) > 3 else "")
        click.echo(
            printable(f"{cache.name}: {', '.join(cache.paths)}" + (f", by {follows}" if follows else "")),
            err=True,
        )
        if cache.never:
            click.echo(printable(f"  not cached: {cache.never}"), err=True)
    for note in notes:
        first, *more = note.splitlines()
        click.echo(printable(f"note: {first}"), err=True)
        for line in more:
            click.echo(f"  {printable(line)}", err=True)
    files = count(len(changes), "file")
    if not changes:
        click.echo("nothing to write: all of it is there", err=True)
    elif yes:
        click.echo(f"{files} written: {printable([change.path for change in changes])}", err=True)
    else:
        force = " --force" if in_the_way else ""
        click.echo(f"nothing was written; cachekit init --yes{force} writes {files}", err=True)
