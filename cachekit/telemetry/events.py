"""What is written down of a save, a restore, an eviction, a wait: reports to plain values, and nothing secret.

An event holds what the report says, the host, the version and the CI system's number of the job. No environment, no
paths, no file names of the tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cachekit._version import __version__
from cachekit.errors import CachekitError
from cachekit.model import Key, RestoreReport, SaveReport
from cachekit.system.clock import host_name

__all__ = ["Event", "evicted", "failed", "job_of", "lock_waited", "restored", "saved"]

Event = dict[str, Any]

#: What CI systems call the job that runs: GitHub, GitLab, Buildkite, CircleCI, Jenkins.
_JOBS = ("GITHUB_RUN_ID", "CI_JOB_ID", "BUILDKITE_JOB_ID", "CIRCLE_WORKFLOW_JOB_ID", "BUILD_TAG")
#: The attempt of a GitHub run and its job: a run has several of both.
_PARTS = ("GITHUB_RUN_ATTEMPT", "GITHUB_JOB")


def job_of(environ: Mapping[str, str]) -> str | None:
    """Return the CI system's name for this job, None where it is not known; at most 100 characters."""
    for name in _JOBS:
        if environ.get(name):
            parts = [environ[name]]
            if name == _JOBS[0]:
                parts += [environ[part] for part in _PARTS if environ.get(part)]
            return ".".join(parts)[:100]
    return None


def _event(kind: str, namespace: str, job: str | None, **facts: Any) -> Event:
    event: Event = {"v": 1, "event": kind, "namespace": namespace}
    event.update({name: value for name, value in facts.items() if value is not None})
    event.update(host=host_name()[:64], version=__version__)
    if job is not None:
        event["job"] = job
    return event


def _cache(key: str, cache: str | None) -> str:
    return cache or Key(key).family


def saved(report: SaveReport, namespace: str, *, cache: str | None = None, job: str | None = None) -> Event:
    """Return the event of a save. ``cache``: its name or family, if it is not that of the key."""
    return _event(
        "save",
        namespace,
        job,
        status=report.status,
        key=report.key,
        cache=_cache(report.key, cache),
        platform=report.platform,
        bytes=report.archive_bytes,
        content=report.content_bytes,
        files=report.files,
        seconds=round(report.seconds, 3),
        phases=_rounded(report.phases),
    )


def restored(
    report: RestoreReport,
    namespace: str,
    platform: str,
    *,
    cache: str | None = None,
    job: str | None = None,
) -> Iterator[Event]:
    """Yield the event of a restore, a hit or a miss, and one for each entry that it refused."""
    name = _cache(report.key, cache)
    for line in report.tried:
        if line.get("verdict") != "miss":
            yield _event(
                "refusal",
                namespace,
                job,
                status=str(line.get("verdict")),
                entry=str(line.get("entry"))[:120],
                key=report.key,
                cache=name,
                platform=platform,
            )
    yield _event(
        "restore",
        namespace,
        job,
        status=report.status,
        key=report.key,
        matched=report.matched_key if report.matched_key != report.key else None,
        cache=name,
        platform=platform,
        bytes=report.archive_bytes,
        content=report.content_bytes,
        files=report.files,
        seconds=round(report.seconds, 3),
        phases=_rounded(report.phases),
    )


def failed(
    kind: str,
    key: str,
    error: CachekitError,
    namespace: str,
    *,
    cache: str | None = None,
    job: str | None = None,
) -> Event:
    """Return the event of a save or restore that ended with an error: its id and exit code, not its words."""
    return _event(
        kind,
        namespace,
        job,
        status="error",
        error=error.id,
        exit_code=error.exit_code,
        key=key,
        cache=_cache(key, cache),
    )


def evicted(
    namespace: str, entry: str, key: str | None, allocated: int, reason: str, *, job: str | None = None
) -> Event:
    """Return the event of an entry that a prune removed."""
    cache = None if key is None else Key(key).family
    return _event(
        "eviction", namespace, job, status=reason, entry=entry[:120], key=key, cache=cache, bytes=allocated
    )


def lock_waited(namespace: str, name: str, seconds: float, outcome: str, *, job: str | None = None) -> Event:
    """Return the event of a wait for a lock; ``outcome`` is got or timeout."""
    return _event("lock-wait", namespace, job, status=outcome, lock=name[:120], seconds=round(seconds, 3))


def _rounded(phases: Mapping[str, float]) -> dict[str, float]:
    return {name: round(seconds, 3) for name, seconds in phases.items()}
