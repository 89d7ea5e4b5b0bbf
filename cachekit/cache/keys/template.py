"""Key templates: what may stand between braces. Pure; ``keys.values`` finds what it stands for.

docs/keys.md explains each placeholder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cachekit.errors import InvalidRequest

__all__ = ["Placeholder", "PlaceholderName", "Template", "parse_template", "placeholders_in"]

PlaceholderName = Literal["os", "arch", "libc", "python", "branch", "commit", "env", "date", "hash"]

_INNER = re.compile(
    r"""(?P<plain>os|arch|libc|python)
      | (?P<source>branch|commit) (?P<source_optional>\??)
      | env\. (?P<variable>[A-Za-z_][A-Za-z0-9_]*) (?P<env_optional>\??)
      | date: (?P<format>[^{}]+)
      | hash (?P<hash_optional>\??) : (?P<globs>[^{}]+)""",
    re.VERBOSE,
)
_KNOWN = "{os} {arch} {libc} {python} {branch} {commit} {env.NAME} {date:%Y-%m} {hash:GLOB,GLOB}"
#: What ``{date:...}`` may use: numbers only, for names of months are of a language.
_DATE_CODES = frozenset("YmdHMSjGVuyUWw%")
_MAX_TEXT = 8192


@dataclass(frozen=True, slots=True)
class Placeholder:
    """One ``{...}`` of a template. ``argument``: the variable, the format or the globs; ``optional``: empty will do."""

    name: PlaceholderName
    argument: str
    optional: bool
    written: str


@dataclass(frozen=True, slots=True)
class Template:
    """A template as it was written, and its parts: literal text and placeholders."""

    text: str
    parts: tuple[str | Placeholder, ...]


def parse_template(text: str) -> Template:
    """Return the template that ``text`` is; ``{{`` and ``}}`` are braces. Raises InvalidRequest."""
    if len(text) > _MAX_TEXT:
        raise InvalidRequest("the template is too long", expected=f"at most {_MAX_TEXT} characters")
    parts: list[str | Placeholder] = []
    literal, at = "", 0
    while at < len(text):
        if text[at : at + 2] in {"{{", "}}"}:
            literal += text[at]
            at += 2
        elif text[at] == "{":
            end = text.find("}", at)
            if end < 0:
                raise _wrong(text[at:], "a { has no }")
            if literal:
                parts.append(literal)
                literal = ""
            parts.append(_placeholder(text[at : end + 1]))
            at = end + 1
        elif text[at] == "}":
            raise _wrong(text[at:], "a } has no {")
        else:
            literal += text[at]
            at += 1
    if literal:
        parts.append(literal)
    return Template(text, tuple(parts))


def placeholders_in(text: str) -> list[str]:
    """Return what would be a placeholder if ``text`` were a template, as written."""
    return [match[0] for match in re.finditer(r"\{([^{}]+)\}", text) if _INNER.fullmatch(match[1])]


def _wrong(found: str, message: str) -> InvalidRequest:
    return InvalidRequest(
        f"{message} in the template",
        expected=_KNOWN,
        found=found,
        hint="write {{ and }} for braces themselves",
    )


def _placeholder(written: str) -> Placeholder:
    match = _INNER.fullmatch(written[1:-1])
    if match is None:
        raise _wrong(written, f"there is no placeholder {written}")
    if match["plain"]:
        return Placeholder(match["plain"], "", False, written)  # type: ignore[arg-type]
    if match["source"]:
        return Placeholder(match["source"], "", bool(match["source_optional"]), written)  # type: ignore[arg-type]
    if match["variable"]:
        return Placeholder("env", match["variable"], bool(match["env_optional"]), written)
    if match["globs"]:
        return Placeholder("hash", match["globs"], bool(match["hash_optional"]), written)
    codes = re.sub(r"%([A-Za-z%])", lambda m: "" if m[1] in _DATE_CODES else m[0], match["format"])
    if "%" in codes:
        raise InvalidRequest(
            f"the format of {written} cannot be used",
            expected="text with " + " ".join(f"%{code}" for code in sorted(_DATE_CODES)),
            found=match["format"],
            hint="{date:%Y-%m} changes with the month, {date:%G-W%V} with the week",
        )
    return Placeholder("date", match["format"], False, written)
