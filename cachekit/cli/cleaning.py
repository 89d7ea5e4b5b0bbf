"""A clean's report for people: on a terminal of 80 columns, and as Markdown for a job's summary page."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from cachekit.clean.environment import look_around
from cachekit.clean.report import CleanReport, FilesystemReport, RuleReport
from cachekit.cli.render import count, printable, size
from cachekit.errors import GoalNotMet

__all__ = [
    "filesystem_lines",
    "folded",
    "gone",
    "human_report",
    "markdown_report",
    "not_met",
    "possible",
    "rule_line",
]

_WIDTH = 80
#: What means something in Markdown, in the middle of a line.
_MARKUP = re.compile(r"[&<>|\[\]`*_~\\$]")
_INDENT = " " * 4
#: Columns for a rule's name.
_NAME = 24
#: Results of rules whose turn came, in the order in which people want to know.
_DONE = ("freed", "deferred", "would-free", "blocked", "failed")


def gone(rule: RuleReport) -> bool:
    """Return True if something was done, or could not be: what is worth a line while it happens."""
    return rule.result in {"freed", "deferred", "blocked", "failed"}


def _rate(rule: RuleReport) -> str:
    return f"{size(rule.rate)}/s" if rule.rate and rule.result != "would-free" else ""


def rule_line(rule: RuleReport) -> str:
    """Return a rule's outcome in one line; a second one, indented, says why."""
    foreseen = rule.result in {"would-free", "not-needed"}
    about = "" if rule.measured or not foreseen else "~"
    shown = ""
    if foreseen or rule.result in {"freed", "deferred"}:
        shown = about + size(rule.expected if foreseen else rule.freed)
    seconds = "" if foreseen else f"{rule.seconds:.1f} s"
    numbers = f"{rule.result:<10} {shown:>11} {seconds:>8} {_rate(rule):>12}".rstrip()
    name = printable(rule.id)
    # A name too long for its column has a line of its own.
    head = [f"{name:<24} {numbers}"] if len(name) <= _NAME else [name, f"{'':<{_NAME}} {numbers}"]
    return "\n".join([*head, *_wrapped(rule.reason)])


def folded(text: str, *, first: str = "", following: str = _INDENT) -> list[str]:
    """Return text in lines of 80 columns; a path is longer rather than cut.

    No line begins, spaces apart, with what a CI runner takes for an order: it looks at lines, not at sentences.
    """
    text = printable(text)
    lines = textwrap.wrap(
        text,
        _WIDTH - ("::" in text),
        initial_indent=first,
        subsequent_indent=following,
        break_on_hyphens=False,
        break_long_words="/" not in text,
    )
    for number, line in enumerate(lines):
        begin = len(line) - len(line.lstrip())
        lines[number] = line[:begin] + printable(line[begin:])
    return lines


def _wrapped(text: str) -> list[str]:
    return folded(text, first=_INDENT)


def filesystem_lines(filesystems: Iterable[FilesystemReport], *, dry_run: bool = False) -> list[str]:
    """Return a line for each filesystem: free before and after, of how much, and what is missing."""
    lines = []
    for item in filesystems:
        free = (
            size(item.before)
            if dry_run or item.before == item.after
            else f"{size(item.before)} -> {size(item.after)}"
        )
        mount = printable(item.mount)
        why = ", ".join(name for name in map(printable, item.why) if name != mount)
        text = f"{mount}{f' ({why})' if why else ''}: {free} free of {size(item.total)}"
        if item.need or item.need_inodes:
            text += _missing(item)
        lines += folded(text)
        if not dry_run and abs(item.unexplained) >= 1 << 20:
            if item.unexplained > 0:
                why = "more than the rules freed: others free there too, or it shows late"
            else:
                why = "less than the rules freed: others write there too"
            lines += folded(f"{size(abs(item.unexplained))} {why}", first=_INDENT)
    return lines


def _missing(item: FilesystemReport) -> str:
    if item.met:
        return ", enough"
    if item.short_by:
        return f", {size(item.short_by)} short of {size(item.need)}"
    return f", {item.need_inodes - (item.inodes_after or 0)} short of {item.need_inodes} free inodes"


def human_report(report: CleanReport) -> str:
    """Return the whole report."""
    lines = folded(f"plan {report.plan}, stage {report.stage} ({report.plan_why})")
    lines += folded(f"goal: {report.goal}")
    lines += filesystem_lines(report.filesystems, dry_run=report.dry_run)
    if report.already_met:
        return "\n".join([*lines, "enough is free already; nothing was touched"])
    lines.append("")
    if report.rules:
        lines.append(f"{'rule':<24} {'result':<10} {'would free' if report.dry_run else 'freed':>11}")
    for result in _DONE if not report.dry_run else (*_DONE, "not-needed"):
        lines += [rule_line(rule) for rule in report.rules if rule.result == result]
    for result, words in (
        ("skipped", "skipped"),
        ("stale", "nothing there"),
        ("not-applicable", "not on this machine"),
        ("not-needed", "not needed any more"),
    ):
        if report.dry_run and result == "not-needed":
            continue  # shown above, with what they would free
        lines += _listed(
            words, [rule for rule in report.rules if rule.result == result], reasons=result == "skipped"
        )
    return "\n".join([*lines, "", *folded(_verdict(report))])


def _listed(words: str, rules: list[RuleReport], *, reasons: bool) -> list[str]:
    if not rules:
        return []
    if reasons:
        return [f"{words}:", *(line for rule in rules for line in _wrapped(f"{rule.id}: {rule.reason}"))]
    return folded(f"{words}: {', '.join(rule.id for rule in rules)}")


def _verdict(report: CleanReport) -> str:
    if report.dry_run:
        total = sum(rule.expected for rule in report.rules if rule.result == "would-free")
        missing = sum(item.short_by for item in report.filesystems)
        end = "the goal would be met"
        if report.met:
            end = "the goal is met as it is"
        elif total < missing:
            end = f"{size(missing - total)} short of the goal"
        elif not missing:
            end = "inodes are not foreseen"  # the goal is about them alone
        return f"dry run: nothing was changed; about {size(total)} would be freed: {end}"
    done = sum(rule.result in {"freed", "deferred"} for rule in report.rules)
    text = f"freed {size(report.freed)} with {count(done, 'rule')} in {report.seconds:.1f} s: "
    return text + ("the goal is met" if report.met else "the goal is not met")


def not_met(report: CleanReport) -> GoalNotMet:
    """Return the error for a goal that was not met: by how much, why, and what takes the room."""
    short = [item for item in report.filesystems if not item.met]
    where = ", ".join(_named(item) for item in short)
    message = f"the goal was not met: {where}"
    if report.waiting:
        message += f"; {report.waiting}"
    biggest = ", ".join(f"{size(item.size)} {printable(item.path)}" for item in report.consumers[:5])
    blocked = sum(rule.result == "blocked" for rule in report.rules)
    hint = f"the largest that remain: {biggest}" if biggest else None
    if blocked:
        hint = f"{count(blocked, 'rule')} could not do its work (see above); " + (
            hint or "cachekit disk shows the rest"
        )
    return GoalNotMet(message, hint=hint, short_by=sum(item.short_by for item in short) or None)


def _named(item: FilesystemReport) -> str:
    return f"{printable(item.mount)} has {size(item.after)} free{_missing(item).replace(',', ' and is', 1)}"


def markdown_report(report: CleanReport) -> str:
    """Return the report as Markdown for $GITHUB_STEP_SUMMARY."""
    verdict = _verdict(report) if not report.already_met else "enough was free already; nothing was touched"
    lines = [f"### cachekit clean: {_cell(verdict)}", ""]
    lines += [f"Plan `{_cell(report.plan)}`, stage `{report.stage}`, goal: {_cell(report.goal)}", ""]
    lines += [
        "| filesystem | free before | free after | of | needed | unexplained |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for item in report.filesystems:
        need = size(item.need) if item.need else ""
        cells = [printable(item.mount), size(item.before), size(item.after), size(item.total), need]
        lines.append("| " + " | ".join(map(_cell, [*cells, size(item.unexplained)])) + " |")
    if report.rules:
        lines += [
            "",
            "| rule | result | freed | items | seconds | rate | why |",
            "|---|---|---:|---:|---:|---:|---|",
        ]
    for rule in report.rules:
        amount = rule.expected if rule.result == "would-free" else rule.freed
        shown = size(amount) if rule.result in {"freed", "deferred", "would-free"} else ""
        cells = [
            rule.id,
            rule.result,
            shown,
            str(rule.items or ""),
            f"{rule.seconds:.1f}",
            _rate(rule),
            rule.reason,
        ]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    if report.consumers:
        lines += [
            "",
            "Largest that remain: "
            + ", ".join(_cell(f"{size(c.size)} {printable(c.path)}") for c in report.consumers),
        ]
    return "\n".join(lines) + "\n\n"


def _cell(text: object) -> str:
    """Return text that cannot leave its table cell, nor become a link or HTML."""
    # By number, not with backslashes: whether one counts depends on those before it.
    return _MARKUP.sub(lambda sign: f"&#{ord(sign[0])};", printable(text))


def possible(store: str, filesystems: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each stage of the plan that fits here what a clean could free: one dry run over all its rules."""
    from dataclasses import replace

    from cachekit.clean.execute import clean
    from cachekit.clean.goals import parse_goal
    from cachekit.clean.model import StagePlan
    from cachekit.clean.prepare import Wish, pick_plan, prepare

    plan, _ = pick_plan(None, look_around())
    first = next(iter(plan.stages))
    # More than there is: nothing is "not needed".
    wish = Wish(first, goal=parse_goal("100%"), store=store, filesystems=filesystems, dry_run=True)
    request = prepare(wish)
    request.plan = replace(plan, stages={first: StagePlan(tuple(plan.rules))})
    found = {rule.id: rule.expected for rule in clean(request).rules if rule.result == "would-free"}
    stages = []
    for name, stage in plan.stages.items():
        sizes = sorted(((found[rule], rule) for rule in stage.rules if found.get(rule)), reverse=True)
        stages.append(
            {
                "stage": name,
                "plan": plan.name,
                "size": sum(size for size, _ in sizes),
                "largest": [(rule, size) for size, rule in sizes[:4]],
            }
        )
    return stages
