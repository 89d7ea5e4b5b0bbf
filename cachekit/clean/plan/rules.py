"""The rules of a plan file, read key by key."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

from cachekit.clean.environment import ENVIRONMENTS
from cachekit.clean.model import CATEGORIES, DOCKER_ACTIONS, Command, Conditions, Docker, Paths, Rule
from cachekit.clean.plan.patterns import directory_fault, exclude_fault, pattern_fault
from cachekit.clean.plan.values import read_amount
from cachekit.tables.lines import Place
from cachekit.tables.table import NAME, Notes, Table
from cachekit.tables.values import nearest, read_duration, read_seconds, read_size, read_whole, shown

__all__ = ["read_rules"]

_TOOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TARGETS = ("paths", "command", "docker")
#: Docker actions that look at when a thing was last used or stopped.
_AGING = ("containers", "images")
#: Keys of a rule that mean something for some targets only.
_ONLY_WITH = {
    "exclude": ("paths",),
    "within": ("paths",),
    "frees": ("command",),
    "timeout": ("command", "docker"),
    "reserved": ("docker",),
    "max-used": ("docker",),
    "min-free": ("docker",),
}


def read_rules(top: Table, notes: Notes) -> dict[str, Rule]:
    """Return the rules by id, noting what is wrong with them."""
    listed = top.take("rule")
    rules: dict[str, Rule] = {}
    if not isinstance(listed, list) or not listed:
        hint = "write [[rule]], with two brackets" if isinstance(listed, dict) else "write [[rule]]"
        top.note("rule", "there is no rule", hint)
        return rules
    for n, values in enumerate(listed):
        place: Place = ("rule", n)
        if not isinstance(values, dict):
            notes.add(place, None, f"rule: {shown(values)} is not a table", "write [[rule]]")
            continue
        rule = _rule(values, place, notes)
        if rule.id in rules:
            notes.add(
                (*place, "id"),
                rule.id,
                f"the rule of line {rules[rule.id].line} has this id too",
                "rename one of them",
            )
        elif rule.id:
            rules[rule.id] = rule
    return rules


def _rule(values: dict[str, Any], place: Place, notes: Notes) -> Rule:
    identifier = values.get("id")
    table = Table(
        notes, values, place, identifier if isinstance(identifier, str) else f"number {place[-1]!s}"
    )
    name = table.text("id")
    if "id" not in table:
        table.rule = None
        table.note(None, "a rule without an id", 'write id = "..."')
    elif name and not NAME.fullmatch(name):
        table.note("id", f"id: {shown(name)} is not a name", "small letters, digits and -")
    category = table.text("category")
    if "category" not in table:
        table.note(None, "the rule has no category", "one of: " + ", ".join(CATEGORIES))
    elif category and category not in CATEGORIES:
        table.note("category", f"category: there is no {shown(category)}", nearest(category, CATEGORIES))
    known = next((item for item in CATEGORIES if item == category), CATEGORIES[0])
    title = table.text("title")
    when = table.table("when")
    target = _target(table, when)
    conditions = _conditions(when, target)
    expect = table.table("expect")
    size, seconds = expect.value("size", read_size), expect.value("seconds", read_seconds)
    expect.finish()
    if known == "toolchain" and category == known and "github-hosted" not in conditions.environment:
        table.note(
            None,
            "it removes a toolchain wherever it runs",
            'add when = { environment = ["github-hosted"] }',
            warning=True,
        )
    rule = Rule(
        name,
        known,
        target,
        title,
        conditions,
        tools=table.words("tools", _TOOL),
        root=table.flag("root"),
        background=table.flag("background"),
        line=notes.lines.of(place),
    )
    if size is not None:
        rule = replace(rule, expect_bytes=size)
    if seconds is not None:
        rule = replace(rule, expect_seconds=seconds)
    table.finish()
    return rule


def _target(table: Table, when: Table) -> Paths | Command | Docker:
    given = [key for key in table if key in _TARGETS]
    for key in _TARGETS:
        table.take(key)
    if len(given) > 1:
        table.note(given[1], f"{given[1]}: there is {given[0]} already", "make two rules of it")
    if not given:
        table.note(None, "the rule has nothing to clean", "write paths, command or docker")
    kind = given[0] if given else ""
    target: Paths | Command | Docker = Paths(())
    if kind == "paths":
        target = _paths(table)
    elif kind == "command":
        target = _command(table)
    elif kind == "docker":
        target = _docker(table, when)
    for key, kinds in _ONLY_WITH.items():
        if key in table and kind and kind not in kinds:
            table.note(key, f"{key} goes with {' and '.join(kinds)} only")
        table.take(key)
    return target


def _paths(table: Table) -> Paths:
    patterns = table.each("paths", pattern_fault)
    if table.take("paths") == []:
        table.note("paths", "paths is empty")
    return Paths(patterns, table.each("exclude", exclude_fault), table.each("within", directory_fault))


def _timeout(table: Table) -> float:
    timeout = table.value("timeout", read_duration)
    if timeout is not None and not 1 <= timeout <= 86400:
        table.note("timeout", "timeout: it must be from 1 second to 1 day")
    return 120.0 if timeout is None else timeout


def _command(table: Table) -> Command:
    arguments = table.texts("command") or ()
    if isinstance(table.take("command"), list) and not table.take("command"):
        table.note("command", "command is empty")
    if arguments and ("/" in arguments[0] and not arguments[0].startswith("/")):
        table.note("command", f"command: {shown(arguments[0])} is neither a name nor an absolute path")
    if any("\0" in argument for argument in arguments):
        table.note("command", "command: it contains a NUL")
    if arguments[:1] and os.path.basename(arguments[0]) not in {"sh", "bash", "dash"}:
        for argument in arguments:
            if argument.startswith(("~/", "$")) or argument in {"|", "||", "&&", ";", ">"}:
                table.note(
                    "command",
                    f"command: no shell reads {shown(argument)}",
                    'use ["sh", "-c", "..."]',
                    warning=True,
                )
    return Command(arguments, _timeout(table), table.each("frees", directory_fault))


def _docker(table: Table, when: Table) -> Docker:
    action = table.text("docker")
    known = next((item for item in DOCKER_ACTIONS if item == action), None)
    if action and known is None:
        table.note("docker", f"docker: there is no {shown(action)}", nearest(action, DOCKER_ACTIONS))
    sizes = {key: table.value(key, read_size) for key in ("reserved", "max-used", "min-free")}
    if known is not None and known != "build-cache":
        for key in sizes:
            if key in table:
                table.note(key, f'{key} goes with docker = "build-cache" only')
    older = when.value("older", read_duration)
    if known is not None and known not in _AGING and older is not None:
        when.note("older", f"older goes with paths and with docker = {' and '.join(_AGING)}")
    return Docker(
        known or DOCKER_ACTIONS[0],
        older or 0.0,
        sizes["reserved"],
        sizes["max-used"],
        sizes["min-free"],
        _timeout(table),
    )


def _conditions(when: Table, target: Paths | Command | Docker) -> Conditions:
    if not isinstance(target, Paths):
        for key in ("older", "larger", "keep", "idle-runner", "unlinked", "git-ignored"):
            when.take(key)
            if key in when and not (key == "older" and isinstance(target, Docker)):
                when.note(key, f"{key} goes with paths only")
    conditions = Conditions(
        when.value("older", read_duration) if isinstance(target, Paths) else None,
        when.value("larger", read_size),
        when.value("keep", read_whole),
        when.words("environment", ENVIRONMENTS),
        when.words("image", _IMAGE),
        when.value("free-below", read_amount),
        when.flag("idle-runner"),
        when.flag("unlinked"),
        when.flag("git-ignored"),
    )
    when.finish()
    return conditions
