"""``cachekit verify``."""

from __future__ import annotations

import click

from cachekit.cache.verify import DEPTHS, VerifyRequest
from cachekit.cache.verify import verify as verify_archives
from cachekit.cli.options import common, json_option, store_option, trust_option, with_trust
from cachekit.cli.progress import ProgressBar
from cachekit.cli.render import count, details, printable, size, to_json
from cachekit.errors import InvalidRequest
from cachekit.model import StoreAddress, VerifyReport
from cachekit.trust import TrustMode

__all__ = ["verify"]

#: Exit codes by verdict, worst first.
_CODES = {
    "damaged": 4,
    "forged": 4,
    "unsafe": 4,
    "unsupported": 4,
    "untrusted": 4,
    "unreadable": 9,
    "missing": 3,
}


@click.command(short_help="Check entries or archive files, as deep as you like.")
@click.argument("names", nargs=-1, metavar="[KEY|FILE]...")
@store_option
@click.option("--all", "every", is_flag=True, help="Check every entry of the store.")
@click.option(
    "--depth",
    type=click.Choice(list(DEPTHS)),
    default="contents",
    show_default=True,
    help="How far up the ladder: seal (milliseconds), index, frames (speed of sha256), contents (all).",
)
@trust_option
@json_option
@common
def verify(
    names: tuple[str, ...],
    store: StoreAddress,
    every: bool,
    depth: str,
    trust: TrustMode | None,
    as_json: bool,
) -> int:
    """Check that entries are whole. An archive file is checked without its store. Nothing is changed.

    A name that is a key of the store means that entry, else it means a file. Exit 0 if all are whole (with --trust
    hmac: and signed with one of your keys), 4 if one is not, 9 if one cannot be read, 3 if one is missing.

    \b
    Examples:
      cachekit verify --all --depth frames
      cachekit verify downloaded.tar.zst
    """
    if not names and not every:
        raise InvalidRequest("nothing to verify was given", hint="name keys or files, or pass --all")
    progress = ProgressBar("verifying")
    address = with_trust(store, trust)
    request = VerifyRequest(list(names), address, every=every, depth=depth, progress=progress)  # type: ignore[arg-type]
    reports = []
    for report in verify_archives(request):
        progress.close()
        reports.append(report)
        if not as_json:
            for line in _lines(report):
                click.echo(line)
    bad = [report for report in reports if not report.ok]
    if as_json:
        click.echo(
            to_json(
                {
                    "ok": not bad,
                    "depth": depth,
                    "archives": [{n: getattr(r, n) for n in VerifyReport.__slots__} for r in reports],
                }
            )
        )
    if reports:
        click.echo(f"{len(reports) - len(bad)} of {len(reports)} whole (depth {depth})", err=True)
    else:
        click.echo("nothing to verify: the store has no entry", err=True)
    codes = {_CODES[report.verdict] for report in bad}
    return next((code for code in (4, 9, 3) if code in codes), 0)


def _lines(report: VerifyReport) -> list[str]:
    name = printable(report.path if report.key is None else report.key)
    if report.ok:
        files = count(report.files, "file")
        signed = f", signed with key {report.key_id}" if report.signature == "valid" else ""
        return [f"ok        {name}: {files}, {size(report.content_bytes)}, {report.seconds:.2f} s{signed}"]
    facts = {"path": report.path or None, **(report.error or {})}
    head = f"{report.verdict:<9} {name}: {printable(facts.get('message', ''))}"
    return [head, *details(facts, " " * 10, but=head)]
