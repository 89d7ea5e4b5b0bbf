"""Images: least recently used first, with all their names or not at all, and never one that a container references."""

from __future__ import annotations

from dataclasses import replace

from cachekit.clean.docker.choice import choose_images, image_name, references, why_image_stays
from cachekit.clean.docker.ledger import load, observe, store
from cachekit.clean.docker.state import DockerSurroundings, GoneError, StaysError, Task
from cachekit.clean.model import Found, Unit
from cachekit.engine.client import Engine, EngineRefused
from cachekit.engine.objects import Container, Image
from cachekit.engine.outcome import EngineUnavailable

__all__ = ["remove_image", "survey_images"]


def survey_images(task: Task) -> Found:
    """Look at the images, and note in the ledger what is in use."""
    engine, target, around = task.engine, task.target, task.around
    heads = {image.id for image in engine.images(measured=False)}
    images = engine.images(intermediate=True)
    # Containers after images: one that is made meanwhile is seen.
    containers = _containers(engine, images, around)
    used_by = references(images, containers)
    identity = engine.info().identity
    ledger = load(around.state, identity)
    try:
        since = ledger.observed_ns
        events = engine.events(since, around.now_ns) if since else []
    except (EngineUnavailable, EngineRefused):
        events = []  # an engine that does not tell: what runs now is known all the same
    names = {image.id: (*image.tags, *image.digests, *image.manifests) for image in images}
    seen = observe(ledger, names, used_by, events, around.now_ns)
    if not around.dry_run:
        around.ledger_problem = store(around.state, identity, seen)
    around.images = {image.id: image for image in images}
    return choose_images(
        images,
        containers,
        seen,
        older=target.older,
        now_ns=around.now_ns,
        nameless=target.action == "dangling-images",
        keep=around.keep_images,
        protected=around.protected_images,
        steps=names.keys() - heads,
    )


def _containers(engine: Engine, images: list[Image], around: DockerSurroundings) -> list[Container]:
    """Return all containers; where none of the images is called as a container says, the engine tells which it is."""
    containers = engine.containers()
    used_by = references(images, containers)
    matched = {container.id for users in used_by.values() for container in users}
    resolved = around.resolved
    rows = []
    for container in containers:
        if container.id not in matched:
            names = list(filter(None, (container.image, container.image_name)))
            for name in names:
                if name not in resolved:
                    resolved[name] = engine.image_id(name)
            container = replace(
                container, references=container.references + tuple(resolved[name] for name in names)
            )
        rows.append(container)
    return rows


def remove_image(task: Task, unit: Unit) -> int | None:
    """Remove one image with its names; return the bytes that no other image shares, None if unknown.

    Raises StaysError if it may not go any more, GoneError.
    """
    engine, target, around = task.engine, task.target, task.around
    known = around.images
    row = known.get(unit.handle)
    fresh = engine.image(row) if row is not None else None
    if row is None or fresh is None:
        raise GoneError
    for child in known.values():
        if child.parent == row.id:
            raise StaysError(f"{image_name(child)} was made of it")
    keep, protected = around.keep_images, around.protected_images
    users = references([fresh], _containers(engine, list(known.values()), around)).get(fresh.id, [])
    reason = why_image_stays(fresh, users, keep, protected)
    if not reason and target.action == "dangling-images" and fresh.tags:
        reason = "has a name now"
    if reason:
        raise StaysError(reason)
    above, parents = known.get(row.parent), []
    while above is not None and not above.tags and above not in parents:
        parents.append(above)
        above = known.get(above.parent)
    prune = not any(why_image_stays(parent, [], keep, protected) for parent in parents)
    _remove_with_names(engine, fresh, parents=prune)
    del known[row.id]
    if prune:
        _forget_steps(known, parents)
    return row.own


def _forget_steps(known: dict[str, Image], parents: list[Image]) -> None:
    """Forget the nameless images that the engine removes together with the last one made of them."""
    for parent in parents:
        if any(image.parent == parent.id for image in known.values()):
            return
        known.pop(parent.id, None)


def _remove_with_names(engine: Engine, image: Image, *, parents: bool) -> None:
    """Remove an image with all its names, or none of them.

    By its id the engine removes only an image with one name, but then it checks for containers and for images made of
    it before it takes the name. So further names go first, and come back if the rest is refused.
    """
    names = list(image.tags)
    repositories = {name.rpartition(":")[0] for name in names}
    names += [name for name in image.digests if name.partition("@")[0] not in repositories]
    untagged: list[str] = []
    try:
        for name in names[:-1]:
            engine.remove_image(name, parents=False)
            untagged.append(name)
        engine.remove_image(image.id, parents=parents)
    except EngineRefused:
        for name in untagged:
            # Somebody may have given the name to another image meanwhile.
            if "@" not in name and not engine.image_id(name):
                engine.tag_image(image.id, name)
        raise
