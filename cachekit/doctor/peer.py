"""Two doctors on two hosts, who meet in one shared directory and find out what crosses between them.

They talk through small files, each with a name that both know beforehand: nothing is found by listing, since lists
may be old. The first to come takes the lowest free number, the second joins it. Whoever finds a number whose owner
does not answer goes on to the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from typing import Any

from cachekit.errors import StoreUnavailable, TargetNotWritable
from cachekit.system.clock import host_name
from cachekit.system.files import (
    make_private_directory,
    open_directory,
    pwrite_all,
    random_name,
    read_if_there,
    rename_file,
)
from cachekit.system.probe.contest import LockKind, try_kind

__all__ = ["PeerReport", "examine_together"]

_PLACE = ".cachekit-doctor"
_POLL_SECONDS = 0.02
#: How long the owner of a number may take to answer who joins it.
_ANSWER_SECONDS = 10.0
_VISIBLE_SECONDS = 3.0
_NAMES = 20
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(slots=True)
class PeerReport:
    """What two hosts found together. True: it excludes, in both directions. Seconds are None for "not within three".

    ``new_name`` and ``old_name``: how long after a rename the other host sees the new name, and no more the old one.
    ``clock_difference``: by how many seconds the other host's clock is ahead of ours.
    """

    host: str
    flock: bool
    fcntl: bool
    exclusive_create: bool
    new_name: float | None
    old_name: float | None
    clock_difference: float | None


def examine_together(directory: str, timeout: float, skew: float | None) -> PeerReport:
    """Meet another host's doctor in ``directory`` and measure. ``skew``: how far the server is ahead of our clock.

    Raises StoreUnavailable if nobody came, or the other one stopped answering, within ``timeout`` seconds.
    """
    place = os.path.join(directory, _PLACE)
    try:
        make_private_directory(place, 0o777)
        dir_fd = open_directory(os.fsencode(place))
    except OSError as error:
        raise TargetNotWritable(f"the doctors cannot meet there: {error.strerror}", path=place) from None
    meeting = _Meeting(dir_fd, timeout, directory)
    try:
        meeting.begin(skew)
        return _measure(meeting, skew)
    except OSError as error:
        raise StoreUnavailable(f"the doctors lost each other: {error.strerror}", path=place) from None
    finally:
        meeting.leave()
        os.close(dir_fd)
        with contextlib.suppress(OSError):
            os.rmdir(place)


class _Meeting:
    """Two sides that say things under names that both know."""

    def __init__(self, dir_fd: int, timeout: float, directory: str) -> None:
        self.dir_fd = dir_fd
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._directory = directory
        self._made: list[str] = []
        self._number = 0
        self.first = False
        self.other: dict[str, Any] = {}

    def name(self, what: str) -> str:
        """Return the name of a file of this meeting."""
        return f"{self._number}.{what}"

    def begin(self, skew: float | None) -> None:
        """Find the other one."""
        hello = {"nonce": random_name(), "host": host_name(), "skew": skew}
        while True:
            self._number += 1
            if self.create(self.name("first")):
                self.first = True
                self.other = self.hear("hello")
                self.say("hello", {**hello, "echo": self.other["nonce"]})
                return
            if self.create(self.name("second")):
                self.say("hello", hello)
                with contextlib.suppress(StoreUnavailable):
                    self.other = self.hear("hello", _ANSWER_SECONDS)
                if self.other.get("echo") == hello["nonce"]:
                    return
                # Its owner is gone. The number stays used until we leave, so that all go on to the same next one.
                self.other = {}
                self._made += [self.name("first"), self.name("hello.first")]

    def create(self, name: str) -> bool:
        """Make a file that must be new; False if it is there. Servers have several words for that."""
        try:
            os.close(os.open(name, _NEW, 0o666, dir_fd=self.dir_fd))
        except OSError:
            if read_if_there(name, self.dir_fd) is None:
                raise
            return False
        self._made.append(name)
        return True

    def say(self, what: str, message: dict[str, Any]) -> None:
        """Tell the other side: the file appears whole."""
        name = self.name(f"{what}.{'first' if self.first else 'second'}")
        temporary = f"new.{random_name()}"
        fd = os.open(temporary, _NEW, 0o666, dir_fd=self.dir_fd)
        try:
            pwrite_all(fd, json.dumps(message).encode("ascii") + b"\n", 0)
        finally:
            os.close(fd)
        self._made.append(name)
        rename_file(temporary, name, self.dir_fd)

    def hear(self, what: str, patience: float | None = None) -> dict[str, Any]:
        """Wait for what the other side says."""
        name = self.name(f"{what}.{'second' if self.first else 'first'}")
        deadline = self._deadline
        if patience is not None:
            deadline = min(deadline, time.monotonic() + patience)
        while True:
            data = read_if_there(name, self.dir_fd)
            if data is not None and data.endswith(b"\n"):
                with contextlib.suppress(ValueError):
                    message = json.loads(data)
                    if isinstance(message, dict):
                        return message
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"no other doctor answered within {self._timeout:.0f} s",
                    path=self._directory,
                    hint="start cachekit doctor --peer for the same directory on two hosts, within that time",
                )
            time.sleep(_POLL_SECONDS)

    def part(self) -> None:
        """Let nobody leave before both have heard everything: whoever heard the last word removes it."""
        self.say("end", {})
        self.hear("end")
        mine, theirs = ("first", "second") if self.first else ("second", "first")
        with contextlib.suppress(OSError):
            os.unlink(self.name(f"end.{theirs}"), dir_fd=self.dir_fd)
        deadline = min(self._deadline, time.monotonic() + _ANSWER_SECONDS)
        while (
            read_if_there(self.name(f"end.{mine}"), self.dir_fd) is not None and time.monotonic() < deadline
        ):
            time.sleep(_POLL_SECONDS)

    def leave(self) -> None:
        """Remove what this side made."""
        for name in self._made:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=self.dir_fd)
        self._made = []


def _measure(meeting: _Meeting, skew: float | None) -> PeerReport:
    flock = _excludes(meeting, "flock")
    fcntl = _excludes(meeting, "fcntl")
    created = _exclusive_create(meeting)
    new_name, old_name = _rename(meeting)
    meeting.part()
    theirs = meeting.other.get("skew")
    numbers = isinstance(theirs, int | float) and skew is not None
    return PeerReport(
        str(meeting.other.get("host", "")),
        flock,
        fcntl,
        created,
        new_name,
        old_name,
        round(skew - theirs, 3) if numbers and theirs is not None and skew is not None else None,
    )


def _excludes(meeting: _Meeting, kind: LockKind) -> bool:
    """Let each side hold the lock once while the other one tries it."""
    refused = []
    for first_holds in (True, False):
        step = f"{kind}-{'first' if first_holds else 'second'}"
        name = meeting.name(step)
        if meeting.first == first_holds:
            meeting.create(name)
            fd = os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=meeting.dir_fd)
            try:
                try:
                    held = try_kind(fd, kind)
                except OSError:
                    held = False
                meeting.say(f"{step}-held", {"held": held})
                refused.append(held and meeting.hear(f"{step}-tried").get("got") is False)
            finally:
                os.close(fd)
        else:
            held = meeting.hear(f"{step}-held").get("held") is True
            fd = os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=meeting.dir_fd)
            try:
                got: bool | None = None
                with contextlib.suppress(OSError):
                    got = try_kind(fd, kind)
                meeting.say(f"{step}-tried", {"got": got})
                refused.append(held and got is False)
            finally:
                os.close(fd)
    return all(refused)


def _exclusive_create(meeting: _Meeting) -> bool:
    """Let both make the same new files at once: each must be made by one of them."""
    meeting.say("race", {})
    meeting.hear("race")
    mine = [number for number in range(_NAMES) if meeting.create(meeting.name(f"new-{number}"))]
    meeting.say("raced", {"made": mine})
    theirs = meeting.hear("raced").get("made")
    return isinstance(theirs, list) and sorted([*mine, *theirs]) == list(range(_NAMES))


def _rename(meeting: _Meeting) -> tuple[float | None, float | None]:
    """Let the first rename a file that the second knows, and the second watch both names."""
    old, new = meeting.name("old-name"), meeting.name("new-name")
    if meeting.first:
        meeting.create(old)
        meeting.say("made", {})
        meeting.hear("seen")
        rename_file(old, new, meeting.dir_fd)
        meeting.say("renamed", {"new": new})
        seen = meeting.hear("watched")
        with contextlib.suppress(OSError):
            os.unlink(new, dir_fd=meeting.dir_fd)
        return _seconds(seen.get("new")), _seconds(seen.get("old"))
    meeting.hear("made")
    _visible(old, meeting.dir_fd)
    meeting.say("seen", {})
    meeting.hear("renamed")
    begin = time.monotonic()
    seen_at: float | None = None
    gone_at: float | None = None
    while (passed := time.monotonic() - begin) < _VISIBLE_SECONDS and (seen_at is None or gone_at is None):
        if seen_at is None and _visible(new, meeting.dir_fd):
            seen_at = round(passed, 2)
        if gone_at is None and not _visible(old, meeting.dir_fd):
            gone_at = round(passed, 2)
        time.sleep(_POLL_SECONDS)
    meeting.say("watched", {"new": seen_at, "old": gone_at})
    return seen_at, gone_at


def _visible(name: str, dir_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
