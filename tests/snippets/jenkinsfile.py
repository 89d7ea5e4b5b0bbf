"""The shell steps and the environment of a declarative Jenkinsfile, read from its text: nothing here runs Groovy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TOKEN = re.compile(
    r"//[^\n]*|'''(?P<long>.*?)'''|'(?P<short>(?:\\.|[^'\\\n])*)'|(?P<brace>[{}])|(?P<end>\n)|(?P<text>[^\s{}']+)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Statement:
    """A line: the blocks that it stands in (``stages``, ``stage(Build)``, ``steps``), its words, and its string."""

    blocks: tuple[str, ...]
    words: str
    string: str | None


def statements(text: str) -> Iterator[Statement]:
    """Read a Jenkinsfile that has one statement a line, and strings in single quotes only."""
    assert '"""' not in text
    blocks: list[str] = []
    line: list[str] = []
    words: list[str] = []
    string: str | None = None
    for token in _TOKEN.finditer(text):
        if token["text"]:
            words.append(token["text"])
            line.append(token["text"])
        elif token["long"] is not None or token["short"] is not None:
            # In both kinds of strings Groovy takes a backslash for an escape.
            string = re.sub(r"\\(.)", r"\1", token["long"] or token["short"] or "", flags=re.DOTALL)
            line.append(string)
        elif token["brace"] or token["end"]:
            if token["brace"] == "{":
                blocks.append("".join(line))
            elif words:
                yield Statement(tuple(blocks), " ".join(words), string)
            if token["brace"] == "}":
                blocks.pop()
            line, words, string = [], [], None
    assert not blocks, "an unclosed block"


def shell_steps(path: Path, *within: str) -> list[str]:
    """Return the scripts of the `sh` steps in blocks that contain all of `within`, in their order."""
    found = statements(path.read_text())
    return [s.string for s in found if s.words == "sh" and s.string and {*within} <= {*s.blocks}]


def environment(path: Path) -> dict[str, str]:
    """Return what the `environment` block sets."""
    return {
        s.words.removesuffix(" ="): s.string
        for s in statements(path.read_text())
        if s.blocks[-1:] == ("environment",) and s.string is not None
    }
