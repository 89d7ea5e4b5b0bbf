"""The lines that faults are reported in are those of the text, whatever is written around them."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.clean.plan.file import problems
from cachekit.tables.lines import Lines, Place

TEXT = '''# a comment with [[rule]] and "quotes
format = 1

[stage.pre] # [[rule]]
rules = [ # one
  "a", # ]
  """b
[[rule]]
""", 'c',

  'd"]'
]
goal = { free = "20G", "until" = "7]0%" } # }

[[rule]]
id = "a"
when.older = '24h'
paths = [["x", "y"],
  { k = "}" , l = [1,
  2] }]
"odd key]" = """one \\""" two""""
[[ rule ]]
  id = """
x""" # after
  [rule . "when"]
  keep = 1979-05-27T07:32:00Z
  [[rule.sub]]
  a = 1
  [[rule.sub]]
  b = \'\'\'
[[rule]]\'\'\'\'
  [rule.sub.deep]
  c = -1.5e+3
'''
PLACES: list[tuple[Place, int]] = [
    (("format",), 2),
    (("stage",), 4),
    (("stage", "pre"), 4),
    (("stage", "pre", "rules"), 5),
    (("stage", "pre", "rules", 0), 6),
    (("stage", "pre", "rules", 1), 7),
    (("stage", "pre", "rules", 2), 9),
    (("stage", "pre", "rules", 3), 11),
    (("stage", "pre", "goal", "until"), 13),
    (("rule", 0), 15),
    (("rule", 0, "id"), 16),
    (("rule", 0, "when", "older"), 17),
    (("rule", 0, "paths", 0, 1), 18),
    (("rule", 0, "paths", 1, "k"), 19),
    (("rule", 0, "paths", 1, "l", 1), 20),
    (("rule", 0, "odd key]"), 21),
    (("rule", 1), 22),
    (("rule", 1, "id"), 23),
    (("rule", 1, "when"), 25),
    (("rule", 1, "when", "keep"), 26),
    (("rule", 1, "sub", 0, "a"), 28),
    (("rule", 1, "sub", 1), 29),
    (("rule", 1, "sub", 1, "b"), 30),
    (("rule", 1, "sub", 1, "deep", "c"), 33),
]


@pytest.mark.parametrize(("place", "line"), PLACES, ids=str)
def test_line(place: Place, line: int) -> None:
    """Keys, items and tables are found behind strings, comments and brackets of every kind."""
    tomllib.loads(TEXT)
    assert Lines(TEXT).of(place) == line


def test_line_of_what_is_missing() -> None:
    """What is not there has the line of what it would be in."""
    lines = Lines(TEXT)
    assert lines.of(("rule", 1, "category")) == 22
    assert lines.of(("rule", 0, "when", "keep")) == 17
    assert lines.of(("rule", 7)) == 15
    assert lines.of(("nothing", "here")) == 1
    assert lines.of(()) == 1


def test_lines_end_in_two_ways() -> None:
    """A file with CRLF has the same lines, in all of cachekit's readers."""
    text = 'format = 1\r\nname = "p"\r\n[stage.pre]\r\nrules = ["a"]\r\n[[rule]]\r\nid = "a"\r\nx = 1\r\n'
    assert [(item.line, item.message) for item in problems(text, "p")] == [
        (line, message)
        for line, message in [
            (5, "the rule has no category"),
            (5, "the rule has nothing to clean"),
            (7, "unknown key 'x'"),
        ]
    ]


# What may stand inside a text, a comment or a key, chosen to look like structure.
ODD = st.lists(st.sampled_from([*"[]{}#=,.'\"\\ \tx1é\n", "[[rule]]\n", "\nid = "]), max_size=8).map("".join)


def basic(text: str) -> str:
    """Write a text between double quotes."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}
    return '"' + "".join(escapes.get(sign, sign) for sign in text) + '"'


@st.composite
def written_text(draw: st.DrawFn) -> str:
    """Write some text in one of the four ways."""
    text = draw(ODD)
    ways = [basic(text), '"""' + text.replace("\\", "\\\\").replace('"', '\\"') + '"""']
    if "'" not in text:
        ways.append(f"'''{text}'''")
        if "\n" not in text:
            ways.append(f"'{text}'")
    if text and not text.endswith(('"', "\\")) and '"""' not in text and "\\" not in text:
        ways.append(f'"""{text}""""')
    return draw(st.sampled_from(ways))


@st.composite
def gaps(draw: st.DrawFn) -> str:
    """Draw blank lines and comments, with a line end."""
    comment = draw(ODD).replace("\n", " ")
    return draw(st.sampled_from(["\n", "\n\n", f" # {comment}\n", f"\n#{comment}\n  "]))


Written = tuple[str, list[tuple[Place, int]]]


def render(draw: st.DrawFn, place: Place, depth: int) -> Written:
    """Write a value; return it with the places in it and how many lines after its beginning each is."""
    kind = draw(st.sampled_from(["text", "number", "array", "table"] if depth else ["text", "number"]))
    if kind == "text":
        return draw(written_text()), []
    if kind == "number":
        return draw(st.sampled_from(["1", "-0.5", "true", "2020-01-01", "inf", "0xff"])), []
    found: list[tuple[Place, int]] = []
    text = "[" if kind == "array" else "{ "
    for n in range(draw(st.integers(0, 3))):
        if kind == "array":
            text += draw(gaps())
            inner: Place = (*place, n)
            found.append((inner, text.count("\n")))
        else:
            key = f"k{n}"
            inner = (*place, key)
            text += ", " if n else ""
            found.append((inner, text.count("\n")))
            text += draw(st.sampled_from([key, f'"{key}"', f" '{key}' "])) + " = "
        before = text.count("\n")
        value, below = render(draw, inner, depth - 1)
        text += value
        found += [(where, before + line) for where, line in below]
        if kind == "array":
            text += draw(st.sampled_from(["", draw(gaps())])) + ","
    return text + ("]" if kind == "array" else " }"), found


@st.composite
def documents(draw: st.DrawFn) -> Written:
    """Draw a document and the lines of everything in it."""
    text = draw(st.sampled_from(["", "\n", "# [[rule]]\n"]))
    found: list[tuple[Place, int]] = []
    counts = 0
    table: Place = ()
    for n in range(draw(st.integers(1, 5))):
        if draw(st.booleans()):
            table = ("rule", counts)
            counts += 1
            found.append((table, text.count("\n")))
            text += draw(st.sampled_from(["[[rule]]", "[[ rule ]]", '[["rule"]]'])) + draw(gaps())
        where: Place = (*table, f"key{n}", "a")
        found += [(where[:-1], text.count("\n")), (where, text.count("\n"))]
        text += f"key{n} . a = "
        before = text.count("\n")
        value, below = render(draw, where, 2)
        text += value + draw(gaps())
        found += [(inner, before + line) for inner, line in below]
    return text, found


@given(documents())
def test_lines_of_anything(written: Written) -> None:
    """Every place of a document is found in its line."""
    text, expected = written
    tomllib.loads(text)
    lines = Lines(text)
    for place, line in expected:
        if len(place) <= 6:
            assert lines.of(place) == line + 1, (place, text)


@given(st.lists(st.one_of(gaps(), written_text().map(lambda value: f'X = ["sh", {value}]\n')), max_size=6))
def test_a_fault_moves_with_its_line(before: list[str]) -> None:
    """Comments, blank lines and texts over several lines before a rule move its fault by just their lines."""
    head = 'format = 1\nname = "p"\n[stage.pre]\nrules = ["a"]\n'
    for n, part in enumerate(before):
        rule = f'[[rule]]\nid = "n{n}"\ncategory = "temp"\n'
        head += rule + part.replace("X", "command", 1) if part.startswith("X") else part
    text = head + '\n[[rule]]\nid = "a"\ncategory = "temp"\npaths = ["/tmp/x",\n"/*"]\n'
    rule_line = head.count("\n") + 2
    faults = [item for item in problems(text, "p") if item.rule == "a" and not item.warning]
    assert [item.line for item in faults] == [rule_line + 4], text


@given(st.dictionaries(st.text(max_size=8), st.integers(), max_size=5))
def test_any_key(table: dict[str, Any]) -> None:
    """Every key that can be quoted is found under its own name."""
    text = "".join(f"{key_of(key)} = {value}\n" for key, value in table.items())
    tomllib.loads(text)
    lines = Lines(text)
    assert [lines.of((key,)) for key in table] == list(range(1, len(table) + 1))


def key_of(key: str) -> str:
    """Quote a key, every character of it escaped."""
    return '"' + "".join(f"\\U{ord(sign):08x}" for sign in key) + '"'
