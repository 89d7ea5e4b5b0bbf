"""What a clean reports: text, JSON, the job's summary page and outputs, and each result by what provokes it."""

from __future__ import annotations

import html
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cleaning import MIB, Scene, make_files, outcome
from tests.support.processes import wait_until

pytestmark = requires("tmpfs")

WIDTH = 80


@contextmanager
def holding(path: Path) -> Iterator[int]:
    """Another process has a file open, until the end of the block; yields its pid."""
    code = "import sys; file = open(sys.argv[1], 'rb'); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        try:
            yield child.pid
        finally:
            child.stdin.close()


def too_wide(text: str) -> list[str]:
    """The lines over 80 columns that could have been folded: those that are no single path."""
    lines = [line for line in text.splitlines() if len(line) > WIDTH]
    return [line for line in lines if len(line.split()) > 1 or "/" not in line]


# -------------------------------------------------------------------------------------------------------------- results


def test_every_result(scene: Scene) -> None:
    """Each rule's result is what happened to it: freed, stale, blocked, skipped, not-applicable, failed, not-needed."""
    root = scene.root
    make_files(root / "freed", 4, MIB)
    make_files(root / "busy", 1, MIB)
    make_files(root / "young", 1, MIB)
    make_files(root / "kept", 1, MIB)
    make_files(root / "late", 4, MIB)
    make_files(root / "large", 1, 40 * MIB)
    cheap = {"size": "900M", "seconds": 1}
    scene.rules = {
        "freed": {"paths": [f"{root}/freed"], "expect": cheap},
        "stale": {"paths": [f"{root}/nothing/*"], "expect": cheap},
        "blocked": {"paths": [f"{root}/busy"], "expect": cheap},
        "skipped": {"paths": [f"{root}/young"], "when": {"older": "1h"}, "expect": cheap},
        "kept": {"paths": [f"{root}/kept"], "tools": ["swift"], "expect": cheap},
        "elsewhere": {"paths": [f"{root}/kept"], "when": {"environment": ["jenkins"]}, "expect": cheap},
        "unset": {"paths": ["$NO_SUCH_VARIABLE/*"], "expect": cheap},
        "missing": {"command": ["no-such-program-anywhere"], "expect": cheap},
        "failed": {"command": ["false"], "expect": cheap},
        "large": {"paths": [f"{root}/large"], "expect": {"size": "10M", "seconds": 1}},
        "late": {"paths": [f"{root}/late"], "expect": {"size": "1M", "seconds": 1}},
    }
    with holding(root / "busy" / "file-0") as pid:
        report = scene.report("--free=50M", "--keep=swift")
        assert f"(pid {pid})" in outcome(report, "blocked")["reason"]
    results = {rule["id"]: rule["result"] for rule in report["rules"]}
    assert results == {
        "freed": "freed",
        "stale": "stale",
        "blocked": "blocked",
        "skipped": "skipped",
        "kept": "skipped",
        "elsewhere": "not-applicable",
        "unset": "not-applicable",
        "missing": "not-applicable",
        "failed": "failed",
        "large": "freed",
        "late": "not-needed",
    }
    assert all(rule["reason"] for rule in report["rules"] if rule["result"] != "freed")
    assert (root / "late").exists()
    assert outcome(report, "failed")["reason"] == "exit code 1"
    assert outcome(report, "unset")["reason"] == "$NO_SUCH_VARIABLE is not set"


def test_fields_of_a_rule(scene: Scene) -> None:
    """--json has for each rule what was freed by statvfs, what was removed, items, seconds, what stayed."""
    make_files(scene.root / "a" / "one", 3, MIB)
    make_files(scene.root / "a" / "two", 2, MIB)
    scene.rules["a"] = {"paths": [f"{scene.root}/a/*"]}
    before = os.statvfs(scene.root)
    with holding(scene.root / "a" / "two" / "file-1"):
        report = scene.report(code=7)
        after = os.statvfs(scene.root)
        facts = report["filesystems"][0]
    rule = outcome(report, "a")
    assert rule["freed"] == (after.f_bfree - before.f_bfree) * before.f_frsize == 3 * MIB
    assert rule["removed"] == 3 * MIB
    assert rule["items"] == 4  # three files and their directory
    assert rule["seconds"] > 0
    assert rule["left_count"] == 1
    assert rule["left"][0]["path"] == f"{scene.root}/a/two"
    assert "in use" in rule["left"][0]["reason"]
    assert facts["before"] == before.f_bavail * before.f_frsize
    assert facts["after"] == after.f_bavail * after.f_frsize
    assert facts["unexplained"] == 0
    assert report["freed"] == 3 * MIB
    assert not report["met"]


def test_what_stays_is_named_up_to_a_limit(scene: Scene) -> None:
    """Of many things that stay twenty are named and all are counted, so that a report has an end."""
    folder = scene.root / "a"
    folder.mkdir()
    for number in range(30):
        os.mkfifo(folder / f"pipe-{number}")
        (folder / f"old-{number}").mkdir()
    scene.rules["a"] = {"paths": [f"{folder}/*"], "when": {"older": "1s"}, "exclude": ["pipe-*"]}
    listening = []
    for number in range(30):
        one = socket.socket(socket.AF_UNIX)
        one.bind(str(folder / f"old-{number}" / "s"))
        listening.append(one)
    try:
        wait_until(
            lambda: scene.clean("--json").expect(7).json()["rules"][0]["result"] != "skipped", "old enough"
        )
        rule = outcome(scene.report(code=7), "a")
    finally:
        for one in listening:
            one.close()
    assert rule["left_count"] == 30
    assert len(rule["left"]) == 20


def test_several_filesystems(scene: Scene) -> None:
    """Each filesystem is reported before and after by itself, and what has enough is not cleaned."""
    with filesystems.tmpfs(32 * MIB) as other:
        make_files(scene.root / "a", 4, MIB)
        make_files(other.path / "b", 4, MIB)
        scene.rules = {"a": {"paths": [f"{scene.root}/a"]}, "b": {"paths": [f"{other.path}/b"]}}
        report = scene.report("--filesystem", other.path, "--free=30M")
        first, second = report["filesystems"]
        assert (scene.root / "a").exists()
        assert not (other.path / "b").exists()
        assert (first["before"], first["after"]) == (60 * MIB, 60 * MIB)
        assert (second["before"], second["after"]) == (28 * MIB, 32 * MIB)
        assert "enough free" in outcome(report, "a")["reason"]


# ----------------------------------------------------------------------------------------------------------------- text

LONG = "a-rule-whose-name-is-as-long-as-a-rule-s-name-may-be-at-the-most"


def hostile(scene: Scene) -> Path:
    """Rules, paths and programs whose texts try to be more than texts; returns the script that speaks."""
    script = scene.cli.home / "speak"
    script.parent.mkdir(exist_ok=True)
    script.write_text(
        "#!/bin/sh\n"
        r"""printf '%s' 'filling words so that the line has to be folded right before :: '"""
        "\n"
        r"""printf '::error::pwned ::set-output name=x::y ##[group]g ##vso[task.x]y | a | b <script>alert(1)'"""
        "\n"
        r"""printf '</script> [x](javascript:y) `code` \033[31m\007 \\| c \377\n'"""
        "\nexit 3\n"
    )
    script.chmod(0o755)
    root = os.fsencode(scene.root)
    for name in (
        b"h/a|b<img src=x>\n::error::pwned",
        b"h/\xff\\| [y](http://example.invalid) `z`",
        b"h/::warning::w",
    ):
        make_files(Path(os.fsdecode(root + b"/" + name)), 1, MIB)
    scene.rules = {
        LONG: {"command": [str(script)], "title": "| <b> ::error::title"},
        "paths": {"paths": [f"{scene.root}/h/*"]},
        "gone": {"paths": [f"{scene.root}/nothing"]},
    }
    return script


def test_text_is_80_columns_wide(scene: Scene) -> None:
    """No line of the report is wider than 80 columns, whatever names and reasons are, unless it is one path."""
    hostile(scene)
    scene.rules["long"] = {"command": ["sh", "-c", f"echo '{'word ' * 30}'; exit 1"]}
    scene.rules["longer"] = {"command": ["sh", "-c", f"echo {'x' * 300}; exit 1"]}
    for arguments in (["--dry-run"], []):
        done = scene.clean(*arguments)
        assert LONG in done.stdout
        assert not too_wide(done.stdout), too_wide(done.stdout)


def test_text_begins_no_line_with_an_order(scene: Scene) -> None:
    """Nothing that a program or a path says reaches the log as a workflow command, nor as a control character."""
    hostile(scene)
    with holding(Path(os.fsdecode(os.fsencode(scene.root) + b"/h/::warning::w/file-0"))):
        for arguments in (["--dry-run"], []):
            done = scene.clean(*arguments)
            for line in (done.out + done.err).split(b"\n"):
                assert not line.strip().startswith(b"::"), line
                assert b"##[" not in line
                assert b"##vso[" not in line
                assert not re.search(rb"[\x00-\x1f\x7f]", line), line
    assert "pwned" in done.stdout


def test_text_names_before_and_after(scene: Scene) -> None:
    """The text says which plan and why, the goal, each filesystem before and after, each rule, and how it ended."""
    make_files(scene.root / "a", 4, MIB)
    scene.rules = {"a": {"paths": [f"{scene.root}/a"]}, "b": {"paths": [f"{scene.root}/b"]}}
    said = scene.clean("--free=64M").expect().stdout
    folded = " ".join(said.split())
    assert "plan test, stage pre (--plan)" in folded
    assert "goal: 64 MiB free" in folded
    assert "60.0 MiB -> 64.0 MiB free of 64.0 MiB, enough" in folded
    assert re.search(r"^a +freed +4\.0 MiB +\d+\.\d s +\d.*/s$", said, re.MULTILINE)
    assert "freed 4.0 MiB with 1 rule in" in folded
    assert folded.endswith("the goal is met")


# ------------------------------------------------------------------------------------------------------------- not met


def test_not_met(scene: Scene) -> None:
    """A goal that is not met is exit 7: by how much, and the largest that remain, as text and as JSON."""
    make_files(scene.root / "a", 1, MIB)
    make_files(scene.root / "huge" / "deep", 2, 10 * MIB)
    make_files(scene.root / "smaller", 1, 3 * MIB)
    scene.rules["a"] = {"paths": [f"{scene.root}/a"]}
    done = scene.clean("--free=60M").expect(7)
    said = " ".join(done.stderr.split())
    assert f"{scene.root} has 41.0 MiB free and is 19.0 MiB short of 60.0 MiB" in said
    assert f"20.0 MiB {scene.root}/huge/deep, 3.0 MiB {scene.root}/smaller" in said
    report = scene.report("--free=60M", code=7)
    assert [(Path(item["path"]).name, item["size"]) for item in report["consumers"]][:2] == [
        ("deep", 20 * MIB),
        ("smaller", 3 * MIB),
    ]
    assert not report["met"]
    assert report["filesystems"][0]["met"] is False


def test_soft_fail(scene: Scene) -> None:
    """With --soft-fail an unmet goal is a warning and exit 0, in GitHub's log too, and JSON stays one document."""
    make_files(scene.root / "a", 1, MIB)
    scene.rules["a"] = {"paths": [f"{scene.root}/a"]}
    done = scene.clean("--free=1P", "--soft-fail", "--json", env={"GITHUB_ACTIONS": "true"}).expect(0)
    assert done.json()["met"] is False
    assert "cachekit: warning: the goal was not met" in done.stderr
    assert "\n::warning title=cachekit::the goal was not met" in done.stderr
    assert "::error" not in done.stderr


def test_blocked_rules_are_mentioned(scene: Scene) -> None:
    """A goal that was not met because rules were blocked says how many."""
    make_files(scene.root / "a", 1, MIB)
    scene.rules["a"] = {"paths": [f"{scene.root}/a"]}
    with holding(scene.root / "a" / "file-0"):
        done = scene.clean().expect(7)
    assert "1 rule could not do its work" in done.stderr


# --------------------------------------------------------------------------------------------------------- for the job


def table_cells(line: str) -> list[str]:
    """Split a row of a GitHub table as its renderer does: at each bar without a backslash right before it."""
    return re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))


def test_summary(scene: Scene, tmp_path: Path) -> None:
    """The summary page gets valid tables: nothing said by programs or paths leaves its cell or becomes markup."""
    hostile(scene)
    page = tmp_path / "summary.md"
    page.write_text("before\n")
    with holding(Path(os.fsdecode(os.fsencode(scene.root) + b"/h/::warning::w/file-0"))):
        scene.clean(env={"GITHUB_STEP_SUMMARY": str(page)}).expect(7)
    text = page.read_text()
    assert text.startswith("before\n### cachekit clean: ")
    lines = text.splitlines()
    heads = [n for n, line in enumerate(lines) if re.fullmatch(r"\|[-:|]+\|", line)]
    assert len(heads) == 2
    for head in heads:
        width = len(table_cells(lines[head]))
        assert lines[head - 2] == ""
        rows = [head - 1]
        while lines[rows[-1] + 1 + (rows[-1] == head - 1)].startswith("|"):
            rows.append(rows[-1] + 1 + (rows[-1] == head - 1))
        assert len(rows) > 1
        for row in rows:
            assert len(table_cells(lines[row])) == width, lines[row]
    assert not re.search(r"<(?!br)", text)
    assert not re.search(r"(?<!&#91;x&#93;)\]\(", text)
    assert "javascript:y" in html.unescape(text)
    assert not [line for line in lines if line.lstrip().startswith("::")]


def test_summary_of_an_ordinary_clean(scene: Scene, tmp_path: Path) -> None:
    """The summary page shows the goal, filesystems before and after, and each rule's result with what it freed."""
    make_files(scene.root / "a", 4, MIB)
    scene.rules = {"a": {"paths": [f"{scene.root}/a"]}, "b": {"paths": [f"{scene.root}/b"]}}
    page = tmp_path / "summary.md"
    scene.clean("--free=64M", env={"GITHUB_STEP_SUMMARY": str(page)}).expect()
    text = html.unescape(page.read_text())
    assert "| 60.0 MiB | 64.0 MiB | 64.0 MiB | 64.0 MiB | 0 B |" in text
    assert re.search(r"^\| a \| freed \| 4\.0 MiB \| 5 \| \d\.\d \| .*/s \|  \|$", text, re.MULTILINE)
    assert "goal: 64 MiB free" in text


@pytest.mark.parametrize(
    ("goal", "met", "freed", "code"), [("64M", "true", 4 * MIB, 0), ("1P", "false", 4 * MIB, 7)]
)
def test_outputs(scene: Scene, tmp_path: Path, goal: str, met: str, freed: int, code: int) -> None:
    """Later steps read the outputs `freed`, in bytes, and `goal-met`."""
    make_files(scene.root / "a", 4, MIB)
    scene.rules = {"a": {"paths": [f"{scene.root}/a"]}}
    path = tmp_path / "output"
    scene.clean(f"--free={goal}", env={"GITHUB_OUTPUT": str(path)}).expect(code)
    outputs = dict(re.findall(r"^(\S+)<<(?:\S+)\n(.*)\ncachekit-", path.read_text(), re.MULTILINE))
    assert outputs["freed"] == str(freed)
    assert outputs["goal-met"] == met


def test_outputs_that_cannot_be_written(scene: Scene, tmp_path: Path) -> None:
    """A summary or output file that cannot be written is a warning; the clean is done all the same."""
    make_files(scene.root / "a", 4, MIB)
    scene.rules = {"a": {"paths": [f"{scene.root}/a"]}}
    nowhere = str(tmp_path / "no" / "file")
    done = scene.clean("--free=64M", env={"GITHUB_OUTPUT": nowhere, "GITHUB_STEP_SUMMARY": nowhere}).expect()
    assert done.stderr.count("could not be written") == 2
    assert not (scene.root / "a").exists()


# --------------------------------------------------------------------------------------------------------- unexplained


def test_unexplained(scene: Scene) -> None:
    """What others write into the filesystem during a clean is shown as unexplained, not as the rules' doing."""
    make_files(scene.root / "a", 4, 2 * MIB)
    command = f"head -c {20 * MIB} /dev/zero > {scene.root}/written"
    scene.rules = {
        "a": {"paths": [f"{scene.root}/a"]},
        "writes": {"command": ["sh", "-c", command], "expect": {"size": "1K", "seconds": 1}},
    }
    report = scene.report(code=7)
    assert outcome(report, "a")["freed"] == 8 * MIB
    assert report["filesystems"][0]["unexplained"] == -20 * MIB
    assert report["freed"] == -12 * MIB
    (scene.root / "written").unlink()
    said = scene.clean().expect(7).stdout
    assert "20.0 MiB less than the rules freed: others write there too" in said


def test_json_is_ascii_and_has_no_orders(scene: Scene) -> None:
    """The JSON is one line of ASCII without anything that a runner takes for an order, with hostile names in it."""
    hostile(scene)
    with holding(Path(os.fsdecode(os.fsencode(scene.root) + b"/h/::warning::w/file-0"))):
        done = scene.clean("--json")
    assert done.out.isascii()
    assert done.out.count(b"\n") == 1
    assert b"##" not in done.out
    assert "pwned" in outcome(json.loads(done.out), LONG)["reason"]
