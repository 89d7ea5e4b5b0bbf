"""Each fault of a plan file is found, in its line, with a hint; all of them at once."""

from __future__ import annotations

import math

import pytest

from cachekit.clean.model import Amount, Command, Conditions, Docker, Goal, Paths, Rule
from cachekit.clean.plan.file import MAX_BYTES, load, parse, problems, read_text
from cachekit.errors import InvalidRequest, PlanInvalid

HEAD = 'format = 1\nname = "p"\n[stage.pre]\nrules = ["a"]\n[[rule]]\nid = "a"\ncategory = "temp"\n'
#: The line of what is put after HEAD.
AFTER = 8
FINE = HEAD + 'paths = ["/tmp/x/*"]\n'


def faults(text: str) -> list[tuple[int, str]]:
    """Return line and message of every fault."""
    return [(item.line, item.message) for item in problems(text, "p.toml") if not item.warning]


def test_fine() -> None:
    """A small plan has no faults, and means what it says."""
    assert problems(FINE, "p.toml") == []
    plan = parse(FINE, "p.toml")
    assert plan.rules == {"a": Rule("a", "temp", Paths(("/tmp/x/*",)), line=5)}
    assert [rule.id for rule in plan.of_stage("pre")] == ["a"]
    assert plan.stages["pre"].goal is None


def test_every_key() -> None:
    """Every key of docs/plans.md is read into the value that stands for it."""
    plan = parse(
        """
        format = 1
        name = "all"
        title = "Everything"
        stage.pre = { rules = ["p", "c"], goal = { free = "20G", below = "80%", until = "70%", inodes = "5%" } }
        stage.cron = { rules = ["d"], goal = { free = "15.5%", below = "85%", inodes = 250_000 } }
        [[rule]]
        id = "p"
        category = "runner"
        title = "P"
        paths = ["~/x", "$RUNNER_ROOT/[ab]/**/c?", "${RUNNER_TEMP}/y"]
        exclude = ["*.sock", "/tmp/x/*"]
        within = ["$RUNNER_ROOT", "~"]
        tools = ["ghc", "clang-18"]
        root = true
        background = true
        expect = { size = "1.5G", seconds = 0.5 }
        [rule.when]
        older = "24h"
        larger = "10M"
        keep = 3
        environment = ["github-hosted", "root"]
        image = ["ubuntu24"]
        free-below = "30G"
        idle-runner = true
        unlinked = true
        git-ignored = true
        [[rule]]
        id = "c"
        category = "package-cache"
        command = ["apt-get", "clean"]
        timeout = "90s"
        frees = ["/var/cache/apt"]
        [[rule]]
        id = "d"
        category = "docker"
        docker = "build-cache"
        reserved = "5G"
        max-used = "20G"
        min-free = "10G"
        timeout = "5m"
        when.free-below = "10%"
        [[rule]]
        id = "e"
        category = "docker"
        docker = "images"
        when = { older = "7d" }
        """,
        "all",
    )
    gib = 1 << 30
    assert plan.rules["p"] == Rule(
        "p",
        "runner",
        Paths(
            ("~/x", "$RUNNER_ROOT/[ab]/**/c?", "${RUNNER_TEMP}/y"),
            ("*.sock", "/tmp/x/*"),
            ("$RUNNER_ROOT", "~"),
        ),
        "P",
        Conditions(
            86400.0, 10 << 20, 3, ("github-hosted", "root"), ("ubuntu24",), Amount(30 * gib), True, True, True
        ),
        gib * 3 // 2,
        0.5,
        ("ghc", "clang-18"),
        root=True,
        background=True,
        line=7,
    )
    assert plan.rules["c"].target == Command(("apt-get", "clean"), 90.0, ("/var/cache/apt",))
    assert plan.rules["d"].target == Docker("build-cache", 0.0, 5 * gib, 20 * gib, 10 * gib, 300.0)
    assert plan.rules["d"].when.free_below == Amount(percent=10.0)
    assert plan.rules["e"].target == Docker("images", 7 * 86400.0)
    assert plan.rules["e"].when == Conditions()
    assert plan.stages["pre"].goal == Goal(Amount(20 * gib), 80.0, 70.0, Amount(percent=5.0))
    assert plan.stages["cron"].goal == Goal(Amount(percent=15.5), 85.0, 85.0, Amount(250_000))
    assert plan.title == "Everything"


#: What follows HEAD; what the fault's message has in it.
RULE_FAULTS = [
    ("", "nothing to clean"),
    ('paths = ["/tmp/x"]\ncommand = ["x"]', "there is paths already"),
    ('docker = "images"\npaths = ["/tmp/x"]', "there is docker already"),
    ("paths = []", "paths is empty"),
    ('paths = "/tmp/x"', "not a list"),
    ("paths = [1]", "not a text"),
    ('paths = [""]', "an empty text"),
    ('paths = ["tmp/x"]', "not an absolute path"),
    ('paths = ["~root/x"]', "not an absolute path"),
    ('paths = ["*"]', "not an absolute path"),
    ('paths = ["/tmp/../etc"]', "contains .."),
    ('paths = ["~/../x"]', "contains .."),
    ('paths = ["$RUNNER_TEMP/.."]', "contains .."),
    ('paths = ["/tmp/./x"]', "single dot"),
    ('paths = ["/tmp//x"]', "empty component"),
    ('paths = ["/tmp/x/"]', "ends with a slash"),
    ('paths = ["/"]', "the whole machine"),
    ('paths = ["//"]', "ends with a slash"),
    ('paths = ["/*"]', "must not have a sign"),
    ('paths = ["/t*/x"]', "must not have a sign"),
    ('paths = ["/[a-z]mp/x"]', "must not have a sign"),
    ('paths = ["/**/x"]', "must not have a sign"),
    ('paths = ["~"]', "the whole directory"),
    ('paths = ["~/"]', "ends with a slash"),
    ('paths = ["~/*"]', "everything in the home"),
    ('paths = ["$HOME"]', "the whole directory"),
    ('paths = ["$HOME/.*"]', "everything in the home"),
    ('paths = ["${HOME}/**"]', "everything in the home"),
    ('paths = ["/home/x"]', "a whole home directory"),
    ('paths = ["/home/*/*"]', "everything in /home"),
    ('paths = ["/home/x/.*"]', "a whole home directory"),
    ('paths = ["$WORKSPACE"]', "the whole directory"),
    ('paths = ["$/x"]', "a variable is the whole first component"),
    ('paths = ["$TMP*/x"]', "a variable is the whole first component"),
    ('paths = ["/tmp/a$"]', "without a name"),
    ('paths = ["/etc"]', "a directory of the system"),
    ('paths = ["/usr/*"]', "everything in /usr"),
    ('paths = ["/opt/**/*"]', "everything in /opt"),
    ('paths = ["/etc/x/y"]', "/etc is never cleaned"),
    ('paths = ["/usr/bin/x*"]', "/usr/bin is never cleaned"),
    ('paths = ["~/x/.git"]', "a .git is never cleaned"),
    ('paths = ["/tmp/a**b"]', "** stands for whole directories"),
    ('paths = ["/tmp/[abc"]', "has no ]"),
    ('paths = ["/tmp/a\\nb"]', "control character"),
    ('paths = ["/tmp/a\\u0000b"]', "control character"),
    (f'paths = ["/tmp/{"x" * 1000}"]', "longer than"),
    ('paths = ["/tmp/x"]\nexclude = ["a/b"]', "not an absolute path"),
    ('paths = ["/tmp/x"]\nexclude = ["[a"]', "has no ]"),
    ('paths = ["/tmp/x"]\nexclude = ["a\\tb"]', "control character"),
    ('paths = ["/tmp/x"]\nwithin = ["/tmp/*"]', "has no signs"),
    ('paths = ["/tmp/x"]\nwithin = ["/"]', "the whole machine"),
    ('paths = ["/tmp/x"]\ntimeout = "1m"', "timeout goes with command and docker only"),
    ('paths = ["/tmp/x"]\nreserved = "1G"', "reserved goes with docker only"),
    ("command = []", "command is empty"),
    ('command = ["./x"]', "neither a name nor an absolute path"),
    ('command = ["x", "a\\u0000"]', "a NUL"),
    ('command = ["x"]\nexclude = ["a"]', "exclude goes with paths only"),
    ('command = ["x"]\ntimeout = 60', "not a duration"),
    ('command = ["x"]\ntimeout = "0s"', "from 1 second to 1 day"),
    ('command = ["x"]\ntimeout = "2d"', "from 1 second to 1 day"),
    ('command = ["x"]\nfrees = ["cache"]', "not an absolute path"),
    ('command = ["x"]\nwhen.older = "1d"', "older goes with paths only"),
    ('command = ["x"]\nwhen.git-ignored = true', "git-ignored goes with paths only"),
    ('docker = "everything"', "there is no 'everything'"),
    ("docker = true", "not a line of text"),
    ('docker = "images"\nreserved = "1G"', 'docker = "build-cache" only'),
    ('docker = "volumes"\nwhen.older = "1d"', "older goes with"),
    ('docker = "images"\nwhen.keep = 2', "keep goes with paths only"),
    ('docker = "build-cache"\nmax-used = "-1G"', "not a size"),
    ('paths = ["/tmp/x"]\nwhen = 3', "not a table"),
    ('paths = ["/tmp/x"]\nwhen.oldr = "1d"', "unknown key 'oldr'"),
    ('paths = ["/tmp/x"]\nwhen.older = 24', "not a duration"),
    ('paths = ["/tmp/x"]\nwhen.older = "24"', "not a duration"),
    ('paths = ["/tmp/x"]\nwhen.older = "-1h"', "not a duration"),
    ('paths = ["/tmp/x"]\nwhen.older = "999999999d"', "longer than 100 years"),
    ('paths = ["/tmp/x"]\nwhen.older = 2020-01-01', "not a duration"),
    ('paths = ["/tmp/x"]\nwhen.larger = "10"', "has no unit"),
    ('paths = ["/tmp/x"]\nwhen.larger = "999999999999999999T"', "more than a disk can hold"),
    ('paths = ["/tmp/x"]\nwhen.larger = "nan"', "not a size"),
    ('paths = ["/tmp/x"]\nwhen.larger = ""', "not a size"),
    ('paths = ["/tmp/x"]\nwhen.keep = -1', "out of range"),
    ('paths = ["/tmp/x"]\nwhen.keep = true', "not a whole number"),
    ('paths = ["/tmp/x"]\nwhen.keep = 1.5', "not a whole number"),
    ('paths = ["/tmp/x"]\nwhen.keep = 9999999999999', "out of range"),
    ('paths = ["/tmp/x"]\nwhen.environment = ["github_hosted"]', "there is no 'github_hosted'"),
    ('paths = ["/tmp/x"]\nwhen.environment = "ci"', "not a list"),
    ('paths = ["/tmp/x"]\nwhen.image = ["Ubuntu 24"]', "not a name"),
    ('paths = ["/tmp/x"]\nwhen.free-below = "100%"', "not between"),
    ('paths = ["/tmp/x"]\nwhen.unlinked = "yes"', "not true or false"),
    ('paths = ["/tmp/x"]\nroot = 1', "not true or false"),
    ('paths = ["/tmp/x"]\nexpect.seconds = nan', "out of range"),
    ('paths = ["/tmp/x"]\nexpect.seconds = inf', "out of range"),
    ('paths = ["/tmp/x"]\nexpect.seconds = -0.5', "out of range"),
    ('paths = ["/tmp/x"]\nexpect.seconds = true', "not a number of seconds"),
    ('paths = ["/tmp/x"]\nexpect.seconds = "4s"', "not a number of seconds"),
    (f'paths = ["/tmp/x"]\nexpect.seconds = 1{"0" * 400}', "out of range"),
    (f'paths = ["/tmp/x"]\nexpect.seconds = 0x{"f" * 9000}', "thousands of digits"),
    ('paths = ["/tmp/x"]\nexpect.size = 5', "not a size"),
    ('paths = ["/tmp/x"]\nexpect.bytes = 5', "unknown key 'bytes'"),
    ('paths = ["/tmp/x"]\ntools = ["a b"]', "not a name"),
    ('paths = ["/tmp/x"]\ntools = ["a", "a"]', "there twice"),
    ('paths = ["/tmp/x"]\ntitle = "a\\nb"', "not a line of text"),
    ('paths = ["/tmp/x"]\ntitle = 3', "not a line of text"),
    ('paths = ["/tmp/x"]\ncolour = "red"', "unknown key 'colour'"),
]


@pytest.mark.parametrize(("text", "message"), RULE_FAULTS, ids=[text[:60] for text, _ in RULE_FAULTS])
def test_fault_of_a_rule(text: str, message: str) -> None:
    """A fault of a rule is the only one told of, at the line of its key, with the rule's id."""
    (found,) = (item for item in problems(HEAD + text + "\n", "p.toml") if not item.warning)
    assert message in found.message
    assert found.line == (AFTER + text.count("\n") if text else 5)
    assert found.rule == "a"
    with pytest.raises(PlanInvalid) as caught:
        parse(HEAD + text + "\n", "p.toml")
    assert caught.value.message.startswith(f"p.toml:{found.line}: rule a: ")


#: A plan, the line of its fault, what the message has in it.
PLAN_FAULTS = [
    (FINE.replace("format = 1", "format = 2"), 1, "format: 2 is not 1"),
    (FINE.replace("format = 1", "format = true"), 1, "format: true is not 1"),
    (FINE.replace("format = 1\n", ""), 1, "there is no format"),
    (FINE.replace('name = "p"', ""), 1, "no name"),
    (FINE.replace('"p"', '"My Plan"'), 2, "not a name"),
    (FINE.replace('"p"', "3"), 2, "not a line of text"),
    (FINE.replace("stage.pre", "stage.prae"), 3, "unknown key 'prae'"),
    (FINE.replace("[stage.pre]", "[stages.pre]"), 3, "unknown key 'stages'"),
    (FINE.replace('rules = ["a"]', ""), 3, "has no rules"),
    (FINE.replace('rules = ["a"]', "rules = []"), 4, "has no rules"),
    (FINE.replace('rules = ["a"]', 'rules = ["a", "b"]'), 4, "there is no 'b'"),
    (FINE.replace('rules = ["a"]', 'rules = [\n"a",\n"b"]'), 6, "there is no 'b'"),
    (FINE.replace('rules = ["a"]', 'rules = ["a", "a"]'), 4, "there twice"),
    (FINE.replace('rules = ["a"]', 'rules = ["a"]\ngoal = {}'), 5, "the goal is empty"),
    (FINE.replace('rules = ["a"]', 'rules = ["a"]\ngoal = "20G"'), 5, "not a table"),
    (FINE.replace('rules = ["a"]', 'rules = ["a"]\ngoal.free = 20'), 5, "not a size"),
    (FINE.replace('rules = ["a"]', 'rules = ["a"]\ngoal.free = "0%"'), 5, "not between"),
    (FINE.replace('rules = ["a"]', 'rules = ["a"]\ngoal.free = "101%"'), 5, "not between"),
    (FINE.replace('rules = ["a"]', 'rules = ["a"]\ngoal.free = "nan%"'), 5, "not a percentage"),
    (FINE.replace('rules = ["a"]', 'rules = ["a"]\ngoal.free = "-5%"'), 5, "not a percentage"),
    (FINE.replace('rules = ["a"]', 'rules = ["a"]\ngoal.below = 80'), 5, "not a percentage"),
    (FINE.replace('rules = ["a"]', 'rules = ["a"]\ngoal.below = "80G"'), 5, "not a percentage"),
    (FINE.replace('rules = ["a"]', 'rules = ["a"]\ngoal.until = "80%"'), 5, "there is no below"),
    (
        FINE.replace('rules = ["a"]', 'rules = ["a"]\ngoal.below = "70%"\ngoal.until = "80%"'),
        6,
        "above below",
    ),
    (FINE.replace('rules = ["a"]', 'rules = ["a"]\ngoal.inodes = 0.5'), 5, "not a whole number"),
    (FINE.replace('rules = ["a"]', 'rules = ["a"]\ngoal.fre = "5G"'), 5, "goal is empty"),
    (FINE.replace('id = "a"', 'id = "A b"').replace('rules = ["a"]', 'rules = ["A b"]'), 6, "not a name"),
    (FINE.replace('id = "a"\n', ""), 5, "without an id"),
    (FINE.replace('category = "temp"\n', ""), 5, "has no category"),
    (FINE.replace('"temp"', '"tmp"'), 7, "there is no 'tmp'"),
    (FINE + '[[rule]]\nid = "a"\ncategory = "temp"\npaths = ["/tmp/y"]\n', 10, "rule of line 5 has this id"),
    (FINE.replace("[[rule]]", "[rule]"), 5, "there is no rule"),
    ('rule = [1]\nformat = 1\nname = "p"\n[stage.pre]\nrules = []\n', 1, "not a table"),
    ("stage = 3\n" + FINE.replace("[stage.pre]", "[x]"), 1, "not a table"),
    ("x = [\n", 2, "not TOML"),
    ("x = 1\nx = 2\n", 2, "not TOML"),
    ("\n\nx = \n", 3, "not TOML"),
    ('x = "abc\n', 1, "not TOML"),
    ("x = " + "[" * 3000 + "]" * 3000, 1, "nested too deeply"),
    ("x = " + "9" * 9000, 1, "not TOML"),
    ("\n" + "a." * 5000 + "b = 1\n", 2, "more than 16 parts"),
    ("\n[" + '"a" . ' * 5000 + "b]\n", 2, "more than 16 parts"),
]


@pytest.mark.parametrize(("text", "line", "message"), PLAN_FAULTS)
def test_fault_of_a_plan(text: str, line: int, message: str) -> None:
    """A fault outside of the rules is told of in its line."""
    found = faults(text)
    assert [at for at, told in found if message in told] == [line], found


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ('when.Older = "1d"', "did you mean older?"),
        ('when.free_below = "1G"', "did you mean free-below?"),
        ("rooot = true", "did you mean root?"),
        ('when.environment = ["github_hosted"]', "did you mean github-hosted?"),
    ],
)
def test_did_you_mean(key: str, hint: str) -> None:
    """A word that is nearly right is answered with the right one."""
    (found,) = problems(FINE + key + "\n", "p.toml")
    assert found.hint == hint


def test_all_at_once() -> None:
    """All faults come in the order of their lines, and the error names the first and how many more there are."""
    text = FINE.replace('"temp"', '"tmp"').replace("/tmp/x/*", "/*") + 'root = "yes"\nx = 1\n'
    assert [line for line, _ in faults(text)] == [7, 8, 9, 10]
    with pytest.raises(PlanInvalid, match=r"^p\.toml:7: rule a: category: .* \(and 3 more\)$") as caught:
        parse(text, "p.toml")
    told = caught.value.as_dict()
    assert told["id"] == "plan-invalid"
    assert told["exit_code"] == 2
    assert isinstance(told["problems"], list)
    assert [item["line"] for item in told["problems"]] == [7, 8, 9, 10]
    assert "cachekit plan check p.toml" in str(told["hint"])


def test_warnings() -> None:
    """What is odd but usable is a warning: a rule in no stage, a toolchain anywhere, shell signs without a shell."""
    rule = '[[rule]]\nid = "{}"\ncategory = "{}"\n{}\n'
    text = FINE
    text += rule.format("b", "temp", 'paths = ["/tmp/y"]')
    text += rule.format("c", "toolchain", 'paths = ["/opt/x"]').replace("[[rule]]", "[[rule]]\n")
    text += rule.format("d", "temp", 'command = ["rm", "$HOME/x", "&&", "ls"]')
    text += rule.format("e", "temp", 'command = ["sh", "-c", "rm x && ls", "$X"]')
    text = text.replace('rules = ["a"]', 'rules = ["a", "c", "d", "e"]')
    found = problems(text, "p.toml")
    assert all(item.warning for item in found)
    assert [(item.line, item.rule) for item in found] == [(9, "b"), (13, "c"), (21, "d"), (21, "d")]
    assert set(parse(text, "p.toml").rules) == set("abcde")


def test_warnings_hide_no_fault() -> None:
    """Thousands of warnings do not push the fault out that comes after them."""
    rules = "".join(
        f'[[rule]]\nid = "r{n}"\ncategory = "toolchain"\npaths = ["/opt/x"]\n' for n in range(1000)
    )
    text = FINE + rules + '[[rule]]\nid = "last"\ncategory = "temp"\npaths = ["/etc/x"]\n'
    with pytest.raises(PlanInvalid, match="rule last"):
        parse(text, "p.toml")
    assert len(problems(text, "p.toml")) < 500


@pytest.mark.parametrize("number", ["1e400", "-inf", "+nan", "1e-400"])
def test_floats(number: str) -> None:
    """No float that TOML knows gets through as a time that is not finite."""
    text = f"{FINE}expect.seconds = {number}\n"
    if not problems(text, "p.toml"):
        assert math.isfinite(parse(text, "p.toml").rules["a"].expect_seconds)


def test_the_largest_file() -> None:
    """A file as large as is read, full of faults, is answered with a list that can be read."""
    text = FINE + "x = [\n" + "1,\n" * ((MAX_BYTES - 200) // 3) + "]\n"
    assert [line for line, _ in faults(text)] == [9]
    text = HEAD + 'paths = ["/*",' * 1 + '"/*",' * 20_000 + "]\n"
    assert 0 < len(faults(text)) < 500


def test_no_such_plan() -> None:
    """A name that is none is answered with one that is near, a path that is none with the path."""
    with pytest.raises(InvalidRequest, match="no plan 'github-hostd'") as caught:
        load("github-hostd")
    assert "did you mean github-hosted?" in (caught.value.hint or "")
    with pytest.raises(InvalidRequest, match="no such plan file"):
        read_text("ci/plan.toml")
