"""Where an engine listens: a socket of this machine, or a port of another one."""

from __future__ import annotations

import os
from dataclasses import dataclass

from cachekit.engine.outcome import EngineUnavailable

__all__ = ["Address", "parse_address"]

_PORT, _PORT_TLS = 2375, 2376


@dataclass(frozen=True, slots=True)
class Address:
    """A unix socket (``path``), or a ``host`` and its ``port``.

    ``certificates``: the directory with the ca.pem, cert.pem and key.pem of TLS; None: what is said there is readable
    to all on the way. ``verify``: the host must be who it says.
    """

    path: str = ""
    host: str = ""
    port: int = 0
    certificates: str | None = None
    verify: bool = True

    @property
    def remote(self) -> bool:
        """Return True if what the engine calls its directories need not be this machine's."""
        return not self.path

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.path or f"tcp://{host}:{self.port}"


def parse_address(
    source: str, text: str, usual: str, *, certificates: str | None = None, verify: bool = True
) -> Address:
    """Read what ``source`` (a variable, a context) says; ``usual``: the socket that unix:// alone means.

    Raises EngineUnavailable (no-engine) for what is neither unix:// nor tcp://; it does not repeat what it was given,
    which may hold a password.
    """
    scheme, colon, rest = text.partition(":")
    if scheme == "unix" and colon:
        return Address(path=rest.removeprefix("//") or usual)
    if scheme == "tcp" and rest.startswith("//"):
        from urllib.parse import urlsplit

        try:
            parts = urlsplit(text)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if host:
            port = port or (_PORT_TLS if certificates else _PORT)
            return Address(
                host=host,
                port=port,
                certificates=certificates and os.path.abspath(certificates),
                verify=verify,
            )
    if not rest.startswith("//") or scheme == "tcp":
        raise EngineUnavailable(
            "no-engine", f"{source} is no address of an engine: unix:///PATH or tcp://HOST:PORT is asked for"
        )
    raise EngineUnavailable(
        "no-engine", f"{source} is {scheme}://, which cachekit does not speak: unix:// or tcp:// is asked for"
    )
