"""The two generated package trees: `node`, many small files, and `venv`, fewer files and some very large
ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

from benchmarks import binary, text
from benchmarks.trees import Tree, Writer, prepare
from benchmarks.vocabulary import WORDS

NODE_FILES = 80_000
VENV_FILES = 30_000

Quantiles = Sequence[tuple[float, int]]
"""Points of a distribution: (share of all draws below, value), rising; values between two are interpolated.
"""

_NODE_SIZES: Quantiles = (
    (0.0, 0), (0.01, 36), (0.05, 112), (0.1, 207), (0.25, 585), (0.5, 1843), (0.65, 3555), (0.75, 5850),
    (0.85, 10_890), (0.9, 16_470), (0.95, 30_600), (0.98, 61_200), (0.99, 98_100), (0.997, 202_500),
    (0.999, 363_600), (0.9997, 765_000), (0.99995, 1_980_000), (1.0, 4_950_000),
)  # fmt: skip
_PY_SIZES: Quantiles = (
    (0.0, 0), (0.08, 60), (0.2, 700), (0.35, 2000), (0.5, 4200), (0.65, 8200), (0.8, 17_000), (0.9, 31_000),
    (0.97, 70_000), (0.995, 160_000), (1.0, 520_000),
)  # fmt: skip
_PACKAGE_FILES: Quantiles = (
    (0.0, 3), (0.15, 5), (0.5, 10), (0.75, 23), (0.9, 62), (0.97, 190), (0.995, 760), (1.0, 3000),
)  # fmt: skip
_MODULES: Quantiles = ((0.0, 4), (0.3, 14), (0.6, 45), (0.85, 180), (0.95, 600), (1.0, 2600))

_NODE_KINDS = (("js", 52), ("ts", 18), ("map", 14), ("json", 6), ("md", 5), ("min", 5))
_SUFFIX = {"js": ".js", "ts": ".d.ts", "map": ".js.map", "json": ".json", "md": ".md", "min": ".min.js"}
_PLACES = ("", "lib", "dist", "dist/cjs", "dist/esm", "src", "types", "lib/internal", "es", "build/node")
_LIBRARIES = (400, 180, 90, 64, 48, 32, 26, 20)
"""Sizes in MB of the large shared libraries of the `venv` tree."""

_LICENSE = b"""The MIT License (MIT)

Copyright (c) %s contributors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND.
"""


def _draw(rng: Random, points: Quantiles) -> int:
    """A value of the distribution `points`."""
    at = rng.random()
    for (low, small), (high, large) in pairwise(points):
        if at < high:
            return small + int((large - small) * (at - low) / (high - low))
    return points[-1][1]


def _slice(rng: Random, pool: bytes, size: int) -> bytes:
    """`size` bytes of `pool` from the line after a random place; what is larger than the pool goes round
    again.
    """
    parts = []
    while size > 0:
        start = pool.find(b"\n", int(rng.random() * max(1, len(pool) - size))) + 1
        part = pool[start : start + min(size, 1 << 18)]
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _manifest(rng: Random, name: str, names: Sequence[str]) -> bytes:
    """A package.json with the fields that published packages have."""
    version = ".".join(str(int(20 * rng.random() ** 2)) for _ in range(3))
    return json.dumps(
        {
            "name": name,
            "version": version,
            "description": " ".join(rng.choices(WORDS, k=7)),
            "keywords": rng.choices(WORDS, k=5),
            "repository": {"type": "git", "url": f"git+https://example.org/{name}.git"},
            "license": "MIT",
            "main": "index.js",
            "types": "index.d.ts",
            "scripts": {"test": "node test.js", "build": "tsc -p .", "prepublish": "npm run build"},
            "dependencies": {other: f"^{int(9 * rng.random())}.0.0" for other in rng.choices(names, k=5)},
            "integrity": f"{rng.getrandbits(256):064x}",
        },
        indent=2,
    ).encode()


def _node(writer: Writer, scale: float) -> None:
    """`node_modules` of packages with nested directories, some below another, some with a command in `.bin`."""
    rng = Random(101)
    unit = max(1 << 14, int(text.MIB * min(1.0, scale * 4)))
    pools = {kind: text.pool(kind, unit) for kind, _ in _NODE_KINDS}
    kinds, weights = [kind for kind, _ in _NODE_KINDS], [weight for _, weight in _NODE_KINDS]
    names = [name.lower() for name in text.identifiers(rng, 4000)]
    homes: list[str] = []
    goal = int(NODE_FILES * scale)
    number = 0
    while writer.count < goal:
        number += 1
        name = f"{names[number % len(names)]}-{WORDS[number * 7 % len(WORDS)]}{number}"
        if rng.random() < 0.3:
            name = f"@{WORDS[int(40 * rng.random())]}/{name}"
        above = homes[-1] if homes and rng.random() < 0.08 and homes[-1].count("node_modules") < 4 else ""
        home = f"{above}/node_modules/{name}" if above else f"node_modules/{name}"
        homes.append(home)
        writer.file(f"{home}/package.json", _manifest(rng, name, names))
        writer.file(f"{home}/LICENSE", _LICENSE % name.encode())
        if rng.random() < 0.12 and not above:
            command = name.rpartition("/")[2]
            writer.file(
                f"{home}/bin/cli.js", b"#!/usr/bin/env node\n", _slice(rng, pools["js"], 1500), mode=0o755
            )
            writer.link(f"node_modules/.bin/{command}", f"../{name}/bin/cli.js")
        _package(
            rng, writer, home, min(_draw(rng, _PACKAGE_FILES), goal - writer.count), pools, kinds, weights
        )


def _package(
    rng: Random,
    writer: Writer,
    home: str,
    count: int,
    pools: dict[str, bytes],
    kinds: list[str],
    weights: list[int],
) -> None:
    """`count` files of one package; one in ten repeats the file before it, as a second module format does."""
    places = [_PLACES[int(len(_PLACES) * rng.random() ** 2)] for _ in range(1 + min(count // 12, 6))]
    places += [
        f"{place}/{word}".lstrip("/") for place in places[:3] for word in rng.choices(WORDS, k=count // 30)
    ]
    body = b""
    for number in range(max(0, count)):
        kind = "md" if number == 0 else rng.choices(kinds, weights)[0]
        size = _draw(rng, _NODE_SIZES)
        place = "" if number == 0 else places[int(len(places) * rng.random())]
        stem = "README" if number == 0 else f"{WORDS[number * 13 % len(WORDS)]}-{number}"
        if body and rng.random() < 0.1:
            body = b"'use strict';\nObject.defineProperty(exports, '__esModule', { value: true });\n" + body
        else:
            body = _slice(rng, pools[kind], size)
        path = f"{home}/{place}/{stem}{_SUFFIX[kind]}".replace("//", "/")
        writer.file(path, body)


def _library(rng: Random, pools: dict[str, bytes], size: int) -> bytes:
    """`size` bytes of an ELF-like shared library: runs of each kind of section, then padding."""
    out: list[bytes] = [b"\x7fELF\x02\x01\x01" + bytes(57)]
    for kind, share in binary.SECTIONS:
        left = size * share // 100
        pool = pools[kind]
        while left > 0:
            start = int(rng.random() * max(1, len(pool) - (1 << 16))) & ~15
            part = pool[start : start + min(left, 4096 + (rng.getrandbits(16) & ~15))]
            out.append(part)
            left -= len(part)
    whole = b"".join(out)[:size]
    return whole + bytes(size - len(whole))


def _venv(writer: Writer, scale: float) -> None:
    """`.venv` of packages with sources, byte code, metadata, small extension modules and a few huge
    libraries.
    """
    rng = Random(202)
    unit = max(1 << 14, int(text.MIB * min(1.0, scale * 4)))
    pools = {kind: binary.pool(kind, unit) for kind in binary.POOLS}
    pools |= {kind: text.pool(kind, unit) for kind in ("py", "md")}
    names = text.identifiers(rng, 400)
    site = ".venv/lib/python3/site-packages"
    writer.file(".venv/pyvenv.cfg", b"home = /usr/bin\ninclude-system-site-packages = false\nversion = 3\n")
    writer.link(".venv/lib64", "lib")
    writer.link(".venv/bin/python3", "/usr/bin/python3")
    writer.link(".venv/bin/python", "python3")
    goal = int(VENV_FILES * scale)
    number = 0
    while writer.count < goal:
        package = f"{names[number % len(names)].lower()}{number}"
        home = f"{site}/{package}"
        large = [int(_LIBRARIES[number] * 1e6 * scale)] if number < len(_LIBRARIES) else []
        small = [
            40_000 + int(2_200_000 * rng.random() ** 2 * min(1.0, scale * 4))
            for _ in range(int(3 * rng.random() ** 2))
        ]
        for index, size in enumerate(large + small):
            writer.file(f"{home}/_lib/{package}_{index}.so", _library(rng, pools, size), mode=0o755)
        folder = home
        for module in range(min(_draw(rng, _MODULES), (goal - writer.count) // 2)):
            if module % 24 == 12:
                folder = f"{home}/{WORDS[(module + number) % len(WORDS)]}{module}"
            _module(rng, writer, folder, f"{WORDS[module * 17 % len(WORDS)]}_{module}", pools)
        meta = f"{site}/{package}-{int(9 * rng.random())}.{int(30 * rng.random())}.dist-info"
        writer.file(f"{meta}/METADATA", _slice(rng, pools["md"], 3000 + int(9000 * rng.random())))
        writer.file(f"{meta}/INSTALLER", b"pip\n")
        number += 1


def _module(rng: Random, writer: Writer, folder: str, name: str, pools: dict[str, bytes]) -> None:
    """One source file with its byte code; one in eight is a stub or header without any."""
    size = _draw(rng, _PY_SIZES)
    if rng.random() < 0.12:
        writer.file(f"{folder}/{name}.pyi", _slice(rng, pools["py"], size // 2))
        return
    writer.file(f"{folder}/{name}.py", _slice(rng, pools["py"], size))
    code = size * 9 // 10
    start = int(rng.random() * max(1, len(pools["pyc"]) - code))
    head = b"\xa7\x0d\x0d\x0a" + bytes(4) + rng.getrandbits(64).to_bytes(8, "little")
    writer.file(f"{folder}/__pycache__/{name}.cpython-311.pyc", head, pools["pyc"][start : start + code])


def node(directory: Path, scale: float) -> Tree:
    """The `node` tree: at scale 1 80,000 files and about 690 MB."""
    return prepare(_named("node", scale), "node_modules", lambda writer: _node(writer, scale), directory)


def venv(directory: Path, scale: float) -> Tree:
    """The `venv` tree: at scale 1 30,000 files and about 1.3 GB."""
    return prepare(_named("venv", scale), ".venv", lambda writer: _venv(writer, scale), directory)


def _named(kind: str, scale: float) -> str:
    return kind if scale == 1 else f"{kind}-x{scale:g}"
