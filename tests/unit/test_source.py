"""YAML text as plain values with their lines, and the files that are none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from sidecert.config.nodes import render
from sidecert.config.source import MAX_DEPTH, Source, load
from sidecert.config.textfile import MAX_BYTES

CASES = sorted((Path(__file__).parents[1] / "cases" / "config").glob("*/*.yaml"))


def load_text(folder: Path, text: str) -> Source:
    path = folder / "file.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    return load(path)


def told(source: Source) -> list[str]:
    return [str(problem).removeprefix(source.file) for problem in source.problems]


def test_plain_scalars_are_read_by_the_core_rules(tmp_path: Path) -> None:
    """Only null, true, false and decimal integers are not text; quotes make anything a text."""
    text = (
        "[null, ~, '', true, FALSE, 42, -1, 0, yes, no, 1.0, 0x1F, 0777, 12:30, 1_0, 2024-01-01, '42', \"~\"]"
    )
    values = load_text(tmp_path, f"a: {text}\n").root["a"]
    assert values == [
        *(None, None, "", True, False, 42, -1, 0),
        *("yes", "no", "1.0", "0x1F", "0777", "12:30", "1_0", "2024-01-01", "42", "~"),
    ]
    assert [type(value) for value in values[3:8]] == [bool, bool, int, int, int]


def test_a_huge_number_stays_text(tmp_path: Path) -> None:
    """Converting it could take for ever."""
    assert load_text(tmp_path, f"a: {'9' * 100_000}\n").root["a"] == "9" * 100_000


def test_every_key_and_entry_has_its_line(tmp_path: Path) -> None:
    """Lines count from 1; what is not there has the line of its nearest parent."""
    source = load_text(tmp_path, "# first\na: 1\nb:\n  - c: 2\n    d:\n\n      e: 3\n  -\n    f: 4\n")
    assert source.line("a") == 2
    assert source.line("b") == 3
    assert source.line("b", 0) == 4
    assert source.line("b", 0, "d", "e") == 7
    assert source.line("b", 1, "f") == 9
    assert source.line("b", 0, "d", "x", "y") == 5
    assert source.line("b", 5) == source.line("b", -1) == 3
    assert source.line("a", "x") == 2
    assert source.line("z") == 2


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_count_the_same_with_either_line_end(tmp_path: Path, newline: str) -> None:
    """A file from Windows has the same lines."""
    source = load_text(tmp_path, newline.join(["\ufeffa: 1", "b: 2", "c: 3", ""]))
    assert source.root == {"a": 1, "b": 2, "c": 3}
    assert source.line("c") == 3


def test_aliases_stand_for_the_same_value(tmp_path: Path) -> None:
    """An anchor may be on a scalar, a list or a mapping."""
    source = load_text(tmp_path, "a: &s x\nb: &l [1, 2]\nc: &m {k: *s}\nd: [*s, *l, *m]\n")
    assert source.root["d"] == ["x", [1, 2], {"k": "x"}]
    assert source.line("d", 2, "k") == 3


def test_merge_keys_fill_in_what_is_not_written(tmp_path: Path) -> None:
    """What stands in the mapping wins, wherever `<<` is; of a list of mappings the first wins."""
    source = load_text(
        tmp_path,
        "one: &one {a: 1, b: 1}\ntwo: &two {b: 2, c: 2}\n"
        "x: {<<: *one, b: 9}\ny: {b: 9, <<: *one}\nz:\n  <<: [*one, *two]\n'<<': plain\n",
    )
    assert source.problems == []
    assert source.root["x"] == source.root["y"] == {"a": 1, "b": 9}
    assert source.root["z"] == {"a": 1, "b": 1, "c": 2}
    assert source.root["<<"] == "plain"
    assert source.line("z", "c") == 2


def test_a_duplicate_key_keeps_the_first_value(tmp_path: Path) -> None:
    """Both lines are told."""
    source = load_text(tmp_path, "a:\n  b: 1\n  c: 2\n  b: 3\n")
    assert source.root == {"a": {"b": 1, "c": 2}}
    assert told(source) == [":4: a.b: duplicate key, it is on line 2 already; keep one of the two"]


def test_a_section_that_is_there_twice_is_read_as_one(tmp_path: Path) -> None:
    """So that problems in the second are seen too."""
    source = load_text(tmp_path, "a: [1]\nb: {x: 1}\na: [2]\nb: {x: 3, y: 4}\n")
    assert source.root == {"a": [1, 2], "b": {"x": 1, "y": 4}}
    assert source.line("a", 1) == 3
    assert len(source.problems) == 2


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_slow_parser_reads_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyYAML has no libyaml, values, lines and problems are the same; syntax errors in other words."""
    fast = load(path)
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    slow = load(path)
    assert slow.root == fast.root
    assert slow.usable == fast.usable
    if fast.usable:
        assert slow.problems == fast.problems
    else:
        assert len(slow.problems) == len(fast.problems)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "&a [", "!t ["])
def test_deep_nesting_is_told_and_not_followed(tmp_path: Path, opening: str) -> None:
    """A hundred thousand levels end neither the stack nor the process."""
    source = load_text(tmp_path, f"a:\n {opening * 100_000}\n")
    assert not source.usable
    assert len(source.problems) <= MAX_DEPTH + 1


def test_aliases_cannot_multiply_without_end(tmp_path: Path) -> None:
    """A thousand million values in ten lines are refused before they are made."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    source = load_text(tmp_path, "\n".join(lines))
    assert not source.usable
    assert "more than" in told(source)[0]


def test_merge_keys_cannot_multiply_without_end(tmp_path: Path) -> None:
    """Each merge counts all that it copies."""
    wide = "a: &a {" + ", ".join(f"k{n}: 1" for n in range(10_000)) + "}\n"
    source = load_text(tmp_path, wide + "b:\n" + "  - <<: *a\n" * 10_000)
    assert not source.usable


def test_a_repeated_section_of_itself_ends(tmp_path: Path) -> None:
    """A section given twice by the same alias is not extended by itself for ever."""
    source = load_text(tmp_path, "a: &a [1, 2]\na: *a\n")
    assert source.root["a"] == [1, 2]
    assert len(source.problems) == 1


# Files that are no text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ": the file is empty; begin with version: 1"),
        (b"\n\n# nothing\n", ": the file is empty; begin with version: 1"),
        (b"---\n", ": the file is empty; begin with version: 1"),
        (b"\xef\xbb\xbf", ": the file is empty; begin with version: 1"),
        (b"a: 1\nb: caf\xe9\n", ":2: the text is not UTF-8 here; save the file as UTF-8"),
        ("a: 1\n".encode("utf-16"), ":1: the file is in UTF-16; save it as UTF-8"),
        (b"\x7fELF\n\x01\x00\x00", ":2: this is a binary file; name a YAML file"),
        (b"a: 1\n\nb: \x1b[31mred\n", ":3: there is a control character (U+001B); remove it"),
        (b"a: \xef\xbf\xbe\n", ":1: there is a control character (U+FFFE); remove it"),
        (b"%TAG ! x\n", ":2: this is not YAML here"),
    ],
)
def test_a_file_that_is_no_yaml_is_told_in_one_problem(tmp_path: Path, content: bytes, words: str) -> None:
    """With the line, where there is one."""
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    source = load(path)
    assert not source.usable
    assert [line[: len(words)] for line in told(source)] == [words]


def test_places_that_are_no_files_are_told(tmp_path: Path) -> None:
    """A directory, nothing, a device and a name that no file can have."""
    assert told(load(tmp_path)) == [
        ": this is a directory; name the config file, such as sidecert.yaml in it"
    ]
    assert told(load(tmp_path / "no")) == [": there is no such file; name the config file with -c FILE"]
    assert told(load(Path(os.devnull))) == [": this is not a file; name the config file"]
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read" in told(load(tmp_path / "loop"))[0]
    assert "its name is not a path" in told(load(tmp_path / "a\0b"))[0]
    assert "cannot be read" in told(load(tmp_path / ("x" * 5000)))[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    """In words of its own."""
    path = tmp_path / "file.yaml"
    path.write_text("version: 1\n")
    path.chmod(0)
    assert told(load(path)) == [": the file may not be read; let this user read it"]


def test_a_pipe_is_read(tmp_path: Path) -> None:
    """`sidecert check -c /dev/stdin` works behind a template engine."""
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, b"version: 1\n")
        os.close(write_end)
        assert load(Path(f"/dev/fd/{read_end}")).root == {"version": 1}
    finally:
        os.close(read_end)


def test_a_file_beyond_all_measure_is_not_parsed(tmp_path: Path) -> None:
    """Its size is looked at first."""
    path = tmp_path / "file.yaml"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert told(load(path)) == [": the file is too large; a config has at most 32 MiB"]


def test_the_name_of_the_file_cannot_break_the_line(tmp_path: Path) -> None:
    """Control characters in it are shown as ?."""
    assert load(tmp_path / "a\nb").file == str(tmp_path / "a?b")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ((), ""),
        (("routes", 2, "match", "host"), "routes[2].match.host"),
        (("credentials", "a.b-c", "key"), "credentials.a.b-c.key"),
        (("credentials", 'a b"', "key"), 'credentials["a b\\""].key'),
        (("a\nb",), '["a\\nb"]'),
        (("credentials", "a", "passphrase", "env"), "credentials.a.passphrase.env"),
        (("credentials", "a", "passphrase", "s3cret", "env"), "credentials.a.passphrase"),
        (("credentials", "a", "passfrase", "s3cret"), "credentials.a.passfrase"),
        (("credential", "a", "passphrase", "s3cret"), "credential.a.passphrase"),
    ],
)
def test_a_path_is_rendered_without_secrets(path: tuple[str | int, ...], words: str) -> None:
    """Keys that could be mistaken are in quotes; what stands under a passphrase is not named."""
    assert render(path) == words
