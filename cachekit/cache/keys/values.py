"""What the placeholders of a template stand for, here and now."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

from cachekit.cache.keys import source
from cachekit.cache.keys.hashing import Hashed, hash_files
from cachekit.cache.keys.template import Placeholder, Template
from cachekit.errors import InvalidRequest
from cachekit.model import Key, Platform
from cachekit.system.clock import now_ns, this_platform

__all__ = ["Expansion", "Surroundings", "Value", "expand"]

#: Names that CI runners take for orders to them when a line begins with, or contains, them.
_ORDERS = ("##[", "##vso[")
_PYTHON_SECONDS = 30
_ASK_PYTHON = (
    "import sys; i = sys.implementation; v = '.'.join(map(str, sys.version_info[:3]));"
    "print(('' if i.name == 'cpython' else i.name) + v + ('t' if 't' in getattr(sys, 'abiflags', '') else ''))"
)


@dataclass(slots=True)
class Surroundings:
    """Where templates are expanded. ``excluded``: what no ``{hash:...}`` counts (patterns as for ``--exclude``).

    What was found is kept: several templates expanded in one surrounding see one state of it.
    """

    directory: str
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    excluded: tuple[str, ...] = ()
    platform: Platform = field(default_factory=this_platform)
    now: int = field(default_factory=now_ns)
    _found: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Value:
    """One placeholder's value and where it came from; ``files`` of a hash, each with its sha256."""

    placeholder: str
    value: str
    origin: str
    files: tuple[tuple[bytes, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Expansion:
    """A template's text with values in place of placeholders, and each value in their order."""

    text: str
    values: tuple[Value, ...]


def expand(template: Template, around: Surroundings) -> Expansion:
    """Return the key that the template gives here. Raises InvalidRequest, SourceUnreadable."""
    expansion = _expand(template, around)
    try:
        Key(expansion.text)
    except InvalidRequest as error:
        longest = max(expansion.values, key=lambda value: len(value.value), default=None)
        if longest is not None:
            error.message += f" (the template is {template.text!r})"
            error.hint = f"{longest.placeholder} is {longest.value[:60]!a}, from {longest.origin}"
        raise
    return expansion


def _expand(template: Template, around: Surroundings) -> Expansion:
    text, values = "", []
    for part in template.parts:
        if isinstance(part, str):
            text += part
            continue
        value = around._found.get(part.written)  # noqa: SLF001 - kept for this function
        if value is None:
            value = around._found[part.written] = _value(part, around)  # noqa: SLF001 - see above
        values.append(value)
        text += value.value
    if values and (text.lstrip().startswith("::") or any(order in text for order in _ORDERS)):
        raise InvalidRequest(
            "the key would be an order to the CI runner that prints it",
            found=ascii(text[:100]),
            hint=f"look at {', '.join(value.placeholder for value in values)}",
        )
    return Expansion(text, tuple(values))


def _value(part: Placeholder, around: Surroundings) -> Value:
    name = part.name
    if name in {"os", "arch", "libc"}:
        return Value(part.written, getattr(around.platform, name), "this machine")
    if name == "date":
        moment = dt.datetime.fromtimestamp(around.now // 1_000_000_000, tz=dt.UTC)
        return Value(part.written, moment.strftime(part.argument), "the clock, UTC")
    if name == "env":
        return _variable(part, around.environ)
    if name == "python":
        return _python(part, around)
    if name == "hash":
        return _hash(part, around)
    find = source.branch if name == "branch" else source.commit
    try:
        fact = find(around.environ, around.directory)
    except InvalidRequest:
        if part.optional:
            return Value(part.written, "", "nothing: there is none")
        raise
    return Value(part.written, fact.value, fact.origin)


def _variable(part: Placeholder, environ: Mapping[str, str]) -> Value:
    value = environ.get(part.argument, "")
    if not value and not part.optional:
        state = "empty" if part.argument in environ else "not set"
        raise InvalidRequest(
            f"the variable {part.argument} of {part.written} is {state}",
            hint=f"set it, or write {{env.{part.argument}?}} if it may be empty",
        )
    return Value(part.written, value, f"the variable {part.argument}")


def _python(part: Placeholder, around: Surroundings) -> Value:
    path = around.environ.get("PATH")
    program = shutil.which("python3", path=path) or shutil.which("python", path=path)
    if program is None:
        raise InvalidRequest(
            "there is no python3 in PATH for {python}", hint="set Python up before this step, or leave it out"
        )
    try:
        done = subprocess.run(
            [program, "-I", "-S", "-c", _ASK_PYTHON],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_PYTHON_SECONDS,
        )
        version = done.stdout.decode("ascii", "replace").strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        version, reason = "", str(error)
    else:
        reason = f"it ended with {done.returncode}"
    if not version:
        raise InvalidRequest(f"the python3 in PATH does not tell its version: {reason}", path=program)
    return Value(part.written, version, program)


def _hash(part: Placeholder, around: Surroundings) -> Value:
    found: Hashed | None = hash_files(around.directory, part.argument, around.excluded)
    if found is not None:
        count = len(found.files)
        return Value(part.written, found.digest, "1 file" if count == 1 else f"{count} files", found.files)
    if part.optional:
        return Value(part.written, "", "nothing: no file matches")
    raise InvalidRequest(
        f"no file matches {part.written}",
        path=around.directory,
        hint="names are relative to --root (default: the current directory); {hash?:...} is empty without a file",
    )
