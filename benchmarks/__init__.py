"""Benchmarks run by hand: cachekit against `tar | zstd` and `zstd | tar`, and its memory while saving.

Run `python -m benchmarks archive` or `python -m benchmarks memory`. Nothing here is imported by cachekit, and
nothing here imports cachekit: it is measured through its command line, as its users meet it.
"""
