"""Plan files: what they may say, and every fault of one with its line.

``load`` is what a clean needs; ``problems`` is ``cachekit plan check``. docs/plans.md explains each key.
"""

from __future__ import annotations

import pkgutil

from cachekit.clean.model import STAGES, Goal, Plan, Rule, Stage, StagePlan
from cachekit.clean.plan.rules import read_rules
from cachekit.clean.plan.values import read_amount, read_inodes
from cachekit.errors import InvalidRequest, PlanInvalid
from cachekit.tables.document import MAX_BYTES, decoded, read_file, values_of
from cachekit.tables.table import NAME, Notes, Problem, Table
from cachekit.tables.values import nearest, read_percent, shown

__all__ = ["FORMAT", "MAX_BYTES", "Problem", "load", "parse", "problems", "read_text", "shipped"]

FORMAT = 1

#: In the order in which they are listed; a test compares them with the files.
_SHIPPED = ("github-hosted", "self-hosted", "generic")


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
    text = decoded(raw)
    if isinstance(text, Problem):
        raise _invalid(source, [text])
    return text


def _content(source: str) -> bytes:
    try:
        return read_file(source, "plan", PlanInvalid)
    except (FileNotFoundError, NotADirectoryError):
        if "/" in source or source.endswith(".toml"):
            raise InvalidRequest("there is no such plan file", path=source, hint="check the path") from None
        raise InvalidRequest(
            f"there is no plan {shown(source)}", hint=f"{nearest(source, _SHIPPED)}; or name a file"
        ) from None


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
    found = values_of(text)
    if isinstance(found, Problem):
        return None, [found]
    values, notes = found
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
