"""Which entry a restore uses, and which of its targets: reasons for everything that is passed over."""

from __future__ import annotations

from collections.abc import Iterator

from cachekit.archive.extract import check_contents
from cachekit.archive.names import Roots, match_targets
from cachekit.archive.read import open_archive
from cachekit.errors import CachekitError, Refused, TargetNotNamed, Unreadable, Unsupported, Untrusted
from cachekit.model import EntryIdentity, Key, Platform, RestoreStatus, Target
from cachekit.store.directory import DirectoryStore
from cachekit.system.workers import worker_count

__all__ = ["choose_targets", "confirmed", "elsewhere", "names_to_try", "status_of"]


def names_to_try(
    store: DirectoryStore, key: Key, restore_keys: list[str], platform: Platform, *, any_platform: bool
) -> Iterator[tuple[str, bool]]:
    """Yield (entry file name, is the exact key) of every candidate: the key itself, then each restore key's newest.

    The exact key is never a prefix; another platform's entry of it comes only with ``any_platform``.
    """
    seen = {EntryIdentity(key, platform).file_name}
    yield from ((name, True) for name in seen)
    wanted = None if any_platform else str(platform)
    if any_platform:
        for candidate in store.candidates(key.text, None):
            if candidate.seal is not None and candidate.seal.key == key.text and candidate.name not in seen:
                seen.add(candidate.name)
                yield candidate.name, True
    for prefix in restore_keys:
        # Damaged seals first: they are set aside and reported, not passed over in silence build after build.
        for candidate in sorted(store.candidates(prefix, wanted), key=lambda c: c.seal is not None):
            if candidate.name not in seen:
                seen.add(candidate.name)
                yield candidate.name, False


def elsewhere(
    store: DirectoryStore, key: Key, restore_keys: list[str], platform: Platform
) -> Iterator[tuple[str, Platform]]:
    """Yield (entry file name, platform) of entries that only their platform kept from being tried: why a miss."""
    seen: set[str] = set()
    for prefix in (key.text, *restore_keys):
        for candidate in store.candidates(prefix, None):
            seal = candidate.seal
            if seal is None or seal.platform == platform or candidate.name in seen:
                continue
            if prefix != key.text or seal.key == key.text:
                seen.add(candidate.name)
                yield candidate.name, seal.platform
                break


def status_of(error: CachekitError) -> RestoreStatus:
    """Return which verdict a failed candidate gets."""
    if isinstance(error, Unsupported):
        return "unsupported"
    return "unreadable" if isinstance(error, Unreadable) else "refused"


def confirmed(store: DirectoryStore, path: bytes, name: str, identity: tuple[int, int]) -> bool:
    """Look at a refused entry a second time, from a new descriptor; True if it is refused again.

    A flipped bit in memory, or a network filesystem's stale page, must not cost a good entry.
    """
    try:
        with open_archive(path, store.trust) as archive:
            if archive.identity != identity:
                return False
            store.check_filing(archive, name)
            check_contents(archive, worker_count())
    except (Unsupported, Untrusted):
        return False
    except Refused:
        return True
    except (FileNotFoundError, Unreadable):
        return False
    return False


def choose_targets(available: list[Target], paths: list[str], roots: Roots, *, every: bool) -> list[Target]:
    """Return the targets to write, in the entry's order.

    Only what the user named is ever written: the arguments, or without any the targets under the root. An entry with
    further targets is refused, listing them, unless ``every``. Raises TargetNotNamed.
    """
    if paths:
        named, unknown = match_targets(paths, roots, available)
        if unknown:
            raise TargetNotNamed(
                f"the entry does not hold {unknown[0]!r}",
                expected=unknown,
                found=[str(target) for target in available],
                hint="name one of those, as it was saved; relative paths are below the root (--root)",
            )
    else:
        named = {target for target in available if target.root == "root"}
    further = [str(target) for target in available if target not in named]
    if further and not every:
        raise TargetNotNamed(
            "the entry holds targets that were not named: " + ", ".join(further),
            expected=[str(target) for target in available if target in named] or "none of these",
            found=[str(target) for target in available],
            hint="name these paths too, or pass --all-targets if you trust whoever saved the entry",
        )
    return list(available) if every else [target for target in available if target in named]
