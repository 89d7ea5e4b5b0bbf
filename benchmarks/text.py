"""Seeded pools of source text that compress as real packages do: neither random bytes nor a constant.

Real source repeats itself at two ranges: syntax everywhere, and a few identifiers within each file. A pool is
made of sections of a few KiB that each use a small vocabulary of their own, so zstd finds about what it finds
in real code. Only `random()`, `getrandbits()` and `choices()` are used: their sequences are the same in every
Python version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from benchmarks import vocabulary
from benchmarks.vocabulary import PROSE, WORDS


def identifiers(rng: Random, count: int) -> list[str]:
    """Names such as `cacheReadIndex` or `map`, of one to three words, the same ones for the same seed."""
    names = []
    for first, second, third in zip(*(rng.choices(WORDS, k=count) for _ in range(3)), strict=True):
        draw = rng.random()
        if draw < 0.35:
            names.append(first)
        elif draw < 0.75:
            names.append(first + second.capitalize())
        else:
            names.append(first + second.capitalize() + third.capitalize())
    return names


def _section(rng: Random, templates: Sequence[str], names: Sequence[str], lines: int, sep: str) -> str:
    """`lines` filled templates over a small vocabulary drawn from `names`: one file's worth of repeating
    text.
    """
    local = rng.choices(names, k=34) + rng.choices(WORDS, k=14)
    weights = [1000 // (rank + 3) for rank in range(len(local))]
    favourites = rng.choices(templates, k=len(templates))
    body = sep.join(rng.choices(favourites, k=lines))
    picks = iter(rng.choices(local, weights, k=lines * 6))
    short = "etnrioasclu"
    parts = body.split("%")
    out = [parts[0]]
    for part in parts[1:]:
        kind = part[0]
        if kind == "p":
            words = PROSE if rng.random() < 0.6 else WORDS
            word = words[int(len(words) * rng.random())]
        elif kind == "n":
            word = str(int(1000 * rng.random() ** 3))
        elif kind == "s":
            word = short[int(len(short) * rng.random() ** 2)]
        else:
            word = next(picks, "value")
        out.append(word)
        out.append(part[1:])
    return "".join(out)


def _pool(seed: int, size: int, templates: Sequence[str], sep: str = "\n") -> bytes:
    """At least `size` bytes of text made of independent sections of 30 to 260 lines."""
    rng = Random(seed)
    names = identifiers(rng, 6000)
    sections: list[bytes] = []
    total = 0
    while total < size:
        section = _section(rng, templates, names, 30 + int(230 * rng.random()), sep).encode()
        sections.append(section)
        total += len(section) + 1
    return b"\n".join(sections)[:size]


def _source_map(seed: int, size: int) -> bytes:
    """Text like the `mappings` of a source map: short base64 segments, a few of them very frequent."""
    rng = Random(seed)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnop"
    segments = []
    for _ in range(1800):
        picks = [alphabet[int(len(alphabet) * rng.random() ** 3)] for _ in range(3)]
        segments.append(f"{picks[0]}A{picks[1]}{picks[2]}" + (";" if rng.random() < 0.12 else ","))
    weights = [100000 // (rank + 12) for rank in range(len(segments))]
    runs = ["".join(rng.choices(segments, weights, k=1 + int(4 * rng.random()))) for _ in range(20000)]
    return "".join(rng.choices(runs, k=size // 8)).encode()[:size]


MIB = 1 << 20

POOLS: dict[str, Callable[[int], bytes]] = {
    "js": lambda scale: _pool(11, 10 * scale, vocabulary.JAVASCRIPT),
    "ts": lambda scale: _pool(12, 5 * scale, vocabulary.TYPES),
    "md": lambda scale: _pool(13, 4 * scale, vocabulary.MARKDOWN),
    "min": lambda scale: _pool(14, 5 * scale, vocabulary.MINIFIED, sep=""),
    "map": lambda scale: _source_map(15, 8 * scale),
    "json": lambda scale: _pool(16, 2 * scale, vocabulary.JSON),
    "py": lambda scale: _pool(17, 12 * scale, vocabulary.PYTHON),
}
"""The pool of each kind of text, as a function of the size of one unit in bytes (1 MiB for the real trees).
"""


def pool(kind: str, unit: int = MIB) -> bytes:
    """The pool of `kind` (a key of POOLS), with units of `unit` bytes: about 2 to 12 MiB at the default."""
    return POOLS[kind](unit)
