"""From what the caller said, and what the place is, to a request: plan, goal, filesystems, protection."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cachekit.clean.environment import Environment, choose_plan, look_around
from cachekit.clean.goals import Need, in_words, needs, words
from cachekit.clean.model import Goal, Plan, Stage
from cachekit.clean.plan.file import load
from cachekit.clean.protect import Protection, interpreter_places
from cachekit.clean.request import CleanRequest
from cachekit.disk.filesystems import Filesystem, nearest, of_places
from cachekit.errors import InvalidRequest
from cachekit.system.keyring import without_keys
from cachekit.system.space import mount_points, pool_of, room
from cachekit.system.state import state_directory

__all__ = ["Wish", "filesystems_that_matter", "pick_plan", "prepare", "protection"]

#: Users below this number are the system's own; /etc/login.defs has 1000 as the first ordinary one.
_ORDINARY = 1000


@dataclass(slots=True)
class Wish:
    """What the caller asks for. Paths as given.

    ``store``: where entries lie. ``extra_bytes``: so many must be free there, for a save. ``untouchable``: paths that
    must stay, and what they are. ``protected_images``: names or ids of images that are about to be saved.
    """

    stage: Stage = "pre"
    plan: str | None = None
    goal: Goal | None = None
    store: str = ""
    filesystems: Sequence[str] = ()
    untouchable: Mapping[str, str] = field(default_factory=dict)
    extra_bytes: int | None = None
    keep: Sequence[str] = ()
    keep_images: Sequence[str] = ()
    protected_images: Sequence[str] = ()
    dry_run: bool = False
    lock_timeout: float = 60.0


def pick_plan(name: str | None, environment: Environment) -> tuple[Plan, str]:
    """Return the plan and why it was chosen. Raises InvalidRequest for one that cannot be read."""
    if name is not None:
        return load(name), "--plan"
    chosen, why = choose_plan(environment)
    return load(chosen), why


def filesystems_that_matter(
    environment: Environment, store: str, places: Sequence[str] = ()
) -> list[Filesystem]:
    """Return the filesystems of ``places``; if there are none, of the workspace, the store and Docker's data."""
    if places:
        return of_places((place, os.fsencode(place)) for place in places)
    matter = [("workspace", environment.workspace), ("store", os.fsencode(store))]
    matter += [
        ("docker", os.fsencode(root))
        for root in environment.variables.get("DOCKER_ROOT", ())
        if os.path.isdir(root)
    ]
    return of_places((why, place) for why, place in matter if place)


def protection(environment: Environment, store: str, untouchable: Mapping[str, str]) -> Protection:
    """Return what this run must not touch."""
    homes = {os.path.realpath(environment.home), environment.home, *_homes()}
    result = Protection(frozenset(mount_points()), frozenset(homes - {b"/", b""}))
    result.add([environment.workspace], "the workspace", whole=False)
    result.add([environment.here], "the current directory", whole=False)
    result.add([store] if store else [], "the store", whole=True)
    result.add([state_directory()], "cachekit's own state", whole=True)
    result.add(interpreter_places(), "the Python that runs cachekit", whole=True)
    for place, what in untouchable.items():
        result.add([place], what, whole=True)
    return result


def _homes() -> set[bytes]:
    """Return the home directories of root and of ordinary users that are there."""
    homes = set()
    try:
        # Not the pwd module: with a directory service behind it, that asks the network.
        with open("/etc/passwd", "rb") as file:
            for line in file:
                fields = line.rstrip(b"\n").split(b":")
                if (
                    len(fields) == 7
                    and fields[2].isdigit()
                    and (int(fields[2]) >= _ORDINARY or fields[2] == b"0")
                ):
                    homes.add(os.path.realpath(fields[5]))
    except OSError:
        pass
    return {
        home for home in homes if os.path.isdir(home) and home.count(b"/") >= 1 and home != b"/nonexistent"
    }


def prepare(wish: Wish, environ: Mapping[str, str] | None = None) -> CleanRequest:
    """Return the request for ``execute.clean``. Raises InvalidRequest if plan, stage or goal cannot be used."""
    environ = without_keys() if environ is None else environ
    environment = look_around(environ)
    plan, why = pick_plan(wish.plan, environment)
    stage_plan = plan.stages.get(wish.stage)
    if stage_plan is None:
        raise InvalidRequest(
            f"the plan {plan.name} has no stage {wish.stage}",
            expected=", ".join(plan.stages),
            found=wish.stage,
            hint="choose another --stage or --plan",
        )
    goal = wish.goal
    if goal is None and wish.extra_bytes is None:
        goal = stage_plan.goal
        if goal is None:
            raise InvalidRequest(
                f"the plan {plan.name} has no goal for the stage {wish.stage}",
                hint="say one: --free 20G, --below 80%",
            )
    filesystems = filesystems_that_matter(environment, wish.store, wish.filesystems)
    if not filesystems:
        raise InvalidRequest(
            "none of the filesystems can be looked at", hint="name one with --filesystem DIR"
        )
    asked = {item.room.device: needs(goal, item.room) for item in filesystems} if goal is not None else {}
    said = words(goal) if goal is not None else ""
    if wish.extra_bytes is not None:
        place = nearest(os.fsencode(wish.store))
        pool = pool_of(place)
        if pool not in {item.pool for item in filesystems}:
            filesystems += of_places([("store", place)])
        device = next((item.room.device for item in filesystems if item.pool == pool), room(place).device)
        old = asked.get(device, Need())
        asked[device] = Need(max(old.available, wish.extra_bytes), old.inodes)
        said = " and ".join(filter(None, [said, f"{in_words(wish.extra_bytes)} free for the save"]))
    return CleanRequest(
        wish.stage,
        plan,
        why,
        said,
        environment,
        filesystems,
        asked,
        protection(environment, wish.store, wish.untouchable),
        environ,
        keep=wish.keep,
        keep_images=wish.keep_images,
        protected_images=frozenset(wish.protected_images),
        dry_run=wish.dry_run,
        lock_timeout=wish.lock_timeout,
        ballast_directories=[os.fsdecode(item.mount) for item in filesystems],
    )
