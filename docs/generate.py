"""Write docs/errors.md and docs/cli.md from the code: ``python docs/generate.py``.

A test compares them with what is in the repository.
"""  # noqa: INP001 - a folder of documents, not a package

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))

from cachekit.cli.main import COMMANDS, cli  # noqa: E402 - found only now when run as a script
from cachekit.errors import CachekitError  # noqa: E402

__all__ = ["COMMAND", "EXIT_CODES", "PAGES", "classes", "cli_page", "errors_page"]

COMMAND = "python docs/generate.py"
#: What click makes of a terminal of 80 columns.
_WIDTH = 78

#: Exit code -> what it means, and what a pipeline does about it.
EXIT_CODES = {
    0: "Done. Also a miss, and a damaged entry that was refused and set aside (`status` says which).",
    1: "Internal error: a bug, or the machine fails. `demo`: a promise did not hold. `diff --exit-code`: they differ.",
    2: "Wrong usage or configuration; nothing was done.",
    3: "Nothing was restored, and `--fail-on-miss` or `--strict` was given; or `verify`, `show`: no such key or file.",
    4: "Refused (damaged, forged, unsafe, unsupported, untrusted): by `verify` always, by `restore` with `--strict`.",
    5: "Not enough space, inodes or quota; nothing was published or changed.",
    6: "Another process held the lock for longer than was waited.",
    7: "`clean`, `prune`: what may be removed was not enough for the goal.",
    8: "The source or the target refuses: changed, unreadable, nothing matched, conflicting names, unfinished.",
    9: "The store cannot be reached, read or written.",
    121: "`guard`: a file was refused; the command was not run.",
    122: "`lock run`: the lock was not to be had in time; the command was not run.",
    125: "`lock run`: cachekit itself failed, or lost the lock; `docs/locking.md` says when.",
    126: "`lock run`: the command cannot be executed.",
    127: "`lock run`: there is no such command.",
    129: "Stopped by SIGHUP (128 + 1).",
    130: "Stopped by SIGINT, Ctrl-C (128 + 2).",
    141: "The reader of the output went away (128 + 13), as in `cachekit ls | head`.",
    143: "Stopped by SIGTERM (128 + 15).",
}
_NOTE = f"<!-- Generated: do not edit. Change the code, then run `{COMMAND}`. -->\n"


def classes(top: type[CachekitError] = CachekitError) -> Iterator[type[CachekitError]]:
    """Yield the errors of errors.py, each before its subclasses."""
    for below in top.__subclasses__():
        if below.__module__ == CachekitError.__module__:
            yield below
            yield from classes(below)


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def errors_page() -> str:
    """Return docs/errors.md."""
    lines = [
        "# Exit codes and errors",
        "",
        _NOTE,
        "An error is one sentence on stderr (`cachekit: error: ...`), its facts (`path`, `at`, `expected`, `found`)",
        'and a hint, one a line. With `--json` it is `{"error": {...}}` on stdout, with the id below, the same facts',
        "as fields, and `need`, `have`, `short_by` in bytes where space is short. `--debug` adds a traceback.",
        "",
        "## Exit codes",
        "",
        _row("Code", "Meaning"),
        _row("---:", "---"),
        *(_row(code, meaning) for code, meaning in EXIT_CODES.items()),
        "",
        "`lock run` passes the code of its command on unchanged: 128 + n if signal n ended it.",
        "",
        "`--soft-fail` (save, restore, clean and prune) turns 4 to 9 into a warning and 0.",
        "",
        "## Errors",
        "",
        _row("Id", "Exit", "Meaning", "Hint, unless there is a better one"),
        _row("---", "---:", "---", "---"),
    ]
    for kind in classes():
        code = "128 + signal" if kind.id == "interrupted" else kind.exit_code
        lines.append(_row(f"`{kind.id}`", code, kind.meaning, kind.default_hint or ""))
    lines.append(
        _row(
            "`internal`",
            1,
            "A bug, or memory or processes have run out.",
            "run it again with --debug and report what it prints",
        )
    )
    return "\n".join(lines) + "\n"


def _help(command: click.Command, name: str, parent: click.Context | None) -> str:
    with click.Context(
        command, info_name=name, parent=parent, terminal_width=_WIDTH, help_option_names=["-h", "--help"]
    ) as context:
        return command.get_help(context)


def _commands(group: click.Group, names: Iterable[str], parent: click.Context, before: str) -> Iterator[str]:
    """Yield the lines about commands, each followed by its own sub-commands."""
    for name in names:
        command = group.get_command(parent, name)
        assert command is not None
        yield from [f"## {before} {name}", "", "```text", _help(command, name, parent), "```", ""]
        if isinstance(command, click.Group):
            with click.Context(command, info_name=name, parent=parent) as context:
                yield from _commands(command, command.list_commands(context), context, f"{before} {name}")


def cli_page() -> str:
    """Return docs/cli.md."""
    parts = ["# Commands", "", _NOTE, "What `--help` prints. Exit codes: [errors.md](errors.md).", ""]
    parts += ["## cachekit", "", "```text", _help(cli, "cachekit", None), "```", ""]
    with click.Context(cli, info_name="cachekit") as context:
        parts += _commands(cli, COMMANDS, context, "cachekit")
    return "\n".join(parts)


PAGES = {"errors.md": errors_page, "cli.md": cli_page}


def main() -> None:
    """Write the pages beside this file."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
        sys.stdout.write(f"docs/{name}\n")


if __name__ == "__main__":
    main()
