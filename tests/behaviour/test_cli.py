"""The command line: finding the config, reporting what is wrong with it, and never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.certs import Pki, expired
from support.peers import Peers
from support.sidecar import PROGRAM, config, route, sidecert

BROKEN = """\
version: 1
listeners:
  - bind: nonsense
credentials:
  alice:
    certificate: missing.crt
    key: missing.key
routes:
  - id: orders
    match: {host: orders.test}
    credential: bob
    colour: blue
"""


def _write(path: Path, text: str | dict[str, Any]) -> Path:
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return path


@pytest.fixture
def good(pki: Pki, peers: Peers) -> dict[str, Any]:
    """A config that can be used."""
    return config([route("orders", peers.closed_port(), trust=pki.trust)], {"alice": pki.alice.config})


@pytest.fixture(autouse=True)
def _no_config_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIDECERT_CONFIG", raising=False)


def test_version_says_its_name() -> None:
    """Scripts ask for it."""
    ran = sidecert("--version")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("sidecert ")


def test_help_lists_every_command_without_loading_it() -> None:
    """`run` must not pay for what `demo` needs, nor `--help` for anything."""
    ran = sidecert("--help")
    for command in ("run", "check", "why", "doctor", "schema", "twin", "demo"):
        assert f"\n  {command} " in ran.stdout
    code = (
        "import sys; from sidecert.cli import main; main(['--help'], standalone_mode=False);"
        "print(sorted({'mitmproxy', 'pydantic', 'yaml', 'rich', 'OpenSSL'} & sys.modules.keys()))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.endswith("[]\n")


@pytest.mark.parametrize("command", ["run", "check", "why", "doctor", "schema", "twin", "demo"])
def test_every_command_explains_itself(command: str) -> None:
    """Also the ones that other parts bring."""
    ran = sidecert(command, "--help")
    assert ran.returncode == 0
    assert f"Usage: sidecert {command}" in ran.stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["run", "--nonsense"], ["run", "--log-level", "loud"]])
def test_bad_usage_is_status_2(arguments: list[str]) -> None:
    """With a word on what would be right, and no traceback."""
    ran = sidecert(*arguments)
    assert ran.returncode == 2
    assert "Error: " in ran.stderr
    assert "Traceback" not in ran.stderr


def test_module_is_the_command() -> None:
    """`python -m sidecert` where the script is not on the path."""
    command = [sys.executable, "-m", "sidecert", "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("sidecert ")


@pytest.mark.parametrize("command", ["run", "check"])
def test_without_a_config_it_says_where_it_looked(command: str, tmp_path: Path) -> None:
    """And what to do."""
    ran = sidecert(command, cwd=tmp_path)
    assert ran.returncode == 2
    assert ran.stdout == ""
    for words in ("-c", "SIDECERT_CONFIG", str(tmp_path / "sidecert.yaml"), "/etc/sidecert/sidecert.yaml"):
        assert words in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_named_file_that_is_missing_is_not_passed_over(
    command: str, tmp_path: Path, good: dict[str, Any]
) -> None:
    """Another file that happens to be there must not be taken for it."""
    _write(tmp_path / "sidecert.yaml", good)
    ran = sidecert(command, "-c", "other.yaml", cwd=tmp_path)
    assert ran.returncode == 2
    assert str(tmp_path / "other.yaml") in ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_config_is_looked_for_in_order(
    tmp_path: Path, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """-c, then SIDECERT_CONFIG, then ./sidecert.yaml."""
    for name in ("given.yaml", "named.yaml", "sidecert.yaml"):
        _write(tmp_path / name, good)
    found = [json.loads(sidecert("check", "--json", cwd=tmp_path).stdout)["file"]]
    monkeypatch.setenv("SIDECERT_CONFIG", "named.yaml")
    found.append(json.loads(sidecert("check", "--json", cwd=tmp_path).stdout)["file"])
    found.append(json.loads(sidecert("check", "--json", "-c", "given.yaml", cwd=tmp_path).stdout)["file"])
    assert found == [str(tmp_path / name) for name in ("sidecert.yaml", "named.yaml", "given.yaml")]


def test_check_sums_up_a_good_config(tmp_path: Path, good: dict[str, Any]) -> None:
    """What would listen, and which route calls whom as whom."""
    path = _write(tmp_path / "a.yaml", good)
    ran = sidecert("check", "-c", str(path))
    assert (ran.returncode, ran.stderr) == (0, "")
    port = good["routes"][0]["upstream"]["port"]
    first, *lines = ran.stdout.splitlines()
    assert first == f"{path}: fine"
    assert f"  route       orders: orders.test -> 127.0.0.1:{port} as alice" in lines
    assert any(line.startswith("  credential  alice: CN=alice") for line in lines)


def test_check_reports_all_problems_each_on_a_line(tmp_path: Path) -> None:
    """One kind of problem never hides another."""
    path = _write(tmp_path / "a.yaml", BROKEN)
    ran = sidecert("check", "-c", str(path))
    assert ran.returncode == 2
    *lines, summary = ran.stdout.splitlines()
    assert all(line.startswith(f"{path}:") and "; " in line for line in lines)
    for place in (":3: listeners[0].bind", "credentials.alice", "routes[0].credential", "routes[0].colour"):
        assert any(place in line for line in lines), place
    assert summary == f"{len(lines)} errors, 0 warnings"


def test_check_reports_json(tmp_path: Path) -> None:
    """The same for a script."""
    path = _write(tmp_path / "a.yaml", BROKEN)
    ran = sidecert("check", "--json", "-c", str(path))
    assert (ran.returncode, ran.stderr) == (2, "")
    found = json.loads(ran.stdout)
    assert (found["file"], found["ok"]) == (str(path), False)
    lines = sidecert("check", "-c", str(path)).stdout.splitlines()[:-1]
    assert [f"{each['file']}:{each['line']}: {each['path']}" for each in found["problems"]] == [
        line.rpartition("; ")[0].rpartition(": ")[0] for line in lines
    ]


def test_check_is_fine_with_a_warning(tmp_path: Path, pki: Pki, good: dict[str, Any]) -> None:
    """An expired certificate is the upstream's to judge; the other routes serve."""
    files = pki.ca.caller("late", **expired()).write(tmp_path)
    good["credentials"]["alice"] = files.config
    ran = sidecert("check", "-c", str(_write(tmp_path / "a.yaml", good)))
    assert ran.returncode == 0
    first, second, *_ = ran.stdout.splitlines()
    assert first.startswith("warning: ")
    assert "credentials.alice.certificate" in first
    assert second == f"{tmp_path / 'a.yaml'}: fine, with 1 warning"


def test_check_looks_at_the_folders_of_unix_sockets(tmp_path: Path, good: dict[str, Any]) -> None:
    """They may be made before the start, so it is a warning; nothing is opened to find out."""
    good["listeners"] = [{"bind": "unix:here.sock"}, {"bind": "unix:gone/in.sock"}]
    path = _write(tmp_path / "a.yaml", good)
    ran = sidecert("check", "-c", str(path))
    assert ran.returncode == 0
    wrong = f"the folder {tmp_path / 'gone'} is not there; make it"
    assert ran.stdout.startswith(f"warning: {path}: listeners[1].bind: {wrong}")
    assert ran.stdout.count("warning") == 2  # with the summary
    assert not (tmp_path / "here.sock").exists()


def test_run_reports_what_check_reports(tmp_path: Path) -> None:
    """On stderr, before anything listens, with status 2."""
    path = _write(tmp_path / "a.yaml", BROKEN)
    ran = sidecert("run", "-c", str(path))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.splitlines() == sidecert("check", "-c", str(path)).stdout.splitlines()[:-1]


@pytest.mark.parametrize(
    "text", ["", "[", "a: b: c", "\x00", "- 1\n", "version: 2\n", "&a [*a]", "!!python/none"]
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_junk_for_a_config_is_one_clear_problem(command: str, text: str, tmp_path: Path) -> None:
    """Whatever the file holds: no traceback, and status 2."""
    path = _write(tmp_path / "a.yaml", text)
    ran = sidecert(command, "-c", str(path))
    assert "Traceback" not in ran.stderr
    assert ran.returncode == 2
    assert str(path) in ran.stdout + ran.stderr


def test_no_control_character_of_the_config_reaches_the_terminal(tmp_path: Path) -> None:
    """A config from elsewhere must not drive the terminal of who checks it."""
    path = _write(tmp_path / "a.yaml", 'version: 1\n"ev\\e[2Jil": 1\n')
    ran = sidecert("check", "-c", str(path))
    assert ran.returncode == 2
    assert "\x1b" not in ran.stdout + ran.stderr


def test_schema_is_json() -> None:
    """Editors and validators read it."""
    ran = sidecert("schema")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "routes" in json.loads(ran.stdout)["properties"]


@pytest.mark.parametrize("arguments", [["schema"], ["--help"], ["check"]])
def test_a_reader_that_goes_is_no_traceback(
    arguments: list[str], tmp_path: Path, good: dict[str, Any]
) -> None:
    """As with `| head -1`."""
    _write(tmp_path / "sidecert.yaml", good)
    with subprocess.Popen(
        [PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        process.wait(20)


@pytest.mark.parametrize("command", ["run", "check", "doctor"])
def test_no_config_names_the_command_that_was_run_and_an_example(command: str, tmp_path: Path) -> None:
    """The line that is told to be typed is the one that was meant."""
    ran = sidecert(command, cwd=tmp_path)
    assert ran.returncode == 2
    assert f"sidecert {command} -c FILE" in ran.stderr
    assert "config/example.yaml" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["check", "bad.yaml"], "Did you mean -c bad.yaml?"),
        (["run", "a b.yml"], "Did you mean -c 'a b.yml'?"),
        (["why", "http://orders.test/", "bad.yaml"], "Did you mean -c bad.yaml?"),
        (["check", "more"], "unexpected extra argument (more)"),
    ],
)
def test_a_config_without_its_option_is_recognised(arguments: list[str], hint: str) -> None:
    """Most tools take their file as an argument."""
    ran = sidecert(*arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert hint in ran.stderr
    assert ("Did you mean" in ran.stderr) == ("Did you mean" in hint)


def test_a_config_given_to_doctor_as_a_route_is_recognised(good: dict[str, Any], tmp_path: Path) -> None:
    """Its argument is a route or an address."""
    path = _write(tmp_path / "good.yaml", good)
    ran = sidecert("doctor", "-c", str(path), "bad.yaml")
    assert ran.returncode == 2
    assert ran.stderr.endswith("Did you mean -c bad.yaml?\n")


def test_next_step_of_doctor_can_be_copied(good: dict[str, Any], tmp_path: Path) -> None:
    """It names the config that was given; without it, it would look for another."""
    path = _write(tmp_path / "a b.yaml", good)
    ran = sidecert("doctor", "-c", str(path))
    assert ran.returncode == 1
    assert f"Next: sidecert doctor -c '{path}' orders\n" in ran.stdout
    told = json.loads(sidecert("doctor", "--json", "-c", str(path)).stdout)
    assert told["next"] == f"sidecert doctor -c '{path}' orders"


@pytest.mark.parametrize("arguments", [["doctor", "nosuch"], ["why", "/x"], ["check"]])
def test_an_error_is_json_where_that_was_asked_for(
    arguments: list[str], good: dict[str, Any], tmp_path: Path
) -> None:
    """With the status of the words, which are in it."""
    path = _write(tmp_path / "good.yaml", good)
    given = ["-c", str(path)] if len(arguments) > 1 else []
    words = sidecert(*arguments, *given, cwd=tmp_path)
    ran = sidecert(*arguments, *given, "--json", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (words.returncode, "") == (2, "")
    told = json.loads(ran.stdout)
    assert told["ok"] is False
    assert words.stderr == f"sidecert: {told['error']}\n"


def test_doctor_warns_only_of_what_it_examines(good: dict[str, Any], pki: Pki, tmp_path: Path) -> None:
    """An expired certificate of another route has no part in it; for all routes it has."""
    late = pki.ca.caller("late", **expired()).write(pki.folder / "late", "late")
    good["credentials"]["late"] = late.config
    good["routes"].append({**good["routes"][0], "id": "other", "match": {"host": "other.test"}})
    good["routes"][1]["credential"] = "late"
    path = _write(tmp_path / "good.yaml", good)
    assert sidecert("doctor", "-c", str(path), "orders").stderr == ""
    assert "credentials.late" in sidecert("doctor", "-c", str(path), "other").stderr
    assert "credentials.late" in sidecert("doctor", "-c", str(path)).stderr
