"""What a save or restore is about: a key and paths as given, or caches of the configuration, each by itself."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

from cachekit.archive.names import find_roots, to_target
from cachekit.cache.config.model import Cache
from cachekit.cache.keys.template import parse_template, placeholders_in
from cachekit.cache.keys.values import Surroundings, expand
from cachekit.cli.options import parse_directory, parse_text
from cachekit.cli.outputs import error_told
from cachekit.cli.render import to_json
from cachekit.cli.settings import Settings
from cachekit.errors import CachekitError, Interrupted, InvalidRequest

__all__ = ["Asked", "Resolved", "Result", "asked_options", "kind_option", "restore_key_option", "run_each"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Resolved:
    """The keys, paths and root of one save or restore."""

    key: str
    restore_keys: list[str]
    paths: list[str]
    root: str | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What was given: with a key the arguments are paths, without one they are names of caches."""

    settings: Settings
    key: str | None
    arguments: tuple[str, ...]
    every: bool = False
    expand: bool = False
    root: str | None = None
    restore_keys: tuple[str, ...] = ()

    @property
    def several(self) -> bool:
        """True if the report is a list and outputs have prefixes: by what was asked, not by what there is."""
        return self.key is None and (self.every or len(set(self.arguments)) > 1)

    def caches(self) -> Sequence[Cache | None]:
        """Return the caches that are meant, None for a key. Raises InvalidRequest, ConfigInvalid."""
        if self.key is not None:
            if self.every:
                raise InvalidRequest("--all means the configuration's caches, and so has no --key")
            return [None]
        if self.restore_keys:
            raise InvalidRequest(
                "--restore-key needs --key", hint="a cache's restore keys are in the configuration"
            )
        if self.expand:
            raise InvalidRequest("--expand needs --key", hint="the configuration's keys are always expanded")
        if self.every and self.arguments:
            raise InvalidRequest("--all is all caches: name none besides", found=list(self.arguments))
        if not self.every and not self.arguments:
            raise InvalidRequest(
                "neither a key nor the name of a cache was given",
                hint="give --key KEY and paths; or names of caches of cachekit.toml, or --all",
            )
        return self.settings.caches(self.arguments, every=self.every)

    def resolve(self, cache: Cache | None) -> Resolved:
        """Return what is meant for one of ``caches``, templates expanded. Raises InvalidRequest, SourceUnreadable."""
        root = self.root
        if cache is None:
            assert self.key is not None
            paths = list(self.arguments)
            keys = [self.key, *self.restore_keys]
            if self.expand:
                keys = _expanded([parse_template(key) for key in keys], root, paths)
            else:
                for key in keys:
                    _refuse_placeholders(key)
        else:
            file = self.settings.configuration()
            assert file is not None
            root = root or file.directory
            paths = list(cache.paths)
            keys = _expanded([cache.key, *cache.restore_keys], root, paths)
        return Resolved(keys[0], keys[1:], paths, root)


def _expanded(templates: Sequence[Any], root: str | None, paths: Sequence[str]) -> list[str]:
    roots = find_roots(root)
    own: list[str] = []
    for path in paths:
        target = to_target(path, roots)
        if target.root == "root" and target.path != b".":
            name = os.fsdecode(target.path)
            own += [f"./{name}", f"./{glob.escape(name)}"]
    around = Surroundings(os.fsdecode(roots.root), excluded=tuple(own))
    return [expand(template, around).text for template in templates]


def _refuse_placeholders(key: str) -> None:
    found = placeholders_in(key)
    if found:
        raise InvalidRequest(
            f"the key has the placeholder {found[0]}, and --key is taken literally",
            found=key,
            hint="--expand replaces placeholders; do not give it together with text that others choose (branch names)",
        )


def asked_options(function: F) -> F:
    """``--key``, the arguments, ``--all``, ``--expand``, ``--root``."""
    for option in (
        click.option(
            "--root",
            metavar="DIR",
            type=parse_directory,
            help="What relative paths are relative to.  [default: current directory; of a cache, its configuration's]",
        ),
        click.option("--expand", is_flag=True, help="Replace placeholders in the key, as cachekit key does."),
        click.option("--all", "every", is_flag=True, help="All caches of the configuration."),
        click.argument("arguments", nargs=-1, metavar="[PATH|NAME]..."),
        click.option(
            "--key",
            type=parse_text,
            metavar="KEY",
            help="The key, matched exactly; without it the arguments are names of caches.",
        ),
    ):
        function = option(function)
    return function


def restore_key_option(function: F) -> F:
    """``--restore-key``."""
    return click.option(
        "--restore-key",
        "restore_keys",
        multiple=True,
        type=parse_text,
        metavar="PREFIX",
        help="Else the newest entry whose key begins so; may be repeated, first match wins.",
    )(function)


def kind_option(function: F) -> F:
    """``--kind``."""
    return click.option(
        "--kind",
        type=click.Choice(["files", "oci"]),
        help="oci: the paths are OCI layouts (BuildKit's type=local caches), and must be whole ones.  "
        "[default: the cache's, or files]",
    )(function)


@dataclass(slots=True)
class Result:
    """What came of one cache: the report as JSON values, and the exit code."""

    report: dict[str, Any]
    code: int = 0
    outputs: dict[str, object] = field(default_factory=dict)


def run_each(
    asked: Asked,
    work: Callable[[Cache | None], Result],
    failed: Callable[[Cache | None], dict[str, object]] | None = None,
    *,
    as_json: bool,
) -> tuple[int, list[tuple[str, dict[str, object]]]]:
    """Do the work for each cache that is meant; return the highest exit code, and each cache's name and outputs.

    Of several, one's failure is told and the others go on; of one it is raised. ``failed`` gives the outputs of a cache
    that failed.
    """
    results: list[dict[str, Any]] = []
    outputs: list[tuple[str, dict[str, object]]] = []
    worst = 0
    for cache in asked.caches():
        name = cache.name if cache else ""
        try:
            result = work(cache)
        except Interrupted:
            raise
        except CachekitError as error:
            if not asked.several:
                raise
            result = Result(
                {"error": error.as_dict()}, error_told(name, error), failed(cache) if failed else {}
            )
        results.append({"cache": name, **result.report} if cache else result.report)
        outputs.append((name, result.outputs))
        worst = max(worst, result.code)
    if as_json:
        click.echo(to_json(results if asked.several else results[0]))
        click.get_current_context().find_root().ensure_object(dict)["answered"] = True
    return worst, outputs
