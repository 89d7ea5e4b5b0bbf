"""Where an engine may listen: what the environment says, docker's current context, and the usual places.

Contexts are read as docker's own command reads them. What they are: https://docs.docker.com/engine/manage-resources/contexts
(resolveContextName in its cli/command/cli.go says which one it is, cli/context/store/metadatastore.go where it lies).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from hashlib import sha256

from cachekit.engine.address import Address, parse_address
from cachekit.engine.outcome import EngineUnavailable
from cachekit.system.files import pread_exactly

__all__ = ["docker_places", "podman_places"]

_DOCKER, _PODMAN = "/var/run/docker.sock", "/run/podman/podman.sock"
#: A config.json also holds the credentials of registries; one of more than this was not written by docker.
_LARGEST_FILE = 1 << 20


def docker_places(environment: Mapping[str, str], *, remote: bool = False) -> list[Address]:
    """Return where Docker may listen, the first that answers wins.

    $DOCKER_HOST alone if it is set, whichever engine that is; else docker's current context ($DOCKER_CONTEXT, else
    config.json's) alone, if that is not the default one; else the system's socket, then the user's own.
    Raises EngineUnavailable (no-engine) if what is named is none, or unless ``remote`` another machine's: its disk is
    not this one's.
    """
    if host := environment.get("DOCKER_HOST"):
        tls = environment.get("DOCKER_TLS_VERIFY") or environment.get("DOCKER_TLS")
        named = parse_address(
            "DOCKER_HOST",
            host,
            _DOCKER,
            certificates=(environment.get("DOCKER_CERT_PATH") or _settings(environment)) if tls else None,
            verify=bool(environment.get("DOCKER_TLS_VERIFY")),
        )
        return [_local("DOCKER_HOST", named, remote=remote)]
    if name := _current_context(environment):
        return [_local(f"docker's context {name!r}", _of_context(environment, name), remote=remote)]
    places = [Address(_DOCKER)]
    if runtime_directory := environment.get("XDG_RUNTIME_DIR"):
        places.append(Address(os.path.join(runtime_directory, "docker.sock")))
    return places


def podman_places(environment: Mapping[str, str], *, remote: bool = False) -> list[Address]:
    """Return where Podman may listen, after Docker.

    None if $DOCKER_HOST or a context says which engine it is; $CONTAINER_HOST alone if it is set; else the user's own
    socket, then the system's: podman-system-service(1). Raises as ``docker_places`` does.
    """
    if environment.get("DOCKER_HOST") or _current_context(environment):
        return []
    if host := environment.get("CONTAINER_HOST"):
        return [_local("CONTAINER_HOST", parse_address("CONTAINER_HOST", host, _PODMAN), remote=remote)]
    if runtime_directory := environment.get("XDG_RUNTIME_DIR"):
        return [Address(os.path.join(runtime_directory, "podman/podman.sock")), Address(_PODMAN)]
    return [Address(_PODMAN)]


def _local(source: str, address: Address, *, remote: bool) -> Address:
    if address.remote and not remote:
        raise EngineUnavailable(
            "no-engine", f"{source} is {address}, a remote engine: its disk is not this machine's"
        )
    return address


def _current_context(environment: Mapping[str, str]) -> str:
    """Return the name of docker's current context, "" for the default one, which is all that is not said otherwise."""
    name: object = environment.get("DOCKER_CONTEXT")
    if not name:
        settings = _read(os.path.join(_settings(environment), "config.json"))
        name = settings.get("currentContext") if isinstance(settings, dict) else None
    return name if isinstance(name, str) and name != "default" else ""


def _of_context(environment: Mapping[str, str], name: str) -> Address:
    """Return where a context's engine listens. Raises EngineUnavailable."""
    contexts = os.path.join(_settings(environment), "contexts")
    digest = sha256(name.encode(errors="surrogateescape")).hexdigest()
    said = _read(os.path.join(contexts, "meta", digest, "meta.json"))
    for part in ("Endpoints", "docker"):
        said = said.get(part) if isinstance(said, dict) else None
    facts = said if isinstance(said, dict) else {}
    where, host = f"docker's context {name!r}", facts.get("Host")
    if not isinstance(host, str) or not host:
        raise EngineUnavailable("no-engine", f"{where} is not known: docker context ls lists those that are")
    tls = os.path.join(contexts, "tls", digest, "docker")
    return parse_address(
        where,
        host,
        _DOCKER,
        certificates=tls if os.path.isdir(tls) else None,
        verify=not facts.get("SkipTLSVerify"),
    )


def _settings(environment: Mapping[str, str]) -> str:
    """Return docker's own directory of settings; one that does not exist if there can be none."""
    if directory := environment.get("DOCKER_CONFIG"):
        return directory
    return os.path.join(environment.get("HOME") or os.devnull, ".docker")


def _read(path: str) -> object:
    """Return what a file of settings holds, None if that is not there, not JSON, or another user's.

    Whose file it is matters to root (``sudo -E``): nobody else says which engine root speaks to.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):  # ValueError: a NUL in it
        return None
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid not in {0, os.geteuid()}:
            return None
        found: object = json.loads(pread_exactly(fd, min(facts.st_size, _LARGEST_FILE), 0))
        return found
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        os.close(fd)
