"""Plays inputs for a long time, guided by the code that each reaches: what `make fuzz` runs for each target.

    PYTHONPATH=tests python tests/fuzz/atheris_TARGET.py FOLDER SECONDS [FILE]

FOLDER keeps the inputs that were worth keeping, from run to run, and those that broke a promise (crash-*, and
timeout-* for a hang); FILE is one of the latter, to be played again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

from support.certs import private_folder


def drive(make: Callable[[Path], tuple[Iterable[bytes], Callable[[bytes], str]]], *, longest: int) -> None:
    """`make` gives, for a folder of its own, inputs to begin with and what plays one of up to `longest`
    bytes; that tells what came of it in a word, and raises where a promise is broken."""
    folder, seconds, *again = sys.argv[1:]
    place = private_folder(Path(folder).resolve())
    seeds, play = make(private_folder(place / "made"))
    if again:
        print(play(Path(again[0]).read_bytes()))
        return
    corpus = private_folder(place / "corpus")
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    counts: Counter[str] = Counter()

    def once(data: bytes) -> None:
        counts[play(data)] += 1
        if sum(counts.values()) % 10_000 == 0:
            print(dict(counts), file=sys.stderr, flush=True)

    options = (f"-max_total_time={seconds}", f"-max_len={longest}", "-timeout=20", "-rss_limit_mb=1024")
    atheris.Setup(
        [sys.argv[0], *options, f"-artifact_prefix={place}/", "-print_final_stats=1", str(corpus)], once
    )
    atheris.Fuzz()
