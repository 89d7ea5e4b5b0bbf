"""``cachekit demo``: the promise, shown on a real tree with the real commands."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import click

from cachekit.cli.example import Fingerprint, differences, fingerprint, make_project
from cachekit.cli.main import cli
from cachekit.cli.options import common, json_option
from cachekit.cli.render import count, printable, size, to_json
from cachekit.errors import InvalidRequest, NoSpace
from cachekit.store.directory import DirectoryStore
from cachekit.system.scratch import scratch_directory

__all__ = ["demo"]

_WIDTH = 78
_KEY = "demo-v1"
_TREE = "node_modules"
#: Settings of the user or of CI that must neither change what is shown, nor be written to by it.
_HIDDEN = ("CACHEKIT_", "GITHUB_", "GITLAB_")
_BROKEN_PROMISE = 1


@click.command(short_help="Watch a save, a restore and a refusal in ten seconds.")
@click.option("--keep", is_flag=True, help="Leave the directory in place, to look around in it.")
@json_option
@common
def demo(keep: bool, as_json: bool) -> int:
    """Save and restore a small tree, then meet a cache that a full disk has cut.

    Works in a private temporary directory with a store of its own and removes both. Every line that begins with "ok"
    was checked just now; exit 1 if one of them is not so.

    \b
    Examples:
      cachekit demo
      cachekit demo --keep
    """
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            path = stack.enter_context(scratch_directory("demo", keep=keep))
        except OSError as error:
            raise InvalidRequest(
                f"no temporary directory can be made: {error.strerror}", hint="set TMPDIR to one with room"
            ) from None
        story = _Story(path, _nothing if as_json else click.echo)
        with _surroundings(path):
            try:
                _tell(story)
            except OSError as error:
                if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                    raise
                raise NoSpace(
                    "the demo needs 30 MiB in the temporary directory",
                    path=path,
                    hint="set TMPDIR to a directory with room",
                ) from None
    seconds = time.monotonic() - begin
    held = sum(check["ok"] is True for check in story.checks)
    if as_json:
        report = {"ok": held == len(story.checks), "checks": story.checks, "seconds": round(seconds, 3)}
        click.echo(to_json({**report, "directory": path if keep else None}))
    elif held == len(story.checks):
        story.say("", f"All {held} checks held, in {seconds:.1f} s.")
    else:
        story.say(
            "", f"{len(story.checks) - held} of {len(story.checks)} checks FAILED. This is a bug: please"
        )
        story.say("report it, with what is above and `cachekit --version`.")
    if keep:
        commands = (
            f"cd {path}",
            "export CACHEKIT_STORE=$PWD/store",
            "cachekit ls",
            "cachekit ls --quarantine",
        )
        story.say("", "Kept. Look around with:")
        for line in commands:
            story.echo(f"  {line}")  # never folded: it is there to be copied
    return 0 if held == len(story.checks) else _BROKEN_PROMISE


def _nothing(_line: str) -> None:
    """Say nothing: the report is JSON."""


@contextlib.contextmanager
def _surroundings(path: str) -> Iterator[None]:
    """Give the commands a store and notes of their own, and hide the user's settings and CI from them."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(_HIDDEN):
            del os.environ[name]
    os.environ["CACHEKIT_STORE"] = os.path.join(path, "store")
    os.environ["CACHEKIT_STATE_DIR"] = os.path.join(path, "state")
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)
        os.environ.clear()
        os.environ.update(before)


@dataclass
class _Story:
    """Numbered steps, the commands that were run, and the checks that were made."""

    directory: str
    echo: Callable[[str], None]
    checks: list[dict[str, object]] = field(default_factory=list)
    _steps: int = 0

    def say(self, *lines: str, indent: str = "") -> None:
        """Print lines, folded where they are too long."""
        for line in lines:
            begin = line[: len(line) - len(line.lstrip())]
            self.echo(
                textwrap.fill(
                    line.strip(),
                    _WIDTH,
                    initial_indent=indent + begin,
                    subsequent_indent=indent + begin + "   ",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )

    def step(self, text: str) -> None:
        """Begin the next step."""
        self._steps += 1
        self.echo("")
        self.say(f"{self._steps}. {text}")

    def check(self, what: str, ok: bool, detail: str = "") -> None:
        """Note whether a promise held, with what was seen if it did not."""
        self.checks.append({"what": what, "ok": ok, "detail": None if ok else detail})
        self.say(f"ok: {what}" if ok else f"FAILED: {what}: {detail}", indent="   ")

    def command(self, *arguments: str, checkout: str) -> tuple[int, Any]:
        """Run a command in a checkout as a user would, show it and what it says; return its code and report."""
        os.chdir(os.path.join(self.directory, checkout))
        self.say(f"{checkout}$ cachekit {' '.join(arguments)}", indent="   ")
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main([*arguments, "--json"], "cachekit", standalone_mode=False, obj={})
        self.say(*(printable(line) for line in err.getvalue().splitlines()), indent="   ")
        return int(code), json.loads(out.getvalue())


def _tell(story: _Story) -> None:
    project = os.path.join(story.directory, "project")
    story.say("A cache that is whole or absent, in five steps.")
    story.say(f"Working in {story.directory}")

    story.step("A project with its dependencies installed.")
    make_project(os.path.join(project, _TREE))
    original = fingerprint(os.path.join(project, _TREE))
    story.say(f"{_describe(original)} in project/{_TREE}", indent="   ")

    story.step("Save them under a key.")
    code, saved = story.command("save", "--key", _KEY, _TREE, checkout="project")
    story.check("the entry was saved", code == 0 and saved["status"] == "saved", f"exit {code}: {saved}")

    story.step("A fresh checkout restores them.")
    os.mkdir(os.path.join(story.directory, "checkout"))
    target = os.path.join(story.directory, "checkout", _TREE)
    code, report = story.command("restore", "--key", _KEY, _TREE, checkout="checkout")
    _check_restored(story, "restored", original, target, code, report)

    _refuse(story, saved["entry"], target)

    story.step("The job goes on as after a miss: it installs, and saves. The cache has healed.")
    code, saved = story.command("save", "--key", _KEY, _TREE, checkout="project")
    story.check("a whole entry has the key again", code == 0 and saved["status"] == "saved", f"{saved}")
    os.mkdir(os.path.join(story.directory, "next"))
    code, report = story.command("restore", "--key", _KEY, _TREE, checkout="next")
    _check_restored(
        story, "restored again", original, os.path.join(story.directory, "next", _TREE), code, report
    )


def _refuse(story: _Story, entry: str, target: str) -> None:
    """Cut a copy of the entry, file it in the entry's place, and ask for it."""
    stored = os.fsdecode(DirectoryStore(os.environ["CACHEKIT_STORE"]).entry_path(entry))
    with open(stored, "rb") as file:
        whole = file.read()
    length = len(whole) * 5 // 8
    story.step(
        f"A full disk cuts a copy of the archive: {size(length)} of {size(len(whole))} arrive, under the full "
        "name. The next job asks for it."
    )
    os.unlink(stored)
    with open(stored, "xb") as file:
        file.write(whole[:length])
    before = fingerprint(target, identity=True)
    begin = time.monotonic()
    code, report = story.command("restore", "--key", _KEY, _TREE, checkout="checkout")
    milliseconds = 1000 * (time.monotonic() - begin)
    after = fingerprint(target, identity=True)
    tried = report["tried"][0].get("error", {}) if report["tried"] else {}
    rung = tried.get("rung")
    story.check(
        f"refused in {milliseconds:.0f} ms, at the first rung of the ladder: the {rung}",
        report["status"] == "refused" and rung == "seal",
        f"status {report['status']}, exit {code}",
    )
    story.check(
        f"{_TREE} was not touched: {count(len(before), 'name')}, the same down to inodes and change times",
        before == after,
        differences(before, after),
    )
    story.check(
        "the damaged entry was set aside: no later job is served it",
        report["quarantined"] == [entry] and not os.path.lexists(stored),
        f"{report['quarantined']}",
    )


def _check_restored(
    story: _Story, word: str, original: Fingerprint, target: str, code: int, report: Any
) -> None:
    found = fingerprint(target)
    same = found == original and code == 0 and report["status"] == "exact"
    story.check(
        f"{word} whole: every name, content, link, mode and time is the original's",
        same,
        f"exit {code}, status {report['status']}, {differences(original, found)}",
    )


def _describe(tree: Fingerprint) -> str:
    kinds = [facts.kind for facts in tree.values()]
    total = size(sum(facts.size for facts in tree.values() if facts.kind == "file"))
    return (
        f"{count(kinds.count('file'), 'file')}, {count(kinds.count('directory'), 'directory', 'directories')} and "
        f"{count(kinds.count('symlink'), 'link')}, {total}"
    )
