"""YAML text -> plain values, with the line of every key; the only place that knows yaml.

Scalars are read by the YAML 1.2 core rules, so that `no`, `1.20`, `0777` and `12:30` stay the text they were
written as: a plain scalar becomes None, True, False or a decimal int, or it is a str. Aliases and merge keys
work; tags do not. The tree is built from the parser's events, without recursion and within fixed bounds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sidecert.config.nodes import KeyPath, ListNode, MappingNode, render
from sidecert.config.syntax import complaint
from sidecert.config.textfile import Unreadable, read_text
from sidecert.errors import Problem
from sidecert.words import masked

MAX_DEPTH = 32
MAX_NODES = 2_000_000  # an alias counts as all that it stands for: a few lines can stand for billions

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\Z")


@dataclass
class Source:
    """A file's values and the problems met on the way. Not `usable`: there is nothing to go on with."""

    file: str
    root: MappingNode = field(default_factory=lambda: MappingNode(1))
    usable: bool = False
    problems: list[Problem] = field(default_factory=list)

    def line(self, *path: str | int) -> int | None:
        """The line (from 1) of a key path or of its nearest parent that exists; None if not usable."""
        if not self.usable:
            return None
        node: Any = self.root
        line = self.root.line
        for part in path:
            if not isinstance(node, MappingNode | ListNode) or not node.has(part):
                break
            line = node.lines[part]  # type: ignore[index]
            node = node[part]  # type: ignore[index]
        return line

    def problem(self, path: KeyPath, wrong: str, right: str, warning: bool = False) -> Problem:
        """A problem located in this file."""
        return Problem(self.file, self.line(*path), render(path), wrong, right, warning)


def load(path: Path) -> Source:
    """The file's values; whatever is wrong with the file or its YAML is in `problems`, nothing is raised."""
    source = Source(masked(str(path)))
    try:
        _Builder(source).build(read_text(path))
    except Unreadable as stop:
        source.problems.append(Problem(source.file, stop.line, "", stop.wrong, stop.right))
        source.usable = False
        source.root = MappingNode(1)
    return source


@dataclass(slots=True)
class _Frame:
    """A mapping or list that is still open."""

    node: MappingNode | ListNode
    anchor: str | None
    before: int  # nodes counted when it was opened
    key: str | None = None
    key_line: int = 0
    merging: bool = False  # the key is `<<`
    merges: list[tuple[Any, int]] = field(default_factory=list)

    def part(self) -> str | int:
        """The key or index of what is being read in it."""
        return len(self.node) if isinstance(self.node, ListNode) else self.key or ""


class _Builder:
    """Builds the tree of one document from the parser's events."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.stack: list[_Frame] = []
        self.anchors: dict[str, tuple[Any, int] | None] = {}  # value and size; None while it is still open
        self.nodes = 0

    def build(self, text: str) -> None:
        documents = 0
        for event in _events(text):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    wrong = "a second YAML document begins here"
                    self._note((), _line(event), wrong, "keep one document, and remove the ---")
                    break
            elif isinstance(event, yaml.NodeEvent):
                self._node(event)
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                self._close()
        if not documents:
            raise Unreadable(None, "the file is empty", "begin with version: 1")

    def _node(self, event: yaml.NodeEvent) -> None:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            self._add(self._resolve(event.anchor or "", line), line)
            return
        self._count(1, line)
        frame = self.stack[-1] if self.stack else None
        if frame is not None and isinstance(frame.node, MappingNode) and frame.key is None:
            self._key(frame, event, line)
            return
        if _tag(event) is not None:
            path = tuple(f.part() for f in self.stack)
            self._note(path, line, "a value that begins with ! is a YAML tag", "put it in quotes")
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
            if event.anchor:
                self.anchors[event.anchor] = (value, 1)
            self._add(value, line)
            return
        if len(self.stack) >= MAX_DEPTH:
            raise Unreadable(line, f"this is nested more than {MAX_DEPTH} levels deep", "a config needs six")
        if event.anchor:
            self.anchors[event.anchor] = None
        node = MappingNode(line) if isinstance(event, yaml.MappingStartEvent) else ListNode(line)
        self.stack.append(_Frame(node, event.anchor, self.nodes - 1))

    def _key(self, frame: _Frame, event: yaml.NodeEvent, line: int) -> None:
        if not isinstance(event, yaml.ScalarEvent) or _tag(event) is not None:
            raise Unreadable(line, "a key here is not a plain word", 'write "key: value"')
        frame.key = event.value
        frame.merging = event.value == "<<" and not event.style
        frame.key_line = line

    def _add(self, value: Any, line: int) -> None:
        """Put a finished value where it belongs."""
        if not self.stack:
            self._root(value, line)
            return
        frame = self.stack[-1]
        node, key = frame.node, frame.key
        if isinstance(node, ListNode):
            node.append(value)
            node.lines.append(line)
            return
        if key is None:
            raise Unreadable(line, "an alias is used as a key here", "write the key itself")
        frame.key = None
        if frame.merging:
            frame.merges.append((value, frame.key_line))
        elif key in node:
            path = (*(f.part() for f in self.stack[:-1]), key)
            wrong = f"duplicate key, it is on line {node.lines[key]} already"
            self._note(path, frame.key_line, wrong, "keep one of the two")
            if len(self.stack) == 1:
                _join(node[key], value)
        else:
            node[key] = value
            node.lines[key] = frame.key_line

    def _close(self) -> None:
        frame = self.stack.pop()
        for value, line in frame.merges:
            self._merge(frame.node, value, line)
        if frame.anchor:
            self.anchors[frame.anchor] = (frame.node, self.nodes - frame.before)
        self._add(frame.node, frame.node.line)

    def _merge(self, node: Any, value: Any, line: int) -> None:
        """The merge key `<<` of YAML 1.1: what is written in the mapping itself wins."""
        parts = value if isinstance(value, ListNode) else [value]
        if not all(isinstance(part, MappingNode) for part in parts):
            path = tuple(f.part() for f in self.stack)
            self._note((*path, "<<"), line, "only mappings can be merged", "write <<: *NAME of a mapping")
            return
        for part in parts:
            for key in part.keys() - node.keys():
                node[key] = part[key]
                node.lines[key] = part.lines[key]

    def _resolve(self, name: str, line: int) -> Any:
        if name not in self.anchors:
            raise Unreadable(
                line, "an alias here has no anchor", 'put a value that begins with * in quotes: "*..."'
            )
        known = self.anchors[name]
        if known is None:
            raise Unreadable(line, "an alias here stands for what it is part of", "write the value out")
        self._count(known[1], line)
        return known[0]

    def _count(self, nodes: int, line: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise Unreadable(
                line, f"there are more than {MAX_NODES} values up to here", "use fewer aliases or routes"
            )

    def _root(self, value: Any, line: int) -> None:
        if value is None:
            raise Unreadable(None, "the file is empty", "begin with version: 1")
        if not isinstance(value, MappingNode):
            found = "a list" if isinstance(value, ListNode) else "a single value"
            colon = ", with a space after each colon" if isinstance(value, str) and ":" in value else ""
            raise Unreadable(line, f"the file holds {found}, not keys", f"begin with version: 1{colon}")
        self.source.root = value
        self.source.usable = True

    def _note(self, path: KeyPath, line: int, wrong: str, right: str) -> None:
        self.source.problems.append(Problem(self.source.file, line, render(path), wrong, right))


def _join(first: Any, second: Any) -> None:
    """Let a section that is there twice be checked as a whole, so that one mistake does not hide others."""
    if first is second:
        return
    if isinstance(first, ListNode) and isinstance(second, ListNode):
        first.extend(second)
        first.lines.extend(second.lines)
    elif isinstance(first, MappingNode) and isinstance(second, MappingNode):
        for key in second.keys() - first.keys():
            first[key] = second[key]
            first.lines[key] = second.lines[key]


def _scalar(event: yaml.ScalarEvent) -> str | int | bool | None:
    text: str = event.value
    if event.style:  # in quotes, or a block of text
        return text
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    return int(text) if _INT.match(text) else text


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _tag(event: yaml.NodeEvent) -> str | None:
    return event.tag if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) else None


def _events(text: str) -> Iterator[yaml.Event]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    events: Iterable[yaml.Event] = yaml.parse(text, Loader=loader)
    try:
        yield from events
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        opened = error.context_mark.line if error.context_mark else line
        raise complaint(f"{error.context} {error.problem}", text, line, column, opened) from None
    except yaml.YAMLError:
        raise Unreadable(None, "this is not YAML", "name a YAML file") from None
