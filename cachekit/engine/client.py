"""The Docker Engine API, as much as cachekit needs.

Every call has a deadline for the whole of it and raises EngineUnavailable (no answer in time, nonsense) or
EngineRefused (the engine answered with an error). Checked against Docker 20.10, 26.1 and 28.5 (both image stores) and
Podman 4.3.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from cachekit.engine.address import Address
from cachekit.engine.objects import (
    CacheRecord,
    Container,
    Event,
    Image,
    ImageDetails,
    Info,
    Volume,
    read_cache,
    read_container,
    read_event,
    read_image,
    read_image_details,
    read_image_inspection,
    read_info,
    read_volume,
)
from cachekit.engine.outcome import (
    Answer,
    EngineRefused,
    EngineUnavailable,
    complaint,
    most_telling,
)
from cachekit.engine.places import docker_places, podman_places
from cachekit.system.clock import now_ns

if TYPE_CHECKING:
    from cachekit.engine.streams import Export, Load  # imported when used, as http.client is

__all__ = ["NEWEST_API", "Engine", "EngineRefused", "can_be_named"]

#: The newest API that this client was tried with; engines speak older ones too, and say so.
NEWEST_API = (1, 51)

#: Ids, and names of containers, images and volumes. What looks otherwise is not put into a request.
_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,511}", re.ASCII)

#: Events are news, not data: an engine that is slow to tell them is not waited for.
_EVENTS_SECONDS = 5.0

_Row = TypeVar("_Row")


def can_be_named(name: str) -> bool:
    """Tell whether a request can name this object: an engine's own ids and names always pass."""
    return _NAME.fullmatch(name) is not None


class Engine:
    """A Docker engine, or one that imitates it. Holds no connection between calls.

    ``timeout`` in seconds is for each call; it may be changed.
    """

    def __init__(
        self, address: Address, api: tuple[int, int], timeout: float, greeting: object = None
    ) -> None:
        self.address, self.api, self.timeout, self._greeting = address, api, timeout, greeting
        self._info: Info | None = None

    @classmethod
    def connect(
        cls,
        timeout: float = 10.0,
        *,
        environment: Mapping[str, str] = os.environ,
        podman: bool = False,
        remote: bool = False,
    ) -> Engine:
        """Find the engine and agree on a version of the API. Raises EngineUnavailable.

        It is one of this machine, or with ``remote`` the one that is named, wherever it is.

        $DOCKER_HOST, else docker's context, else the system's Docker, else this user's own; with ``podman``, after
        them, where Podman's socket lies. A Docker that is there and does not answer is not passed over for Podman: what
        was built with the one is not in the other. Of several reasons the one of an engine that is there is told: no
        permission rather than no engine; if there is none at all, every place is.
        """
        problems: list[EngineUnavailable] = []
        for places in (docker_places, podman_places) if podman else (docker_places,):
            if any(problem.outcome == "no-answer" for problem in problems):
                break
            try:
                for address in places(environment, remote=remote):
                    try:
                        return cls._greet(address, timeout)
                    except EngineUnavailable as error:
                        problems.append(error)
            except EngineUnavailable as error:
                problems.append(error)
        raise most_telling(problems)

    @classmethod
    def _greet(cls, address: Address, timeout: float) -> Engine:
        from cachekit.engine.transport import exchange  # only here: it costs 20 ms

        answer = exchange(address, "GET", "/version", timeout=timeout)
        if answer.status == 400 and b"HTTPS server" in answer.body:  # so Go's net/http says it
            raise EngineUnavailable(
                "no-answer",
                f"{address} wants TLS",
                "set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to where the keys are (/certs/client in docker:dind)",
            )
        said = _value(answer)
        facts = said if isinstance(said, dict) else {}
        newest, oldest = _version(facts.get("ApiVersion")), _version(facts.get("MinAPIVersion"))
        if newest is None:
            raise EngineUnavailable("no-answer", f"what answers at {address} does not say its API version")
        return cls(address, max(min(newest, NEWEST_API), oldest or (0, 0)), timeout, facts)

    def call(
        self,
        method: str,
        target: str,
        query: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
        body: bytes | Iterable[bytes] = b"",
        kind: str = "",
    ) -> Answer:
        """Send one request. Query values that are None are left out, others than text become JSON.

        Raises EngineUnavailable and EngineRefused.
        """
        from urllib.parse import urlencode

        from cachekit.engine.transport import exchange

        given = {name: _parameter(value) for name, value in (query or {}).items() if value is not None}
        full = self._versioned(target) + (f"?{urlencode(given)}" if given else "")
        answer = exchange(self.address, method, full, timeout=timeout or self.timeout, body=body, kind=kind)
        if not 200 <= answer.status < 300:
            raise EngineRefused(answer.status, complaint(answer.status, answer.body))
        return answer

    def info(self) -> Info:
        """Return what the engine says of itself; asked once."""
        if self._info is None:
            info = read_info(_value(self.call("GET", "/info")), self._greeting)
            # Directories of the same names here are not the engine's.
            self._info = replace(info, remote=True, roots=()) if self.address.remote else info
        return self._info

    def containers(self) -> list[Container]:
        """Return all containers, running or not."""
        return _rows(self.call("GET", "/containers/json", {"all": 1}), read_container)

    def container(self, row: Container) -> Container | None:
        """Return the container with its present state and its times, None if it is gone."""
        inspected = self._inspect(f"/containers/{_quoted(row.id)}/json")
        if inspected is None:
            return None
        fresh = read_container({"Id": row.id}, inspected)
        return fresh and replace(
            row,
            state=fresh.state,
            volumes=row.volumes + fresh.volumes,
            started_ns=fresh.started_ns,
            finished_ns=fresh.finished_ns,
        )

    def images(self, *, intermediate: bool = False, measured: bool = True) -> list[Image]:
        """Return all images; ``intermediate``: also the nameless steps between the classic builder's images.

        ``measured``: with the size that no other image shares, where the engine can tell (API 1.42).
        """
        query: dict[str, object] = {"all": int(intermediate)}
        if measured and self.api >= (1, 42):
            query["shared-size"] = 1
        if self.api >= (1, 47):
            query["manifests"] = 1
        return _rows(self.call("GET", "/images/json", query), read_image)

    def image(self, row: Image) -> Image | None:
        """Return the image with its present names, None if it is gone."""
        inspected = self._inspect(f"/images/{_quoted(row.id)}/json")
        return None if inspected is None else read_image_inspection(inspected, row)

    def image_id(self, name: str) -> str:
        """Return the id of the image that a name or another digest stands for, "" if there is none."""
        inspected = self._inspect(f"/images/{_quoted(name)}/json") if can_be_named(name) else None
        found = inspected.get("Id") if isinstance(inspected, dict) else None
        return found if isinstance(found, str) else ""

    def describe_image(self, name: str) -> ImageDetails | None:
        """Return what the image of a name (or id) is; None if there is none."""
        inspected = self._inspect(f"/images/{_quoted(name)}/json") if can_be_named(name) else None
        return None if inspected is None else read_image_details(inspected)

    def export(self, names: Sequence[str], *, stall: float | None = None) -> Export:
        """Return the tar of some images, to be read while it comes: what ``docker save`` writes."""
        from urllib.parse import urlencode

        from cachekit.engine.streams import STALL_SECONDS, Export

        query = urlencode([("names", name) for name in names])
        return Export(self.address, self._versioned(f"/images/get?{query}"), stall or STALL_SECONDS)

    def load(self, *, stall: float | None = None) -> Load:
        """Return what takes the tar of some images: what ``docker load`` reads."""
        from cachekit.engine.streams import STALL_SECONDS, Load

        return Load(self.address, self._versioned("/images/load?quiet=1"), stall or STALL_SECONDS)

    def _versioned(self, target: str) -> str:
        return f"/v{self.api[0]}.{self.api[1]}{target}"

    def volumes(self, *, unused: bool = False) -> list[Volume]:
        """Return all volumes, or those that no container of any state uses."""
        filters = {"dangling": ["true"]} if unused else None
        said = _value(self.call("GET", "/volumes", {"filters": filters}))
        return _read_all(said.get("Volumes") if isinstance(said, dict) else None, read_volume)

    def build_cache(
        self, *, timeout: float | None = None, thorough: bool = False
    ) -> list[CacheRecord] | None:
        """Return BuildKit's cache.

        Before API 1.42 an engine tells it only together with all other sizes, which takes long: only if ``thorough``,
        else the answer is None.
        """
        alone = self.api >= (1, 42)
        if not alone and not thorough:
            return None
        said = _value(
            self.call("GET", "/system/df", {"type": "build-cache"} if alone else None, timeout=timeout)
        )
        rows = said.get("BuildCache") if isinstance(said, dict) else None
        records = map(read_cache, rows if isinstance(rows, list) else [])
        return [record for record in records if record is not None]

    def events(self, since_ns: int, until_ns: int) -> list[Event]:
        """Return what happened to containers and images between two moments, as far as the engine remembers.

        It keeps the last 256 events, and none over a restart.
        """
        until_ns = min(until_ns, now_ns())  # it would wait for a moment that is to come
        query = {
            "since": f"{since_ns // 10**9}.{since_ns % 10**9:09}",
            "until": f"{until_ns // 10**9}.{until_ns % 10**9:09}",
            "filters": {"type": ["container", "image"]},
        }
        answer = self.call("GET", "/events", query, timeout=min(self.timeout, _EVENTS_SECONDS))
        events = []
        for line in answer.body.splitlines():
            try:
                event = read_event(json.loads(line))
            except (ValueError, RecursionError):
                continue
            if event is not None:
                events.append(event)
        return events

    def remove_container(self, name: str) -> None:
        """Remove a container that does not run; its volumes stay."""
        self.call("DELETE", f"/containers/{_quoted(name)}", {"v": 0, "force": 0})

    def remove_image(self, name: str, *, parents: bool = True) -> None:
        """Remove an image by its id, or one of its names; ``parents``: and nameless ones that only it was made of."""
        self.call("DELETE", f"/images/{_quoted(name)}", {"force": 0, "noprune": int(not parents)})

    def tag_image(self, image: str, name: str) -> None:
        """Give an image a name."""
        repository, _, tag = name.rpartition(":")
        self.call("POST", f"/images/{_quoted(image)}/tag", {"repo": repository, "tag": tag})

    def remove_volume(self, name: str) -> None:
        """Remove a volume that no container uses."""
        self.call("DELETE", f"/volumes/{_quoted(name)}", {"force": 0})

    def prune_build_cache(
        self,
        *,
        unused_seconds: float = 0,
        reserved: int | None = None,
        max_used: int | None = None,
        min_free: int | None = None,
    ) -> int:
        """Remove BuildKit's cache down to the bounds given, least useful first, and return the bytes that it freed.

        Engines before API 1.48 know one bound, ``max_used`` here; asking them for ``min_free`` is a ValueError.
        """
        query: dict[str, object] = {"all": 1}
        if unused_seconds > 0:
            query["filters"] = {"until": [f"{unused_seconds:.0f}s"]}
        if self.api >= (1, 48):
            if min_free is not None and max_used is None:
                max_used = 1 << 62  # without a bound beside it BuildKit prunes although enough is free (28.5)
            query |= {"reserved-space": reserved, "max-used-space": max_used, "min-free-space": min_free}
        elif min_free is not None:
            raise ValueError("this engine knows no min-free-space")
        else:
            query["keep-storage"] = max(reserved or 0, max_used or 0) or None
        said = _value(self.call("POST", "/build/prune", query))
        freed = said.get("SpaceReclaimed") if isinstance(said, dict) else None
        return freed if type(freed) is int and freed > 0 else 0

    def _inspect(self, target: str) -> object:
        """Return an object's inspection, None if there is no such object."""
        try:
            return _value(self.call("GET", target))
        except EngineRefused as error:
            if error.status == 404:
                return None
            raise


def _version(text: object) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})(\.\d+)*", text, re.ASCII) if isinstance(text, str) else None
    return (int(match[1]), int(match[2])) if match else None


def _quoted(name: str) -> str:
    if not can_be_named(name):
        raise EngineRefused(404, f"no engine gives a name such as {name!r}")
    return name.replace("+", "%2B")  # the only sign of a name that a path does not take as it is


def _parameter(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _value(answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        raise EngineUnavailable("no-answer", "the engine's answer is not JSON") from None


def _rows(answer: Answer, read: Callable[[object], _Row | None]) -> list[_Row]:
    """Read a list. One that is none is an error: an empty list would mean that nothing is in use."""
    return _read_all(_value(answer), read, empty=False)


def _read_all(value: object, read: Callable[[object], _Row | None], *, empty: bool = True) -> list[_Row]:
    if value is None and empty:  # Go writes null for a list without elements
        return []
    if not isinstance(value, list):
        raise EngineUnavailable("no-answer", "the engine's answer is not a list")
    rows = [read(item) for item in value]
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        raise EngineUnavailable("no-answer", "the engine's list has rows without a name")
    return known
