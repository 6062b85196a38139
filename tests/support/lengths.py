"""Some tests have two lengths: a short form among all tests, and a long one for `make long`.

    @pytest.mark.long_form(seconds=600)
    def test_something_many_times(...):
        for _ in range(rounds(1_000, 10_000)):
            ...

`seconds` is how long the long form may take; the short form keeps the limit that holds for every test.
"""

from __future__ import annotations

import os

LONG = os.environ.get("SIDECERT_LONG") == "1"


def rounds(short: int, long: int) -> int:
    """How often to do it: `short`, or `long` where the environment says SIDECERT_LONG=1."""
    return long if LONG else short
