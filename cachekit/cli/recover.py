"""``cachekit recover``."""

from __future__ import annotations

import click

from cachekit.cache.recovery import recover_targets
from cachekit.cli.options import common, json_option, trust_of, trust_option
from cachekit.cli.render import printable, to_json
from cachekit.errors import TargetNotWritable, UnfinishedTarget
from cachekit.trust import TrustMode

__all__ = ["recover"]

_WORDS = {
    "finished": "finished: the restored tree is in place",
    "rolled-back": "rolled back: the old tree is in place, nothing had been changed",
    "in-use": "left alone: a restore is running on it",
}


@click.command(short_help="Finish or undo restores that were killed.")
@click.argument("paths", nargs=-1, metavar="[TARGET]...")
@trust_option
@json_option
@common
def recover(paths: tuple[str, ...], trust: TrustMode | None, as_json: bool) -> int:
    """Finish or roll back killed restores: of the TARGETs named, or of all that this user began.

    Afterwards each target is the old or the new tree. The next restore of a target does the same by itself. Exit 8 if
    one could not be finished. What was restored in place is read again, by the policy of the killed restore.

    \b
    Examples:
      cachekit recover
      cachekit recover node_modules
    """
    try:
        lines = recover_targets(list(paths), trust_of(trust))
    except OSError as error:
        raise TargetNotWritable(
            f"an unfinished restore can be neither finished nor undone: {error.strerror}",
            path=error.filename,
            hint="nothing is lost: repair that (space, permissions, mount), then run it again",
        ) from None
    if as_json:
        click.echo(to_json(lines))
    for line in lines:
        words = _WORDS.get(line.result, f"not finished: {line.reason}")
        click.echo(f"{printable(line.target)}: {printable(words)}", err=True)
    if not lines:
        click.echo("nothing to recover", err=True)
    return UnfinishedTarget.exit_code if any(line.result == "unfinished" for line in lines) else 0
