"""`cachekit clean` from the command line: goals, wrong usage, what is kept, and how it starts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.test_start import loaded
from tests.support import filesystems
from tests.support.capabilities import requires
from tests.support.cleaning import MIB, Scene, make_files, outcome, plan_text
from tests.support.cli import Cli
from tests.support.in_process import Here
from tests.support.snapshots import unchanged

pytestmark = requires("tmpfs")


@pytest.fixture
def here(tmp_path: Path, clean_surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command line in this process, in `tmp_path/work`."""
    root = tmp_path / "work"
    root.mkdir()
    monkeypatch.chdir(root)
    return Here(root, clean_surroundings)


def fill_with(scene: Scene, *names: str, size: int = 4 * MIB) -> list[Path]:
    """Make a directory of `size` bytes for each name, and a rule that removes it; the first rule is the cheapest."""
    made = []
    for number, name in enumerate(names):
        made.append(make_files(scene.root / name, 4, size // 4))
        scene.rules[name] = {
            "paths": [str(scene.root / name)],
            "expect": {"size": f"{100 - number}M", "seconds": 1},
        }
    return made


# ---------------------------------------------------------------------------------------------------------------- goals


def test_free_size(scene: Scene) -> None:
    """--free SIZE removes until so many bytes are free, and not a rule more."""
    first, second, third = fill_with(scene, "a", "b", "c")
    report = scene.report("--free", f"{58 * MIB}")
    assert report["met"]
    assert not first.exists()
    assert not second.exists()
    assert third.exists()
    assert outcome(report, "c")["result"] == "not-needed"


def test_free_percent(scene: Scene) -> None:
    """--free N% asks for that share of what the filesystem can hold."""
    first, second = fill_with(scene, "a", "b", size=8 * MIB)
    report = scene.report("--free", "80%")
    assert report["filesystems"][0]["need"] == 64 * MIB * 80 // 100
    assert not first.exists()
    assert second.exists()


def test_watermarks(scene: Scene) -> None:
    """--below with --until does nothing at the high watermark, and above it cleans down to the low one."""
    first, second, third = fill_with(scene, "a", "b", "c", size=8 * MIB)
    with unchanged(first, second, third):
        assert scene.report("--below", "40%", "--until", "10%")["already_met"]
    report = scene.report("--below", "30%", "--until", "14%")
    assert [first.exists(), second.exists(), third.exists()] == [False, False, True]
    assert outcome(report, "b")["result"] == "freed"


def test_free_inodes(cli: Cli) -> None:
    """--free-inodes is met by what holds many small files, however few bytes they take."""
    with filesystems.tmpfs(64 * MIB, inodes=400) as mounted:
        scene = Scene(cli, mounted.path)
        large = make_files(scene.root / "large", 2, 8 * MIB)
        small = make_files(scene.root / "small", 300, 10)
        scene.rules["small"] = {
            "paths": [str(small)],
            "expect": {"size": "2M", "seconds": 1},
        }
        scene.rules["large"] = {
            "paths": [str(large)],
            "expect": {"size": "1M", "seconds": 1},
        }
        said = scene.clean("--dry-run", "--free-inodes", "350").expect().stdout
        assert "short of 350 free inodes" in " ".join(said.split())
        report = scene.report("--free-inodes", "350")
        assert not small.exists()
        assert large.exists()
        facts = report["filesystems"][0]
        assert facts["inodes_before"] < 350 <= facts["inodes_after"]
        assert scene.report("--free-inodes", "100%", code=7)["filesystems"][0]["need_inodes"] == 400


def test_inodes_without_a_limit_are_enough(scene: Scene) -> None:
    """On a filesystem that does not count inodes, a goal of inodes is met."""
    folder = fill_with(scene, "a")[0]
    assert scene.report("--free-inodes", "1000000")["already_met"]
    assert folder.exists()


def test_goal_of_the_plan(scene: Scene) -> None:
    """Without an option the plan's own goal for the stage holds."""
    first, second = fill_with(scene, "a", "b")
    plan = scene.cli.home / "own.toml"
    plan.parent.mkdir(exist_ok=True)
    plan.write_text(plan_text(scene.rules, stages={"cron": {"rules": ["a", "b"], "goal": {"free": "58M"}}}))
    done = scene.cli("clean", "--stage=cron", "--json", "--plan", plan, "--filesystem", scene.root).expect()
    assert done.json()["goal"] == "58 MiB free"
    assert [first.exists(), second.exists()] == [False, True]


def test_no_goal_anywhere(scene: Scene) -> None:
    """A stage without a goal needs one from the caller, and says how to give it."""
    folder = fill_with(scene, "a")[0]
    plan = scene.cli.home / "none.toml"
    plan.parent.mkdir(exist_ok=True)
    plan.write_text(plan_text(scene.rules, stages={"pre": {"rules": ["a"]}}))
    with unchanged(folder):
        done = scene.cli("clean", "--plan", plan, "--filesystem", scene.root).expect(2)
    assert "no goal for the stage pre" in done.stderr
    assert "--free 20G" in done.stderr


def test_already_met(scene: Scene) -> None:
    """Enough free at the start is exit 0 and a few lines, and nothing is touched, not even notes of our own."""
    folder = fill_with(scene, "a")[0]
    with unchanged(scene.root):
        done = scene.clean("--free", "1M").expect()
    assert folder.exists()
    assert done.stdout.endswith("enough is free already; nothing was touched\n")
    assert len(done.stdout.splitlines()) <= 6
    assert done.stderr == ""
    assert not (scene.cli.home / ".local/state/cachekit").exists()


# ---------------------------------------------------------------------------------------------------------- wrong usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stage", "weekly"], "'weekly' is not one of"),
        (["--plan", "gibt-es-nicht"], "gibt-es-nicht"),
        (["--plan", "/nowhere/plan.toml"], "/nowhere/plan.toml"),
        (["--plan", ""], "it is empty"),
        (["--until", "70%"], "--until needs --below"),
        (["--free", "1G", "--below", "80%"], "give one"),
        (["--below", "70%", "--until", "80%"], "--until is above --below"),
        (["--free", "lots"], "lots"),
        (["--filesystem", "/no/such/place", "--free", "1K"], "is no directory"),
        (["--wait", "--background"], "give it alone"),
        (["--wait", "--dry-run"], "give it alone"),
        (["--lock-timeout", "soon"], "not a number of seconds"),
        (["something"], "something"),
    ],
)
def test_wrong_usage(scene: Scene, arguments: list[str], said: str) -> None:
    """What cannot be meant is exit 2 and a sentence, as text and as one JSON document, before anything is touched."""
    folder = fill_with(scene, "a")[0]
    base: list[str | Path] = ["clean", "--filesystem", scene.root]
    if "--plan" not in arguments:
        base += ["--plan", scene.plan]
    with unchanged(folder):
        done = scene.cli(*base, *arguments).expect(2)
        assert said in done.stderr
        assert done.stdout == ""
        facts = scene.cli(*base, "--json", *arguments).expect(2).json()
    assert facts["error"]["exit_code"] == 2


def test_stage_that_the_plan_lacks(scene: Scene) -> None:
    """A stage that is not in the plan is exit 2, naming those that are."""
    fill_with(scene, "a")
    plan = scene.cli.home / "some.toml"
    plan.parent.mkdir(exist_ok=True)
    plan.write_text(plan_text(scene.rules, stages={"cron": {"rules": ["a"]}, "post": {"rules": ["a"]}}))
    done = scene.cli("clean", "--stage=pre", "--free=1G", "--plan", plan).expect(2)
    assert "no stage pre" in done.stderr
    assert "expected: post, cron" in done.stderr or "expected: cron, post" in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        'category = "tmep"\npaths = ["/opt/x/*"]',
        'paths = ["/etc/*"]\ncategory = "temp"',
        "category = temp",
    ],
)
def test_plan_with_errors(scene: Scene, wrong: str) -> None:
    """A plan with an error is not carried out, not even its good rules: exit 2 with FILE:LINE."""
    folder = fill_with(scene, "a")[0]
    plan = scene.cli.home / "bad.toml"
    plan.parent.mkdir(exist_ok=True)
    text = plan_text(scene.rules) + f'[[rule]]\nid = "bad"\n{wrong}\n'
    plan.write_text(text)
    line = text.splitlines().index(wrong.splitlines()[0]) + 1
    with unchanged(folder):
        done = scene.cli("clean", "--plan", plan, "--filesystem", scene.root).expect(2)
    assert f"{plan}:{line}: " in done.stderr


# -------------------------------------------------------------------------------------------------------------- keeping


@pytest.mark.parametrize("keep", ["a", "swift", "test-data", "none,a", " swift , b ,", "test-data,b"])
def test_keep(scene: Scene, keep: str) -> None:
    """--keep leaves a rule alone by its name, by a tool or by its category, one or several of them."""
    first, second, third = fill_with(scene, "a", "b", "c")
    scene.rules["a"] = {**scene.rules["a"], "tools": ["swift"], "category": "test-data"}
    report = scene.report("--keep", keep, code=7)
    assert first.exists()
    assert not third.exists()
    assert second.exists() == ("b" in keep.replace(" ", "").split(","))
    assert outcome(report, "a")["result"] == "skipped"
    assert outcome(report, "a")["reason"].startswith("--keep ")


def test_keep_may_be_repeated(scene: Scene) -> None:
    """--keep may be given several times."""
    folders = fill_with(scene, "a", "b", "c")
    scene.report("--keep=a", "--keep=c", code=7)
    assert [folder.exists() for folder in folders] == [True, False, True]


def job(scene: Scene, name: str, text: str) -> dict[str, str]:
    """Make a checkout with a file that says what the job runs; return the environment of a job in it."""
    checkout = scene.cli.cwd / "checkout"
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).write_text(text)
    return {"GITHUB_WORKSPACE": str(checkout)}


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        (".github/workflows/ci.yml", "steps: [{run: git status}]", True),
        (".github/workflows/ci.yml", "uses: actions/setup-git@v4", True),
        (".gitlab-ci.yml", "script: [git fetch]", True),
        ("Makefile", "all:\n\tgit gc", True),
        (".github/workflows/ci.yml", "run: digits legit .git/config github", False),
        ("README", "git status", False),
    ],
)
def test_keep_is_inferred(scene: Scene, name: str, text: str, kept: bool) -> None:
    """A tool that one of the job's own files names as a word is kept without being asked, saying by which."""
    folder = fill_with(scene, "a")[0]
    scene.rules["a"] = {**scene.rules["a"], "tools": ["git"]}
    report = scene.report(code=7, env=job(scene, name, text))
    assert folder.exists() == kept
    if kept:
        assert outcome(report, "a")["reason"] == f"git is named in {name}"


def test_tool_that_is_not_on_path_is_kept(scene: Scene) -> None:
    """A tool that the job's files name is kept though it is not on PATH yet: the job may put it there."""
    folder = fill_with(scene, "a")[0]
    scene.rules["a"] = {**scene.rules["a"], "tools": ["no-such-tool"]}
    with unchanged(folder):
        scene.report(code=7, env=job(scene, ".github/workflows/ci.yml", "run: no-such-tool build"))


def test_only_the_running_workflow_counts(scene: Scene) -> None:
    """On GitHub the running workflow's file alone says which tools the job needs."""
    folder = fill_with(scene, "a")[0]
    scene.rules["a"] = {**scene.rules["a"], "tools": ["git"]}
    env = job(scene, ".github/workflows/other.yml", "run: git gc")
    env |= job(scene, ".github/workflows/this.yml", "run: true")
    ref = {"GITHUB_WORKFLOW_REF": "me/it/.github/workflows/this.yml@refs/heads/main"}
    with unchanged(folder):
        assert "other.yml" in outcome(scene.report("--dry-run", env=env), "a")["reason"]
    scene.report(code=7, env=env | ref)
    assert not folder.exists()


# -------------------------------------------------------------------------------------------------------- how it starts


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_already_met_loads_little(here: Here, json_too: list[str]) -> None:
    """Enough free is answered without the archive's libraries, psutil, engines or workers."""
    code, modules = loaded(here, "clean", "--free=1K", *json_too)
    assert code == 0
    assert not modules & {"zstandard", "xxhash", "psutil", "http.client", "multiprocessing", "ssl", "asyncio"}
    assert not modules & {
        "cachekit.clean.run",
        "cachekit.clean.docker.rules",
        "cachekit.system.workers",
    }
    assert not {name for name in modules if name.startswith(("cachekit.archive", "cachekit.engine"))}


def test_a_clean_needs_no_archive(here: Here, tmp_path: Path) -> None:
    """A clean that removes something loads neither zstandard, xxhash nor psutil: it works where they are broken."""
    folder = make_files(tmp_path / "folder")
    plan = tmp_path / "plan.toml"
    plan.write_text(plan_text({"a": {"paths": [str(folder)]}}))
    code, modules = loaded(
        here, "clean", "--plan", str(plan), "--filesystem", str(tmp_path), "--stage=emergency"
    )
    assert code == 7
    assert not folder.exists()
    assert not modules & {"zstandard", "xxhash", "psutil", "tempfile"}
    assert not {name for name in modules if name.startswith("cachekit.archive")}


def test_help_loads_nothing_of_the_cleaner(here: Here) -> None:
    """`cachekit --help` imports nothing of the rooms clean, disk and engine."""
    _, modules = loaded(here, "--help")
    assert not {
        name for name in modules if name.startswith(("cachekit.clean", "cachekit.disk", "cachekit.engine"))
    }


@pytest.mark.parametrize("command", ["clean", "disk", "disk reserve", "disk release"])
def test_help(here: Here, command: str) -> None:
    """Each command explains itself on 80 columns, with examples that begin with itself."""
    told = here(*command.split(), "--help").expect().stdout
    assert told.startswith(f"Usage: cachekit {command} ")
    assert f"    cachekit {command}" in told
    assert max(map(len, told.splitlines())) <= 80


def test_the_examples_of_the_help_can_be_parsed(here: Here) -> None:
    """Every example of `clean --help` names only options that exist: with --help added, each is understood."""
    told = here("clean", "--help").expect().stdout
    examples = [
        line.split("cachekit ", 1)[1]
        for line in told.splitlines()
        if line.startswith("    ") and "cachekit clean" in line
    ]
    assert len(examples) >= 4
    for example in examples:
        here(*example.split(), "--help").expect()


def test_json_is_one_document_in_each_case(scene: Scene) -> None:
    """--json prints exactly one JSON document: met, already met, dry run, not met, not met but soft, wrong usage."""
    fill_with(scene, "a", "b")
    for arguments, code in (
        (["--free=1K"], 0),
        (["--dry-run"], 0),
        (["--free=57M"], 0),
        (["--free=1P"], 7),
        (["--free=1P", "--soft-fail"], 0),
        (["--free=x"], 2),
    ):
        assert isinstance(json.loads(scene.clean("--json", *arguments).expect(code).out), dict)


def test_keeps_the_machine_s_shared_lock_apart(scene: Scene) -> None:
    """Another clean that does not end in time is exit 6, naming what runs, and nothing is removed."""
    import fcntl

    folder = fill_with(scene, "a")[0]
    lock = scene.cli.home / "run" / "cachekit-clean.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(lock, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with unchanged(folder):
            done = scene.clean("--json", "--lock-timeout=0").expect(6)
            assert scene.clean("--json", "--free=1K", "--lock-timeout=0").expect().json()["already_met"]
            assert scene.clean("--json", "--dry-run", "--lock-timeout=0").expect().json()["dry_run"]
    finally:
        os.close(fd)
    assert "another cachekit clean is running" in done.json()["error"]["message"]
