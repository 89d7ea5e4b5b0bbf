"""Verify: climb the ladder as far as asked, for entries of a store or for lone archive files. Changes nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from cachekit.archive.check import check_archive
from cachekit.archive.extract import Progress, check_contents, check_frames
from cachekit.archive.read import Archive, open_archive
from cachekit.errors import CachekitError, InvalidRequest, Refused, Unreadable
from cachekit.model import EntryIdentity, Key, StoreAddress, VerifyReport
from cachekit.store.directory import Candidate, DirectoryStore
from cachekit.store.layout import ENTRY_NAME
from cachekit.system.clock import image_platform, this_platform
from cachekit.system.workers import worker_count

__all__ = ["DEPTHS", "VerifyRequest", "entries_of", "is_file_argument", "is_path", "verify"]

Depth = Literal["seal", "index", "frames", "contents"]
DEPTHS: tuple[Depth, ...] = ("seal", "index", "frames", "contents")


@dataclass(slots=True)
class VerifyRequest:
    """What to verify: keys and files as given, or ``every`` entry of the store."""

    names: list[str]
    store: StoreAddress | str
    every: bool = False
    depth: Depth = "contents"
    progress: Progress | None = field(default=None)


def is_file_argument(name: str) -> bool:
    """Return True if an argument that is no key of the store means a file: something of that name is there.

    With a slash it may be anything (a directory or dangling link is then reported as such), else a file.
    """
    return (os.path.sep in name and os.path.lexists(name)) or os.path.isfile(name)


def is_path(name: str) -> bool:
    """Return True if an argument is written as a path, and so means a file even where a key is called the same."""
    return name.startswith(("/", "./", "../")) and os.path.lexists(name)


def verify(request: VerifyRequest) -> Iterator[VerifyReport]:
    """Yield a verdict for each archive, as it is reached. Raises StoreUnavailable, InvalidRequest."""
    store = DirectoryStore(request.store)
    if request.every:
        for candidate in store.entries():
            yield _verify(store, candidate.path, request, candidate.name)
    for name in request.names:
        found = False
        if not is_path(name):
            for candidate in entries_of(store, name):
                found = True
                yield _verify(store, candidate.path, request, candidate.name, name)
        if not found and is_file_argument(name):
            own = os.path.basename(name)
            filed_as = own if ENTRY_NAME.fullmatch(own) else None
            yield _verify(store, os.fsencode(name), request, filed_as, lone=True)
        elif not found:
            message = "the store has no entry with this key, and there is no such file"
            yield VerifyReport(
                "",
                name,
                ok=False,
                depth=request.depth,
                verdict="missing",
                error={
                    "id": "miss",
                    "message": message,
                    "exit_code": 3,
                    "hint": "cachekit ls shows the keys",
                },
            )


def entries_of(store: DirectoryStore, name: str) -> Iterator[Candidate]:
    """Yield the entries whose key is ``name``, of any platform, also those with a damaged seal.

    Raises StoreUnavailable, and InvalidRequest for what is neither a key nor the name of a file.
    """
    try:
        # Keys are UTF-8 whatever the locale is in which the argument was read.
        key = Key(os.fsencode(name).decode("utf-8", "surrogateescape"))
    except InvalidRequest:
        if is_file_argument(name):
            return
        raise
    for candidate in store.entries(key.text):
        # A damaged seal gives no key; its file name tells which key it was filed under.
        if candidate.seal.key == key.text if candidate.seal else _filed_under(candidate.name, key):
            yield candidate


def _filed_under(name: str, key: Key) -> bool:
    return name in {
        EntryIdentity(key, platform).file_name for platform in (this_platform(), image_platform())
    }


def _verify(
    store: DirectoryStore,
    path: bytes,
    request: VerifyRequest,
    filed_as: str | None,
    key: str | None = None,
    *,
    lone: bool = False,
) -> VerifyReport:
    begin = time.perf_counter()
    report = VerifyReport(os.fsdecode(path), key, ok=False, depth=request.depth, verdict="ok")
    try:
        # A lone file has no namespace: whichever it was signed for is right.
        trust = store.trust.within(None) if lone else store.trust
        with open_archive(path, trust, follow=lone) as archive:
            report.archive_bytes = archive.size
            if filed_as is not None:  # first: an alias gives the entry another key
                store.check_filing(archive, filed_as)
            seal = archive.seal
            report.key, report.identity = seal.key, seal.identity
            report.signature, report.key_id = archive.signed.standing, archive.signed.key_id
            report.content_bytes = seal.content_bytes
            report.files = seal.counts.get("files", 0) + seal.counts.get("hardlinks", 0)
            climb(archive, request.depth, request.progress)
        report.ok = True
    except FileNotFoundError:
        report.verdict = "missing"
        report.error = {"id": "miss", "message": "there is no such file", "exit_code": 3}
    except (Refused, Unreadable) as error:
        report.verdict = error.id  # type: ignore[assignment]
        report.error = _describe(error)
    report.seconds = time.perf_counter() - begin
    return report


def _describe(error: CachekitError) -> dict[str, object]:
    return error.as_dict()


def climb(archive: Archive, depth: Depth, progress: Progress | None = None) -> None:
    """Check an archive up to and including ``depth``. Raises Refused from the first rung that fails, Unreadable."""
    level = DEPTHS.index(depth)
    _ = archive.seal
    if level >= DEPTHS.index("index"):
        check_archive(archive)
    if depth == "frames":
        check_frames(archive, worker_count(), progress)
    elif depth == "contents":
        check_contents(archive, worker_count(), progress)
