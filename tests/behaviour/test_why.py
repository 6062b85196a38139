"""`sidecert why` tells which route and credential a URL gets, and why not the others."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support.sidecar import PROGRAM

CONFIG = """\
version: 1
listeners:
  - bind: 127.0.0.1:8080
  - bind: 127.0.0.1:9001
    route: orders
credentials:
  alice: {certificate: missing.crt, key: missing.key}
  bob: {pkcs12: missing.p12}
routes:
  - id: orders
    match: {host: orders.example.com, path: /rest/**, methods: [GET, POST]}
    upstream: {host: real.example.net, server_name: name.example.net, port: 9443}
    credential: alice
  - id: everything
    match: {host: "*.example.com"}
    credential: bob
  - id: open
    match: {host: open.test, port: 8000}
    upstream: {trust: insecure}
    credential: none
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config whose certificates are not there: routing does not need them."""
    path = tmp_path / "sidecert.yaml"
    path.write_text(CONFIG)
    return path


def why(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, "why", "-c", str(config), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def report(config: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    """What `--json` prints."""
    ran = why(config, "--json", *arguments)
    assert (ran.returncode, ran.stderr) == (status, "")
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


def test_it_names_the_route_the_credential_and_the_upstream(config: Path) -> None:
    """And of every other route the reason; the answer is yes, so the status is 0."""
    ran = why(config, "http://orders.example.com/rest/1?token=s3cret")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        "GET http://orders.example.com/rest/1",
        "  route        orders",
        "  credential   alice",
        "  upstream     real.example.net:9443",
        "  server name  name.example.net",
        "  trust        system",
        "",
        "not:",
        "  everything  less specific than orders: its host is a wildcard",
        "  open        the host differs: open.test wanted",
    ]


def test_json_holds_the_same(config: Path) -> None:
    """For scripts: fixed keys, null where there is nothing."""
    assert report(config, "HTTP://Shop.Example.com:81/x") == {
        "method": "GET",
        "url": "http://shop.example.com:81/x",
        "listener": None,
        "route": "everything",
        "credential": "bob",
        "upstream": "shop.example.com:8443",
        "server_name": "shop.example.com",
        "trust": "system",
        "instead": None,
        "refusal": None,
        "others": [
            {"route": "open", "matched": False, "reason": "the host differs: open.test wanted"},
            {
                "route": "orders",
                "matched": False,
                "reason": "the host differs: orders.example.com wanted",
            },
        ],
    }


def test_the_method_counts(config: Path) -> None:
    """`-X` as in curl."""
    told = report(config, "-X", "DELETE", "http://orders.example.com/rest/1")
    assert told["route"] == "everything"
    assert told["others"][0]["reason"] == "method GET or POST wanted, not DELETE"


def test_a_credential_of_none_is_said(config: Path) -> None:
    """No certificate is a fact worth knowing, and so is a trust in anybody."""
    ran = why(config, "open.test:8000")
    assert "credential   none: no certificate is sent" in ran.stdout
    assert "trust        insecure" in ran.stdout
    assert report(config, "open.test:8000")["credential"] == "none"


def test_no_route_is_a_no(config: Path) -> None:
    """Status 1, with what the caller would get and why each route does not match."""
    ran = why(config, "http://open.test/a?token=s3cret")
    assert ran.returncode == 1
    assert "no route     403 no_route: no route takes host open.test, port 80, path /a" in ran.stdout
    assert "open  port 8000 wanted, the URL has 80" in ran.stdout
    assert "s3cret" not in ran.stdout + ran.stderr
    told = report(config, "http://open.test/a", status=1)
    assert told["route"] is told["credential"] is told["upstream"] is None
    assert told["refusal"]["outcome"] == "no_route"
    assert [each["route"] for each in told["others"]] == ["open", "orders", "everything"]


@pytest.mark.parametrize("path", ["/a/../b", "/a/%2e%2E/b", "/a/..;x", "/a\\b", "/a%00", "/%zz"])
def test_a_path_that_sidecert_refuses_is_a_no(config: Path, path: str) -> None:
    """The caller would get 400, and the command says so."""
    told = report(config, f"http://orders.example.com{path}", status=1)
    assert (told["route"], told["refusal"]["status"]) == (None, 400)


def test_a_path_outside_ascii_is_taken_as_callers_send_it(config: Path) -> None:
    """Percent-encoded in UTF-8."""
    assert report(config, "http://orders.example.com/rest/é#x")["url"] == (
        "http://orders.example.com/rest/%C3%A9"
    )


def test_the_address_of_a_pinned_listener_leads_to_its_route(config: Path) -> None:
    """Path and methods still hold there."""
    ran = why(config, "http://localhost:9001/rest/1")
    assert ran.returncode == 0
    assert "listener     127.0.0.1:9001, pinned to orders" in ran.stdout
    assert "credential   alice" in ran.stdout
    assert "everything  listener 127.0.0.1:9001 is pinned to orders" in ran.stdout
    assert report(config, "http://127.0.0.1:9001/x", status=1)["refusal"]["outcome"] == "no_route"


def test_the_address_of_another_listener_gets_a_hint(config: Path) -> None:
    """The easiest slip is to ask about the sidecar instead of the URL that is called through it."""
    told = report(config, "http://127.0.0.1:8080/rest/1", status=1)
    assert told["listener"] == "127.0.0.1:8080"
    assert "127.0.0.1:8080 is sidecert's own listener" in told["refusal"]["remedy"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("ftp://orders.example.com/",),
        ("http://",),
        ("http://orders.example.com:99999/",),
        ("http://orders.example.com:x/",),
        ("http://alice:s3cret@orders.example.com/",),
        ("alice:s3cret@orders.example.com",),
        ("http://[::1/",),
        ("http://orders..example.com/",),
        ("http://orders.example.com/a b",),
        ("http://orders.example.com/\x1b[31m",),
        ("-X", "FETCH", "http://orders.example.com/"),
        ("-X", "CONNECT", "http://orders.example.com/"),
    ],
)
def test_bad_usage_ends_with_2_and_no_secret(config: Path, arguments: tuple[str, ...]) -> None:
    """On stderr, with what would be right; nothing on stdout."""
    ran = why(config, *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr
    assert "s3cret" not in ran.stderr
    assert "\x1b" not in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_broken_config_ends_with_2_and_every_problem(config: Path) -> None:
    """Two that tie are such a problem, beside those of the file itself."""
    config.write_text(
        CONFIG.replace("path: /rest/**, methods: [GET, POST]", "path: rest")
        + '  - {id: twice, match: {host: "*.Example.com."}, credential: bob}\n'
    )
    ran = why(config, "http://orders.example.com/")
    assert (ran.returncode, ran.stdout) == (2, "")
    lines = ran.stderr.splitlines()
    assert any("routes[0].match.path" in line and f"{config}:11:" in line for line in lines)
    assert any("routes[3].match" in line and "'everything'" in line for line in lines)
    missing = why(config.with_name("nowhere.yaml"), "http://orders.example.com/")
    assert missing.returncode == 2
    assert "nowhere.yaml" in missing.stderr


def test_many_routes_are_cut_for_people_only(config: Path) -> None:
    """Text lists the nearest twenty and folds those for other hosts into one line; --json has all."""
    more = "".join(
        f"  - {{id: r{n}, match: {{host: h{n}.test}}, credential: none}}\n"
        f"  - {{id: o{n}, match: {{host: orders.example.com, path: /{n}}}, credential: none}}\n"
        for n in range(40)
    )
    config.write_text(CONFIG + more)
    ran = why(config, "http://orders.example.com/rest/1")
    assert ran.stdout.endswith(
        "  and 21 more; --json lists them all\n  41 other routes are for other hosts\n"
    )
    assert "the host differs" not in ran.stdout
    assert len(report(config, "http://orders.example.com/rest/1")["others"]) == 82


def test_https_is_answered_with_what_to_call_instead(config: Path) -> None:
    """A tool that is given it asks for a tunnel, or speaks TLS with sidecert; the route is shown as well."""
    told = report(config, "https://orders.example.com/rest/1?a")
    assert told["route"] == "orders"
    assert "CONNECT orders.example.com:443" in told["instead"]
    assert told["instead"].endswith("call http://orders.example.com/rest/1 instead")
    ran = why(config, "https://orders.example.com/rest/1")
    assert f"  but          {told['instead']}" in ran.stdout
    assert report(config, "http://orders.example.com/rest/1")["instead"] is None
    own = report(config, "https://127.0.0.1:9001/rest/1")["instead"]
    assert "400 bad_request" in own
    assert own.endswith("call http://127.0.0.1:9001/rest/1")


def test_https_of_a_route_for_that_port_keeps_the_port(config: Path) -> None:
    """Else the call that is advised would have no route."""
    config.write_text(CONFIG.replace("port: 8000", "port: 443"))
    assert report(config, "https://open.test/a")["instead"].endswith("call http://open.test:443/a instead")


def test_remedy_does_not_advise_the_command_that_gave_it(config: Path) -> None:
    """Whoever reads it has just run `sidecert why`."""
    for url in ("http://open.test/a", "http://nowhere.test/"):
        ran = why(config, url)
        assert ran.returncode == 1
        assert "sidecert why" not in ran.stdout
        assert "  remedy       " in ran.stdout


def test_mistakes_come_as_json_too(config: Path) -> None:
    """A script reads one format whatever happens; the status is that of the words."""
    told = report(config, "/x", status=2)
    assert told["ok"] is False
    assert told["error"]
    config.write_text("version: 2\nroutes: 3\n")
    told = report(config, "http://open.test/", status=2)
    assert [problem["path"] for problem in told["problems"]] == ["version", "routes"]
