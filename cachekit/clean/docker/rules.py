"""The cleaner's Docker rules: what an engine would remove, and removing it one by one until enough is free.

An image that a container of any state references, a kept or protected one and a named volume are never removed: the
choice leaves them out (choice), it is made anew for each object right before its removal, and no request to the
engine carries force, so that the engine's own check is the last one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from cachekit.clean.docker.cache import remove_build_cache, survey_build_cache
from cachekit.clean.docker.choice import choose_containers, choose_volumes, container_names
from cachekit.clean.docker.images import remove_image, survey_images
from cachekit.clean.docker.state import DockerSurroundings, GoneError, StaysError, Task
from cachekit.clean.model import Docker, Done, Found, Rule, Unit
from cachekit.engine.client import EngineRefused
from cachekit.engine.outcome import EngineUnavailable
from cachekit.model import format_size

__all__ = ["DockerSurroundings", "carry_out", "survey"]

_HTTP_GONE = 404


def survey(rule: Rule, surroundings: DockerSurroundings) -> Found:
    """Return what the rule would remove, in order, and what stays and why. Changes nothing in the engine."""
    target = rule.target
    assert isinstance(target, Docker)
    try:
        engine = surroundings.engine(target.timeout)
        found = _SURVEYS[target.action](Task(engine, target, surroundings))
        found.paths = [os.fsencode(root) for root in engine.info().roots if os.path.isdir(root)]
    except EngineUnavailable as error:
        surroundings.give_up(error)
        return Found("not-applicable" if error.outcome == "no-engine" else "blocked", error.reason)
    except EngineRefused as error:
        missing = error.status in {_HTTP_GONE, 501}
        return Found("not-applicable" if missing else "blocked", f"the engine: {error.message}")
    _narrow(rule, found)
    if found.state == "ready" and not found.units:
        found.state = "stale"
    return found


def carry_out(
    rule: Rule,
    found: Found,
    surroundings: DockerSurroundings,
    enough: Callable[[], bool],
    step: Callable[[Unit], None] | None = None,
) -> Done:
    """Remove the units in order until ``enough()``, which is asked after each; ``step`` is told each one before.

    A unit that came into use, or that the engine refuses to remove, is left with the reason. If the engine does not
    answer any more, that is the problem told, and the rest is not tried. A dry run removes nothing.
    """
    target = rule.target
    assert isinstance(target, Docker)
    done = Done()
    if surroundings.dry_run:
        return done
    begin = time.monotonic()
    remove = _REMOVALS[target.action]
    known = True
    try:
        task = Task(surroundings.engine(target.timeout), target, surroundings)
        for unit in found.units:
            if step is not None:
                step(unit)
            try:
                size = remove(task, unit)
            except StaysError as reason:
                done.left.append((unit.name, str(reason)))
                continue
            except GoneError:
                continue
            except EngineRefused as error:
                if error.status != _HTTP_GONE:
                    done.left.append((unit.name, error.message))
                continue
            if size is None:
                known = False
            done.items += 1
            done.size = (done.size or 0) + (size or 0)
            if enough():
                break
    except EngineUnavailable as error:
        done.problem = error.reason
    if not known:
        done.size = None
    done.seconds = time.monotonic() - begin
    return done


def _narrow(rule: Rule, found: Found) -> None:
    """Apply the conditions on size and number that every rule may have."""
    larger, keep = rule.when.larger, rule.when.keep
    if larger is not None:
        for unit in found.units:
            if unit.size is None or unit.size <= larger:
                told = "its size is unknown" if unit.size is None else f"only {format_size(unit.size)}"
                found.left.append((unit.name, told))
        found.units = [unit for unit in found.units if unit.size is not None and unit.size > larger]
    if keep:
        found.left += [(unit.name, f"among the newest {keep}") for unit in found.units[-keep:]]
        found.units = found.units[:-keep]


# Containers


def _survey_containers(task: Task) -> Found:
    rows = []
    for row in task.engine.containers():
        inspected = row if row.state in {"running", "paused"} else task.engine.container(row)
        if inspected is not None:
            rows.append(inspected)
    return choose_containers(rows, older=task.target.older, now_ns=task.around.now_ns)


def _remove_container(task: Task, unit: Unit) -> int | None:
    rows = [row for row in task.engine.containers() if row.id == unit.handle]
    inspected = task.engine.container(rows[0]) if rows else None
    if inspected is None:
        raise GoneError
    again = choose_containers([inspected], older=task.target.older, now_ns=task.around.now_ns)
    if again.left:
        raise StaysError(again.left[0][1])
    task.engine.remove_container(unit.handle)
    return None


# Volumes


def _survey_volumes(task: Task) -> Found:
    volumes = task.engine.volumes()
    unused = {volume.name for volume in task.engine.volumes(unused=True)}
    return choose_volumes(
        volumes, unused, task.engine.containers(), older=task.target.older, now_ns=task.around.now_ns
    )


def _remove_volume(task: Task, unit: Unit) -> int | None:
    users = [container for container in task.engine.containers() if unit.handle in container.volumes]
    if users:
        raise StaysError(f"used by container {container_names(users)}")
    task.engine.remove_volume(unit.handle)
    return None


_SURVEYS: dict[str, Callable[[Task], Found]] = {
    "containers": _survey_containers,
    "dangling-images": survey_images,
    "images": survey_images,
    "build-cache": survey_build_cache,
    "volumes": _survey_volumes,
}
#: Each returns the bytes that went, None if unknown; raises StaysError, GoneError, EngineRefused (404 if it is gone).
_REMOVALS: dict[str, Callable[[Task, Unit], int | None]] = {
    "containers": _remove_container,
    "dangling-images": remove_image,
    "images": remove_image,
    "build-cache": remove_build_cache,
    "volumes": _remove_volume,
}
