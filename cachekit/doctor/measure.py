"""``doctor``: measure what a filesystem does, and say what follows from it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cachekit.doctor.peer import PeerReport, examine_together
from cachekit.errors import TargetNotWritable
from cachekit.model import format_duration, format_size
from cachekit.system.clock import host_name
from cachekit.system.files import make_private_directory, open_directory, random_name, remove_tree
from cachekit.system.locking.measured import Mount, excludes, mount_under, remember
from cachekit.system.probe import contest, single

__all__ = ["DoctorReport", "Finding", "examine"]

_WORK = ".cachekit-doctor-"
#: Clocks that differ by more than this are told of.
_SKEW_SECONDS = 1.0
#: statvfs may be wrong by so much (metadata, rounding) and still be called accurate.
_ACCURATE = 1 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer. ``good`` is None where it is neither good nor bad, or could not be measured."""

    id: str
    good: bool | None
    value: Any
    text: str


@dataclass(slots=True)
class DoctorReport:
    """What was measured in ``directory``, and what cachekit will do there (``follows``). ``excludes``: flock does."""

    directory: str
    host: str
    mount: Mount
    findings: list[Finding] = field(default_factory=list)
    peer: PeerReport | None = None
    excludes: bool = False
    follows: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def examine(directory: str, *, peer: bool = False, peer_timeout: float = 60.0) -> DoctorReport:
    """Measure, remember whether flock excludes (``system.locking.measured``), and say what follows.

    Works in a directory of its own, which is removed. Raises TargetNotWritable if nothing can be made there,
    StoreUnavailable if no other doctor came within ``peer_timeout`` seconds.
    """
    work = os.path.join(directory, _WORK + random_name())
    try:
        make_private_directory(work)
        dir_fd = open_directory(os.fsencode(work))
    except OSError as error:
        raise TargetNotWritable(
            f"nothing can be measured there: {error.strerror}",
            path=directory,
            hint="name a directory that exists and that you may write to",
        ) from None
    report = DoctorReport(os.path.abspath(directory), host_name(), mount_under(dir_fd))
    try:
        report.findings = _findings(dir_fd)
    finally:
        os.close(dir_fd)
        with contextlib.suppress(OSError):
            remove_tree(os.fsencode(work))
    known = {finding.id: finding.value for finding in report.findings}
    if peer:
        report.peer = examine_together(directory, peer_timeout, known["clock-skew"])
    _remember(report, known)
    report.excludes = excludes(directory)
    report.follows = _follows(report, known)
    return report


def _findings(dir_fd: int) -> list[Finding]:
    return [
        _ask("flock", lambda: contest.excludes_processes("flock", "flock", dir_fd), _exclusion("flock")),
        _ask(
            "fcntl", lambda: contest.excludes_processes("fcntl", "fcntl", dir_fd), _exclusion("fcntl locks")
        ),
        _ask(
            "link",
            lambda: contest.one_linker_wins(dir_fd),
            _yes("of several links to one name one succeeds", "hard links"),
        ),
        _ask("link-count", lambda: single.link_count(dir_fd), _links),
        _ask(
            "rename",
            lambda: contest.rename_is_atomic(dir_fd),
            _yes("a name that is replaced is always there, and whole", "rename"),
        ),
        _ask(
            "exchange",
            lambda: single.exchange_works(dir_fd),
            _can("two directories can be swapped in one step"),
        ),
        _ask("fsync", lambda: single.fsync_works(dir_fd), _can("fsync works")),
        _ask("fallocate", lambda: single.fallocate_works(dir_fd), _can("space can be reserved")),
        _ask("reflink", lambda: single.reflink_works(dir_fd), _can("files can share blocks")),
        _ask("case", lambda: single.keeps_case(dir_fd), _can("upper and lower case are told apart")),
        _ask("clock-skew", lambda: single.clock_skew(dir_fd), _skew),
        _ask("free-space", lambda: single.free_space_error(dir_fd), _space),
    ]


def _ask(name: str, question: Callable[[], Any], say: Callable[[Any], tuple[bool | None, str]]) -> Finding:
    try:
        value = question()
    except OSError as error:
        return Finding(name, None, None, f"could not be measured: {error.strerror}")
    good, text = say(value)
    return Finding(name, good, value, text)


def _exclusion(what: str) -> Callable[[bool | None], tuple[bool | None, str]]:
    def say(value: bool | None) -> tuple[bool | None, str]:
        if value is None:
            return False, f"there are no {what}" if what != "flock" else "there is no flock"
        return value, f"{what}: processes of this host {'exclude' if value else 'do NOT exclude'} each other"

    return say


def _yes(text: str, what: str) -> Callable[[bool | None], tuple[bool | None, str]]:
    return lambda value: (
        value,
        text if value else f"there are no {what}" if value is None else f"NOT so: {text}",
    )


def _can(text: str) -> Callable[[bool], tuple[bool | None, str]]:
    return lambda value: (value or None, text if value else f"not so: {text}")


def _links(value: int | None) -> tuple[bool | None, str]:
    if value is None:
        return None, "there are no hard links"
    return value == 2 or None, f"a file with two names says that it has {value}"


def _skew(value: float) -> tuple[bool | None, str]:
    if not value:
        return True, "its clock and ours agree"
    way = "ahead of" if value > 0 else "behind"
    return abs(value) < _SKEW_SECONDS, f"its clock is {format_duration(abs(value))} {way} ours"


def _space(value: tuple[int, float | None] | None) -> tuple[bool | None, str]:
    if value is None:
        return None, "not measured: less than 32 MiB are free"
    error, late = value
    sign = "more" if error >= 0 else "less"
    text = f"16 MiB written show as {format_size(abs(error))} {sign}; removed, "
    text += "they are not back after 5 s" if late is None else f"they are back after {late:g} s"
    return abs(error) <= _ACCURATE and late is not None, text


def _remember(report: DoctorReport, known: dict[str, Any]) -> None:
    alone = known["flock"] is True
    with_peer = report.peer
    try:
        if with_peer is not None:
            remember(report.mount, flock=alone and with_peer.flock, fcntl=with_peer.fcntl, hosts=2)
        else:
            remember(report.mount, flock=alone, fcntl=known["fcntl"], hosts=1)
    except OSError as error:
        report.warnings.append(f"what was measured could not be remembered: {error.strerror}")


def _follows(report: DoctorReport, known: dict[str, Any]) -> list[str]:
    lines = []
    if report.excludes:
        lines.append("locks: flock, which excludes everybody who uses this directory")
    elif known["flock"] is True and report.peer is None:
        lines.append(
            "locks: a lease, since whether flock excludes other hosts is not known; cachekit doctor --peer, on two "
            "hosts at once, finds out"
        )
    else:
        lines.append("locks: a lease (docs/locking.md), since flock does not exclude here")
    lines.append(
        "saves: published by a hard link"
        if known["link"]
        else "saves: published by a claim and a rename, since hard links do not decide here"
    )
    lines.append(
        "restores: --replace swaps the old and the new tree in one step"
        if known["exchange"]
        else "restores: --replace moves the old tree aside first; for a moment there is none"
    )
    lines.append(
        "space: reserved before a save writes"
        if known["fallocate"]
        else "space: only looked at before a save writes, since it cannot be reserved"
    )
    if not known["case"]:
        lines.append("names: trees with names that differ only in case cannot be restored here")
    return lines
