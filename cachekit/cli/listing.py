"""``cachekit ls`` and ``cachekit show``."""

from __future__ import annotations

import datetime as dt
import os
import stat
from typing import Any

import click

from cachekit.cache.listing import EntryLine, Member, find_archive, list_entries, manifest, members
from cachekit.cli.options import common, json_option, parse_text, store_option, trust_of, with_trust
from cachekit.cli.render import count, printable, size, to_json
from cachekit.model import StoreAddress
from cachekit.store.directory import DirectoryStore

__all__ = ["ls", "show"]


def _when(nanoseconds: int) -> str:
    moment = dt.datetime.fromtimestamp(nanoseconds // 1_000_000_000, tz=dt.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")


@click.command(short_help="List the entries of the store.")
@click.argument("prefix", default="", type=parse_text)
@store_option
@click.option("--quarantine", is_flag=True, help="List what was refused and set aside instead.")
@json_option
@common
def ls(prefix: str, store: StoreAddress, quarantine: bool, as_json: bool) -> int:
    """List entries, newest first: those whose key begins with PREFIX.

    \b
    Examples:
      cachekit ls
      cachekit ls npm-
      cachekit ls --quarantine
    """
    if quarantine:
        found = [row for row in DirectoryStore(store).quarantined() if row[0].startswith(prefix)]
        if as_json:
            click.echo(to_json([{"file": name, "bytes": n, "set_aside_ns": when} for name, n, when in found]))
            return 0
        for name, length, when in found:
            click.echo(f"{_when(when)}  {size(length):>10}  {printable(name)}")
        click.echo(f"{len(found)} in quarantine; kept for 7 days, at most 2 of a family", err=True)
        return 0
    entries = list_entries(with_trust(store, "none"), prefix)
    if as_json:
        click.echo(to_json(entries))
        return 0
    for entry in entries:
        click.echo(_line(entry))
    place = DirectoryStore(store).path
    if not entries and not os.path.isdir(place):
        click.echo(f"there is no store at {printable(place)} (yet: the first save makes it)", err=True)
        return 0
    # One file may serve several keys (save --skip-unchanged).
    files = {entry.identity or entry.entry: entry.archive_bytes for entry in entries}
    total = size(sum(files.values()))
    click.echo(f"{count(len(entries), 'entry', 'entries')}, {total} in {printable(place)}", err=True)
    return 0


def _line(entry: EntryLine) -> str:
    if entry.problem is not None:
        file = printable(entry.entry)
        return f"{'refused':<20}  {size(entry.archive_bytes):>10}  {file}: {printable(entry.problem)}"
    signed = {
        "valid": "  signed",
        "unknown-key": "  signed by an unknown key",
        "elsewhere": "  signed for elsewhere",
    }
    used = f", used {_when(entry.used_ns)}" if entry.used_ns is not None else ""
    facts = f"{printable(entry.platform)}{used}{', pinned' if entry.pinned else ''}"
    if entry.images is None:
        what = f"{entry.files:>7} files"
    else:
        what = f"{len(entry.images):>7} {'image' if len(entry.images) == 1 else 'images'}"
    return (
        f"{_when(entry.created_ns)}  {size(entry.archive_bytes):>10}  {what}  "
        f"{printable(entry.key)}  ({facts}){signed.get(entry.signature or '', '')}"
    )


@click.command(short_help="Show what an entry holds.")
@click.argument("name", metavar="KEY|FILE")
@store_option
@click.option("--manifest", "whole", is_flag=True, help="Print the manifest (the sealed JSON).")
@click.option("--files", is_flag=True, help="List the members.")
@json_option
@common
def show(name: str, store: StoreAddress, whole: bool, files: bool, as_json: bool) -> int:
    """Show an entry's manifest in short, or its files, from seal and index alone.

    A name that is a key of the store means that entry, else it means a file.

    \b
    Examples:
      cachekit show npm-4f1c
      cachekit show --files downloaded.tar.zst
    """
    trust = trust_of("none")
    path = find_archive(name, store)
    if files:
        if as_json:
            click.echo(to_json([{n: getattr(m, n) for n in Member.__slots__} for m in members(path, trust)]))
            return 0
        for member in members(path, trust):
            click.echo(_member(member))
        return 0
    data = manifest(path, trust)
    if as_json or whole:
        click.echo(to_json(data))
        return 0
    rows = _summary(data, path)
    if path.startswith(DirectoryStore(store).entry_path("")) and data["key"] != parse_text(name):
        rows.insert(1, ("also serves", parse_text(name)))  # by an alias: save --skip-unchanged
    for label, value in rows:
        click.echo(f"{label:<12} {printable(value)}")
    return 0


_COUNTED = {
    "files": ("file",),
    "directories": ("directory", "directories"),
    "symlinks": ("symlink",),
    "hardlinks": ("hard link",),
}


def _summary(data: dict[str, Any], path: bytes) -> list[tuple[str, object]]:
    platform = data["platform"]
    targets = ", ".join(
        target["path"].encode("latin-1").decode("utf-8", "backslashreplace")
        + ("" if target["root"] == "root" else f" (in {target['root']})")
        for target in data["targets"]
    )
    counts = ", ".join(
        count(data["counts"][kind], *words) for kind, words in _COUNTED.items() if data["counts"][kind]
    )
    return [
        ("key", data["key"]),
        ("family", data["family"]),
        ("platform", f"{platform['os']}-{platform['arch']}-{platform['libc']}"),
        ("created", f"{_when(data['created_ns'])} on {data['host']}"),
        *([("targets", targets)] if "images" not in data else map(_image, data["images"])),
        ("members", counts),
        ("content", size(data["content_bytes"])),
        ("archive", f"{size(data['archive_bytes'])} in {data['frames']} frames, level {data['level']}"),
        ("identity", data["identity"]),
        ("signature", data["signature"]),
        ("made by", ", ".join(f"{name} {version}" for name, version in sorted(data["versions"].items()))),
        ("file", path),
    ]


def _image(image: dict[str, Any]) -> tuple[str, object]:
    """Return a line about a Docker image, with the length of its layers as they lie in the archive."""
    names = ", ".join(image["names"]) or "(no name)"
    layers = image["layers"]
    total = size(sum(length for _, _, length, _ in layers))
    ids = ", ".join(identity.removeprefix("sha256:")[:12] for identity in image["ids"])
    return "image", f"{names} ({image['platform']}, {count(len(layers), 'layer')}, {total}; id {ids})"


_KINDS = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK, "hardlink": stat.S_IFREG}


def _member(member: Member) -> str:
    link = (
        ""
        if member.link is None
        else f" {'->' if member.kind == 'symlink' else '='} {printable(member.link)}"
    )
    mode = stat.filemode(_KINDS[member.kind] | member.mode)
    return f"{mode} {member.size:>12} {_when(member.mtime_ns)} {printable(member.path)}{link}"
