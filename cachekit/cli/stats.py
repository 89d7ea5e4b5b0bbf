"""``cachekit stats``."""

from __future__ import annotations

from typing import Any

import click

from cachekit.cache.statistics import StoreStats, store_stats
from cachekit.cli.options import common, json_option, whole_store_option
from cachekit.cli.render import count, plain, printable, size, to_json
from cachekit.errors import InvalidRequest
from cachekit.model import Namespace, StoreAddress, format_duration, parse_duration
from cachekit.telemetry.stats import CacheStats

__all__ = ["stats"]

#: So many caches are listed for people, those with most restores; --json has all.
_LISTED = 40
_HEAD = {
    "restores": 8,
    "exact": 6,
    "part.": 6,
    "miss": 6,
    "ref.": 6,
    "restored": 10,
    "in": 8,
    "saved": 10,
    "spared": 10,
}.items()


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except InvalidRequest as error:
        raise click.BadParameter(f"{error.message} (try 24h or 7d)") from None


@click.command(short_help="Show hit rates, bytes and seconds by cache.")
@click.option(
    "--since", "seconds", type=_duration, metavar="TIME", help="Only the last 24h, 7d ...  [default: all]"
)
@click.option(
    "--namespace", "namespaces", multiple=True, metavar="NS", help="Only this namespace; may be repeated."
)
@whole_store_option
@json_option
@common
def stats(seconds: float | None, namespaces: tuple[str, ...], store: StoreAddress, as_json: bool) -> int:
    """Show what the store's ledgers say: hits and misses by cache, bytes, seconds, sizes, lock waits, evictions.

    "Saved" is measured, never guessed: the time between a miss and the save of the same key in the same CI job is how
    long the key took to make (at most: whatever else the job did is in it); each exact hit of that key saved that,
    less its own seconds. Hits of keys for which it is not known are left out, and counted.

    \b
    Examples:
      cachekit stats --since 7d
      cachekit stats --json
    """
    chosen = [Namespace(name) for name in namespaces] or None
    found = store_stats(store.path, seconds=seconds, namespaces=chosen, open_to_all=store.open_to_all)
    if as_json:
        click.echo(to_json(_fields(found)))
    else:
        for line in _lines(found):
            click.echo(line)
    if found.damaged_lines or found.unreadable_files:
        lines, files = (
            count(found.damaged_lines, "damaged line"),
            count(found.unreadable_files, "unreadable file"),
        )
        click.echo(f"passed over: {lines}, {files}", err=True)
    return 0


def _rates(cache: CacheStats) -> dict[str, float]:
    counts = {"exact": cache.exact, "partial": cache.partial, "miss": cache.miss, "refused": cache.refused}
    return {f"{name}_rate": round(cache.rate(number), 4) for name, number in counts.items()}


def _fields(found: StoreStats) -> dict[str, Any]:
    result: dict[str, Any] = plain(found)
    for cache, fields in zip(found.stats.caches, result["stats"]["caches"], strict=True):
        fields.update(_rates(cache))
        if not cache.hits_measured:
            fields["seconds_saved"] = None  # unknown is not nothing
    return result


def _lines(found: StoreStats) -> list[str]:
    facts = found.stats
    if not facts.events:
        lines = [f"no events in the ledgers of {printable(found.store)}"]
    else:
        lines = [" ".join(f"{word:>{width}}" for word, width in _HEAD) + "  cache"]
        caches = sorted(facts.caches, key=lambda cache: -cache.restores)
        lines += [_cache_line(cache) for cache in caches[:_LISTED]]
        if len(caches) > _LISTED:
            lines.append(f"and {len(caches) - _LISTED} more (--json has all)")
        lines.append(
            f"evictions: {facts.evictions}, {size(facts.evicted_bytes)}"
            + "".join(
                f", {printable(name)} {number}" for name, number in sorted(facts.evictions_by_reason.items())
            )
        )
        lines.append(
            f"lock waits: {facts.lock_waits}, {format_duration(facts.lock_wait_seconds)}; "
            f"timeouts: {facts.lock_timeouts}"
        )
    lines += [
        f"{printable(one.namespace)}: {count(one.entries, 'entry', 'entries')}, {size(one.bytes)}; "
        f"quarantine {one.quarantined}, {size(one.quarantine_bytes)}"
        for one in found.sizes
    ]
    return lines


def _cache_line(cache: CacheStats) -> str:
    where = "" if cache.namespace == "default" else f" in {printable(cache.namespace)}"
    spared = format_duration(cache.seconds_saved) if cache.hits_measured else "unknown"
    shares = " ".join(
        f"{100 * cache.rate(number):>5.0f}%"
        for number in (cache.exact, cache.partial, cache.miss, cache.refused)
    )
    return (
        f"{cache.restores:>8} {shares} {size(cache.restored_bytes):>10} "
        f"{format_duration(cache.restore_seconds):>8} {size(cache.saved_bytes):>10} {spared:>10}  "
        f"{printable(cache.cache)}{where}"
    )
