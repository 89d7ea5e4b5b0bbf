"""Command line of the benchmarks: `python -m benchmarks archive|delta|images|memory|cleaner|oci|trees`; tables on
stdout, progress on stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import archive, cleaner, delta, images, memory, oci, packages, starts
from benchmarks.archive import Bench
from benchmarks.filesystem import clear
from benchmarks.measure import BenchmarkError, Series
from benchmarks.table import Row, facts, markdown, phase_table
from benchmarks.trees import Tree, cache_directory, survey

TREES: dict[str, Callable[[Path, float], Tree]] = {"node": packages.node, "venv": packages.venv}
PARTS = ("save", "restore", "refuse", "start")


def _parts(text: str) -> set[str]:
    chosen = {part.strip() for part in text.split(",") if part.strip()}
    if not chosen <= set(PARTS):
        raise argparse.ArgumentTypeError(f"choose among {', '.join(PARTS)}")
    return chosen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("archive", help="save, restore, refusal and start against tar and zstd")
    speed.add_argument(
        "tree", nargs="*", help=f"{', '.join(TREES)}, or a directory of your own (default: the first two)"
    )
    speed.add_argument("--rounds", type=int, default=5, help="measured pairs of each (default 5)")
    speed.add_argument("--level", type=int, default=3, help="zstd level of both sides (default 3)")
    speed.add_argument(
        "--scale", type=float, default=1.0, help="size of the generated trees, such as 0.05 for a try"
    )
    speed.add_argument(
        "--only", type=_parts, default=set(PARTS), metavar="PART,...", help=f"some of {', '.join(PARTS)}"
    )
    nearly = commands.add_parser(
        "delta", help="saves and restores of a nearly unchanged tree against full ones"
    )
    nearly.add_argument("tree", nargs="*", help="as for archive")
    nearly.add_argument("--rounds", type=int, default=5, help="measured pairs of each (default 5)")
    nearly.add_argument("--level", type=int, default=3, help="zstd level of both sides (default 3)")
    nearly.add_argument("--scale", type=float, default=1.0, help="size of the trees, such as 0.05 for a try")
    weight = commands.add_parser("memory", help="peak memory of save and restore, all processes together")
    weight.add_argument("--members", type=int, default=250_000, help="members of the tree of tiny files")
    weight.add_argument(
        "--large", type=int, default=500, metavar="MB", help="size of each of the three large files"
    )
    weight.add_argument("--workers", type=int, default=4, help="worker processes, through CACHEKIT_WORKERS")
    cleaning = commands.add_parser("cleaner", help="removing and scanning against rm and du")
    cleaning.add_argument("--rounds", type=int, default=5, help="measured pairs of each (default 5)")
    cleaning.add_argument("--scale", type=float, default=1.0, help="size of the tree, such as 0.05 for a try")
    layouts = commands.add_parser("oci", help="verifying an OCI layout against sha256sum")
    layouts.add_argument("--rounds", type=int, default=5, help="measured pairs (default 5)")
    layouts.add_argument(
        "--scale", type=float, default=1.0, help="size of the layout, such as 0.05 for a try"
    )
    pictures = commands.add_parser("images", help="image save and load against docker save and load")
    pictures.add_argument("engine", help="what to call the engine of $DOCKER_HOST in the table")
    pictures.add_argument("--rounds", type=int, default=3, help="measured pairs of each (default 3)")
    pictures.add_argument(
        "--scale", type=float, default=1.0, help="size of the image, such as 0.05 for a try"
    )
    making = commands.add_parser("trees", help="only make the generated trees, and print their digests")
    making.add_argument("--scale", type=float, default=1.0)
    for command in (speed, nearly, weight, cleaning, layouts, pictures):
        command.add_argument(
            "--workdir", type=Path, help="where stores and restored trees go (default: beside the trees)"
        )
        command.add_argument("--json", type=Path, metavar="FILE", help="also write every run to FILE")
    return parser


def _tree(name: str, scale: float) -> Tree:
    if name in TREES:
        return TREES[name](cache_directory(), scale)
    path = Path(name).resolve()
    if not path.is_dir():
        raise SystemExit(f"no such tree: {name} (choose {', '.join(TREES)}, or a directory)")
    return survey(path.name, path.parent, path.name)


def _heading(workdir: Path, trees: Sequence[Tree]) -> list[str]:
    lines = ["; ".join(f"{key} {value}" for key, value in facts(workdir).items()) + "."]
    for tree in trees:
        counts = f"{tree.files} files, {tree.directories} directories, {tree.links} links, {tree.size / 1e6:.0f} MB"
        lines.append(f"Tree `{tree.name}`: {counts}, digest {tree.digest[:12]}.")
    return lines


def _speed(options: argparse.Namespace, workdir: Path) -> tuple[list[str], list[Row], Bench]:
    trees = [_tree(name, options.scale) for name in options.tree or TREES]
    heading = _heading(workdir, trees)
    bench = Bench(workdir, options.rounds, options.level, [], {})
    if "start" in options.only:
        starts.measure_start(bench)
    if "refuse" in options.only:
        starts.measure_refusal(bench, trees[0])
    for tree in trees:
        archive.measure(bench, tree, options.only)
    heading.append(f"Level {options.level}, {options.rounds} rounds.")
    return heading, bench.rows, bench


def _runs(measured: Mapping[tuple[str, str], Sequence[Series]]) -> list[dict[str, object]]:
    return [
        {"command": series.name, "tree": tree, "runs": [asdict(run) for run in series.runs]}
        for (_, tree), both in measured.items()
        for series in both
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; 0 if every target was met, 1 if one was missed, 2 if a measured command failed."""
    options = _parser().parse_args(arguments)
    if options.command == "trees":
        for name in TREES:
            tree = _tree(name, options.scale)
            print(f"{tree.name}: {tree.files} files, {tree.size / 1e6:.0f} MB, digest {tree.digest}")
        return 0
    base = options.workdir or cache_directory()
    base.mkdir(parents=True, exist_ok=True)
    record: dict[str, object] = {}
    workdir = Path(tempfile.mkdtemp(prefix="run-", dir=base))
    try:
        if options.command == "archive":
            heading, rows, bench = _speed(options, workdir)
            phases = phase_table(bench.series)
            record["runs"] = _runs(bench.series)
        elif options.command == "delta":
            trees = [_tree(name, options.scale) for name in options.tree or TREES]
            heading = _heading(workdir, trees)
            bench = Bench(workdir, options.rounds, options.level, [], {})
            for tree in trees:
                delta.measure(bench, tree)
            rows, phases = bench.rows, phase_table(bench.series)
            record["runs"] = _runs(bench.series)
        elif options.command == "cleaner":
            tree = _tree("node", options.scale)
            heading = _heading(workdir, [tree])
            rows, series = cleaner.measure(workdir, tree, options.rounds)
            phases = phase_table(series)
            record["runs"] = _runs(series)
        elif options.command == "images":
            trees = [_tree(name, options.scale) for name in TREES]
            heading = _heading(workdir, trees)
            rows, series = images.measure(workdir, trees, options.rounds, options.engine)
            phases = phase_table(series)
            record["runs"] = _runs(series)
        elif options.command == "oci":
            heading, phases = _heading(workdir, []), ""
            rows, series = oci.measure(workdir, options.rounds, options.scale)
            record["runs"] = _runs(series)
        else:
            heading, phases = _heading(workdir, []), ""
            rows = memory.measure(workdir, cache_directory(), options.members, options.large, options.workers)
    except BenchmarkError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    finally:
        clear(workdir)
    print("\n\n".join(filter(None, ("\n".join(heading), markdown(rows), phases))))
    if options.json:
        record |= {"heading": heading, "rows": [asdict(row) | {"met": row.verdict == "met"} for row in rows]}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row.verdict in ("", "met") for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
