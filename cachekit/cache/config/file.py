"""Configuration files: what they may say, and every fault of one with its line.

docs/configuration.md explains each key.
"""

from __future__ import annotations

import os
from typing import TypeVar

from cachekit.cache.config.find import PROJECT_FILE
from cachekit.cache.config.model import Cache, Configuration, Kind, Mode, TrustName
from cachekit.cache.keys.template import Template, parse_template
from cachekit.errors import ConfigInvalid, InvalidRequest
from cachekit.model import LEVELS, Namespace
from cachekit.retention.budget import Budget
from cachekit.tables.document import decoded, read_file, values_of
from cachekit.tables.table import NAME, Problem, Table
from cachekit.tables.values import read_duration, read_percent, read_size, read_whole, shown

__all__ = ["examine", "fault_line", "load"]

_KINDS: tuple[Kind, ...] = ("files", "oci")
_MODES: tuple[Mode, ...] = ("merge", "replace")
_TRUST: tuple[TrustName, ...] = ("none", "hmac")
W = TypeVar("W", bound=str)
_NO_TEMPLATE = Template("", ())


def load(path: str) -> Configuration:
    """Return the configuration in a file.

    Raises ConfigInvalid that names the first fault, its line and key, with all of them in ``fields["problems"]``;
    InvalidRequest if the file cannot be read.
    """
    configuration, found = examine(path)
    faults = [problem for problem in found if not problem.warning]
    if not faults:
        return configuration
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    hint = "; ".join(filter(None, [faults[0].hint, "cachekit config check shows all" if more else ""]))
    raise ConfigInvalid(
        fault_line(path, faults[0]) + more,
        hint=hint or None,
        line=faults[0].line,
        key=faults[0].key or None,
        problems=[
            {"line": fault.line, "key": fault.key, "message": fault.message, "hint": fault.hint}
            for fault in faults
        ],
    )


def fault_line(path: str, problem: Problem) -> str:
    """Return a fault as ``FILE:LINE: KEY: what is wrong``."""
    own = problem.key.rpartition(".")[2]
    message = problem.message.removeprefix(f"{own}: ") if own else problem.message
    key = f"{problem.key}: " if problem.key else ""
    return f"{path}:{problem.line}: {key}{message}"


def examine(path: str) -> tuple[Configuration, list[Problem]]:
    """Return what a file says as far as it can be used, and every fault in the order of its lines.

    Raises InvalidRequest if the file cannot be read, ConfigInvalid if it is no regular file or too large.
    """
    path = os.path.abspath(path)
    blank = Configuration(path, os.path.dirname(path))
    try:
        text = decoded(read_file(path, "configuration", ConfigInvalid))
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidRequest(
            "there is no such configuration file", path=path, hint="check --config, $CACHEKIT_CONFIG"
        ) from None
    found = text if isinstance(text, Problem) else values_of(text)
    if isinstance(found, Problem):
        return blank, [found]
    values, notes = found
    top = Table(notes, values, ())
    if os.path.basename(path) == PROJECT_FILE:
        top = top.table("tool").table("cachekit")
    configuration = _configuration(top, path)
    return configuration, sorted(notes.problems, key=lambda problem: problem.line)


def _configuration(top: Table, path: str) -> Configuration:
    directory = os.path.dirname(path)
    store = top.text("store")
    caches: dict[str, Cache] = {}
    table = top.table("caches")
    for name in table:
        if not NAME.fullmatch(name):
            table.note(name, f"{shown(name)} cannot be the name of a cache", "small letters, digits and -")
        caches[name] = _cache(name, table.table(name))
    configuration = Configuration(
        path,
        directory,
        os.path.normpath(os.path.join(directory, os.path.expanduser(store))) if store else None,
        top.value("namespace", _read_namespace),
        top.flag("trust-store"),
        _one_of(top, "trust", _TRUST),
        top.value("level", _read_level),
        _budget(top.table("retention")),
        caches,
    )
    top.finish()
    return configuration


def _cache(name: str, table: Table) -> Cache:
    key = table.value("key", _read_template)
    if "key" not in table:
        table.note(None, "there is no key", 'write key = "...", for example "npm-{hash:package-lock.json}"')
    prefixes = table.each("restore-keys", _template_fault)
    paths = table.each("paths", _path_fault)
    if not paths and not (table.take("paths") or "paths" not in table):
        table.note("paths", "paths: it is empty", 'write paths = ["node_modules"]')
    elif "paths" not in table:
        table.note(None, "there are no paths", 'write paths = ["node_modules"]')
    cache = Cache(
        name,
        key or _NO_TEMPLATE,
        tuple(parse_template(prefix) for prefix in prefixes if _template_fault(prefix) is None),
        paths,
        table.texts("excludes") or (),
        _one_of(table, "mode", _MODES) or "merge",
        table.flag("in-place"),
        table.value("namespace", _read_namespace),
        table.value("level", _read_level),
        table.text("family") or None,
        _one_of(table, "trust", _TRUST),
        _one_of(table, "kind", _KINDS) or "files",
    )
    table.finish()
    return cache


def _budget(table: Table) -> Budget:
    free = table.take("min-free")
    share = isinstance(free, str) and "%" in free
    budget = Budget(
        max_bytes=table.value("max-size", read_size),
        max_entries=table.value("max-entries", read_whole),
        max_age_seconds=table.value("max-age", read_duration),
        min_free_bytes=None if share else table.value("min-free", read_size),
        min_free_percent=table.value("min-free", read_percent) if share else None,
        keep_last=table.value("keep-last", read_whole) or 0,
    )
    table.finish()
    return budget


def _one_of(table: Table, key: str, words: tuple[W, ...]) -> W | None:
    def read(value: object) -> W:
        for word in words:
            if value == word:
                return word
        raise InvalidRequest(f"{shown(value)} is not known", hint="one of: " + ", ".join(words))

    return table.value(key, read)


def _read_text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{shown(value)} is not a text", hint="quote it")
    return value


def _read_namespace(value: object) -> Namespace:
    return Namespace.named(_read_text(value))


def _read_template(value: object) -> Template:
    text = _read_text(value)
    if not text:
        raise InvalidRequest("it is empty", hint='for example "npm-{hash:package-lock.json}"')
    return parse_template(text)


def _template_fault(text: str) -> tuple[str, str] | None:
    try:
        parse_template(text)
    except InvalidRequest as error:
        return error.message, error.hint or ""
    return None


def _path_fault(text: str) -> tuple[str, str] | None:
    return ("it has a NUL byte", "") if "\0" in text else None


def _read_level(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in LEVELS:
        raise InvalidRequest(f"there is no compression level {shown(value)}", hint="-50 to 22")
    return value
