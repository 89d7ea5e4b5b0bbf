"""Configuration files: which one holds, every fault of one, and saving and restoring caches by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachekit.cache.config.file import examine, load
from cachekit.cache.config.find import find
from cachekit.errors import ConfigInvalid, InvalidRequest
from cachekit.model import Namespace
from cachekit.retention.budget import Budget
from tests.support.in_process import Here, cut
from tests.support.trees import make_tree

GOOD = """
store = "../store"
namespace = "shop/ci"
level = 5

[caches.node]
key = "npm-{hash:lock}"
restore-keys = ["npm-"]
paths = ["node_modules"]
excludes = ["*.log"]
mode = "replace"

[caches.tools]
key = "tools-{os}"
paths = ["tools", "more*"]
namespace = "shared"
family = "all-tools"
in-place = true
level = 1

[retention]
max-size = "50G"
max-entries = 100
max-age = "14d"
min-free = "10%"
keep-last = 2
"""


@pytest.fixture
def project(here: Here) -> Here:
    """A project with a configuration and what its caches hold."""
    tree: dict[str, Any] = {"cachekit.toml": GOOD.encode(), "lock": b"1", "sub": {}}
    make_tree(
        here.root, {**tree, "node_modules": {"a": b"1", "x.log": b"2"}, "tools": {"t": b"3"}, "more-1": b"4"}
    )
    (here.root / ".git").mkdir()
    return here


def test_values(tmp_path: Path) -> None:
    """Everything that a file says is in the configuration."""
    path = tmp_path / "p" / "cachekit.toml"
    make_tree(tmp_path, {"p": {"cachekit.toml": GOOD.encode()}})
    found = load(str(path))
    assert (found.store, found.namespace, found.level) == (str(tmp_path / "store"), Namespace("shop/ci"), 5)
    assert found.budget == Budget(50 << 30, 100, 14 * 86400.0, None, 10.0, 2)
    node, tools = found.caches["node"], found.caches["tools"]
    assert (node.key.text, [k.text for k in node.restore_keys]) == ("npm-{hash:lock}", ["npm-"])
    assert (node.paths, node.excludes, node.mode, node.in_place) == (
        ("node_modules",),
        ("*.log",),
        "replace",
        False,
    )
    assert (tools.namespace, tools.family, tools.in_place, tools.level) == (
        Namespace("shared"),
        "all-tools",
        True,
        1,
    )


FAULTS = [
    ('stroe = "x"', "1: stroe: unknown key 'stroe'", "store"),
    ("store = 1", "1: store: 1 is not a line of text", ""),
    ('namespace = "a/@b"', "1: namespace: 'a/@b' cannot be a namespace", "--scope"),
    ('namespace = "entries"', "1: namespace: 'entries' cannot be part", ""),
    ('trust-store = "yes"', "1: trust-store: 'yes' is not true or false", ""),
    ("level = 23", "1: level: there is no compression level 23", ""),
    ("level = true", "1: level: there is no", ""),
    ('trust = "gpg"', "1: trust: 'gpg' is not known", "hmac"),
    ('[caches.a]\nkey = "k"', "1: caches.a: there are no paths", "paths ="),
    ('[caches.a]\npaths = ["p"]', "1: caches.a: there is no key", "key ="),
    ('[caches.a]\nkey = "k"\npaths = []', "3: caches.a.paths: it is empty", ""),
    ('[caches.a]\nkey = ""\npaths = ["p"]', "2: caches.a.key: it is empty", ""),
    ('[caches.a]\nkey = "{hush:x}"\npaths = ["p"]', "2: caches.a.key: there is no placeholder {hush:x}", ""),
    (
        '[caches.a]\nkey = "k"\npaths = ["p"]\nrestore-keys = [\n"a",\n"{"]',
        "6: caches.a.restore-keys: '{'",
        "",
    ),
    ('[caches.a]\nkey = "k"\npaths = ["p", 1]', "3: caches.a.paths: it contains 1", ""),
    (
        '[caches.a]\nkey = "k"\npaths = ["p"]\nexclude = ["p"]',
        "4: caches.a.exclude: unknown key 'exclude'",
        "excludes",
    ),
    ('[caches.a]\nkey = "k"\npaths = "p"', "3: caches.a.paths: 'p' is not a list", ""),
    (
        '[caches.a]\nkey = "k"\npaths = ["p"]\nmode = "mirror"',
        "4: caches.a.mode: 'mirror' is not known",
        "merge",
    ),
    ('[caches.A_b]\nkey = "k"\npaths = ["p"]', "1: caches.A_b: 'A_b' cannot be the name", "small letters"),
    ("caches = 3", "1: caches: 3 is not a table", ""),
    ("[caches]\na = 3", "2: caches.a: 3 is not a table", ""),
    ('[retention]\nmax-size = "many"', "2: retention.max-size: 'many' is not a size", "50"),
    ('[retention]\nmax-age = "soon"', "2: retention.max-age: 'soon' is not a duration", ""),
    ('[retention]\nmin-free = "110%"', "2: retention.min-free: '110%'", ""),
    ('[retention]\nmax-sise = "1G"', "2: retention.max-sise: unknown key", "max-size"),
    ("a = [", "1: not TOML", ""),
    ("a = 1\na = 2", "2: not TOML", ""),
]


@pytest.mark.parametrize(("text", "says", "hint"), FAULTS, ids=[says for _, says, _ in FAULTS])
def test_faults(here: Here, text: str, says: str, hint: str) -> None:
    """A fault is exit 2 from every command that needs the file: file, line and key, what is wrong, what to write."""
    Path("cachekit.toml").write_text(text)
    expected = f"{here.root}/cachekit.toml:{says}"
    assert expected in here("config", "check").expect(2).stdout
    told = here("ls").expect(2).stderr
    assert expected in told
    assert hint in told


def test_all_faults_at_once(here: Here) -> None:
    """Every fault is shown, in the order of its lines."""
    Path("cachekit.toml").write_text('stroe = "x"\nlevel = 23\ntrust = "gpg"\n')
    report = here("config", "check", "--json").expect(2).json()
    assert [problem["line"] for problem in report[0]["problems"]] == [1, 2, 3]
    error = json.loads(here("ls", "--json").expect(2).stdout)["error"]
    assert error["id"] == "config-invalid"
    assert len(error["problems"]) == 3
    assert "(and 2 more)" in error["message"]


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_content(tmp_path_factory: pytest.TempPathFactory, content: str | bytes) -> None:
    """Whatever a file holds, it is read or its faults are told."""
    path = tmp_path_factory.mktemp("any") / "cachekit.toml"
    path.write_bytes(content.encode(errors="replace") if isinstance(content, str) else content)
    configuration, faults = examine(str(path))
    if faults:
        with pytest.raises(ConfigInvalid):
            load(str(path))
    else:
        assert load(str(path)) == configuration


def test_no_file(here: Here) -> None:
    """A file that is named and cannot be read is exit 2; a FIFO is not waited for."""
    os.mkfifo("fifo")
    os.symlink("loop", "loop")
    for name, says in (
        ("none", "no such configuration file"),
        ("fifo", "regular"),
        ("loop", "opened"),
        ("/", "regular"),
    ):
        assert says in here("ls", "--config", name).expect(2).stderr
    assert "no configuration here" in here("config", "check").expect(2).stderr


def test_which_file(tmp_path: Path) -> None:
    """The nearest file holds, upwards to the git root or home; cachekit.toml goes before pyproject.toml."""
    ours = b'[tool.cachekit]\nstore = "x"\n'
    make_tree(
        tmp_path,
        {
            "cachekit.toml": b"",
            "home": {"project": {".git": {}, "sub": {"deep": {}}, "pyproject.toml": ours}, "loose": {}},
            "outside": {"in": {}},
        },
    )
    home = tmp_path / "home"
    project = home / "project"
    deep = str(project / "sub" / "deep")
    assert find(deep, str(home)) == str(project / "pyproject.toml")
    (project / "sub" / "pyproject.toml").write_text("[tool.other]\nname = 'cachekit'\n")
    assert find(deep, str(home)) == str(project / "pyproject.toml"), (
        "a project file without our table is passed over"
    )
    (project / "cachekit.toml").touch()
    assert find(deep, str(home)) == str(project / "cachekit.toml")
    (project / "sub" / "pyproject.toml").write_bytes(b'tool.cachekit.store = "y"\n')
    assert find(deep, str(home)) == str(project / "sub" / "pyproject.toml")
    (home / "cachekit.toml").touch()
    assert find(str(home / "loose"), str(home)) == str(home / "cachekit.toml")
    (home / "cachekit.toml").unlink()
    assert find(str(home / "loose"), str(home)) is None, "nothing above home"
    assert find(str(tmp_path / "outside" / "in"), str(home)) is None, "outside only the directory itself"
    assert find(str(tmp_path), str(home)) == str(tmp_path / "cachekit.toml")


def test_project_file(here: Here) -> None:
    """[tool.cachekit] in pyproject.toml is the same, and its faults have its lines."""
    text = '[project]\nname = "p"\n\n[tool.cachekit.caches.t]\nkey = "k"\npaths = ["t"]\n'
    Path("pyproject.toml").write_text(text)
    make_tree(here.root, {"t": {"a": b"1"}})
    assert here("save", "t", "--json").expect().json()["key"] == "k"
    Path("pyproject.toml").write_text(text + "pahts = 1\n")
    assert "pyproject.toml:7: tool.cachekit.caches.t.pahts: unknown key" in here("ls").expect(2).stderr
    Path("pyproject.toml").write_text('[tool.cachekit]\nstore = "a"\nstore = "b"\n')
    assert "pyproject.toml:3: not TOML" in here("ls").expect(2).stderr


def test_named(project: Here) -> None:
    """A cache is saved and restored by its name, from below the project too, as the file says."""
    os.chdir("sub")
    report = project("save", "node", "--json").expect().json()
    key = project("key", "npm-{hash:lock}", "--root", "..").stdout.strip()
    assert (report["cache"], report["status"], report["key"], report["files"]) == ("node", "saved", key, 1)
    shown = project("show", key, "--json").expect().json()
    assert (shown["family"], shown["level"]) == ("node", 5)
    assert (project.root.parent / "store/v1/shop/ci/entries" / report["entry"]).exists()
    shutil.rmtree("../node_modules")
    make_tree(project.root, {"node_modules": {"other": b""}})
    report = project("restore", "node", "--json").expect().json()
    assert (report["cache"], report["status"], report["mode"]) == ("node", "exact", "replace")
    assert os.listdir("../node_modules") == ["a"]
    (project.root / "lock").write_bytes(b"2")
    assert project("restore", "node", "--json").expect().json()["status"] == "partial"


def test_options_go_before(project: Here) -> None:
    """What is given as an option goes before the file: store, namespace, level, excludes, family, mode, root."""
    given = ["--store", "../other", "--namespace", "n", "--level", "-1", "--exclude", "a", "--family", "f"]
    report = project("save", "node", "--json", *given).expect().json()
    assert (Path("../other/v1/n/entries") / report["entry"]).exists()
    shown = project("show", report["key"], "--json", *given[:4]).expect().json()
    assert (shown["family"], shown["level"], shown["counts"]["files"]) == ("f", -1, 1)
    Path("node_modules/other").touch()
    restored = project("restore", "node", "--merge", "--json", *given[:4]).expect().json()
    assert (restored["mode"], Path("node_modules/other").exists()) == ("merge", True)
    project("save", "tools").expect()
    elsewhere = ["restore", "tools", "--root", "sub", "--json"]
    assert project(*elsewhere).expect().json()["commit"] == {"tools": "in-place", "more-1": "in-place"}
    assert Path("sub/tools/t").exists()


def test_variables(project: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables go before the file and after options."""
    monkeypatch.setenv("CACHEKIT_STORE", str(project.home / "by-variable"))
    monkeypatch.setenv("CACHEKIT_NAMESPACE", "nv")
    project("save", "node").expect()
    assert len(list((project.home / "by-variable/v1/nv/entries").iterdir())) == 1
    monkeypatch.setenv("CACHEKIT_CONFIG", str(project.root / "sub" / "none.toml"))
    assert "no such configuration" in project("ls").expect(2).stderr


def test_file_store_for_keys(project: Here) -> None:
    """The file's store, namespace and level hold for --key too."""
    project("save", "--key", "k", "tools").expect()
    assert project("show", "k", "--json").expect().json()["level"] == 5
    assert len(list((project.root.parent / "store/v1/shop/ci/entries").iterdir())) == 1


def test_several(project: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cache by itself: a list of reports, one's failure does not stop the others, the highest code wins."""
    output = project.root / "out"
    monkeypatch.setenv("GITHUB_OUTPUT", str(output))
    saved = project("save", "--all", "--json").expect().json()
    assert [(one["cache"], one["status"]) for one in saved] == [("node", "saved"), ("tools", "saved")]
    restored = project("restore", "tools", "node", "--json").expect().json()
    assert [(one["cache"], one["status"]) for one in restored] == [("tools", "exact"), ("node", "exact")]
    assert outputs(output)["cache-hit"] == "true"
    assert outputs(output)["node-cache-hit"] == "true"
    output.unlink()
    Path("lock").unlink()
    done = project("restore", "--all", "--json").expect(2)
    failed, whole = done.json()
    assert (failed["cache"], failed["error"]["id"], whole["status"]) == ("node", "usage", "exact")
    assert "cachekit: error: node: no file matches {hash:lock}" in done.stderr
    told = outputs(output)
    assert (told["cache-hit"], told["node-status"], told["tools-cache-hit"]) == ("false", "error", "true")
    shutil.rmtree("tools")
    project("save", "--all").expect(8)
    assert project("save", "--all", "--soft-fail").expect(2).stderr.count("warning: tools:") == 1


def test_partial_of_several_is_no_hit(project: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """cache-hit of several is false if one is a partial hit; a dotenv file has all of them."""
    project("save", "--all").expect()
    Path("lock").write_bytes(b"2")
    monkeypatch.setenv("GITHUB_OUTPUT", str(project.root / "out"))
    project("restore", "--all", "--dotenv", "env").expect()
    told = outputs(project.root / "out")
    assert (told["cache-hit"], told["node-status"], told["tools-status"]) == ("false", "partial", "exact")
    lines = Path("env").read_text().splitlines()
    assert {
        "CACHEKIT_CACHE_HIT=false",
        "CACHEKIT_NODE_STATUS=partial",
        "CACHEKIT_TOOLS_CACHE_HIT=true",
    } <= set(lines)


def test_damaged_of_several(project: Here) -> None:
    """A damaged entry of one cache is refused and set aside, the other restored; --strict tells by exit code 4."""
    saved = project("save", "--all", "--json").expect().json()
    cut(project.root.parent / "store/v1/shop/ci/entries" / saved[0]["entry"])
    reports = project("restore", "--all", "--strict", "--json").expect(4).json()
    assert [one["status"] for one in reports] == ["refused", "exact"]


def test_all_of_one_is_a_list(here: Here) -> None:
    """--all gives a list, however many caches there are."""
    Path("cachekit.toml").write_text('[caches.t]\nkey = "k"\npaths = ["t"]\n')
    make_tree(here.root, {"t": {"a": b"1"}})
    assert [one["cache"] for one in here("save", "--all", "--json").expect().json()] == ["t"]
    assert here("restore", "t", "--json").expect().json()["cache"] == "t"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "neither a key nor the name"),
        (["nod"], "did you mean node"),
        (["node", "--all"], "name none besides"),
        (["--key", "k", "--all"], "has no --key"),
        (["node", "--expand"], "--expand needs --key"),
        (["node", "--namespace", "a/@b"], "--scope"),
        (["node", "--namespace", ""], "empty"),
        (["node", "--scope", "a/b"], "cannot be part"),
    ],
)
def test_usage(project: Here, arguments: list[str], says: str) -> None:
    """What cannot be meant is exit 2, with a hint, for save and restore."""
    for command in ("save", "restore"):
        assert says in project(command, *arguments).expect(2).stderr
    assert not (project.root.parent / "store").exists()


def test_names_without_a_file(here: Here) -> None:
    """A name without a configuration is exit 2 and says that a key is missing."""
    assert "--key KEY" in here("save", "node").expect(2).stderr


def test_trust_of_the_configuration(project: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust = "hmac" holds for its cache: without a signature nothing is used; an option goes before it."""
    project("save", "tools").expect()
    with Path("cachekit.toml").open("a") as file:
        file.write('[caches.signed]\nkey = "tools-{os}"\npaths = ["tools", "more*"]\nnamespace = "shared"\n')
        file.write('trust = "hmac"\n')
    shutil.rmtree("tools")
    assert project("restore", "signed", "--json").expect().json()["status"] == "refused"
    assert not Path("tools").exists()
    assert project("explain", "signed", "--json").expect().json()["status"] == "refused"
    assert project("restore", "signed", "--trust", "none", "--json").expect().json()["status"] == "exact"
    monkeypatch.setenv("CACHEKIT_HMAC_KEY", "k" * 40)
    assert project("save", "signed", "--force", "--json").expect().json()["status"] == "saved"
    shutil.rmtree("tools")
    assert project("restore", "signed", "--json").expect().json()["status"] == "exact"
    assert project("verify", "--all", "--namespace", "shared", "--json").expect().json()["ok"]


def test_read_only_leaves_no_event(project: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only job writes no event into the store's ledger; others do."""
    project("save", "node").expect()
    ledger = project.root.parent / "store/v1/shop/ci/events"
    before = {path: path.read_bytes() for path in ledger.iterdir()}
    assert before
    project("restore", "node", "--read-only").expect()
    project("save", "node", "--read-only").expect(9)
    assert {path: path.read_bytes() for path in ledger.iterdir()} == before
    project("restore", "node").expect()
    assert {path: path.read_bytes() for path in ledger.iterdir()} != before


def test_literal_keys(here: Here) -> None:
    """--key is literal: with a placeholder it is refused; --expand expands it; other braces are only braces."""
    make_tree(here.root, {"t": {"lock": b"1"}, "lock": b"1"})
    for arguments in (
        ["save", "--key", "n-{hash:lock}", "t"],
        ["restore", "--key", "n", "--restore-key", "{os}"],
    ):
        assert "--expand" in here(*arguments).expect(2).stderr
    assert here.save("n-{x}-{}", "t")["key"] == "n-{x}-{}"
    expected = here("key", "n-{hash:**/lock,!t}").stdout.strip()
    assert here.save("n-{hash:**/lock}", "--expand", "t")["key"] == expected, "what is saved does not count"
    shutil.rmtree("t")
    assert here.restore("n-{hash:**/lock}", "--expand", "t")["status"] == "exact"


def test_show(project: Here) -> None:
    """Config show tells what holds here, with what options make of it."""
    shown = project("config", "show", "--json", "--namespace", "x").expect().json()
    assert (shown["store"], shown["namespace"]) == (str(project.root.parent / "store"), "x")
    assert shown["configuration"]["caches"]["node"]["paths"] == ["node_modules"]
    text = project("config", "show").expect().stdout
    assert "npm-{hash:lock}" in text
    assert "max-bytes" in text


def test_clean_survives_a_faulty_file(here: Here) -> None:
    """A faulty configuration does not keep an emergency from looking at the disk."""
    Path("cachekit.toml").write_text("nonsense = 1")
    here("disk", "--no-clean", "--scan-seconds", "0", "--json").expect(0)


def test_unreadable_project_file(tmp_path: Path) -> None:
    """A pyproject.toml that cannot be read is told, not passed over."""
    os.mkfifo(tmp_path / "pyproject.toml")
    with pytest.raises(InvalidRequest):
        find(str(tmp_path), "/nonexistent")


def outputs(path: Path) -> dict[str, str]:
    """Read GitHub's output file."""
    lines = path.read_text().splitlines()
    return {lines[n].partition("<<")[0]: lines[n + 1] for n in range(0, len(lines), 3)}
