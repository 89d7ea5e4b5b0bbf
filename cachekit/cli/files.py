"""``cachekit seal``, ``check`` and ``guard``: files that were not saved with cachekit."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Callable
from contextlib import ExitStack
from typing import NoReturn

import click

from cachekit.cli.options import common, json_option, trust_of, trust_option
from cachekit.cli.outputs import error_told
from cachekit.cli.progress import ProgressBar
from cachekit.cli.render import count, printable, size, to_json
from cachekit.cli.running import Running
from cachekit.errors import (
    CachekitError,
    NotExecutable,
    NotFound,
    NotRun,
    Refused,
    RefusedToRun,
    SourceOrTargetRefused,
    Unavailable,
)
from cachekit.guard.files import FileReport, check_file, checked_file, seal_file
from cachekit.guard.inspect import Progress
from cachekit.guard.manifest import SUFFIX
from cachekit.trust import TrustMode

__all__ = ["check", "guard", "seal"]

#: Whether it can be read is said by the command, with its own exit code, not by click with that of wrong usage.
_PATH = click.Path(readable=False)
_files = click.argument("paths", nargs=-1, required=True, metavar="FILE...", type=_PATH)


@click.command(short_help="Write a manifest beside files, so that they can be checked.")
@_files
@trust_option
@json_option
@common
def seal(paths: tuple[str, ...], trust: TrustMode | None, as_json: bool) -> int:
    """Write FILE.cachekit.json beside each FILE: its size, sha256 and what is in it.

    A file that is cut, or lacks a part, is not sealed (exit 4): tar, gzip, zstd, xz, bzip2, zip, and archives of images
    as docker save and Podman write them. Other files are sealed by size and sha256. With a key in
    $CACHEKIT_HMAC_KEY the manifest is signed. A manifest that is named stands for its file.

    \b
    Examples:
      docker save -o images.tar app:ci && cachekit seal images.tar
      cachekit seal dist/*.tar.gz
    """
    policy = trust_of(trust)
    return _each(
        paths, lambda path, progress: seal_file(path, trust=policy, progress=progress), "sealing", as_json
    )


@click.command(short_help="Check files: by their manifests, or for what their format promises.")
@_files
@click.option("--require-seal", is_flag=True, help="Refuse a file without a manifest.")
@click.option("--deep", is_flag=True, help="With a manifest, too, check what the format promises.")
@trust_option
@json_option
@common
def check(
    paths: tuple[str, ...], require_seal: bool, deep: bool, trust: TrustMode | None, as_json: bool
) -> int:
    """Check each FILE, and say of one that is not whole where it ends and what is missing (exit 4).

    With a manifest (cachekit seal) size and sha256 must be the same. Without one all that the format itself promises:
    checksums, and the end that it must have; of images every layer and config. A file of no format that promises
    anything is refused unless it is sealed. A manifest that is named stands for its file.

    \b
    Examples:
      cachekit check images.tar && docker load -i images.tar
      cachekit check --require-seal cache/*.tar.zst
    """
    policy = trust_of(trust)

    def work(path: str, progress: Progress) -> FileReport:
        return check_file(path, trust=policy, require_seal=require_seal, deep=deep, progress=progress)

    return _each(paths, work, "checking", as_json)


def _each(
    paths: tuple[str, ...], work: Callable[[str, Progress], FileReport], verb: str, as_json: bool
) -> int:
    """Do the work for each file, whatever becomes of the others; return the highest exit code."""
    reports: list[FileReport] = []
    worst = 0
    for path in dict.fromkeys(map(_file_of, paths)):
        bar = ProgressBar(verb)
        try:
            report = work(path, lambda done, total, bar=bar: bar(done, total, 0))  # type: ignore[misc]
        except (Refused, SourceOrTargetRefused, Unavailable) as error:
            bar.close()
            worst = max(worst, error_told(printable(path), error))
            report = FileReport(path, error.id, size=_size_of(path), error=error.as_dict())
        else:
            bar.close()
            click.echo(_line(report), err=True)
        reports.append(report)
    if as_json:
        click.echo(to_json(reports))
        click.get_current_context().find_root().ensure_object(dict)["answered"] = True
    return worst


def _file_of(path: str) -> str:
    """Return the file that a manifest is for: patterns such as dist/* match both."""
    return path.removesuffix(SUFFIX) if os.path.basename(path) != SUFFIX else path


def _size_of(path: str) -> int:
    with contextlib.suppress(OSError):
        facts = os.stat(path)
        return facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    return 0


def _line(report: FileReport) -> str:
    inside = ""
    members, images = report.structure.get("members"), report.structure.get("images")
    if isinstance(images, list):
        names = [name for image in images if isinstance(image, dict) for name in image.get("names", [])]
        inside = f", {count(len(images), 'image')}" + (
            f" ({', '.join(map(printable, names))})" if names else ""
        )
    elif isinstance(members, int):
        inside = f", {count(members, 'member')}"
    if encrypted := report.structure.get("encrypted"):
        inside += f" ({encrypted} encrypted and not read)"
    how = {"sealed": "sealed", "ok": "ok, as sealed" if report.sealed else "ok, whole as its format promises"}
    return f"{printable(report.path)}: {how[report.verdict]}: {printable(report.kind)}{inside}, {size(report.size)}"


@click.command(cls=Running, short_help="Check files, then run a command.")
@click.argument("paths", nargs=1, metavar="FILE", type=_PATH)
@click.argument("command", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--also", multiple=True, metavar="FILE", type=_PATH, help="Check this one, too; may be repeated."
)
@click.option(
    "--stdin",
    is_flag=True,
    help="Give the checked file to the command as its standard input: the very file, whatever has its name by then.",
)
@click.option("--require-seal", is_flag=True, help="Refuse a file without a manifest.")
@click.option("--deep", is_flag=True, help="With a manifest, too, check what the format promises.")
@trust_option
@json_option
@common
def guard(
    paths: str,
    command: tuple[str, ...],
    also: tuple[str, ...],
    stdin: bool,
    require_seal: bool,
    deep: bool,
    trust: TrustMode | None,
    as_json: bool,
) -> int:
    """Run COMMAND if FILE is whole: as cachekit check, then the command in its place.

    \b
    Exit codes: the command's own, and
      121  the file was refused; the command was not run
      125  cachekit failed, or was used wrongly; the command was not run
      126  COMMAND was found and cannot be executed
      127  there is no such COMMAND

    \b
    Examples:
      cachekit guard images.tar -- docker load -i images.tar
      cachekit guard --stdin images.tar.zst -- sh -c 'zstd -d | docker load'
    """
    del as_json  # for errors: what is on stdout is the command's
    policy = trust_of(trust)
    with ExitStack() as stack:
        first = -1
        for path in (paths, *also):
            bar = ProgressBar("checking")
            try:
                file, report = stack.enter_context(
                    checked_file(
                        path,
                        trust=policy,
                        require_seal=require_seal,
                        deep=deep,
                        progress=lambda done, total, bar=bar: bar(done, total, 0),  # type: ignore[misc]
                    )
                )
            except (Refused, SourceOrTargetRefused, Unavailable) as error:
                raise _refused(error, path) from None
            finally:
                bar.close()
            click.echo(_line(report), err=True)
            if first < 0:
                first = file.fileno()
        if stdin:
            os.dup2(first, 0)
            os.set_inheritable(0, True)  # where ours was closed, the file has this number already
        _become(command)


def _refused(error: CachekitError, path: str) -> RefusedToRun:
    return RefusedToRun(
        f"the command was not run: {error.message}",
        path=error.path or path,
        expected=error.expected,
        found=error.found,
        hint=error.hint,
        refused=error.id,
    )


def _become(command: tuple[str, ...]) -> NoReturn:
    """Run the command in our place. Raises NotFound, NotExecutable, NotRun."""
    # Python ignores these, which a command must not inherit; its handlers go with it.
    ours = [(number, signal.signal(number, signal.SIG_DFL)) for number in (signal.SIGPIPE, signal.SIGXFSZ)]
    try:
        try:
            os.execvp(command[0], list(command))  # noqa: S606 - that is the point
        finally:
            for number, handler in ours:
                signal.signal(number, handler)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"there is no command {command[0]!r}") from None
    except PermissionError:
        raise NotExecutable(f"the command {command[0]!r} cannot be executed") from None
    except OSError as error:
        raise NotRun(f"the command {command[0]!r} cannot be started: {error.strerror}") from None
