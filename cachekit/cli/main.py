"""The command group: commands are imported when they are called, and every error becomes a sentence and a code."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

import click

from cachekit.cli.outputs import annotate
from cachekit.cli.render import error_lines, to_json
from cachekit.errors import CachekitError, Interrupted

__all__ = ["COMMANDS", "cli", "run"]

#: Command name -> (module, attribute, one-line help). Data, so that --help imports no command.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "save": ("cachekit.cli.save", "save", "Save files and directories under a key."),
    "restore": ("cachekit.cli.restore", "restore", "Restore the entry of a key, or of a restore key."),
    "verify": ("cachekit.cli.verify", "verify", "Check entries or archive files, as deep as you like."),
    "ls": ("cachekit.cli.listing", "ls", "List the entries of the store."),
    "show": ("cachekit.cli.listing", "show", "Show what an entry holds."),
    "recover": ("cachekit.cli.recover", "recover", "Finish or undo restores that were killed."),
    "demo": ("cachekit.cli.demo", "demo", "Watch a save, a restore and a refusal in ten seconds."),
}

#: The codes that --soft-fail turns into 0 (docs/errors.md).
_SOFT = range(4, 10)


class LazyGroup(click.Group):
    """A group that knows its commands' names and imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.command(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="cachekit", message="%(prog)s %(version)s", prog_name="cachekit")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """CI caches that are whole or absent.

    \b
    cachekit save --key "node-$(sha256sum package-lock.json | cut -c1-16)" node_modules
    cachekit restore --key "node-..." --restore-key node- node_modules

    Exit codes: 0 done, 1 internal error, 2 usage, 3 miss (if asked), 4 refused as damaged or unsafe, 5 no space,
    6 lock timeout, 8 source or target refuses, 9 store unavailable.
    """
    if debug:
        ctx.meta["cachekit.debug"] = True


def _on_terminate(number: int, _frame: object) -> NoReturn:
    # A second signal must not interrupt the cleaning up after the first.
    signal.signal(number, signal.SIG_IGN)
    raise Interrupted(f"stopped by {signal.Signals(number).name}; nothing was published", signal=number)


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit code."""
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _on_terminate)
    context: click.Context | None = None
    meta: dict[str, Any] = {}
    try:
        with cli.make_context("cachekit", list(arguments)) as context:
            meta = context.meta
            result = cli.invoke(context)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("\ncachekit: interrupted; nothing was published\n")
        return 128 + signal.SIGINT
    except CachekitError as error:
        return _report(error, meta, arguments)
    except BrokenPipeError:
        # The reader of stdout went away (cachekit ls | head): not our failure.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:  # noqa: BLE001 - the last resort, reported as what it is
        return _internal(error, meta)
    return code


def _report(error: CachekitError, meta: dict[str, Any], arguments: list[str]) -> int:
    if meta.get("cachekit.debug"):
        traceback.print_exc()
    code = error.exit_code
    if isinstance(error, Interrupted):
        number = error.fields.get("signal")
        code = 128 + number if isinstance(number, int) else code
    soft = bool(meta.get("cachekit.soft-fail")) and code in _SOFT
    lines = error_lines(error)
    kind = "warning" if soft else "error"
    sys.stderr.write(f"cachekit: {kind}: " + "\n".join(lines) + "\n")
    annotate(kind, lines[0])
    if "--json" in arguments:
        sys.stdout.write(to_json({"error": error.as_dict()}) + "\n")
    return 0 if soft else code


def _internal(error: Exception, meta: dict[str, Any]) -> int:
    if meta.get("cachekit.debug"):
        traceback.print_exc()
    sys.stderr.write(
        f"cachekit: internal error: {type(error).__name__}: {ascii(str(error))[1:-1]}\n"
        "  This is a bug in cachekit, or the machine is failing (memory, processes). Nothing was published.\n"
        "  hint: run it again with --debug and report what it prints, with `cachekit --version`, to the project\n"
    )
    return 1
