"""The config file: what is read from it, and what is said about it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from sidecert.config import Draft, SecretError, SecretSource, read, schema
from sidecert.config.binds import Bind

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "cases" / "config"
VALID = sorted((CASES / "valid").glob("*.yaml"))
INVALID = sorted((CASES / "invalid").glob("*.yaml"))
SHIPPED = [ROOT / "config" / "example.yaml", *sorted((ROOT / "config" / "reference").glob("*.yaml"))]
SECRET = "hunter2"


def by_name(path: Path) -> str:
    return path.stem


def told(draft: Draft) -> str:
    """All problems as the expectation files have them."""
    lines = [f"{'warning: ' if problem.warning else ''}{problem}" for problem in draft.problems]
    return "\n".join(lines).replace(str(draft.path), "FILE") + "\n"


def read_text(folder: Path, text: str) -> Draft:
    path = folder / "sidecert.yaml"
    path.write_text(text, encoding="utf-8")
    return read(path)


@pytest.mark.parametrize("path", INVALID, ids=by_name)
def test_each_mistake_is_told_in_the_expected_words(path: Path) -> None:
    """Each invalid case yields exactly the problems of its .expect.txt, in the order of the file."""
    assert told(read(path)) == path.with_suffix(".expect.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", INVALID, ids=by_name)
def test_each_problem_is_one_line_that_says_what_would_be_right(path: Path) -> None:
    """Whatever a file holds, a problem is printable, on one line, of bounded length, and has a remedy."""
    problems = read(path).problems
    assert problems
    for problem in problems:
        assert problem.right
        assert str(problem).isprintable()
        assert len(f"{problem.path}{problem.wrong}{problem.right}") < 400


@pytest.mark.parametrize("path", INVALID, ids=by_name)
def test_a_passphrase_written_in_the_file_is_never_repeated(path: Path) -> None:
    """`hunter2` is the secret of all cases, wherever a user may have put it."""
    assert SECRET not in told(read(path))


def test_every_expectation_has_its_case() -> None:
    """No .expect.txt is left over from a case that is gone."""
    assert {path.with_suffix("").stem for path in (CASES / "invalid").glob("*.expect.txt")} == {
        path.stem for path in INVALID
    }


@pytest.mark.parametrize("path", [*VALID, *SHIPPED], ids=by_name)
def test_valid_files_load_without_a_word(path: Path) -> None:
    """The valid cases, the example and the reference configs have neither errors nor warnings."""
    assert read(path).problems == []


@pytest.mark.parametrize("path", [*VALID, *SHIPPED], ids=by_name)
def test_the_schema_accepts_what_the_loader_accepts(path: Path) -> None:
    """The files validate as an editor sees them, read with the usual YAML 1.1 rules."""
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [error.message for error in Draft202012Validator(schema()).iter_errors(plain)] == []


def test_the_committed_schema_is_the_generated_one() -> None:
    """Refresh it with `sidecert schema > config/sidecert.schema.json`."""
    committed = (ROOT / "config" / "sidecert.schema.json").read_text(encoding="utf-8")
    assert committed == json.dumps(schema(), indent=2) + "\n"


def test_the_schema_is_one_and_describes_every_key() -> None:
    """Each key has a description of its own or that of the mapping it holds."""
    generated = schema()
    Draft202012Validator.check_schema(generated)
    for name, model in {"config": generated, **generated["$defs"]}.items():
        for key, field in model["properties"].items():
            assert "description" in field or "$ref" in field, f"{name}.{key}"
    assert "null" not in json.dumps(generated)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"drain": 30},
        {"drain": None},
        {"colour": "red"},
        {"listeners": []},
        {"credentials": {"none": {"pkcs12": "a.p12"}}},
        {"credentials": {"alice": {"certificate": "a.crt"}}},
        {"credentials": {"alice": {"certificate": "a.crt", "key": "a.key", "pkcs12": "a.p12"}}},
        {"credentials": {"alice": {"pkcs12": "a.p12", "passphrase": SECRET}}},
        {"credentials": {"alice": {"pkcs12": "a.p12", "passphrase": {}}}},
        {"routes": [{"id": "orders", "match": {"host": "orders.example.com"}}]},
        {"limits": {"header_bytes": 65536}},
    ],
    ids=json.dumps,
)
def test_the_schema_refuses_the_common_mistakes(change: dict[str, Any]) -> None:
    """What an editor can know without looking at other files, it is told."""
    plain = {"version": 1, "routes": [], **change}
    assert not Draft202012Validator(schema()).is_valid(plain)


def test_every_value_is_converted() -> None:
    """Durations are seconds, sizes bytes, versions texts, paths absolute."""
    config = read(CASES / "valid" / "all-keys.yaml").config
    route = config.routes[0]
    folder = CASES / "valid"
    assert [listener.bind.label for listener in config.listeners] == [
        "127.0.0.1:8080",
        "127.0.0.1:9001",
        "unix:/run/sidecert/in.sock",
        "unix:/run/sidecert/group.sock",
        "0.0.0.0:9002",
        "127.0.0.1:9003",
    ]
    assert config.listeners[1].route == "orders"
    assert [oct(listener.mode) for listener in config.listeners[2:4]] == ["0o600", "0o660"]
    assert [listener.allow for listener in config.listeners[:4]] == [None] * 4
    assert [str(network) for network in config.listeners[4].allow or ()] == [
        *("10.0.0.0/8", "192.168.1.7/32", "fd00::/8", "2001:db8::1/128")
    ]
    assert config.listeners[4].origins == {
        *("https://app.example", "http://localhost:3000", "chrome-extension://abcdef")
    }
    assert [str(network) for network in config.listeners[5].allow or ()] == ["0.0.0.0/0", "::/0"]
    assert config.listeners[5].origins == {"any"}
    assert config.credentials["alice"].key == folder / "alice.key"
    assert config.credentials["alice"].passphrase == SecretSource(env="ALICE_PASS")
    assert [each.prove for each in config.credentials.values()] == [False, True]
    assert config.credentials["bob"].passphrase == SecretSource(file=folder / "bob.pass")
    assert route.match.methods == {"GET", "POST"}
    assert route.match.port == 80
    assert route.upstream.trust == folder / "ca.pem"
    assert (route.upstream.tls.min, route.upstream.tls.max) == ("1.2", "1.3")
    assert route.upstream.timeouts.model_dump() == {
        "connect": 0.5,
        "handshake": 5.0,
        "response": 120.0,
        "stall": 3600.0,
        "idle": 60.0,
    }
    assert route.credential == "alice"
    assert route.private is True
    assert config.limits.header_bytes == 1024 * 1024
    assert config.drain == 0


def test_the_defaults_are_those_of_the_documentation(tmp_path: Path) -> None:
    """Of a minimal file every other value is the documented default."""
    config = read_text(
        tmp_path, "version: 1\nroutes: [{id: a, match: {host: a.example.com}, credential: none}]\n"
    ).config
    route = config.routes[0]
    assert [listener.bind for listener in config.listeners] == [
        Bind("127.0.0.1:8080", "tcp", "127.0.0.1", 8080)
    ]
    assert config.admin.bind == Bind("127.0.0.1:9090", "tcp", "127.0.0.1", 9090)
    assert route.credential is None
    assert (route.match.port, route.match.path, route.match.methods) == (None, None, None)
    assert route.upstream.model_dump() == {
        "host": None,
        "port": 8443,
        "server_name": None,
        "host_header": None,
        "trust": "system",
        "tls": {"min": "1.2", "max": "1.3"},
        "timeouts": {"connect": 5, "handshake": 5, "response": 60, "stall": 60, "idle": 60},
        "pool": {"max_idle": 32, "max_connections": 256, "max_waiting": 100},
        "circuit": {"failures": 5, "pause": 10},
    }
    assert config.limits.model_dump() == {
        "connections": 1000,
        "header_bytes": 65536,
        "header_timeout": 10,
        "keepalive": 75,
    }
    assert config.drain == 30


def test_the_example_shows_every_default_as_it_is() -> None:
    """What the example writes out for its first route is what one gets without it."""
    config = read(SHIPPED[0]).config
    first, second = config.routes[0].upstream, config.routes[1].upstream
    assert (first.port, first.tls, first.timeouts, first.pool) == (
        second.port,
        second.tls,
        second.timeouts,
        second.pool,
    )


def test_the_example_names_every_key() -> None:
    """No key of the schema is missing from the commented example."""
    text = SHIPPED[0].read_text(encoding="utf-8")
    generated = schema()
    for model in (generated, *generated["$defs"].values()):
        for key in model["properties"]:
            assert f"{key}:" in text


def test_a_broken_part_leaves_the_others_readable(tmp_path: Path) -> None:
    """What is right is in `config`; ids of what is not are known, so that nothing is said twice."""
    draft = read_text(
        tmp_path,
        "version: 1\n"
        "listeners: [{bind: 127.0.0.1:1, route: bad}, {bind: 2}]\n"
        "credentials: {good: {pkcs12: a.p12}, bad: {pkcs12: 1, key: b.key}}\n"
        "routes:\n"
        "  -\n"
        "  - {id: good, match: {host: a.example.com}, credential: bad}\n"
        "  - {id: bad, match: {host: b.example.com, port: 0}, credential: good}\n"
        "limits: {connections: 0}\n",
    )
    assert [listener.bind.label for listener in draft.config.listeners] == ["127.0.0.1:1"]
    assert list(draft.config.credentials) == ["good"]
    assert [route.id for route in draft.config.routes] == ["good"]
    assert draft.config.limits.connections == 1000
    assert draft.known_routes == {"good": 1, "bad": 2}
    assert [problem.path for problem in draft.problems] == [
        "listeners[1].bind",
        "credentials.bad.pkcs12",
        "routes[0]",
        "routes[2].match.port",
        "limits.connections",
    ]


def test_a_later_check_can_point_at_a_line(tmp_path: Path) -> None:
    """A Draft locates any key path, or its nearest parent that is there."""
    draft = read_text(
        tmp_path,
        "version: 1\n\ncredentials:\n  alice:\n    pkcs12: alice.p12\nroutes:\n  - id: orders\n"
        "    match: {host: a.example.com}\n    credential: alice\n",
    )
    assert draft.source.line("credentials", "alice", "pkcs12") == 5
    assert draft.source.line("credentials", "alice", "key") == 4
    assert draft.source.line("routes", 0, "match", "host") == 8
    assert draft.source.line("routes", 7, "match") == 6
    assert draft.source.line("nothing") == draft.source.line() == 1
    problem = draft.problem(("credentials", "alice", "pkcs12"), "it expired", "renew it", warning=True)
    assert str(problem) == f"{draft.path}:5: credentials.alice.pkcs12: it expired; renew it"
    assert problem.warning


def test_relative_paths_begin_in_the_folder_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the working directory, and through a symlinked config in the folder that was named."""
    (tmp_path / "..data").mkdir()
    (tmp_path / "sidecert.yaml").symlink_to(tmp_path / "..data" / "sidecert.yaml")
    (tmp_path / "..data" / "sidecert.yaml").write_text(
        "version: 1\n"
        "listeners: [{bind: 'unix:in.sock'}]\n"
        "credentials: {a: {certificate: a.crt, key: /abs/a.key}}\n"
        "routes: [{id: a, match: {host: a.example.com}, upstream: {trust: sub/ca.pem}, credential: a}]\n"
    )
    monkeypatch.chdir(tmp_path)
    config = read(Path("sidecert.yaml")).config
    assert config.listeners[0].bind.path == tmp_path / "in.sock"
    assert config.credentials["a"].certificate == tmp_path / "a.crt"
    assert config.credentials["a"].key == Path("/abs/a.key")
    assert config.routes[0].upstream.trust == tmp_path / "sub" / "ca.pem"


def test_words_and_numbers_keep_the_spelling_they_have(tmp_path: Path) -> None:
    """YAML 1.1 would read these ids as false, 1.5, 83 and a date; a number becomes its text."""
    ids = ["no", "1.50", "0123", "2024-01-01", "42", "1e3"]
    routes = "".join(
        f"  - {{id: {each}, match: {{host: h{n}.example.com}}, credential: none}}\n"
        for n, each in enumerate(ids)
    )
    draft = read_text(tmp_path, f"version: 1\nroutes:\n{routes}")
    assert draft.problems == []
    assert [route.id for route in draft.config.routes] == ids


def test_ten_thousand_routes_load(tmp_path: Path) -> None:
    """Ten thousand routes with all their keys are read, in about two seconds on a laptop."""
    route = (
        "  - id: route-{n}\n"
        "    match: {{host: h{n}.example.com, port: 80, path: /rest/{n}/**, methods: [GET, POST]}}\n"
        "    upstream:\n"
        "      host: u{n}.example.com\n"
        "      server_name: u{n}.example.com\n"
        "      trust: ca.pem\n"
        "      tls: {{min: 1.2, max: 1.3}}\n"
        "      timeouts: {{connect: 5s, handshake: 5s, response: 60s, stall: 60s, idle: 60s}}\n"
        "      pool: {{max_idle: 32, max_connections: 256}}\n"
        "    credential: alice\n"
    )
    routes = "".join(route.format(n=n) for n in range(10_000))
    draft = read_text(tmp_path, f"version: 1\ncredentials: {{alice: {{pkcs12: a.p12}}}}\nroutes:\n{routes}")
    assert draft.problems == []
    assert len(draft.config.routes) == 10_000


def test_ten_thousand_unknown_credentials_are_all_told(tmp_path: Path) -> None:
    """The search for the nearest name is bounded, the problems are not."""
    routes = "".join(
        f"  - {{id: r{n}, match: {{host: h{n}.example.com}}, credential: crad-{n}}}\n" for n in range(10_000)
    )
    credentials = "".join(f"  cred-{n}: {{pkcs12: a.p12}}\n" for n in range(10_000))
    draft = read_text(tmp_path, f"version: 1\ncredentials:\n{credentials}routes:\n{routes}")
    assert len(draft.problems) == 10_000


def test_part_that_aliases_repeat_is_checked_once(tmp_path: Path) -> None:
    """Its mistakes are told where it is written first; the ids that are there twice are told of each."""
    config = tmp_path / "sidecert.yaml"
    entry = "{id: one, match: {host: one.test}, credential: none, colour: blue}"
    config.write_text(f"version: 1\nroutes: [&one {entry}, *one, *one]\n")
    told = sorted(problem.path for problem in read(config).problems)
    assert told == ["routes[0].colour", "routes[1].id", "routes[2].id"]


def test_a_part_without_mistakes_may_be_repeated_by_aliases(tmp_path: Path) -> None:
    """As people do to give two listeners' routes the same settings."""
    config = tmp_path / "sidecert.yaml"
    config.write_text(
        "version: 1\ncredentials: {a: &a {pkcs12: a.p12}, b: *a}\n"
        "routes: [{id: one, match: {host: one.test}, credential: b}]\n"
    )
    draft = read(config)
    assert draft.problems == []
    assert draft.config.credentials["a"] == draft.config.credentials["b"]


def test_few_lines_cannot_make_endless_problems(tmp_path: Path) -> None:
    """A mapping that is merged into hundreds of others: it is looked at until enough is known to be wrong."""
    config = tmp_path / "sidecert.yaml"
    unknown = ", ".join(f"a{number}: 1" for number in range(300))
    routes = "".join(f"- {{id: r{number}, <<: *u}}\n" for number in range(200))
    config.write_text(f"version: 1\nx: &u {{{unknown}}}\nroutes:\n{routes}")
    assert len(read(config).problems) < 1500


def test_the_models_cannot_be_changed() -> None:
    """A config that is in use stays as it was checked."""
    config = read(VALID[0]).config
    with pytest.raises(ValueError, match="frozen"):
        config.drain = 1.0


# Never an exception, whatever the file holds


@given(st.binary(max_size=300))
def test_no_bytes_raise(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Random bytes are a problem, never an exception."""
    path = tmp_path_factory.getbasetemp() / "random.yaml"
    path.write_bytes(data)
    assert read(path).problems


YAML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted({key for model in (schema(), *schema()["$defs"].values()) for key in model["properties"]})


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key path in a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


EXAMPLE = yaml.safe_load(SHIPPED[0].read_text(encoding="utf-8"))


@example(place=("credentials",), value={"\x1f": None}, key=None)
@given(place=st.sampled_from(places(EXAMPLE)), value=YAML_VALUES, key=st.none() | st.sampled_from(KEYS))
def test_no_value_in_any_place_raises(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], value: object, key: str | None
) -> None:
    """Any value anywhere in the example is taken or told about, in one printable line with a remedy."""
    changed = json.loads(json.dumps(EXAMPLE))
    value = {key: value} if key else value
    target = changed
    for part in place[:-1]:
        target = target[part]
    if place:
        target[place[-1]] = value
    else:
        changed = value
    path = tmp_path_factory.getbasetemp() / "changed.yaml"
    path.write_text(yaml.safe_dump(changed, allow_unicode=True), encoding="utf-8")
    for problem in read(path).problems:
        assert str(problem).isprintable()
        assert problem.right


# Secrets


def test_a_secret_comes_from_the_environment() -> None:
    """One trailing newline is trimmed, and nothing else."""
    assert SecretSource(env="A").resolve({"A": " s3cret\n\n"}) == " s3cret\n"


@pytest.mark.parametrize("newline", ["", "\n", "\r\n"])
def test_a_secret_comes_from_a_file(tmp_path: Path, newline: str) -> None:
    """One trailing newline is trimmed, and nothing else."""
    path = tmp_path / "pass"
    path.write_bytes(f" s3crét {newline}".encode())
    assert SecretSource(file=path).resolve({}) == " s3crét "


def test_an_unset_variable_is_an_error() -> None:
    """It is named, since it looks like the name of a variable."""
    with pytest.raises(SecretError, match="environment variable ALICE_PASS is not set"):
        SecretSource(env="ALICE_PASS").resolve({})


def test_what_may_be_the_secret_itself_is_not_named(tmp_path: Path) -> None:
    """Some write the passphrase where the name of its variable or file belongs."""
    for source in (SecretSource(env=SECRET), SecretSource(file=tmp_path / SECRET)):
        with pytest.raises(SecretError) as caught:
            source.resolve({})
        assert SECRET not in f"{caught.value.wrong} {caught.value.right}"


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "empty"), (b"\n", "empty"), (b"\xff\xfe", "not UTF-8"), (b"x" * 70_000, "too large")],
)
def test_a_file_without_a_usable_secret_is_an_error(tmp_path: Path, content: bytes, words: str) -> None:
    """Each in its own words, without the content."""
    path = tmp_path / "pass"
    path.write_bytes(content)
    with pytest.raises(SecretError, match=words):
        SecretSource(file=path).resolve({})


def test_a_missing_secret_file_is_located(tmp_path: Path) -> None:
    """The folder is named, which tells what the path was relative to."""
    with pytest.raises(SecretError, match=f"no such file in {tmp_path}"):
        SecretSource(file=tmp_path / "alice.pass").resolve({})
    with pytest.raises(SecretError, match="folder does not exist"):
        SecretSource(file=tmp_path / "gone" / "alice.pass").resolve({})
    with pytest.raises(SecretError, match="directory"):
        SecretSource(file=tmp_path).resolve({})


@pytest.mark.parametrize("has_writer", [False, True])
def test_a_passphrase_from_a_named_pipe_is_refused_at_once(tmp_path: Path, has_writer: bool) -> None:
    """Neither one that nobody writes to nor one that stays open holds up a start."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR) if has_writer else -1
    try:
        with pytest.raises(SecretError, match="not a regular file"):
            SecretSource(file=path).resolve({})
    finally:
        if has_writer:
            os.close(writer)


def test_a_passphrase_from_a_terminal_device_or_socket_is_refused(tmp_path: Path) -> None:
    """A device could be endless, and a terminal would ask whoever started it."""
    primary, terminal = os.openpty()
    try:
        for path in (Path("/dev/zero"), Path(os.ttyname(terminal))):
            with pytest.raises(SecretError, match="not a regular file"):
                SecretSource(file=path).resolve({})
    finally:
        os.close(primary)
        os.close(terminal)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(SecretError, match="cannot be read"):
            SecretSource(file=tmp_path / "s").resolve({})
