"""The choice by Accept: the most specific range decides, and nonsense chooses nothing."""

from __future__ import annotations

import pytest

from sidecert.media_types import quality


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", 1.0),
        ("  ", 1.0),
        ("text/plain", 1.0),
        ("TEXT/Plain", 1.0),
        ("text/plain; charset=utf-8; Q=0.5", 0.5),
        ("text/plain;q=0.2, text/plain;version=1.0.0;q=0.7", 0.7),
        ("text/*;q=0.3, */*;q=0.9", 0.3),
        ("text/plain;q=0, */*", 0.0),
        ("*/*;q=0.1", 0.1),
        ("application/json", 0.0),
        ("text/plain;q=high, */*;q=0.4", 0.4),
        ("text/plain;q=7", 0.0),
        ("text/plain;q=nan", 0.0),
        (",,;q=1,/", 0.0),
    ],
)
def test_most_specific_range_decides(accept: str, expected: float) -> None:
    """RFC 9110, 12.5.1, its examples and the malformed ones."""
    assert quality(accept, "text/plain") == expected
