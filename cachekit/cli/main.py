"""The command group: commands are imported when they are called, and every error becomes a sentence and a code."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import sys
from typing import Any, NoReturn, TextIO

import click

from cachekit._version import __version__
from cachekit.cli.outputs import annotate
from cachekit.cli.render import details, error_lines, printable, to_json
from cachekit.errors import CachekitError, Interrupted, InvalidRequest

__all__ = ["COMMANDS", "cli", "run"]

#: Command name -> (module, attribute, one-line help). Data, so that --help imports no command.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "save": ("cachekit.cli.save", "save", "Save files and directories under a key."),
    "restore": ("cachekit.cli.restore", "restore", "Restore the entry of a key, or of a restore key."),
    "image": ("cachekit.cli.image", "image", "Save Docker images under a key, and load them again."),
    "verify": ("cachekit.cli.verify", "verify", "Check entries or archive files, as deep as you like."),
    "oci": (
        "cachekit.cli.oci",
        "oci",
        "Verify, lock and collect OCI layouts.",
    ),
    "seal": ("cachekit.cli.files", "seal", "Write a manifest beside files, so that they can be checked."),
    "check": (
        "cachekit.cli.files",
        "check",
        "Check files: by their manifests, or for what their format promises.",
    ),
    "guard": (
        "cachekit.cli.files",
        "guard",
        "Check files, then run a command.",
    ),
    "explain": ("cachekit.cli.explain", "explain", "Say which entry a restore would use, and why."),
    "ls": ("cachekit.cli.listing", "ls", "List the entries of the store."),
    "show": ("cachekit.cli.listing", "show", "Show what an entry holds."),
    "init": ("cachekit.cli.init", "init", "Propose caches and a CI snippet for a repository."),
    "config": ("cachekit.cli.config", "config", "Check or show the configuration."),
    "key": ("cachekit.cli.key", "key", "Print the key that a template gives."),
    "prune": ("cachekit.cli.prune", "prune", "Remove entries until the store is inside its limits."),
    "pin": ("cachekit.cli.pins", "pin", "Keep an entry whatever the limits of the store say."),
    "unpin": ("cachekit.cli.pins", "unpin", "Let an entry be pruned again."),
    "stats": ("cachekit.cli.stats", "stats", "Show hit rates, bytes and seconds by cache."),
    "store": ("cachekit.cli.carry", "store", "Take an entry out of the store, or into it."),
    "diff": ("cachekit.cli.diff", "diff", "Compare the files of two entries."),
    "recover": ("cachekit.cli.recover", "recover", "Finish or undo restores that were killed."),
    "plan": ("cachekit.cli.plan", "plan", "Show or check cleaning plans."),
    "clean": ("cachekit.cli.clean", "clean", "Free disk space by a staged plan, until a goal is met."),
    "disk": ("cachekit.cli.disk", "disk", "Show what fills the disk, and keep a reserve."),
    "lock": ("cachekit.cli.lock", "lock", "Run a command while holding a lock."),
    "doctor": ("cachekit.cli.doctor", "doctor", "Measure what a filesystem does, and what follows."),
    "demo": ("cachekit.cli.demo", "demo", "Watch a save, a restore and a refusal in ten seconds."),
}

#: The codes that --soft-fail turns into 0 (docs/errors.md).
_SOFT = range(4, 10)
_INTERNAL = 1


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
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
)
@click.version_option(__version__, message="%(prog)s %(version)s", prog_name="cachekit")
@click.option("--debug", is_flag=True, help="Show a traceback when something fails.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> int:
    """CI caches that are whole or absent.

    \b
    Example:
      key="node-$(sha256sum package-lock.json | cut -c1-16)"
      cachekit restore --key "$key" --restore-key node- node_modules
      npm ci
      cachekit save --key "$key" node_modules

    \b
    Exit codes:
      0  done: also a miss, and a damaged entry that was refused and set aside
      1  internal error                   6  lock timeout
      2  wrong usage                      7  clean, prune: goal not met
      3  miss, if asked to fail on it     8  source or target refuses
      4  refused: damaged, untrusted      9  store or engine unavailable
      5  not enough space
    """
    if debug:
        ctx.ensure_object(dict)["debug"] = True
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return InvalidRequest.exit_code
    return 0


def _on_terminate(number: int, _frame: object) -> NoReturn:
    # A second signal must not interrupt the cleaning up after the first.
    signal.signal(number, signal.SIG_IGN)
    raise Interrupted(f"stopped by {signal.Signals(number).name}", signal=number)


def run(arguments: list[str]) -> int:
    """Run the command line and return the exit code."""
    _ready_streams()
    with contextlib.suppress(ValueError):  # not in the main thread
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, _on_terminate)
    told: dict[str, Any] = {"arguments": arguments}  # and which of --debug, --json and --soft-fail were given
    try:
        try:
            return _invoke(arguments, told)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last resort, told as what it is
            if isinstance(error, OSError):
                sys.stdout.flush()  # raises again if it was the output that could not be written
            return _report(error, told, arguments)
    except BrokenPipeError:
        # The reader of stdout went away (cachekit ls | head): not our failure.
        _silence(sys.stdout)
        return 128 + signal.SIGPIPE
    except OSError as error:
        _silence(sys.stdout)
        with contextlib.suppress(OSError):
            sys.stderr.write(f"cachekit: error: the output could not be written: {error.strerror}\n")
        return _INTERNAL


def _ready_streams() -> None:
    """Give us a stdout and stderr where the caller closed them, and let no character stop us.

    With $PYTHONUNBUFFERED Python's own stdout may write half of a line, and fails before it is flushed, not then.
    """
    for name, raw in (("stdout", io.FileIO), ("stderr", _Unheeded)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif stream is getattr(sys, f"__{name}__"):
            stream.flush()
            buffer = io.BufferedWriter(raw(stream.fileno(), "w", closefd=False))
            ours = io.TextIOWrapper(
                buffer,
                stream.encoding,
                "backslashreplace",
                line_buffering=name == "stderr" or stream.isatty(),
            )
            setattr(sys, name, ours)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


class _Unheeded(io.FileIO):
    """What cannot be written is lost: a full disk under the log, or a reader that left, decides nothing."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            if (count := super().write(data)) is not None:
                return count
        return len(data)


def _silence(stream: TextIO) -> None:
    """Let what is still buffered go nowhere: Python would complain when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), stream.fileno())


def _invoke(arguments: list[str], told: dict[str, Any]) -> int:
    try:
        with cli.make_context("cachekit", list(arguments), obj=told) as context:
            result = cli.invoke(context)
    except click.exceptions.Exit as error:
        result = error.exit_code
    sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _report(error: BaseException, told: dict[str, Any], arguments: list[str]) -> int:
    """Tell of an error, on stderr and with --json also on stdout; return the exit code."""
    if told.get("debug") and not isinstance(error, click.ClickException):
        import traceback

        traceback.print_exception(error)
    code, kind = _INTERNAL, "error"
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        error = Interrupted("interrupted", signal=int(signal.SIGINT))
        sys.stderr.write("\n")
    if isinstance(error, click.ClickException):
        code, facts = InvalidRequest.exit_code, _usage(error)
        lines = [printable(facts["message"]), *details(facts)]
    elif isinstance(error, CachekitError):
        code, facts, lines = error.exit_code, error.as_dict(), error_lines(error)
        if isinstance(error, Interrupted):
            number = error.fields.get("signal")
            code = 128 + number if isinstance(number, int) else code
            facts["exit_code"] = code
        elif told.get("soft-fail") and code in _SOFT:
            code, kind = 0, "warning"
    else:
        facts = _internal(error)
        lines = [printable(facts["message"]), *details(facts)]
    sys.stderr.write(f"cachekit: {kind}: " + "\n".join(lines) + "\n")
    annotate(kind, lines)
    if told.get("answered"):
        pass  # the report is on stdout already
    elif told.get("json") or (code == InvalidRequest.exit_code and _asks_for_json(arguments)):
        sys.stdout.write(to_json({"error": facts}) + "\n")
    sys.stdout.flush()
    return code


def _asks_for_json(arguments: list[str]) -> bool:
    """Look for --json where the arguments could not be parsed."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return "--json" in arguments[:end]


def _usage(error: click.ClickException) -> dict[str, object]:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "cachekit"
    message = error.format_message().rstrip(".").replace("\n", " ")
    # click's own text is the whole help; the class is there from click 8.2 on.
    bare = isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ()))
    if bare and context is not None and isinstance(context.command, click.Group):
        message = f"a command is missing: {', '.join(context.command.list_commands(context))}"
    return {
        "id": InvalidRequest.id,
        "message": message,
        "exit_code": InvalidRequest.exit_code,
        "hint": f"{path} --help shows the options and examples",
    }


def _internal(error: BaseException) -> dict[str, object]:
    if isinstance(error, MemoryError):
        message, hint = "out of memory", "CACHEKIT_WORKERS=1 needs less; or give the job more"
    else:
        message = f"internal error: {type(error).__name__}: {error}"
        hint = (
            "this is a bug in cachekit, or the machine fails. Run it again with --debug and report what it prints, "
            "with `cachekit --version`, to the project"
        )
    return {"id": "internal", "message": message, "exit_code": _INTERNAL, "hint": hint}
