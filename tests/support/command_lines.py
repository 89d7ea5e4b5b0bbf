"""Every cachekit command line that people are told to run, and whether the real command line would take it.

Found in Markdown (fenced blocks, code spans), YAML (the scripts of any CI system, whatever the key is called), shell
scripts, Jenkinsfiles, systemd units, crontabs, and in comments where they stand in backticks. Parsed by click, types of
values included; nothing is run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import yaml

from cachekit.cli.main import cli
from tests.support.ordinary_user import PROJECT
from tests.support.shell import MANY, SOME, simple_commands

#: Commands that have the word cachekit as an argument, and do not run it.
_ONLY_NAMES = frozenset(
    "[ [[ apt-get cat cd chmod chown command cp curl echo export find git grep hash id install ln ls mkdir mv pip pip3 "
    "pipx printf rm set systemctl tar test type useradd uv which".split()
)
_METAVARIABLE = re.compile(r"[A-Z][A-Z0-9_]*(\.\.\.)?|\.\.\.|…")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_FENCE = re.compile(r"^([ ]*)(`{3,}|~{3,})[ ]*(\w*).*?\n(.*?)^[ ]*\2[ ]*$", re.MULTILINE | re.DOTALL)
_GROOVY = re.compile(r"\b(?:sh|script:)\s*\(?\s*('''|\"\"\"|'|\")(.*?)(?<!\\)\1", re.DOTALL)
_CRON = re.compile(r"^(?:@\w+|(?:[\d*/,-]+[ \t]+){5})[ \t]*(.*)$", re.MULTILINE)
_EXEC = re.compile(r"^Exec\w+=[-@:+!]*((?:.*\\\n)*.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """One command line: where it stands, and its arguments. A `fragment` (a code span) may leave arguments out."""

    file: str
    line: int
    arguments: tuple[str, ...]
    fragment: bool = False

    def __str__(self) -> str:
        shown = " ".join(word.replace(SOME, "$").replace(MANY, "$@") for word in self.arguments)
        return f"{self.file}:{self.line}: cachekit {shown}"


def files() -> list[Path]:
    """Return the files in which people find command lines."""
    found = [PROJECT / "README.md", PROJECT / "ARCHITECTURE.md", *sorted((PROJECT / "docs").rglob("*.md"))]
    snippets = (PROJECT / "ci-snippets").rglob("*")
    return found + sorted(path for path in snippets if path.is_file() and path.suffix != ".svg")


def command_lines(path: Path, text: str | None = None) -> list[CommandLine]:
    """Return the command lines in a file (or in `text`, read as that file would be)."""
    text = path.read_text("utf-8") if text is None else text
    name = os.path.relpath(path, PROJECT)
    found = []
    for offset, script, words in _scripts(path, text):
        for command in simple_commands(script):
            arguments = _arguments(command.words)
            if arguments is not None:
                found.append(CommandLine(name, offset + command.line, _marked(arguments, words)))
    for match in _SPAN.finditer(text if path.suffix == ".md" else "\n".join(_comments(text))):
        for command in simple_commands(match[1].replace("\\|", "|").replace("[", "").replace("]", "")):
            if command.words[0] == "cachekit" and len(command.words) > 1:
                line = text.count("\n", 0, match.start()) + 1 if path.suffix == ".md" else 0
                found.append(
                    CommandLine(name, line, _marked(command.words[1:], _METAVARIABLE), fragment=True)
                )
    return found


def cut_by_cron(path: Path, text: str | None = None) -> list[str]:
    """Return the lines for a crontab, also of those in a page, that cron would end at a bare per cent sign."""
    text = path.read_text("utf-8") if text is None else text
    if path.suffix == ".md":
        text = "".join(match[4] for match in _FENCE.finditer(text))
    elif "crontab" not in path.name:
        return []
    return [match[0] for match in _CRON.finditer(text) if re.search(r"(?<!\\)%", match[1])]


def refusal(command_line: CommandLine) -> str:
    """Return why the command line interface would not take it; an empty string if it would."""
    arguments = [word for word in command_line.arguments if word != MANY]
    if arguments and arguments[-1].endswith(MANY):
        arguments[-1] = SOME
    nested = _nested(arguments)
    try:
        _parse(arguments, fragment=command_line.fragment)
        if nested is not None:
            _parse(nested, fragment=command_line.fragment)
    except click.ClickException as error:
        return error.format_message()
    return ""


def _scripts(path: Path, text: str) -> Iterator[tuple[int, str, re.Pattern[str] | None]]:
    """Return what in a file is for a shell: lines before it, the script, and what in it stands for something else."""
    if path.suffix == ".md":
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start(4))
            kind, block = match[3], match[4]
            if kind == "text":
                block = "".join(_examples(block.splitlines(keepends=True)))
            elif re.search(r"^\s*\$ ", block, re.MULTILINE):  # what is not after a prompt is output
                lines = block.splitlines()
                block = "\n".join(re.sub(r"^\s*\$ ", "", x) if re.match(r"\s*\$ ", x) else "" for x in lines)
            if kind in {"yaml", "yml"}:
                for at, script in _yaml(block):
                    yield line + at, script, _METAVARIABLE
            elif kind in {"", "sh", "bash", "shell", "console", "text"}:
                yield line, block, _METAVARIABLE
    elif path.suffix in {".yml", ".yaml"}:
        for at, script in _yaml(text):
            yield at, script, None
    elif path.suffix in {".service", ".timer"}:
        for match in _EXEC.finditer(text):
            yield text.count("\n", 0, match.start()), match[1].replace("%%", "%"), None
    elif path.name.startswith("Jenkinsfile") or path.suffix == ".groovy":
        for match in _GROOVY.finditer(text):
            yield text.count("\n", 0, match.start(2)), match[2], None
    elif "crontab" in path.name or path.suffix == ".cron":
        for match in _CRON.finditer(text):
            yield text.count("\n", 0, match.start()), match[1], None
    elif path.suffix in {".sh", ".bash"} or (text.startswith("#!") and "sh" in text.partition("\n")[0]):
        yield 0, text, None
    elif path.name == "Earthfile" or path.name.startswith("Dockerfile"):
        yield 0, re.sub(r"^\s*RUN\s+((--\S+\s+)*)", "", text, flags=re.MULTILINE), None


def _yaml(text: str) -> Iterator[tuple[int, str]]:
    """Return every text in a YAML document in which a shell could find the command, and the lines before it."""
    pending = list(yaml.compose_all(text, yaml.SafeLoader))
    while pending:
        node = pending.pop()
        if isinstance(node, yaml.MappingNode):
            pending += [value for key, value in node.value if key.value not in {"name", "description"}]
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value
        elif isinstance(node, yaml.ScalarNode) and re.search(r"\bcachekit[ \t]", node.value):
            yield node.start_mark.line + (node.style in {"|", ">"}), node.value


def _examples(lines: list[str]) -> Iterator[str]:
    """Keep the lines after "Example:" up to an empty one: the rest of a help text is prose."""
    inside = False
    for line in lines:
        inside = line.strip() in {"Example:", "Examples:"} or (inside and bool(line.strip()))
        yield line if inside and not line.strip().startswith("Example") else "\n"


def _comments(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith(("#", "//", "*"))]


def _arguments(words: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the arguments if the command is ours, run directly or by another (sudo, env, nice, timeout ...)."""
    words = tuple(
        word for at, word in enumerate(words) if "=" not in word or any("=" not in w for w in words[:at])
    )
    for at, word in enumerate(words):
        if word == "-m" and words[at + 1 : at + 2] == ("cachekit",):
            return words[at + 2 :]
        if os.path.basename(word) == "cachekit":
            return words[at + 1 :] if words[0].rpartition("/")[2] not in _ONLY_NAMES else None
    return None


def _marked(words: tuple[str, ...], unknown: re.Pattern[str] | None) -> tuple[str, ...]:
    if unknown is None:
        return words
    return tuple(SOME if unknown.fullmatch(word) else word for word in words if word not in {"...", "…"})


def _nested(arguments: list[str]) -> list[str] | None:
    """Return the arguments of a command of ours that another runs (lock run ... -- cachekit ...)."""
    if "--" in arguments:
        found = _arguments(tuple(arguments[arguments.index("--") + 1 :]))
        return list(found) if found is not None else None
    return None


def _parse(arguments: list[str], *, fragment: bool) -> None:
    """Take the arguments as click does, but for values that are not known, and in a fragment for what is missing.

    Raises ClickException.
    """
    command: click.Command = cli
    # With the real command line's settings: click keeps the help option that it makes first, for all that come after.
    context = click.Context(cli, info_name="cachekit", obj={}, **cli.context_settings)
    rest = arguments
    while True:
        rest = _take(command, context, rest, fragment=fragment)
        if not isinstance(command, click.Group) or (
            not rest and command.invoke_without_command and command is not cli
        ):
            break
        if not rest:
            if fragment or _asks_for_help(arguments):
                return
            raise click.UsageError("a command is missing", context)
        name, below, rest = command.resolve_command(context, rest)
        assert below is not None
        command, context = below, click.Context(below, info_name=name, parent=context, obj={})
        context.allow_interspersed_args = command.allow_interspersed_args
        context.ignore_unknown_options = command.ignore_unknown_options
    if rest and not _asks_for_help(arguments):
        raise click.UsageError(f"Got unexpected extra arguments ({' '.join(rest)})", context)


def _take(command: click.Command, context: click.Context, given: list[str], *, fragment: bool) -> list[str]:
    """Check one command's own options and arguments; return what is left. Raises ClickException."""
    try:
        values, left, order = command.make_parser(context).parse_args(args=list(given))
    except click.BadOptionUsage as error:
        if fragment and type(error) is click.BadOptionUsage:  # a span may end with the name of an option
            return []
        raise
    if _asks_for_help(given):
        return left
    parameters = command.get_params(context)
    for parameter in sorted(
        parameters, key=lambda known: order.index(known) if known in order else len(order)
    ):
        value = values.get(parameter.name or "")
        texts = value if isinstance(value, (list, tuple)) else (value,)
        if any(isinstance(text, str) and (SOME in text or MANY in text) for text in texts):
            continue  # only running it could tell
        if fragment and not any(isinstance(text, str) for text in texts):
            continue
        with context.scope(cleanup=False):
            parameter.handle_parse_result(context, values, [])
    return left


def _asks_for_help(arguments: list[str]) -> bool:
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return not {"--help", "-h", "--version"}.isdisjoint(own)
