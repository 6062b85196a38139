"""Any bytes from a caller, in any pieces; each input is a script for `support.spoilt_wires`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[
        "sidecert.downstream",
        "sidecert.exchange",
        "sidecert.upstream",
        "sidecert.pool",
        "sidecert.http1",
        "sidecert.refusals",
    ]
):
    from support.spoilt_wires import SCRIPTS, SpoiltWires

from driving import drive

from support.certs import Pki


def make(folder: Path) -> tuple[Iterable[bytes], Callable[[bytes], str]]:
    wires = SpoiltWires(folder / "config", Pki.make(folder / "pki"))
    seeds = (script + seed for seed in SpoiltWires.requests() for script in SCRIPTS)
    return seeds, wires.play_downstream


if __name__ == "__main__":
    drive(make, longest=2500)
