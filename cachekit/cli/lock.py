"""``cachekit lock``: run a command while holding a named lock, and see who holds which."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import click

from cachekit.cli.options import (
    common,
    json_option,
    parse_directory,
    parse_duration_option,
    parse_text,
    store_directory_option,
)
from cachekit.cli.outputs import warn
from cachekit.cli.render import count, printable, to_json
from cachekit.cli.running import Running
from cachekit.errors import LockBusy
from cachekit.lock.listing import named_locks_in
from cachekit.lock.run import LockRequest, run_locked
from cachekit.model import LOCKS_NAME, Key
from cachekit.store.layout import named_locks
from cachekit.system.locking.lease import LEASE_SECONDS, MIN_LEASE_SECONDS
from cachekit.system.locking.named import State
from cachekit.system.locking.record import MAX_LENGTH

__all__ = ["lock", "lock_options", "run_under"]

F = TypeVar("F", bound=Callable[..., Any])


@click.group(short_help="Run a command while holding a lock.", subcommand_metavar="COMMAND")
@common
def lock() -> None:
    """Let only one at a time use what hosts or jobs share, such as a cache directory. Each command has --json.

    \b
    Examples:
      cachekit lock run docker-cache -- make image
      cachekit lock ls
    """


def _place(store: str, directory: str | None) -> str:
    return named_locks(store) if directory is None else os.path.join(directory, os.fsdecode(LOCKS_NAME))


def _dir_option(function: Any) -> Any:
    return click.option(
        "--dir",
        "directory",
        metavar="DIR",
        type=parse_directory,
        help="Keep the locks below this directory (as .cachekit-locks), not in the store: the one that is shared.",
    )(function)


def lock_options(function: F) -> F:
    """``--shared``, ``--timeout``, ``--lease``, ``--lease-length``: how a command is run under a lock."""
    for option in (
        click.option(
            "--lease-length",
            type=parse_duration_option,
            default=f"{LEASE_SECONDS:.0f}s",
            show_default=True,
            metavar="DURATION",
            help="Without a sign of life for so long, a lease may be taken over.",
        ),
        click.option(
            "--lease", is_flag=True, help="Use a lease even if flock seems to exclude (docs/locking.md)."
        ),
        click.option(
            "--timeout",
            type=parse_duration_option,
            default="1h",
            show_default=True,
            metavar="DURATION",
            help="How long to wait for it: 30s, 5m, 1h; 0 does not wait.",
        ),
        click.option(
            "--shared", is_flag=True, help="Share it with others that say --shared; alone is who does not."
        ),
    ):
        function = option(function)
    return function


@lock.command(
    "run",
    cls=Running,
    short_help="Run a command while holding a named lock.",
)
@click.argument("name", metavar="NAME", type=parse_text)
@click.argument("command", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@lock_options
@_dir_option
@store_directory_option
@json_option
@common
def run_command(
    name: str, command: tuple[str, ...], directory: str | None, store: str, as_json: bool, **options: Any
) -> int:
    """Run COMMAND while holding the lock NAME, and exit with its code.

    The lock ends when both cachekit and COMMAND have ended, however they did. Who waits is told at once, and every 30
    seconds, who holds it. Signals are passed on. With --json the report is the last line of stdout.

    \b
    Exit codes besides those of COMMAND (128 + n if signal n ended it):
      122  somebody else held the lock for too long; not run
      125  cachekit failed, or lost the lock to another host
      126  COMMAND cannot be executed
      127  there is no such COMMAND

    \b
    Examples:
      cachekit lock run docker-cache -- docker buildx build .
      cachekit lock run cache --dir /mnt/shared/cache --timeout 5m -- ./build.sh
      cachekit lock run cache --shared -- ./read-only-job.sh
    """
    return run_under(Key(name), _place(store, directory), command, store=store, as_json=as_json, **options)


def run_under(
    name: Key,
    place: str,
    command: tuple[str, ...],
    *,
    store: str,
    as_json: bool,
    shared: bool,
    timeout: float,
    lease: bool,
    lease_length: float,
) -> int:
    """Run a command while holding a lock; return its exit code. ``store``: in whose ledger a wait is written down."""
    if not MIN_LEASE_SECONDS <= lease_length <= MAX_LENGTH:
        raise click.BadParameter(
            f"a lease is {MIN_LEASE_SECONDS:.0f}s to {MAX_LENGTH:.0f}s long", param_hint="--lease-length"
        )
    request = LockRequest(
        name, place, command, shared=shared, timeout=timeout, lease=lease, lease_length=lease_length
    )
    waited: list[float] = []
    try:
        report = run_locked(
            request,
            tell=lambda text: click.echo(f"cachekit: {printable(text)}", err=True),
            warn=warn,
            on_wait=lambda _name, seconds, _holder: waited.append(seconds),
        )
    except LockBusy:
        _record_wait(store, name.text, sum(waited), "timeout")
        raise
    if waited:
        _record_wait(store, name.text, sum(waited), "got")
    if as_json:
        click.echo(to_json(report))
    return report.exit_code


def _record_wait(store: str, name: str, seconds: float, outcome: Literal["got", "timeout"]) -> None:
    """Write down a wait in the store's ledger, where there is one. Not on a bare machine: the ledger needs more."""
    with contextlib.suppress(ImportError):
        from cachekit.cli.events import record_lock_wait

        record_lock_wait(store, name, seconds, outcome)


@lock.command("ls", short_help="List the named locks, who holds them and who waits.")
@_dir_option
@store_directory_option
@json_option
@common
def ls_command(directory: str | None, store: str, as_json: bool) -> int:
    """List the locks that were ever used here: free or held, by whom, and who waits.

    Hosts, pids and times are those that the holders wrote down. A lease of a host that crashed is shown as held until
    it has expired.

    \b
    Examples:
      cachekit lock ls
      cachekit lock ls --dir /mnt/shared/cache --json
    """
    states = named_locks_in(_place(store, directory))
    if as_json:
        click.echo(to_json(states))
        return 0
    for state in states:
        click.echo("\n".join(_lines(state)))
    if not states:
        click.echo("no lock was ever used here", err=True)
    return 0


def _lines(state: State) -> list[str]:
    name = printable(state.name if state.name is not None else os.path.basename(state.path))
    shared = ", shared" if any(holder.shared for holder in state.holders) else ""
    lines = [f"{name}: {'held' if state.held else 'free'}{shared} ({state.kind})"]
    lines += [f"  held by {printable(holder)}" for holder in state.holders]
    if state.held and not state.holders:
        lines.append("  by somebody who left no record")
    lines += [f"  waiting: {printable(holder)}" for holder in state.waiters]
    if state.waiters:
        lines[0] += f", {count(len(state.waiters), 'waiter')}"
    return lines
