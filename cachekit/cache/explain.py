"""Explain: what a restore would use, and why not the rest. Decides by what restore decides by, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from cachekit.archive.check import check_archive
from cachekit.archive.extract import check_contents
from cachekit.archive.names import find_roots
from cachekit.archive.read import Archive
from cachekit.cache.restore import RestoreRequest
from cachekit.cache.select import ToTry, attempt, choose_targets, elsewhere, names_to_try, status_without
from cachekit.errors import InvalidRequest, StoreUntrusted, TargetNotNamed
from cachekit.model import EntryIdentity, Key, RestoreStatus, StoreAddress, safe_prefix
from cachekit.store.directory import DirectoryStore
from cachekit.system.clock import image_platform
from cachekit.system.workers import worker_count

__all__ = ["ExplainLine", "ExplainReport", "explain", "explain_scoped"]

_HITS = ("exact", "partial")


@dataclass(frozen=True, slots=True)
class ExplainLine:
    """One entry, or the lack of one: ``verdict`` taken, not-tried, absent, platform, wrong-kind, other-paths,
    quarantined, or why it is refused.

    ``wanted``: the key or restore key that led to it. ``created_ns`` 0 and ``key`` None: unknown.
    """

    namespace: str
    wanted: str
    exact: bool
    entry: str
    verdict: str
    reason: str
    key: str | None = None
    platform: str | None = None
    created_ns: int = 0
    archive_bytes: int = 0


@dataclass(slots=True)
class ExplainReport:
    """What a restore would report: ``status`` (None where it would end with ``error``), which entry; and why."""

    status: RestoreStatus | None
    key: str
    restore_keys: list[str]
    matched_key: str | None = None
    entry: str | None = None
    error: dict[str, object] | None = None
    lines: list[ExplainLine] = field(default_factory=list)


def explain(request: RestoreRequest, *, images: bool = False) -> ExplainReport:
    """Say what ``restore`` would do with this request as far as entries decide it; the target's state is not looked at.

    ``images``: say it of loading Docker images; paths and root mean nothing then, nor does what the engine has.

    Every candidate up to the one that would be used is read in full, as a restore reads it. (A restore in place reads
    fewer frames: it may still use an entry that is damaged where nothing is needed.) Nothing of the store changes.

    Raises InvalidRequest, StoreUnavailable.
    """
    key = Key(request.key)
    if images:
        request = replace(request, platform=image_platform())
    if "" in request.restore_keys:
        raise InvalidRequest("a restore key is empty: it would match every entry of the store")
    roots = find_roots(request.root)
    store = DirectoryStore(request.store)
    report = ExplainReport("miss", key.text, list(request.restore_keys))

    def use(archive: Archive) -> None:
        if not images:
            choose_targets(archive.seal.targets, request.paths, roots, every=request.all_targets)
        check_archive(archive)
        check_contents(archive, worker_count())

    verdicts: set[RestoreStatus] = set()
    taken: ExplainLine | None = None
    for found in names_to_try(
        store, key, request.restore_keys, request.platform, any_platform=request.any_platform
    ):
        if taken is not None or report.error is not None:
            line = _line(store, found, "not-tried", "")
            reason = "the restore ends before" if taken is None else _why_later(line, taken)
            report.lines.append(replace(line, reason=reason))
            continue
        try:
            verdict = attempt(
                store,
                found.name,
                request.platform,
                use,
                any_platform=request.any_platform,
                images=images,
                exact=found.exact,
            )[-1]
        except (TargetNotNamed, StoreUntrusted) as error:
            report.status, report.error = None, error.as_dict()
            report.lines.append(_line(store, found, error.id, error.message))
            continue
        if verdict.status == "used":
            taken = _line(store, found, "taken", "it is whole")
            report.lines.append(taken)
            report.matched_key, report.entry = taken.key, found.name
            report.status = "exact" if found.exact and taken.key == key.text else "partial"
            continue
        word = (
            verdict.word if verdict.word not in {"", "miss"} else "platform" if verdict.reason else "absent"
        )
        reason = verdict.reason or f"there is no entry of this key for {request.platform}"
        report.lines.append(_line(store, found, word, reason))
        if verdict.status != "miss":
            verdicts.add(verdict.status)
    if taken is None and report.error is None:
        report.status = status_without(verdicts)
    report.lines += _set_aside(store, request, key)
    if not request.any_platform:
        known = {line.entry for line in report.lines}
        for other in elsewhere(store, key, request.restore_keys, request.platform, images=images):
            if other.name not in known:
                exact = other.name == EntryIdentity(key, other.platform).file_name
                asked = ToTry(other.name, exact, key.text)
                report.lines.append(_line(store, asked, other.word, other.reason))
    return report


def explain_scoped(request: RestoreRequest, trusted: StoreAddress, *, images: bool = False) -> ExplainReport:
    """Say what ``restore_scoped`` would do: the request's store first, then ``trusted``. Raises as ``explain``."""
    first = explain(request, images=images)
    if first.status in _HITS or first.error is not None:
        return first
    second = explain(replace(request, store=trusted), images=images)
    second.lines = first.lines + second.lines
    if second.status is not None and second.status not in _HITS:
        assert first.status is not None
        second.status = status_without({first.status, second.status})
    return second


def _line(store: DirectoryStore, found: ToTry, verdict: str, reason: str) -> ExplainLine:
    line = ExplainLine(store.namespace.text, found.wanted, found.exact, found.name, verdict, reason)
    candidate = store.look(found.name)
    if candidate is None:
        return line
    if candidate.seal is None:
        return replace(line, archive_bytes=candidate.size)
    seal = candidate.seal
    return replace(
        line,
        key=seal.key,
        platform=str(seal.platform),
        created_ns=seal.created_ns,
        archive_bytes=candidate.size,
    )


def _why_later(line: ExplainLine, taken: ExplainLine) -> str:
    if line.wanted != taken.wanted:
        return f"{taken.wanted!r} comes before {line.wanted!r}"
    return "it is older than the one that is taken" if line.created_ns else "another one is taken"


def _set_aside(store: DirectoryStore, request: RestoreRequest, key: Key) -> Iterator[ExplainLine]:
    """Yield what lies in quarantine and was filed under one of the keys, by its file name."""
    exact = EntryIdentity(key, request.platform).file_name
    for name, size, _ in store.quarantined():
        entry = name.rpartition(".")[0]
        wanted = next(
            (prefix for prefix in request.restore_keys if entry.startswith(safe_prefix(prefix))), None
        )
        if entry == exact or wanted is not None:
            yield ExplainLine(
                store.namespace.text,
                key.text if entry == exact else wanted or "",
                entry == exact,
                entry,
                "quarantined",
                "it was refused before and set aside (cachekit ls --quarantine)",
                archive_bytes=size,
            )
