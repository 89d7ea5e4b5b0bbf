"""Which store a command means: options, then variables, then the configuration file, then the defaults."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import click

from cachekit.cache.config.find import find
from cachekit.cache.config.model import Cache, Configuration
from cachekit.errors import InvalidRequest
from cachekit.model import Namespace, StoreAddress
from cachekit.store.layout import default_store
from cachekit.system.keyring import load_keys
from cachekit.trust import ANYONE, Trust, TrustMode

__all__ = ["Settings", "settings_option", "store_directory", "trust_of"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True)
class Settings:
    """What was given on the command line about the store, and the configuration file that holds here.

    ``scope`` and ``read_only`` are only known to the commands that have the options.
    """

    config: str | None = None
    store: str | None = None
    namespace: str | None = None
    trust_store: bool = False
    scope: str | None = None
    read_only: bool = False
    _loaded: list[Configuration | None] = field(default_factory=list)

    @staticmethod
    def file() -> str | None:
        """Return the path of the configuration file that holds here, None without one. Raises InvalidRequest."""
        if os.environ.get("CACHEKIT_CONFIG"):
            return os.environ["CACHEKIT_CONFIG"]
        try:
            here = os.getcwd()
        except FileNotFoundError:
            return None  # what needs a current directory says so itself
        return find(here, os.path.realpath(os.path.expanduser("~")))

    def configuration(self) -> Configuration | None:
        """Return the configuration that holds here, None without a file. Raises ConfigInvalid, InvalidRequest."""
        if not self._loaded:
            path = self.config or self.file()
            if path is None:
                self._loaded.append(None)
            else:
                from cachekit.cache.config.file import load

                self._loaded.append(load(path))
        return self._loaded[0]

    def address(self, cache: Cache | None = None) -> StoreAddress:
        """Return the part of the store that is meant, for ``cache`` if there is one: with a scope that of the scope.

        Raises ConfigInvalid, InvalidRequest.
        """
        base = self.base(cache)
        if self.scope is None:
            return base
        return replace(base, namespace=base.namespace.scoped(self.scope), read_only=False)

    def base(self, cache: Cache | None = None) -> StoreAddress:
        """Return the part of the store that trusted jobs use; nobody with a scope writes to it."""
        file = self.configuration()
        chosen = self.store or os.environ.get("CACHEKIT_STORE") or (file and file.store) or default_store()
        if self.namespace is not None:
            namespace = Namespace.named(self.namespace)
        else:
            namespace = (cache and cache.namespace) or (file and file.namespace) or Namespace()
        mode = (cache and cache.trust) or (file and file.trust)
        trust = trust_of(mode) if mode else ANYONE
        open_to_all = self.trust_store or (file is not None and file.trust_store)
        read_only = self.read_only or self.scope is not None
        return StoreAddress(chosen, namespace, trust, open_to_all, read_only)

    def caches(self, names: tuple[str, ...], *, every: bool) -> list[Cache]:
        """Return the caches of these names, or all, in their order. Raises InvalidRequest, ConfigInvalid."""
        file = self.configuration()
        if file is None:
            raise InvalidRequest(
                "names of caches need a configuration file, and there is none here",
                hint="write a cachekit.toml (docs/configuration.md), or give --key KEY and paths",
            )
        for name in names:
            if name not in file.caches:
                from cachekit.tables.values import nearest

                hint = nearest(name, file.caches) if file.caches else "write [caches.NAME] into it"
                raise InvalidRequest(
                    f"there is no cache {name!r} in the configuration",
                    path=file.path,
                    hint=f"{hint}; or give --key KEY, then arguments are paths",
                )
        if every and not file.caches:
            raise InvalidRequest(
                "the configuration has no caches", path=file.path, hint="write [caches.NAME]"
            )
        return [file.caches[name] for name in (file.caches if every else dict.fromkeys(names))]


def trust_of(mode: TrustMode | None) -> Trust:
    """Return the policy that was chosen, with the keys of the environment. Raises InvalidRequest for a bad key.

    Without a choice a key means hmac: whoever gives one does not expect that entries without it are used.
    """
    keys = load_keys()
    return Trust(mode == "hmac" if mode else bool(keys), keys)


def store_directory() -> str:
    """Return the directory of the store that is meant here; the default's where the configuration has faults.

    For commands that only need to know where it lies: an emergency must not fail on a typing error.
    """
    try:
        return Settings().base().path
    except InvalidRequest:
        return default_store()


_STORE = click.option(
    "--store",
    metavar="DIR",
    show_default="$CACHEKIT_STORE, the configuration's or ~/.cache/cachekit",
    help="Where the entries are kept.",
)
_NAMESPACE = click.option(
    "--namespace",
    metavar="NAME",
    envvar="CACHEKIT_NAMESPACE",
    help="The part of the store, like project/env.  [default: the configuration's or default]",
)
_OPTIONS = (
    click.option(
        "--config",
        metavar="FILE",
        envvar="CACHEKIT_CONFIG",
        help="The configuration.  [default: cachekit.toml or pyproject.toml, upwards to the git root]",
    ),
    click.option(
        "--trust-store",
        is_flag=True,
        envvar="CACHEKIT_TRUST_STORE",
        help="Use the store although everybody on the machine may write to it.",
    ),
)
_SCOPE_OPTIONS = (
    click.option(
        "--scope",
        metavar="NAME",
        envvar="CACHEKIT_SCOPE",
        help="For jobs that are not trusted, like pr-123: save to a part of the namespace that only jobs with this "
        "scope read; restore from there, else from the namespace, without changing it.",
    ),
    click.option(
        "--read-only",
        is_flag=True,
        envvar="CACHEKIT_READ_ONLY",
        help="Change nothing in the store: restores only, saves are refused (but for those of a --scope).",
    ),
)


def settings_option(*, namespace: bool = True, scopes: bool = False) -> Callable[[F], F]:
    """``--store``, ``--namespace``, ``--config``, ``--trust-store``: the command gets ``settings``.

    With ``scopes`` also ``--scope`` and ``--read-only``; without ``namespace`` for commands that look at all of them.
    """
    chosen = (_STORE, *([_NAMESPACE] if namespace else []), *_OPTIONS, *(_SCOPE_OPTIONS if scopes else ()))
    names = ["store", "config", "trust_store", *(["namespace"] if namespace else [])]
    names += ["scope", "read_only"] if scopes else []

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def command(*args: Any, **options: Any) -> Any:
            given = {name: options.pop(name) for name in names}
            for name, value in given.items():
                if value == "":
                    raise click.BadParameter(
                        "it is empty (a variable that is not set?)", param_hint=f"--{name.replace('_', '-')}"
                    )
            return function(*args, settings=Settings(**given), **options)

        decorated: Any = command
        for option in reversed(chosen):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate
