"""What long runs of `make fuzz` have found worth keeping: a few inputs for each target, in the repository."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "fuzz" / "corpus"


def kept(target: str) -> list[bytes]:
    """In the order of their names, which are libFuzzer's."""
    found = [path.read_bytes() for path in sorted((FOLDER / target).iterdir())]
    assert found
    return found
