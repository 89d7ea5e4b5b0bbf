"""``cachekit plan``: what it prints, its exit codes, and files that are no plans."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cachekit.clean.plan.file import MAX_BYTES, shipped
from tests.support.in_process import Here

FINE = """format = 1
name = "mine"
[stage.pre]
goal = { free = "20G", below = "80%", until = "70%", inodes = "5%" }
rules = ["a", "b"]
[stage.cron]
rules = ["a"]
[[rule]]
id = "a"
category = "logs"
paths = ["/data/logs/*"]
when = { older = "36h", larger = "10M", keep = 3, free-below = "15%", environment = ["ci"], idle-runner = true }
expect = { size = "1.5G", seconds = 0.5 }
root = true
[[rule]]
id = "b"
category = "docker"
docker = "images"
when = { older = "7d" }
expect.seconds = 0
"""


def test_list(here: Here) -> None:
    """The shipped plans are listed, and the one that fits this machine is named."""
    done = here("plan", "list").expect()
    assert [line.split()[0] for line in done.stdout.splitlines()] == shipped()
    assert "cachekit clean would use generic here: " in done.stderr
    rows = here("plan", "list", "--json").expect().json()
    assert [row["name"] for row in rows] == shipped()
    assert [row["name"] for row in rows if row["chosen"]] == ["generic"]


@pytest.mark.parametrize("name", shipped())
def test_show_shipped(here: Here, name: str) -> None:
    """Each shipped plan fits on 80 columns, every stage with its rules."""
    lines = here("plan", "show", name).expect().stdout.splitlines()
    assert max(map(len, lines)) <= 80
    data = here("plan", "show", name, "--json").expect().json()
    for stage, plan in data["stages"].items():
        assert any(line.startswith(f"{stage}: ") for line in lines)
        for rule in plan["rules"]:
            assert any(line.split()[:1] == [rule] for line in lines)
            assert data["rules"][rule]["kind"] in {"paths", "command", "docker"}


def test_show(here: Here) -> None:
    """A plan of one's own is shown with its goals, estimates and conditions in words."""
    Path("mine.toml").write_text(FINE)
    shown = " ".join(here("plan", "show", "mine.toml").expect().stdout.split())
    goal = "pre: until 20G are free; above 80% used, down to 70%; until 5% of the inodes are free"
    assert goal in shown
    assert "cron: all of it, unless a goal is given" in shown
    assert "a logs 1.5G 0.5 s 3G root, ci, below 15% free, idle runner, older than 36h, " in shown
    assert "larger than 10M, keeps 3" in shown
    assert "b docker 100M 0 s at once older than 7d" in shown


def test_show_one_stage(here: Here) -> None:
    """--stage shows that stage alone; one that the plan lacks is exit 2."""
    Path("mine.toml").write_text(FINE)
    data = here("plan", "show", "mine.toml", "--stage", "cron", "--json").expect().json()
    assert list(data["stages"]) == ["cron"]
    assert list(data["rules"]) == ["a"]
    assert data["rules"]["a"]["target"]["patterns"] == ["/data/logs/*"]
    assert data["rules"]["a"]["expect_bytes"] == 3 << 29
    assert "no stage post" in here("plan", "show", "mine.toml", "--stage=post").expect(2).stderr


def test_show_without_a_name(here: Here) -> None:
    """Without a name the plan is shown that fits this machine, and why."""
    done = here("plan", "show").expect()
    assert done.stdout.startswith("generic: ")
    assert done.stderr.startswith("generic: ")


def test_a_shipped_name_wins(here: Here) -> None:
    """A file in the checkout does not take a shipped plan's place, unless it is named as a path."""
    Path("generic").write_text(FINE)
    assert here("plan", "show", "generic", "--json").expect().json()["name"] == "generic"
    assert here("plan", "show", "./generic", "--json").expect().json()["name"] == "mine"


def test_check(here: Here) -> None:
    """A plan that is fine says so, with exit 0."""
    Path("mine.toml").write_text(FINE)
    assert here("plan", "check", "mine.toml").expect().stdout == "mine.toml: fine, 2 rules in 2 stages\n"
    (report,) = here("plan", "check", "--json", "mine.toml").expect().json()
    assert report == {"file": "mine.toml", "ok": True, "rules": 2, "stages": ["pre", "cron"], "problems": []}
    here("plan", "check", *shipped()).expect()


def test_check_faults(here: Here) -> None:
    """Every fault has a line of its own with file, line, rule and hint; the exit code is 2."""
    Path("mine.toml").write_text(FINE.replace("/data/logs/*", "/etc/*").replace('"docker"', '"dokcer"'))
    Path("fine.toml").write_text(FINE)
    done = here("plan", "check", "mine.toml", "fine.toml").expect(2)
    assert done.stdout.splitlines() == [
        "mine.toml:11: rule a: paths: '/etc/*': this would be everything in /etc (name the directory in it)",
        "mine.toml:17: rule b: category: there is no 'dokcer' (did you mean docker?)",
        "fine.toml: fine, 2 rules in 2 stages",
    ]
    assert done.stderr == "1 of 2 plans cannot be used\n"
    bad, fine = here("plan", "check", "mine.toml", "fine.toml", "--json").expect(2).json()
    assert [item["line"] for item in bad["problems"]] == [11, 17]
    assert (bad["ok"], fine["ok"]) == (False, True)


def test_check_warnings(here: Here) -> None:
    """A warning is shown as one and the plan is fine."""
    Path("mine.toml").write_text(FINE.replace('rules = ["a", "b"]', 'rules = ["a"]'))
    lines = here("plan", "check", "mine.toml").expect().stdout.splitlines()
    assert lines[0].startswith("mine.toml:15: warning: rule b: it is in no stage")
    assert lines[1] == "mine.toml: fine, 2 rules in 2 stages"


def test_show_faulty(here: Here) -> None:
    """Showing a plan with faults is exit 2 and names the first, in text and in JSON."""
    Path("mine.toml").write_text(FINE.replace("/data/logs/*", "/etc/*").replace('"docker"', '"dokcer"'))
    done = here("plan", "show", "mine.toml", "--json").expect(2)
    error = done.json()["error"]
    assert error["id"] == "plan-invalid"
    assert [item["line"] for item in error["problems"]] == [11, 17]
    assert "mine.toml:11: rule a: " in done.stderr
    assert "(and 1 more)" in done.stderr


def test_no_command(here: Here) -> None:
    """Without a command the help is shown, with exit 2."""
    assert "cachekit plan check" in here("plan").expect(2).stderr
    here("plan", "check").expect(2)


def test_what_is_no_plan(here: Here) -> None:
    """A FIFO, a directory, a device, an endless or large file, bytes that are not UTF-8: exit 2 and a sentence."""
    os.mkfifo("fifo")
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    Path("large").write_bytes(b"")
    os.truncate("large", 100 << 20)
    Path("little-too-large").write_bytes(b"#" * (MAX_BYTES + 1))
    Path("as-large-as-may-be").write_bytes(FINE.encode() + b"#" * (MAX_BYTES - len(FINE)))
    Path("latin").write_bytes(FINE.encode() + b"# \xe4\n")
    Path("binary").write_bytes(bytes(range(256)))
    Path("empty").write_bytes(b"")
    told = {
        "fifo": "fifo: a plan is a regular file",
        "folder": "folder: a plan is a regular file",
        "/dev/zero": "/dev/zero: a plan is a regular file",
        "loop": "loop: the plan file cannot be opened",
        "large": "large: the file is larger than a plan can be",
        "little-too-large": "little-too-large: the file is larger than a plan can be",
        "latin": "latin:21: it is not UTF-8 (save the file as UTF-8)",
        "binary": "binary:2: it is not UTF-8",
        "empty": "empty:1: there is no format",
        "fifo/x": "fifo/x: there is no such plan file",
        "": ": there is no plan ''",
    }
    for name, message in told.items():
        done = here("plan", "check", name).expect(2)
        assert done.stdout.startswith(message), name
        here("plan", "show", name or "''").expect(2)
    here("plan", "check", "as-large-as-may-be").expect()


def test_byte_order_mark(here: Here) -> None:
    """A file that begins with a byte order mark is read as what follows it."""
    Path("mine.toml").write_bytes(b"\xef\xbb\xbf" + FINE.replace("\n", "\r\n").encode())
    here("plan", "check", "mine.toml").expect()


def test_hostile_names(here: Here) -> None:
    """File names and values cannot give orders to a runner or a terminal."""
    name = b"\n::error::x\xff\x1b[31m.toml"
    Path(os.fsdecode(name)).write_text(
        FINE.replace('"logs"', '"\\u001b[31m##[group]"').replace('"a"', '"::x"')
    )
    done = here("plan", "check", name).expect(2)
    for line in done.stdout.splitlines():
        assert not line.startswith("::")
        assert "\x1b" not in line
        assert "##[" not in line
    report = here("plan", "check", "--json", name).expect(2).json()
    assert json.dumps(report)


def test_no_permission(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be opened is exit 2 with the system's reason."""
    Path("mine.toml").write_text(FINE)
    real = os.open

    def refuse(path: bytes | str, *args: int, **more: int) -> int:
        if os.fsencode(path) == b"mine.toml":
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", refuse)
    assert "Permission denied" in here("plan", "check", "mine.toml").expect(2).stdout
