"""``cachekit plan``: list, show and check cleaning plans."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

import click

from cachekit.clean.environment import choose_plan, look_around
from cachekit.clean.model import STAGES, Amount, Docker, Goal, Plan, Rule, Stage
from cachekit.clean.plan.file import Problem, load, parse, problems, read_text, shipped
from cachekit.cli.options import common, json_option
from cachekit.cli.render import count, plain, printable, to_json
from cachekit.errors import InvalidRequest

__all__ = ["plan"]

_WIDTH = 80
#: Where the conditions have less room than this beside a rule, they are put below it.
_NARROW = 16


@click.group(short_help="Show or check cleaning plans.", invoke_without_command=True)
@common
@click.pass_context
def plan(ctx: click.Context) -> int:
    """Show or check cleaning plans.

    A plan says what `cachekit clean` may remove, when, and how much is enough. It is a TOML file; docs/plans.md
    explains it.

    \b
    Examples:
      cachekit plan list
      cachekit plan show github-hosted --stage pre
      cachekit plan check ci/plan.toml --json
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return InvalidRequest.exit_code
    return 0


@plan.command("list", short_help="List the plans that come with cachekit.")
@json_option
@common
def list_plans(as_json: bool) -> int:
    """List the plans that come with cachekit, and say which one fits this machine.

    \b
    Example:
      cachekit plan list
    """
    chosen, why = choose_plan(look_around())
    rows = [(name, load(name).title) for name in shipped()]
    if as_json:
        click.echo(
            to_json([{"name": name, "title": title, "chosen": name == chosen} for name, title in rows])
        )
        return 0
    for name, title in rows:
        click.echo(f"{name:<14} {title}")
    click.echo(f"cachekit clean would use {chosen} here: {printable(why)}", err=True)
    return 0


@plan.command(short_help="Show what a plan does.")
@click.argument("source", metavar="[NAME|FILE]", default="")
@click.option("--stage", type=click.Choice(STAGES), help="Only this stage.")
@json_option
@common
def show(source: str, stage: Stage | None, as_json: bool) -> int:
    """Show a plan's stages: the goal, and the rules with what they are expected to free.

    NAME is that of a shipped plan, which wins over a file of the same name (write ./NAME for the file); without one the
    plan is shown that `cachekit clean` would use here. Size and time are estimates that the first runs correct.

    \b
    Examples:
      cachekit plan show github-hosted --stage pre
      cachekit plan show ./ci/plan.toml --json
    """
    if not source:
        source, why = choose_plan(look_around())
        click.echo(f"{source}: {printable(why)}", err=True)
    loaded = load(source)
    stages = [name for name in STAGES if name in loaded.stages and stage in {None, name}]
    if not stages:
        raise InvalidRequest(f"the plan {loaded.name} has no stage {stage}", expected=list(loaded.stages))
    if as_json:
        click.echo(to_json(_as_values(loaded, stages)))
        return 0
    click.echo(printable(f"{loaded.name}: {loaded.title}" if loaded.title else loaded.name))
    for name in stages:
        click.echo(f"\n{name}: {_goal_words(loaded.stages[name].goal)}")
        for line in _table(list(loaded.of_stage(name))):
            click.echo(printable(line))
    return 0


@plan.command(short_help="Check plan files.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@json_option
@common
def check(files: tuple[str, ...], as_json: bool) -> int:
    """Check plan files, and show every fault with its line. Exit 2 if there is one; warnings are no faults.

    \b
    Example:
      cachekit plan check ci/plan.toml
    """
    reports = [_check(file) for file in files]
    wrong = sum(any(not problem.warning for problem in found) for _, found, _ in reports)
    if as_json:
        click.echo(to_json([_report(*report) for report in reports]))
    else:
        for file, found, loaded in reports:
            for problem in found:
                click.echo(printable(_line(file, problem)))
            if loaded is not None:
                rules, stages = count(len(loaded.rules), "rule"), count(len(loaded.stages), "stage")
                click.echo(printable(f"{file}: fine, {rules} in {stages}"))
    if wrong and len(files) > 1:
        click.echo(f"{wrong} of {len(files)} plans cannot be used", err=True)
    return InvalidRequest.exit_code if wrong else 0


def _check(file: str) -> tuple[str, list[Problem], Plan | None]:
    try:
        text = read_text(file)
    except InvalidRequest as error:
        line = error.fields.get("line")
        return (
            file,
            [Problem(line if isinstance(line, int) else 0, None, error.message, error.hint or "")],
            None,
        )
    found = problems(text, file)
    return file, found, None if any(not problem.warning for problem in found) else parse(text, file)


def _line(file: str, problem: Problem) -> str:
    where = f"{file}:{problem.line}" if problem.line else file
    message = problem.message.removeprefix(f"{where}: ")
    rule = f"rule {problem.rule}: " if problem.rule else ""
    hint = f" ({problem.hint})" if problem.hint else ""
    return f"{where}: {'warning: ' if problem.warning else ''}{rule}{message}{hint}"


def _report(file: str, found: list[Problem], loaded: Plan | None) -> dict[str, object]:
    return {
        "file": file,
        "ok": loaded is not None,
        "rules": len(loaded.rules) if loaded is not None else None,
        "stages": list(loaded.stages) if loaded is not None else None,
        "problems": found,
    }


def _as_values(loaded: Plan, stages: Sequence[Stage]) -> dict[str, object]:
    used = {rule.id: rule for name in stages for rule in loaded.of_stage(name)}
    return {
        "name": loaded.name,
        "source": loaded.source,
        "title": loaded.title,
        "stages": {name: loaded.stages[name] for name in stages},
        "rules": {
            name: {"kind": type(rule.target).__name__.lower()} | plain(rule) for name, rule in used.items()
        },
    }


def _goal_words(goal: Goal | None) -> str:
    """Return a goal in words: when the stage does something, and when it has done enough."""
    if goal is None:
        return "all of it, unless a goal is given"
    words = []
    if goal.free is not None:
        words.append(f"until {_amount(goal.free)} are free")
    if goal.below is not None and goal.until is not None:
        words.append(f"above {goal.below:g}% used, down to {goal.until:g}%")
    if goal.inodes is not None:
        inodes = f"{goal.inodes.number}" if goal.inodes.percent is None else f"{goal.inodes.percent:g}%"
        words.append(f"until {inodes} of the inodes are free")
    return "; ".join(words)


def _size(value: float) -> str:
    """Return bytes as plan files write them: ``20G``, ``1.1G``, ``550M``."""
    units = ["B", "K", "M", "G", "T"]
    while value >= 1000 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{value:.0f}{units[0]}" if value >= 10 or value == int(value) else f"{value:.1f}{units[0]}"


def _amount(amount: Amount) -> str:
    return _size(amount.number) if amount.percent is None else f"{amount.percent:g}%"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:g}s"


def _when(rule: Rule) -> str:
    """Return a rule's conditions in few words."""
    when, words = rule.when, []
    if rule.root:
        words.append("root")
    if when.environment:
        words.append("/".join(when.environment))
    if when.image:
        words.append("/".join(when.image))
    if when.free_below is not None:
        words.append(f"below {_amount(when.free_below)} free")
    if when.idle_runner:
        words.append("idle runner")
    older = rule.target.older if isinstance(rule.target, Docker) else when.older
    if older:
        words.append(f"older than {_age(older)}")
    if when.larger is not None:
        words.append(f"larger than {_size(when.larger)}")
    if when.keep is not None:
        words.append(f"keeps {when.keep}")
    if when.unlinked:
        words.append("unlinked")
    if when.git_ignored:
        words.append("git-ignored")
    return ", ".join(words)


def _table(rules: Sequence[Rule]) -> Iterator[str]:
    """Yield the lines of a table; its last column is folded."""
    rows = [("rule", "category", "frees", "takes", "a second")]
    for rule in rules:
        speed = _size(rule.expect_bytes / rule.expect_seconds) if rule.expect_seconds else "at once"
        rows.append((rule.id, rule.category, _size(rule.expect_bytes), f"{rule.expect_seconds:g} s", speed))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    indent = 2 + sum(widths) + 2 * len(widths)
    beside = _WIDTH - indent >= _NARROW
    for row, when in zip(rows, ["when", *map(_when, rules)], strict=True):
        cells = [
            cell.ljust(width) if n < 2 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        head = "  " + "  ".join(cells) + "  "
        at = indent if beside else 6
        folded = textwrap.wrap(when, _WIDTH - at, break_on_hyphens=False)
        if beside and folded:
            head += folded.pop(0)
        yield head.rstrip()
        yield from (" " * at + line for line in folded)
