"""Which entry a restore uses, and which of its targets: reasons for everything that is passed over."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cachekit.archive.extract import check_contents
from cachekit.archive.names import Roots, match_targets
from cachekit.archive.read import Archive, open_archive
from cachekit.errors import (
    CachekitError,
    Refused,
    TargetNotNamed,
    Unreadable,
    Unsupported,
    Untrusted,
    WrongContent,
)
from cachekit.model import EntryIdentity, Key, Platform, RestoreStatus, Target
from cachekit.store.directory import DirectoryStore
from cachekit.system.steps import step
from cachekit.system.workers import worker_count

__all__ = [
    "Elsewhere",
    "ToTry",
    "Verdict",
    "attempt",
    "choose_targets",
    "confirmed",
    "elsewhere",
    "names_to_try",
    "status_of",
    "status_without",
]

#: Worst first: what a restore that used nothing reports.
_WORST: tuple[RestoreStatus, ...] = ("refused", "unreadable", "unsupported")


#: Why an entry is passed over that may well be whole, by whether images are asked for.
_OTHER_KIND = {
    False: "it holds Docker images, which cachekit image load loads",
    True: "it holds files, which cachekit restore restores",
}


class ToTry(NamedTuple):
    """An entry that may be used: its file name, whether it is the exact key's, and the key or restore key asked for."""

    name: str
    exact: bool
    wanted: str


class Elsewhere(NamedTuple):
    """An entry that was not even tried: its file name, platform, and why: ``word`` is platform or wrong-kind."""

    name: str
    platform: Platform
    word: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an entry: used, or why not. ``word`` says it more exactly than ``status``.

    ``refused``: what was refused is certain, and (device, inode) of it, None if it could not be opened.
    """

    status: RestoreStatus | Literal["used"]
    word: str = ""
    reason: str = ""
    error: CachekitError | None = None
    certain: bool = False
    inode: tuple[int, int] | None = None


def attempt(
    store: DirectoryStore,
    name: str,
    platform: Platform,
    use: Callable[[Archive], None],
    *,
    any_platform: bool,
    images: bool = False,
    exact: bool = True,
) -> list[Verdict]:
    """Use one entry, or find out why not; the last verdict is what counts. Changes nothing but by ``use``.

    ``images``: one with Docker images, else one with files; the other kind is a miss. ``exact``: its very key was asked
    for; one that a restore key found, and that holds other paths than those asked for, is a miss too: such keys are
    prefixes, and what else begins so may be the cache of something else.

    Two verdicts: what was read was wrong once, and otherwise the second time. What NFS takes away while it is read
    (ESTALE) is looked for once more. Raises what ``use`` raises, but for refusals and errors of reading.
    """
    path = store.entry_path(name)
    verdicts: list[Verdict] = []
    for turn in (1, 2):
        inode: tuple[int, int] | None = None
        try:
            with open_archive(path, store.trust) as archive:
                inode = archive.identity
                step("restore.opened")
                if store.denied(path):
                    return [
                        Verdict("refused", "refused", "it was refused before and lies on a read-only store")
                    ]
                store.check_filing(archive, name)
                if not any_platform and archive.seal.platform != platform:
                    return [Verdict("miss", "miss", f"it was made for {archive.seal.platform}")]
                if (archive.seal.images is not None) != images:
                    return [Verdict("miss", "wrong-kind", _OTHER_KIND[images])]
                use(archive)
                return [Verdict("used")]
        except FileNotFoundError:
            return [Verdict("miss")]
        except TargetNotNamed as error:
            if exact:
                raise
            return [Verdict("miss", "other-paths", error.message)]
        except (Unsupported, Untrusted, Unreadable) as error:
            if turn == 1 and error.fields.get("errno") == errno.ESTALE:
                continue  # replaced or removed by another host while it was read: what is there now may serve
            return [Verdict(status_of(error), error.id, error.message, error)]
        except WrongContent as error:
            return [Verdict("refused", error.id, error.message, error, certain=True, inode=inode)]
        except Refused as error:
            if inode is None or confirmed(store, path, name, inode):
                return [
                    *verdicts,
                    Verdict("refused", error.id, error.message, error, certain=True, inode=inode),
                ]
            if turn == 2:
                verdicts.append(
                    Verdict("unreadable", "unreadable", f"it reads differently each time: {error}")
                )
    return verdicts


def status_without(verdicts: set[RestoreStatus]) -> RestoreStatus:
    """Return the status of a restore that used nothing, from the verdicts on what it tried."""
    return next((status for status in _WORST if status in verdicts), "miss")


def names_to_try(
    store: DirectoryStore, key: Key, restore_keys: list[str], platform: Platform, *, any_platform: bool
) -> Iterator[ToTry]:
    """Yield every candidate: the key itself, then each restore key's newest.

    The exact key is never a prefix; another platform's entry of it comes only with ``any_platform``.
    """
    seen = {EntryIdentity(key, platform).file_name}
    yield from (ToTry(name, True, key.text) for name in seen)
    wanted = None if any_platform else str(platform)
    if any_platform:
        for candidate in store.candidates(key.text, None):
            if candidate.seal is not None and candidate.seal.key == key.text and candidate.name not in seen:
                seen.add(candidate.name)
                yield ToTry(candidate.name, True, key.text)
    for prefix in restore_keys:
        # Damaged seals first: they are set aside and reported, not passed over in silence build after build.
        for candidate in sorted(store.candidates(prefix, wanted), key=lambda c: c.seal is not None):
            if candidate.name not in seen:
                seen.add(candidate.name)
                yield ToTry(candidate.name, False, prefix)


def elsewhere(
    store: DirectoryStore, key: Key, restore_keys: list[str], platform: Platform, *, images: bool = False
) -> Iterator[Elsewhere]:
    """Yield entries that only their platform or kind kept from being tried, a few for each key: why a miss.

    ``images``: those with Docker images were asked for, else those with files.
    """
    seen: set[str] = set()
    for prefix in (key.text, *restore_keys):
        told: set[str] = set()
        for candidate in store.candidates(prefix, None):
            seal = candidate.seal
            if seal is None or seal.platform == platform or candidate.name in seen:
                continue
            if prefix == key.text and seal.key != key.text:
                continue
            if (seal.images is not None) != images:
                found = Elsewhere(candidate.name, seal.platform, "wrong-kind", _OTHER_KIND[images])
            else:
                reason = f"it was made for {seal.platform}, this is {platform} (--any-platform takes it)"
                found = Elsewhere(candidate.name, seal.platform, "platform", reason)
            if found.word not in told:
                told.add(found.word)
                seen.add(candidate.name)
                yield found


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
                hint="name one of those as saved (relative paths are below --root); other paths need another key",
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
