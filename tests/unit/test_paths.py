"""Which path patterns there are, and how specific each is."""

from __future__ import annotations

import pytest

from sidecert.paths import Pattern, overlaps, segments


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "begins with /"),
        ("a/b", "begins with /"),
        ("*", "begins with /"),
        ("/a?b=1", "no query"),
        ("/a#b", "no fragment"),
        ("/a*", "whole segments"),
        ("/***", "whole segments"),
        ("/a/../b", "dot segment"),
        ("/a/%2e%2e;x", "dot segment"),
        ("/a\\b", "backslash"),
        ("/a%5cb", "backslash"),
        ("/%00", "NUL"),
        ("/%zz", "two hex digits"),
        ("/100%", "two hex digits"),
    ],
)
def test_a_pattern_that_could_match_nothing_says_what_is_wrong(text: str, words: str) -> None:
    """Such a pattern is a config error, never a route that silently takes no call."""
    with pytest.raises(ValueError, match=words):
        Pattern.of(text)


def test_patterns_sort_by_what_is_literal() -> None:
    """No wildcard, then the characters before the first `*`, then all of them, decoded."""
    order = ["/a", "/%61%61/*", "/aa/**", "/a/*/b", "/a/**", "/*/bb", "/**/b", "/**"]
    ranks = [Pattern.of(text).rank for text in order]
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[1] == ranks[2] == (False, 4, 4)
    assert Pattern.of("/a%2Fb").rank == (True, 4, 4)
    assert Pattern.of("/é/*").rank == (False, 3, 3)


def test_a_path_is_cut_before_it_is_decoded() -> None:
    """So an encoded slash is data; the plus sign and a second layer of escapes stay as they are."""
    assert segments(b"/a%2Fb//c+%2541/") == [b"", b"a/b", b"", b"c+%41", b""]


@pytest.mark.parametrize(
    ("one", "two", "together"),
    [
        ("/a/*/c", "/*/b/c", True),
        ("/a/*/c", "/*/b/d", False),
        ("/a/**", "/**/b", True),
        ("/a/**/b", "/a/b", True),
        ("/**/x/*", "/**/y/*", False),
        ("/**/x/**", "/**/y/**", True),
        ("/*", "/*/*", False),
        ("/**", None, False),
        (None, None, True),
    ],
)
def test_overlap_is_exact(one: str | None, two: str | None, together: bool) -> None:
    """Two patterns overlap when some path matches both, whichever comes first."""
    parsed = [None if text is None else Pattern.of(text) for text in (one, two)]
    assert list(overlaps(parsed)) == ([(0, 1)] if together else [])
    assert list(overlaps(parsed[::-1])) == ([(0, 1)] if together else [])
