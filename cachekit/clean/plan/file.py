"""Plan files: what they may say, and every fault of one with its line.

``load`` is what a clean needs; ``problems`` is ``cachekit plan check``. docs/plans.md explains each key.
"""

from __future__ import annotations

import os
import pkgutil
import re
import stat
import tomllib

from cachekit.clean.model import STAGES, Goal, Plan, Rule, Stage, StagePlan
from cachekit.clean.plan.lines import Lines
from cachekit.clean.plan.rules import read_rules
from cachekit.clean.plan.table import NAME, Notes, Problem, Table
from cachekit.clean.plan.values import nearest, read_amount, read_inodes, read_percent, shown
from cachekit.errors import InvalidRequest, PlanInvalid

__all__ = ["FORMAT", "MAX_BYTES", "Problem", "load", "parse", "problems", "read_text", "shipped"]

FORMAT = 1
MAX_BYTES = 1 << 20

#: In the order in which they are listed; a test compares them with the files.
_SHIPPED = ("github-hosted", "self-hosted", "generic")
#: A key, or a part of one. Whatever could hide one (texts, comments) is matched first.
_PART = r"""(?:[\w-]++|"(?:\\.|[^"\\\n])*+"|'[^'\n]*+')"""
_HIDES = r'''"""(?:\\.|[^\\])*?"{3,5}|'{3}.*?'{3,5}|#[^\n]*+'''
#: tomllib takes time and memory by the square of a key's parts.
_LONG_KEY = re.compile(rf"{_HIDES}|(?P<long>(?:{_PART}[ \t]*+\.[ \t]*+){{16}})|{_PART}", re.DOTALL)
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def shipped() -> list[str]:
    """Return the names of the plans that come with cachekit."""
    return list(_SHIPPED)


def load(source: str) -> Plan:
    """Return the plan that ``source`` names: a shipped one, else a file.

    A shipped name always means that plan: a file of the same name in a checkout must not take its place (it is
    ``./generic``). Raises PlanInvalid for a plan with faults, InvalidRequest if there is none.
    """
    return parse(read_text(source), source)


def read_text(source: str) -> str:
    """Return the text of the plan that ``source`` names (see ``load``).

    Raises PlanInvalid for what is no regular file, larger than MAX_BYTES or not UTF-8; InvalidRequest if there is none.
    """
    raw = (
        pkgutil.get_data("cachekit.clean.plan", f"shipped/{source}.toml")
        if source in _SHIPPED
        else _content(source)
    )
    assert raw is not None  # the loader of a package can read
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _invalid(source, [Problem(line, None, "it is not UTF-8", "save the file as UTF-8")]) from None


def _content(source: str) -> bytes:
    try:
        # Opening a FIFO would wait for a writer.
        fd = os.open(os.fsencode(source), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        if "/" in source or source.endswith(".toml"):
            raise InvalidRequest("there is no such plan file", path=source, hint="check the path") from None
        raise InvalidRequest(
            f"there is no plan {shown(source)}", hint=f"{nearest(source, _SHIPPED)}; or name a file"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidRequest(f"the plan file cannot be opened: {reason}", path=source) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise PlanInvalid("a plan is a regular file", path=source, hint="write it into a file first")
        parts, left = [], MAX_BYTES + 1
        while left and (part := os.read(fd, left)):
            parts.append(part)
            left -= len(part)
    except OSError as error:
        raise InvalidRequest(f"the plan file cannot be read: {error.strerror}", path=source) from None
    finally:
        os.close(fd)
    if not left:
        raise PlanInvalid(
            "the file is larger than a plan can be", path=source, expected=f"at most {MAX_BYTES} bytes"
        )
    return b"".join(parts)


def parse(text: str, source: str) -> Plan:
    """Return the plan that ``text`` holds. ``source`` is where it came from, for messages.

    Raises PlanInvalid that names the first fault and its line; ``fields["problems"]`` has all of them.
    """
    plan, found = _examine(text, source)
    faults = [problem for problem in found if not problem.warning]
    if faults or plan is None:
        raise _invalid(source, faults)
    return plan


def problems(text: str, source: str) -> list[Problem]:
    """Return every fault of a plan in the order of its lines, warnings among them; none for a plan that is fine."""
    return _examine(text, source)[1]


def _invalid(source: str, faults: list[Problem]) -> PlanInvalid:
    first = faults[0]
    where = f"{source}:{first.line}: " + (f"rule {first.rule}: " if first.rule else "")
    more, hint = "", first.hint
    if len(faults) > 1:
        more = f" (and {len(faults) - 1} more)"
        hint += ("; " if hint else "") + f"cachekit plan check {source} shows all"
    return PlanInvalid(
        f"{where}{first.message}{more}",
        hint=hint or None,
        line=first.line,
        rule=first.rule,
        problems=[
            {"line": item.line, "rule": item.rule, "message": item.message, "hint": item.hint}
            for item in faults
        ],
    )


def _examine(text: str, source: str) -> tuple[Plan | None, list[Problem]]:
    long = next((match for match in _LONG_KEY.finditer(text) if match["long"]), None)
    if long is not None:
        line = text.count("\n", 0, long.start()) + 1
        return None, [Problem(line, None, "a key of more than 16 parts")]
    try:
        values = tomllib.loads(text)
        notes = Notes(Lines(text.replace("\r\n", "\n")))
    except RecursionError:
        return None, [Problem(1, None, "its values are nested too deeply")]
    except ValueError as error:  # also a number of more digits than Python converts
        place = _PLACE.search(str(error))
        line = int(place[1]) if place and place[1] else text.count("\n") + 1 if place else 1
        return None, [Problem(line, None, "not TOML: " + _PLACE.sub("", str(error)))]
    plan = _plan(Table(notes, values, ()), notes, source)
    return plan, sorted(notes.problems, key=lambda problem: problem.line)


def _plan(top: Table, notes: Notes, source: str) -> Plan:
    version = top.take("format")
    if version is None:
        top.note(None, "there is no format", f"begin the file with: format = {FORMAT}")
    elif version != FORMAT or isinstance(version, bool):
        hint = "a newer cachekit may read it" if isinstance(version, int) and version > FORMAT else ""
        top.note("format", f"format: {shown(version)} is not {FORMAT}", hint)
    name = top.text("name")
    if "name" not in top:
        top.note(None, "the plan has no name", 'write name = "..."')
    elif name and not NAME.fullmatch(name):
        top.note("name", f"name: {shown(name)} is not a name", "small letters, digits and -")
    title = top.text("title")
    rules = read_rules(top, notes)
    stages = _stages(top, rules)
    used = {rule for stage in stages.values() for rule in stage.rules}
    for rule in rules.values():
        if rule.id not in used:
            notes.at(rule.line, rule.id, "it is in no stage", "add it to the rules of a stage", warning=True)
    top.finish()
    return Plan(name, source, title, rules, stages)


def _stages(top: Table, rules: dict[str, Rule]) -> dict[Stage, StagePlan]:
    stages: dict[Stage, StagePlan] = {}
    all_stages = top.table("stage")
    if "stage" not in top:
        top.note(None, "there is no stage", 'write [stage.pre] with rules = ["..."]')
    for stage in STAGES:
        if stage not in all_stages:
            all_stages.take(stage)
            continue
        table = all_stages.table(stage)
        if "rules" not in table:
            table.note(None, f"the stage {stage} has no rules", 'write rules = ["..."]')
        named = table.words("rules", rules)
        if named == () and table.take("rules") == []:
            table.note("rules", f"the stage {stage} has no rules", "name some, or leave the stage out")
        stages[stage] = StagePlan(named, _goal(table))
        table.finish()
    all_stages.finish()
    return stages


def _goal(stage: Table) -> Goal | None:
    table = stage.table("goal")
    if "goal" not in stage:
        return None
    free = table.value("free", read_amount)
    below = table.value("below", read_percent)
    until = table.value("until", read_percent)
    inodes = table.value("inodes", read_inodes)
    if not any(key in table for key in ("free", "below", "until", "inodes")):
        table.note(None, "the goal is empty", 'write goal = { free = "20G" }')
    if "until" in table and "below" not in table:
        table.note("until", "until: there is no below", 'write below = "80%", until = "70%"')
    if below is not None and until is not None and until > below:
        table.note(
            "until", f"until ({until:g}%) is above below ({below:g}%)", "cleaning goes on until less is used"
        )
    table.finish()
    return Goal(free, below, below if until is None else until, inodes)
