"""Request paths and the path patterns of routes: cut, decoded, matched, compared. Pure.

A path is cut at its raw slashes and each segment is percent-decoded once, so `%2F` is data inside a
segment and never a separator. An empty segment is a segment: `/a`, `/a/` and `/a//` differ. In a pattern
`*` stands for one whole segment and `**` for any number of them, none included, so `/a/**` matches `/a`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote_to_bytes


class Wild(Enum):
    """A segment of a pattern that is not literal."""

    ONE = "*"
    MANY = "**"


SEGMENTS = 256  # of a path, and of every reading of it: a pattern is tried from each of them

Segment = bytes | Wild
ONE, MANY = Wild.ONE, Wild.MANY
_WILD: dict[bytes, Wild] = {b"*": ONE, b"**": MANY}

# Numbers, since `b"%" in path` takes fifteen times as long as `0x25 in path` (270 and 18 ns).
_PERCENT, _BACKSLASH, _NUL = 0x25, 0x5C, 0x00
_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# `..;x` is a dot segment to servlet containers, `..%2Fx` to whatever decodes before it resolves dots.
_DOTS = re.compile(rb"(?:\A|/)\.\.?(?:[;/]|\Z)")
_SEMICOLON = 0x3B
_TOO_MANY = f"the path has more segments than the {SEGMENTS} that it may have"
_HIDDEN = re.compile(rb"%(?:2[Ff]|3[Bb])")  # a slash or a semicolon


def segments(path: bytes) -> list[bytes]:
    """The decoded segments of a raw path; the first one is the empty text before the leading slash.

    Raises ValueError, in words fit for a caller, for what two parsers could read differently: dot
    segments, backslashes, NUL and broken percent escapes; and for more than SEGMENTS segments.
    """
    raw = path.split(b"/", SEGMENTS + 1)
    if len(raw) > SEGMENTS + 1:  # the first one is none of the caller's
        raise ValueError(_TOO_MANY)
    if _PERCENT in path or _BACKSLASH in path or _NUL in path or path.find(b"/.") >= 0:
        parts = [_segment(part) for part in raw]
        if sum(part.count(b"/") for part in parts) + len(parts) > SEGMENTS + 1:
            raise ValueError(_TOO_MANY)
        return parts
    return raw


def _segment(raw: bytes) -> bytes:
    if _PERCENT in raw:
        if _BAD_ESCAPE.search(raw):
            raise ValueError("the path has a % that is not followed by two hex digits")
        raw = unquote_to_bytes(raw)
    if _BACKSLASH in raw:
        raise ValueError("the path has a backslash")
    if _NUL in raw:
        raise ValueError("the path has a NUL character")
    if _DOTS.search(raw):
        raise ValueError("the path has a dot segment")
    return raw


def has_readings(path: bytes) -> bool:
    """Whether `other_readings` of this raw path may hold any. Of most paths it does not."""
    return (
        _SEMICOLON in path or path.find(b"//") >= 0 or (_PERCENT in path and _HIDDEN.search(path) is not None)
    )


def other_readings(parts: list[bytes]) -> list[list[bytes]]:
    """The segments that some services find in a path where `segments` found `parts`.

    nginx takes `%2F` for a slash and merges slashes; servlet containers cut `;params` off each segment. Which
    of that is done, and in which order, differs, more so with a proxy in between: all orders are here.
    """
    forms = [parts]
    for form in forms:  # which grows meanwhile, to fifteen or so
        for step in (_split, _cut, _merged):
            if (changed := step(form)) not in forms:
                forms.append(changed)
    return forms[1:]


def _split(parts: list[bytes]) -> list[bytes]:
    return b"/".join(parts).split(b"/")


def _cut(parts: list[bytes]) -> list[bytes]:
    return [part.partition(b";")[0] for part in parts]


def _merged(parts: list[bytes]) -> list[bytes]:
    """Without the empty segments between the first and the last one."""
    return [parts[0], *filter(None, parts[1:-1]), *parts[1:][-1:]]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A route's path pattern. `prefix` holds its segments before the first wildcard, `tail` the others."""

    prefix: tuple[bytes, ...]
    tail: tuple[Segment, ...]

    @classmethod
    def of(cls, text: str) -> Pattern:
        """The pattern that `text` spells; ValueError says what is wrong with it."""
        if not text.startswith("/"):
            raise ValueError("a path pattern begins with /")
        if "?" in text or "#" in text:
            raise ValueError("a path pattern has no query and no fragment")
        parsed: list[Segment] = []
        for raw in text.encode("utf-8", "surrogateescape").split(b"/"):
            if b"*" in raw and raw not in _WILD:
                raise ValueError("* and ** stand for whole segments, as in /a/*/b or /a/**")
            parsed.append(_WILD.get(raw) or _segment(raw))
        return cls._of(parsed)

    @classmethod
    def _of(cls, parsed: list[Segment]) -> Pattern:
        prefix: list[bytes] = []
        for segment in parsed:
            if isinstance(segment, Wild):
                break
            prefix.append(segment)
        return cls(tuple(prefix), tuple(parsed[len(prefix) :]))

    def readings(self) -> list[Pattern]:
        """What some services make of its literal segments, see `other_readings`. Of most patterns nothing."""
        # No literal holds a NUL, so that these stay what they are.
        stand_in = {ONE: b"\0*", MANY: b"\0**"}
        wild = {text: segment for segment, text in stand_in.items()}
        parts = [stand_in[part] if isinstance(part, Wild) else part for part in (*self.prefix, *self.tail)]
        return [self._of([wild.get(part) or part for part in reading]) for reading in other_readings(parts)]

    @property
    def rank(self) -> tuple[bool, int, int]:
        """How specific: no wildcard, literal characters before the first `*`, literal characters in all.

        A pattern with no `*` is literal to its end, so it comes before any that has one; otherwise
        `/a/**` (three characters) would win against `/a` (two) for the path `/a`.
        """
        slashes = len(self.prefix) + len(self.tail) - 1
        before = sum(map(_characters, self.prefix))
        after = sum(_characters(segment) for segment in self.tail if isinstance(segment, bytes))
        return not self.tail, before + min(len(self.prefix), slashes), before + after + slashes

    def matches(self, parts: Sequence[bytes]) -> bool:
        """Whether a path with these segments (as from `segments`) matches."""
        depth = len(self.prefix)
        if tuple(parts[:depth]) != self.prefix:
            return False
        return tail_matches(self.tail, parts, depth)


def _characters(segment: bytes) -> int:
    return len(segment.decode("utf-8", "surrogateescape"))


def tail_matches(tail: Sequence[Segment], parts: Sequence[bytes], start: int) -> bool:
    """Whether `parts` from `start` on match `tail`.

    It goes back to the last `**` only (an earlier one could match no more than that), so the time is
    at most the product of the two lengths.
    """
    at, want, end = start, 0, len(tail)
    retry_at = retry_want = -1
    while at < len(parts):
        segment = tail[want] if want < end else None
        if segment is MANY:
            want += 1
            retry_at, retry_want = at, want
        elif segment is ONE or segment == parts[at]:
            at, want = at + 1, want + 1
        elif retry_want >= 0:
            retry_at += 1
            at, want = retry_at, retry_want
        else:
            return False
    return all(segment is MANY for segment in tail[want:])


class _State:
    """A state of the automaton that reads all patterns at once: a trie whose `**` nodes loop."""

    __slots__ = ("accepts", "literals", "loops", "many", "one")

    def __init__(self, loops: bool = False) -> None:
        self.literals: dict[bytes, _State] = {}
        self.one: _State | None = None
        self.many: _State | None = None
        self.loops = loops
        self.accepts: list[int] = []

    def add(self, pattern: Pattern | None, number: int) -> None:
        state = self
        for segment in (*pattern.prefix, *pattern.tail) if pattern else ():
            if segment is MANY:
                state.many = state.many or _State(loops=True)
                state = state.many
            elif segment is ONE:
                state.one = state.one or _State()
                state = state.one
            elif isinstance(segment, bytes):
                state = state.literals.setdefault(segment, _State())
        state.accepts.append(number)

    def on_other(self) -> list[_State]:
        """The next states on a segment that no literal here names."""
        return [state for state in (self.one, self if self.loops else None) if state]


def overlaps(patterns: Sequence[Pattern | None]) -> Iterator[tuple[int, int]]:
    """The index pairs of all patterns that some one path matches both of, each once; None matches None only.

    Exact. All patterns are read at once, in pairs of states, so patterns that part at a literal cost
    nothing together and the time is about linear but for those that do overlap.
    """
    start = _State()
    for number, pattern in enumerate(patterns):
        start.add(pattern, number)
    todo, seen = [(start, start)], set()
    while todo:
        one, two = todo.pop()
        key = frozenset((id(one), id(two)))
        if key in seen:
            continue
        seen.add(key)
        for first in one.accepts:
            for second in two.accepts:
                if one is not two or first < second:
                    yield min(first, second), max(first, second)
        todo += _steps(one, two)


def _steps(one: _State, two: _State) -> Iterator[tuple[_State, _State]]:
    """The pairs of states that follow a pair, whatever segment comes next."""
    if one.many:
        yield one.many, two
    if two.many:
        yield one, two.many
    ones, twos = one.on_other(), two.on_other()
    yield from ((a, b) for a in ones for b in twos)
    if twos:
        yield from ((a, b) for a in one.literals.values() for b in twos)
    if ones:
        yield from ((a, b) for b in two.literals.values() for a in ones)
    fewer, more = (one, two) if len(one.literals) <= len(two.literals) else (two, one)
    for segment, state in fewer.literals.items():
        if (other := more.literals.get(segment)) is not None:
            yield state, other
