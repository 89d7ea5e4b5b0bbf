"""Where an engine's socket may lie: what the environment says, docker's current context, and the usual places.

Contexts are read as docker's own command reads them. What they are: https://docs.docker.com/engine/manage-resources/contexts
(resolveContextName in its cli/command/cli.go says which one it is, cli/context/store/metadatastore.go where it lies).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from hashlib import sha256

from cachekit.engine.outcome import EngineUnavailable
from cachekit.system.files import pread_exactly

__all__ = ["docker_places", "podman_places"]

#: A config.json also holds the credentials of registries; one of more than this was not written by docker.
_LARGEST_FILE = 1 << 20


def docker_places(environment: Mapping[str, str]) -> list[str]:
    """Return the paths at which Docker's socket may lie, the first that answers wins.

    The one of $DOCKER_HOST alone if it is set, whichever engine that is; else the one of docker's current context
    ($DOCKER_CONTEXT, else config.json's) alone, if that is not the default one; else the system's, then the user's own.
    Raises EngineUnavailable (no-engine) if what is named is not a unix socket (a remote engine's disk is not this
    machine's) or is a context that does not exist.
    """
    if host := environment.get("DOCKER_HOST"):
        return [_local("DOCKER_HOST", host) or "/var/run/docker.sock"]
    if name := _current_context(environment):
        return [_of_context(environment, name)]
    paths = ["/var/run/docker.sock"]
    if runtime_directory := environment.get("XDG_RUNTIME_DIR"):
        paths.append(os.path.join(runtime_directory, "docker.sock"))
    return paths


def podman_places(environment: Mapping[str, str]) -> list[str]:
    """Return the paths at which Podman's socket may lie, after Docker's.

    None if $DOCKER_HOST or a context says which engine it is; $CONTAINER_HOST alone if it is set; else the user's own,
    then the system's: podman-system-service(1). Raises EngineUnavailable (no-engine) if $CONTAINER_HOST is not a unix
    socket.
    """
    if environment.get("DOCKER_HOST") or _current_context(environment):
        return []
    system = "/run/podman/podman.sock"
    if host := environment.get("CONTAINER_HOST"):
        return [_local("CONTAINER_HOST", host) or system]
    if runtime_directory := environment.get("XDG_RUNTIME_DIR"):
        return [os.path.join(runtime_directory, "podman/podman.sock"), system]
    return [system]


def _local(source: str, address: str) -> str:
    """Return the path of a unix socket out of its address. Raises EngineUnavailable (no-engine) for another one."""
    scheme, colon, path = address.partition(":")
    if scheme == "unix" and colon:
        return path.removeprefix("//")
    if not path.startswith("//"):  # not the whole of it: it may hold a password
        raise EngineUnavailable(
            "no-engine", f"{source} is no address of an engine: unix:///PATH is asked for"
        )
    raise EngineUnavailable(
        "no-engine", f"{source} is {scheme}://, a remote engine: its disk is not this machine's"
    )


def _current_context(environment: Mapping[str, str]) -> str:
    """Return the name of docker's current context, "" for the default one, which is all that is not said otherwise."""
    name: object = environment.get("DOCKER_CONTEXT")
    if not name:
        settings = _read(os.path.join(_settings(environment), "config.json"))
        name = settings.get("currentContext") if isinstance(settings, dict) else None
    return name if isinstance(name, str) and name != "default" else ""


def _of_context(environment: Mapping[str, str], name: str) -> str:
    """Return the socket of a context. Raises EngineUnavailable."""
    digest = sha256(name.encode(errors="surrogateescape")).hexdigest()
    said = _read(os.path.join(_settings(environment), "contexts/meta", digest, "meta.json"))
    for part in ("Endpoints", "docker", "Host"):
        said = said.get(part) if isinstance(said, dict) else None
    where = f"docker's context {name!r}"
    if not isinstance(said, str) or not said:
        raise EngineUnavailable("no-engine", f"{where} is not known: docker context ls lists those that are")
    return _local(where, said)


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
