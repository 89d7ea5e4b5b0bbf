"""Seeded pools of compiled content: shared-library sections and Python byte code, compressible as the real
ones are.

A shared library of a Python environment is mostly machine code, a table of relocations, mangled symbol names,
constant data and zero padding; each is imitated on its own, because together they decide how fast zstd goes
and how far it gets.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from benchmarks.text import MIB, identifiers
from benchmarks.vocabulary import WORDS

_OPCODES = (
    b"\x48\x8b\x45%1",
    b"\x48\x89\x45%1",
    b"\x48\x8d\x3d%4",
    b"\xe8%4",
    b"\x0f\x84%2\x00\x00",
    b"\x55\x48\x89\xe5",
    b"\xc3",
    b"\x48\x83\xec%1",
    b"\x48\x85\xc0",
    b"\x74%1",
    b"\x75%1",
    b"\x31\xc0",
    b"\x41\x57\x41\x56\x41\x55\x41\x54\x53",
    b"\x5d",
    b"\x48\x8b\x7b%1",
    b"\x4c\x89\xe7",
    b"\xff\x15%4",
    b"\xc5\xf8\x10\x44\x24%1",
    b"\xc4\xe2\x7d\xb8%1",
    b"\x0f\x1f\x44\x00\x00",
    b"\x48\x39\xd8",
    b"\x89\x44\x24%1",
    b"\x8b\x54\x24%1",
    b"\x48\xc7\x44\x24%1\x00\x00\x00\x00",
    b"\xeb%1",
    b"\x66\x90",
)


def _machine_code(seed: int, size: int) -> bytes:
    """Functions of 20 to 400 instructions, about half of them another instantiation of a function just
    before.
    """
    rng = Random(seed)
    targets = [struct.pack("<i", rng.getrandbits(21) - (1 << 20)) for _ in range(3000)]
    weights = [1000 // (rank + 4) for rank in range(len(_OPCODES))]
    out: list[bytes] = []
    total = 0
    while total < size:
        if out and rng.random() < 0.5:
            again = bytearray(out[-1 - int(min(len(out), 40) * rng.random())])
            for _ in range(len(again) // 160):
                again[int(len(again) * rng.random())] = rng.getrandbits(8)
            out.append(bytes(again))
            total += len(again)
            continue
        count = 20 + int(380 * rng.random() ** 2)
        body = b"".join(rng.choices(_OPCODES, weights, k=count)).split(b"%")
        near = [bytes((rng.getrandbits(6) << 2,)) for _ in range(9)]
        far = [targets[int(3000 * rng.random() ** 2)] for _ in range(7)]
        parts = [body[0]]
        for part in body[1:]:
            kind = part[0]
            if kind == 0x31:
                parts.append(near[int(9 * rng.random() ** 2)])
            elif kind == 0x32:
                parts.append(rng.getrandbits(9).to_bytes(2, "little"))
            else:
                parts.append(far[int(7 * rng.random() ** 2)])
            parts.append(part[1:])
        function = b"".join(parts)
        function += b"\xcc" * (-len(function) % 16)
        out.append(function)
        total += len(function)
    return b"".join(out)[:size]


def _symbols(seed: int, size: int) -> bytes:
    """Mangled C++ names, NUL-terminated, in groups that share a long namespace and class prefix."""
    rng = Random(seed)
    out: list[str] = []
    total = 0
    while total < size:
        scope = "".join(f"{len(word)}{word}" for word in rng.choices(WORDS, k=3))
        for name in identifiers(rng, 4 + int(20 * rng.random())):
            tail = "".join(
                rng.choices(("RK", "S0_", "St6vectorI", "PKc", "EE", "l", "i", "RKS_", "NS_", "b"), k=5)
            )
            symbol = f"_ZN{scope}{len(name)}{name}E{tail}\0"
            out.append(symbol)
            total += len(symbol)
    return "".join(out).encode()[:size]


def _relocations(seed: int, size: int) -> bytes:
    """ELF64 RELA rows of 24 bytes: a rising offset, a constant type, an addend that wanders upwards."""
    rng = Random(seed)
    pack = struct.Struct("<QQQ").pack
    offset, addend = 0x1E4A000, 0x2F0000
    out: list[bytes] = []
    for _ in range(size // 24):
        offset += 8 if rng.random() < 0.8 else 8 * rng.getrandbits(6)
        addend += 16 * rng.getrandbits(5)
        out.append(pack(offset, 8, addend if rng.random() < 0.85 else 0x2F0000 + rng.getrandbits(20)))
    return b"".join(out)


def _constants(seed: int, size: int) -> bytes:
    """Tables of small 32-bit integers and of doubles whose low bytes are noise, with runs of zeros between
    them.
    """
    rng = Random(seed)
    out: list[bytes] = []
    total = 0
    while total < size:
        draw = rng.random()
        if draw < 0.5:
            block = struct.pack("<64I", *(rng.getrandbits(9) for _ in range(64)))
        elif draw < 0.6:
            block = struct.pack("<24d", *(rng.random() for _ in range(24)))
        else:
            block = bytes(16 * rng.getrandbits(5))
        out.append(block)
        total += len(block)
    return b"".join(out)[:size]


def _byte_code(seed: int, size: int) -> bytes:
    """Marshalled code objects: opcode and argument pairs with inline caches, name tables, line tables."""
    rng = Random(seed)
    names = identifiers(rng, 5000)
    opcodes = b"\x97\x74\x7c\x64\x7d\x6a\xa6\xab\x01\x72\x53\x83\x02\xa0\x5f\x69"
    out: list[bytes] = []
    total = 0
    while total < size:
        local = rng.choices(names, k=30)
        for _ in range(3 + int(12 * rng.random())):
            count = 20 + int(150 * rng.random() ** 2)
            code = bytearray(2 * count)
            code[0::2] = bytes(opcodes[int(16 * rng.random() ** 3)] for _ in range(count))
            code[1::2] = bytes(int(8 * rng.random() ** 4) for _ in range(count))
            table = b"".join(
                b"\xda" + bytes((len(name),)) + name.encode() for name in rng.choices(local, k=9)
            )
            lines = bytes(0x80 + 8 * int(8 * rng.random() ** 3) for _ in range(count // 2))
            head = struct.pack("<cIIIIIcI", b"\xe3", int(5 * rng.random()), 0, 0, 4, 3, b"s", len(code))
            body = (
                head + bytes(code) + b")" + bytes((9,)) + table + b"s" + struct.pack("<I", len(lines)) + lines
            )
            out.append(body)
            total += len(body)
    return b"".join(out)[:size]


POOLS: dict[str, Callable[[int], bytes]] = {
    "code": lambda unit: _machine_code(21, 16 * unit),
    "symbols": lambda unit: _symbols(22, 5 * unit),
    "rela": lambda unit: _relocations(23, 6 * unit),
    "data": lambda unit: _constants(24, 6 * unit),
    "pyc": lambda unit: _byte_code(25, 8 * unit),
}
"""The pool of each kind of binary content, as a function of the size of one unit in bytes."""

SECTIONS = (("code", 56), ("rela", 17), ("symbols", 10), ("data", 17))
"""What a shared library is made of, in per cent of its bytes."""


def pool(kind: str, unit: int = MIB) -> bytes:
    """The pool of `kind` (a key of POOLS), with units of `unit` bytes: about 5 to 16 MiB at the default."""
    return POOLS[kind](unit)
