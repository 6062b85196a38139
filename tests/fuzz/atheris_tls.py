"""Spoilt TLS flights for a long time, guided by the code that each reaches: `make fuzz SECONDS=600`.

    python tests/fuzz/atheris_tls.py FOLDER SECONDS [FILE]

FOLDER keeps the scripts that were worth keeping, and those that broke a promise (crash-*); FILE is one of the
latter, to be played again. Each is a script for `support.spoilt_flights`.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sidecert.tls", "sidecert.upstream", "sidecert.outcome"]):
    from sidecert import outcome, tls, upstream  # noqa: F401
    from support.spoilt_flights import Spoilt

from support.certs import Pki, private_folder

MOST = 200  # bytes of a script
SEED = bytes(range(1, 64))


def main(folder: Path, seconds: int, again: Path | None) -> None:
    corpus = private_folder(folder / "corpus")
    private_folder(folder / "made")
    spoilt = Spoilt(folder / "made" / "config", Pki.make(folder / "made" / "pki"))
    if again is not None:
        print(spoilt.play(again.read_bytes()))
        return
    for choice in range(32):
        (corpus / f"seed-{choice}").write_bytes(bytes((choice,)) + SEED)
    counts: Counter[str] = Counter()

    def play(data: bytes) -> None:
        counts[spoilt.play(data).value] += 1
        if sum(counts.values()) % 10_000 == 0:
            print(dict(counts), file=sys.stderr, flush=True)

    options = (f"-max_total_time={seconds}", f"-max_len={MOST}", "-timeout=20", "-rss_limit_mb=1024")
    atheris.Setup(
        [sys.argv[0], *options, f"-artifact_prefix={folder}/", "-print_final_stats=1", str(corpus)], play
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
