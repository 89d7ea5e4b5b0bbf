"""Ready trees: one with every kind of member, one shaped like installed packages."""

from __future__ import annotations

import random
from pathlib import Path

from tests.support.trees import (
    Dir,
    Fifo,
    File,
    HardLink,
    Name,
    Socket,
    Sparse,
    Spec,
    Symlink,
    Tree,
    make_tree,
)

MIB = 1 << 20

LONG_NAME = b"n" * 255
LONG_PATH = b"/".join(b"deep-%03d-" % level + b"x" * 60 for level in range(6))
"""Directories whose path is longer than 255 bytes (and than the 100 bytes of a tar header's name)."""

SAMPLE: dict[Name, Spec] = {
    "empty": File(),
    "text.txt": File(b"a line\n" * 100),
    "one-block": File(b"b" * 512),
    "block-and-a-byte": File(b"c" * 513),
    "private": File(b"secret", mode=0o600),
    "program": File(b"#!/bin/sh\nexit 0\n", mode=0o755),
    "read-only": File(b"fixed", mode=0o444),
    "no-permission": File(b"closed", mode=0o000),
    "before-1970": File(b"old", mtime_ns=-86_400_000_000_001),
    "at-1970": File(b"epoch", mtime_ns=0),
    "after-2038": File(b"far", mtime_ns=5_000_000_000_999_999_999),
    "random": File(random.Random(1).randbytes(70_000)),
    "name with  spaces ": b"spaces",
    "line\nbreak\n::add-mask::x": b"control characters",
    "-rf": b"looks like an option",
    'back\\slash and "quotes"': b"quoting",
    "naïve-名前": b"UTF-8",
    b"\xff\xfe not utf-8 \x80": b"bytes",
    LONG_NAME: b"the longest name",
    "empty-dir": Dir(),
    "read-only-dir": Dir({"inside": b"x", "below": Dir({"deeper": b"y"}, mode=0o555)}, mode=0o555),
    "private-dir": Dir({"inside": b"x"}, mode=0o700, mtime_ns=1_234_567_890_000_000_001),
    "sub": Dir(
        {
            "hard": HardLink("text.txt"),
            "up": Symlink("../text.txt"),
            "hard-too": HardLink("text.txt"),
            "z": Dir({"leaf": b"leaf"}),
        }
    ),
    "dangling": Symlink("nowhere/at/all"),
    "absolute": Symlink("/etc/hostname"),
    "to-dir": Symlink("sub", mtime_ns=1_111_111_111_000_000_111),
    "loop": Symlink("loop"),
    "odd-link": Symlink(b"\xff\nnot utf-8"),
    "long-link": Symlink(b"t" * 300),
    "hole": Sparse(3 * MIB, {MIB: b"in the middle" * 1000}),
    "hole-at-end": Sparse(2 * MIB, {0: b"start"}),
    "all-hole": Sparse(MIB + 17),
}
"""Every kind of member that an archive keeps."""

SPECIAL: dict[Name, Spec] = {"pipe": Fifo(), "sub-special": Dir({"socket": Socket()})}
"""Kinds of member that an archive skips."""


def sample_tree(root: Path, *, special: bool = False) -> Path:
    """Make `SAMPLE` and a path over 255 bytes at `root`; with `special` also what a save has to skip."""
    tree = dict(SAMPLE)
    below: Spec = {"leaf": b"at the end of a long path", "hard": HardLink("one-block")}
    for part in reversed(LONG_PATH.split(b"/")[1:]):
        below = {part: below}
    tree[LONG_PATH.split(b"/")[0]] = below
    if special:
        tree |= SPECIAL
    return make_tree(root, Dir(tree))


def package_tree(root: Path, *, files: int = 300, seed: int = 1, large: int = 20 * MIB) -> Path:
    """Make `files` files in packages, as a package manager would, the same for the same arguments.

    Most are small and compress well, some are random bytes, sizes spread from 0 to 1 MiB. One more of `large`
    bytes, half of it random, is long enough to be cut into several frames (0: none).
    """
    source = random.Random(seed)
    packages: dict[Name, Spec] = {}
    count = 0
    while count < files:
        size = min(source.randint(1, 40), files - count)
        packages[f"pkg-{len(packages):04}"] = _package(source, size)
        count += size
    if large:
        packages["lib-large.so"] = File(
            source.randbytes(large // 2) + _text(source, large - large // 2), mode=0o755
        )
    return make_tree(root, Dir({"packages": packages, "bin": {"first": Symlink("../packages/pkg-0000")}}))


def _package(source: random.Random, files: int) -> Tree:
    tree: dict[Name, Spec] = {}
    folder: dict[Name, Spec] = tree
    for number in range(files):
        if number and source.random() < 0.15:
            below: dict[Name, Spec] = {}
            folder[f"part-{number:03}"] = below
            folder = below if source.random() < 0.7 else tree
        size = min(int(source.lognormvariate(8.2, 1.7)), MIB)
        random_bytes = source.random() < 0.15
        content = source.randbytes(size) if random_bytes else _text(source, size)
        executable = source.random() < 0.05
        name = f"{number:03}-{source.choice(_WORDS)}.{'bin' if random_bytes else 'js'}"
        mtime_ns = 1_600_000_000_000_000_000 + source.randrange(10**17)
        folder[name] = File(content, 0o755 if executable else 0o644, mtime_ns)
    return tree


_WORDS = "index module export default return function const require assert stream buffer path value".split()


def _text(source: random.Random, size: int) -> bytes:
    line = " ".join(source.choices(_WORDS, k=60)).encode() + b";\n"
    period = line + b" ".join(b"%d" % source.randrange(10**6) for _ in range(20)) + b"\n"
    return (period * (size // len(period) + 1))[:size]
