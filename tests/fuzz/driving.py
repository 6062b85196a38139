"""Plays inputs for a long time, guided by the code that each reaches: what `make fuzz` runs for each target.

    PYTHONPATH=tests python tests/fuzz/atheris_TARGET.py FOLDER SECONDS [FILE]

FOLDER keeps the inputs that were worth keeping, from run to run, and those that broke a promise (crash-*, and
timeout-* for a hang); FILE is one of the latter, to be played again.

With `keep` in the place of SECONDS, the fewest of the former that reach what no input to begin with does are
put into tests/fuzz/corpus/TARGET, which is committed: runs begin from there too, and the tests play them.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

from support.certs import private_folder
from support.kept import FOLDER

LONGEST_KEPT = 1500
SEED = "seed-"

type Play = Callable[[bytes], str]


def drive(
    make: Callable[[Path], tuple[Iterable[bytes], Play]],
    *,
    longest: int,
    may_keep: Callable[[bytes], bool] = lambda data: True,
) -> None:
    """`make` gives, for a folder of its own, inputs to begin with and what plays one of up to `longest`
    bytes; that tells what came of it in a word, and raises where a promise is broken. Only what `may_keep`
    is ever committed."""
    folder, seconds, *again = sys.argv[1:]
    place = private_folder(Path(folder).resolve())
    seeds, play = make(private_folder(place / "made"))
    corpus = private_folder(place / "corpus")
    committed = FOLDER / Path(sys.argv[0]).stem.removeprefix("atheris_")
    if seconds == "keep":
        _keep(seeds, corpus, committed, may_keep)
    elif seconds == "merge":  # how `keep` and libFuzzer call this again
        _fuzz(play, [shlex.join((sys.executable, sys.argv[0], folder, seconds)), *again])
    elif again:
        print(play(Path(again[0]).read_bytes()))
    else:
        _write(seeds, corpus)
        folders = [str(each) for each in (corpus, committed) if each.is_dir()]
        options = (f"-max_total_time={seconds}", f"-max_len={longest}", "-timeout=20", "-rss_limit_mb=1024")
        _fuzz(play, [sys.argv[0], *options, f"-artifact_prefix={place}/", "-print_final_stats=1", *folders])


def _fuzz(play: Play, arguments: list[str]) -> None:
    """Ends the process."""
    counts: Counter[str] = Counter()

    def once(data: bytes) -> None:
        counts[play(data)] += 1
        if sum(counts.values()) % 10_000 == 0:
            print(dict(counts), file=sys.stderr, flush=True)

    atheris.Setup(arguments, once)
    atheris.Fuzz()


def _write(seeds: Iterable[bytes], folder: Path) -> None:
    for number, seed in enumerate(seeds):
        (folder / f"{SEED}{number}").write_bytes(seed)


def _keep(seeds: Iterable[bytes], corpus: Path, committed: Path, may_keep: Callable[[bytes], bool]) -> None:
    """Of `corpus` and of what is committed already."""
    with TemporaryDirectory() as folder:
        merged, offered = Path(folder, "merged"), Path(folder, "offered")
        merged.mkdir()
        offered.mkdir()
        _write(seeds, merged)
        for path in (path for each in (corpus, committed) if each.is_dir() for path in each.iterdir()):
            if not path.name.startswith(SEED) and may_keep(path.read_bytes()):
                (offered / path.name).write_bytes(path.read_bytes())
        flags = ("-merge=1", "-set_cover_merge=1", "-use_counters=0", f"-max_len={LONGEST_KEPT}")
        subprocess.run(
            [sys.executable, sys.argv[0], str(corpus.parent), "merge", *flags, str(merged), str(offered)],
            check=True,
        )
        committed.mkdir(parents=True, exist_ok=True)
        for path in committed.iterdir():
            path.unlink()
        for path in merged.iterdir():
            if not path.name.startswith(SEED):
                (committed / path.name).write_bytes(path.read_bytes())
