"""From a config file to what calls go by: whole or not at all, and what makes two routes the same."""

from __future__ import annotations

import copy
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import sidecert.generation
from sidecert.errors import ConfigError, Problem
from sidecert.generation import Generation, build, with_credentials
from sidecert.tls import TlsFailure
from sidecert.watch import Signatures, look, signature
from support.certs import DAY, Authority, Pki, expired, write_private
from support.inside import generation
from support.sidecar import config


def one(pki: Pki, **upstream: object) -> dict[str, Any]:
    return {
        "id": "orders",
        "match": {"host": "orders.test"},
        "upstream": {"host": "up.test", "trust": str(pki.trust), **upstream},
        "credential": "alice",
    }


def load(folder: Path, pki: Pki, *routes: dict[str, Any], **rest: Any) -> Generation:
    return generation(folder, config(routes, rest.pop("credentials", pki.credentials), **rest))


@pytest.fixture
def base(pki: Pki, tmp_path: Path) -> Generation:
    return load(tmp_path / "base", pki, one(pki))


def test_route_is_ready_to_be_called_under(base: Generation) -> None:
    """Credential, upstream, names and Host as a caller of that upstream would send it."""
    route = base.routes["orders"]
    upstream = route.upstream("orders.test")
    assert (route.credential_id, upstream.host, upstream.port) == ("alice", "up.test", 8443)
    assert (upstream.server_name, upstream.host_header) == ("up.test", b"up.test:8443")
    assert upstream.label == "up.test:8443"
    assert not upstream.chosen_by_caller
    assert route.upstream("orders.test") is upstream


@pytest.mark.parametrize(
    ("settings", "host_header"),
    [({"port": 443}, b"up.test"), ({"host": "::1"}, b"[::1]:8443"), ({"host_header": "other"}, b"other")],
)
def test_host_header_is_what_a_caller_of_the_upstream_sends(
    settings: dict[str, Any], host_header: bytes, pki: Pki, tmp_path: Path
) -> None:
    """No port for 443, brackets around IPv6, or as configured (RFC 9110 7.2)."""
    route = load(tmp_path, pki, one(pki, **settings)).routes["orders"]
    assert route.upstream("orders.test").host_header == host_header


def test_wildcard_calls_the_host_that_was_matched(pki: Pki, tmp_path: Path) -> None:
    """The caller chose it; with a written upstream host it did not. Their number is bounded."""
    spec = one(pki)
    spec["match"]["host"] = "*.wild.test"
    del spec["upstream"]["host"]
    route = load(tmp_path / "wild", pki, spec).routes["orders"]
    upstream = route.upstream("a.wild.test")
    assert (upstream.host, upstream.server_name, upstream.chosen_by_caller) == (
        "a.wild.test",
        "a.wild.test",
        True,
    )
    for number in range(5000):
        route.upstream(f"h{number}.wild.test")
    assert len(route._upstreams) <= 1024
    spec["upstream"]["host"] = "up.test"
    route = load(tmp_path / "fixed", pki, spec).routes["orders"]
    assert not route.upstream("a.wild.test").chosen_by_caller


def test_identity_is_the_same_when_nothing_that_matters_changed(
    base: Generation, pki: Pki, tmp_path: Path
) -> None:
    """Loaded again, with other limits, another path and another credential beside it: the same."""
    spec = one(pki)
    spec["match"]["path"] = "/x/**"
    again = load(tmp_path / "again", pki, spec, limits={"connections": 7})
    assert again.routes["orders"].identity == base.routes["orders"].identity
    assert hash(again.routes["orders"].identity) == hash(base.routes["orders"].identity)


CHANGES: dict[str, dict[str, Any]] = {
    "host": {"host": "other.test"},
    "port": {"port": 9443},
    "server-name": {"server_name": "name.test"},
    "tls": {"tls": {"min": "1.3"}},
    "insecure": {"trust": "insecure"},
    "system": {"trust": "system"},
    "pool": {"pool": {"max_idle": 1}},
    "timeouts": {"timeouts": {"idle": "1s"}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_identity_differs_with_every_setting_of_the_upstream(
    change: str, base: Generation, pki: Pki, tmp_path: Path
) -> None:
    """Nothing is handed on between routes that differ in any of these."""
    other = load(tmp_path / "other", pki, one(pki, **CHANGES[change]))
    assert other.routes["orders"].identity != base.routes["orders"].identity


def test_identity_differs_with_the_certificate(base: Generation, pki: Pki, tmp_path: Path) -> None:
    """Another credential, none, and a renewed certificate under the same name."""
    seen = {base.routes["orders"].identity}
    for credential in ("bob", "none"):
        spec = {**one(pki), "credential": credential}
        seen.add(load(tmp_path / credential, pki, spec).routes["orders"].identity)
    renewed = pki.ca.caller("alice").write(tmp_path / "renewed")
    seen.add(
        load(tmp_path / "new", pki, one(pki), credentials={"alice": renewed.config}).routes["orders"].identity
    )
    assert len(seen) == 4


def test_identity_differs_with_the_trusted_certificates(pki: Pki, tmp_path: Path) -> None:
    """The same trust file with other certificates in it."""
    trust = tmp_path / "trust.pem"
    identities = set()
    for source in (pki.trust, pki.other_trust):
        trust.write_bytes(source.read_bytes())
        identities.add(load(tmp_path / "g", pki, one(pki, trust=str(trust))).routes["orders"].identity)
    assert len(identities) == 2


def test_routes_that_differ_in_their_id_only_are_not_the_same(pki: Pki, tmp_path: Path) -> None:
    """Each has a pool of its own, but they share one TLS context."""
    second = copy.deepcopy(one(pki)) | {"id": "second", "match": {"host": "second.test"}}
    routes = load(tmp_path, pki, one(pki), second).routes
    assert routes["orders"].identity != routes["second"].identity
    assert routes["orders"].context is routes["second"].context


def test_every_problem_is_told_at_once_with_its_place(pki: Pki, tmp_path: Path) -> None:
    """A missing key, a trust file that is none and two routes that tie: one error with all three."""
    (tmp_path / "empty.pem").write_text("")
    missing = {"certificate": str(pki.alice.certificate), "key": str(tmp_path / "nowhere.key")}
    tied = {**one(pki, trust=str(tmp_path / "empty.pem")), "id": "tied"}
    with pytest.raises(ConfigError) as error:
        load(tmp_path, pki, one(pki), tied, credentials={"alice": missing})
    paths = {problem.path for problem in error.value.problems}
    assert paths >= {"credentials.alice.key", "routes[1].upstream.trust", "routes[1].match"}
    assert all(problem.line for problem in error.value.problems)


def test_warning_does_not_stop_the_load(pki: Pki, tmp_path: Path) -> None:
    """An expired certificate is the upstream's to judge."""
    late = pki.ca.caller("alice", **expired()).write(tmp_path / "late")
    loaded = load(tmp_path, pki, one(pki), credentials={"alice": late.config})
    assert [problem.path for problem in loaded.warnings] == ["credentials.alice.certificate"]


def test_weak_key_is_an_error_of_the_credential(pki: Pki, tmp_path: Path) -> None:
    """RSA 1024: said at load, not at the first call."""
    weak = pki.ca.caller("alice", key="rsa-1024").write(tmp_path / "weak")
    with pytest.raises(ConfigError) as error:
        load(tmp_path, pki, one(pki), credentials={"alice": weak.config})
    assert any("alice" in str(problem) and not problem.warning for problem in error.value.problems)


def test_file_that_cannot_be_read_is_a_problem_like_any_other(tmp_path: Path) -> None:
    """No traceback for a config that is not there."""
    with pytest.raises(ConfigError) as error:
        build(tmp_path / "nowhere.yaml", 1, {})
    assert len(error.value.problems) == 1


def test_problems_of_every_kind_come_in_the_order_of_the_file(pki: Pki, tmp_path: Path) -> None:
    """An unknown key, a credential, a trust file, a tie and a warning: by line, each with its place."""
    late = pki.ca.caller("late", **expired()).write(tmp_path / "late")
    missing = {"certificate": str(pki.alice.certificate), "key": str(tmp_path / "nowhere.key")}
    wrong = {**one(pki), "id": "wrong", "colour": "red"}
    tied = {**one(pki, trust=str(tmp_path / "nowhere.pem")), "id": "tied", "credential": "none"}
    with pytest.raises(ConfigError) as error:
        load(tmp_path, pki, one(pki), tied, wrong, credentials={"alice": missing, "late": late.config})
    problems = error.value.problems
    lines = [problem.line for problem in problems]
    assert all(lines)
    assert lines == sorted(lines, key=lambda line: line or 0)
    assert {problem.path for problem in problems} == {
        "credentials.alice.key",
        "credentials.late.certificate",
        "routes[1].match",
        "routes[1].upstream.trust",
        "routes[2].colour",
    }
    assert [problem.path for problem in problems if problem.warning] == ["credentials.late.certificate"]
    assert [str(problem) for problem in problems] == str(error.value).splitlines()


def test_file_that_two_routes_name_is_read_and_told_once(pki: Pki, tmp_path: Path) -> None:
    """And a route whose credential is broken adds no second, misleading problem."""
    missing = {"certificate": str(pki.alice.certificate), "key": str(tmp_path / "nowhere.key")}
    specs = [
        {**one(pki, trust=str(tmp_path / "nowhere.pem")), "id": name, "match": {"host": f"{name}.test"}}
        for name in ("first", "second")
    ]
    with pytest.raises(ConfigError) as error:
        load(tmp_path, pki, *specs, credentials={"alice": missing})
    assert sorted(problem.path for problem in error.value.problems) == [
        "credentials.alice.key",
        "routes[0].upstream.trust",
    ]


@pytest.mark.parametrize("errors", [1, 500])
def test_of_very_many_problems_the_first_are_told_and_how_many_there_are(errors: int) -> None:
    """No error is left out for a warning, and they stay in the order of the file."""
    problems = [
        Problem("file", line, "", "wrong", "right", warning=line <= 500 - errors) for line in range(1, 501)
    ]
    told = ConfigError(problems).problems
    *first, last = told
    assert len(first) == 200
    assert sum(not problem.warning for problem in first) == min(errors, 200)
    assert [problem.line for problem in first] == sorted(problem.line or 0 for problem in first)
    assert str(len(problems) - 200) in last.wrong
    assert last.warning == (errors == 1)


def test_few_problems_are_all_told() -> None:
    """As they were found."""
    problems = tuple(Problem("file", line, "", "wrong", "right") for line in range(200))
    assert ConfigError(problems).problems == problems


def test_credential_that_openssl_does_not_take_is_a_problem_of_its_route(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With OpenSSL's reason, at load and not at the first call."""

    def refuse(*_: object) -> None:
        raise TlsFailure("ca md too weak")

    monkeypatch.setattr(sidecert.generation, "make_context", refuse)
    with pytest.raises(ConfigError) as error:
        load(tmp_path, pki, one(pki))
    [problem] = error.value.problems
    assert problem.path == "routes[0].credential"
    assert "'alice' (ca md too weak)" in problem.wrong


@pytest.mark.parametrize(
    ("host", "port", "host_header", "label"),
    [
        ("up.test", 443, b"up.test", "up.test:443"),
        ("up.test", 8443, b"up.test:8443", "up.test:8443"),
        ("up.test", 80, b"up.test:80", "up.test:80"),
        ("192.0.2.1", 443, b"192.0.2.1", "192.0.2.1:443"),
        ("2001:db8::1", 443, b"[2001:db8::1]", "[2001:db8::1]:443"),
        ("2001:db8::1", 8443, b"[2001:db8::1]:8443", "[2001:db8::1]:8443"),
    ],
)
def test_upstream_is_written_as_people_write_it(
    host: str, port: int, host_header: bytes, label: str, pki: Pki, tmp_path: Path
) -> None:
    """443 goes without saying in Host, never in the label; IPv6 has brackets in both, none in its name."""
    upstream = load(tmp_path, pki, one(pki, host=host, port=port)).routes["orders"].upstream("orders.test")
    assert (upstream.host_header, upstream.label) == (host_header, label)
    assert (upstream.host, upstream.server_name) == (host, host)


def test_server_name_changes_neither_host_nor_host_header(pki: Pki, tmp_path: Path) -> None:
    """It is for TLS alone."""
    route = load(tmp_path, pki, one(pki, server_name="tls.test")).routes["orders"]
    upstream = route.upstream("orders.test")
    assert (upstream.server_name, upstream.host, upstream.host_header) == (
        "tls.test",
        "up.test",
        b"up.test:8443",
    )


def test_exact_host_is_the_upstream_where_none_is_written(pki: Pki, tmp_path: Path) -> None:
    """It is in the config, so no caller has chosen it."""
    spec = one(pki)
    del spec["upstream"]["host"]
    upstream = load(tmp_path, pki, spec).routes["orders"].upstream("orders.test")
    assert (upstream.host, upstream.chosen_by_caller) == ("orders.test", False)


def test_hosts_of_a_wildcard_are_remembered_one_by_one(pki: Pki, tmp_path: Path) -> None:
    """The same host gives the same upstream, another one another."""
    spec = one(pki)
    spec["match"]["host"] = "*.wild.test"
    del spec["upstream"]["host"]
    route = load(tmp_path, pki, spec).routes["orders"]
    first = route.upstream("a.wild.test")
    assert route.upstream("b.wild.test").host_header == b"b.wild.test:8443"
    assert route.upstream("a.wild.test") is first


SAME: dict[str, dict[str, Any]] = {
    "path": {"match": {"host": "orders.test", "path": "/x/**"}},
    "methods": {"match": {"host": "orders.test", "methods": ["GET"]}},
    "port-of-the-caller": {"match": {"host": "orders.test", "port": 8080}},
}


@pytest.mark.parametrize("change", SAME)
def test_identity_does_not_differ_with_what_only_chooses_the_route(
    change: str, base: Generation, pki: Pki, tmp_path: Path
) -> None:
    """Connections lead to the same upstream under the same certificate: they may stay."""
    other = load(tmp_path / "other", pki, {**one(pki), **SAME[change]})
    assert other.routes["orders"].identity == base.routes["orders"].identity


def test_identity_differs_with_the_name_of_the_credential(base: Generation, pki: Pki, tmp_path: Path) -> None:
    """What happens on a connection is counted and explained under that name."""
    renamed = {**one(pki), "credential": "alicia"}
    other = load(tmp_path / "other", pki, renamed, credentials={"alicia": pki.alice.config})
    assert other.routes["orders"].identity != base.routes["orders"].identity
    assert other.routes["orders"].credential_id == "alicia"


def test_identity_differs_with_who_may_choose_the_upstream(pki: Pki, tmp_path: Path) -> None:
    """Another host pattern, and whether private addresses are allowed behind it."""
    wild = {**one(pki), "match": {"host": "*.wild.test"}}
    del wild["upstream"]["host"]
    specs = [wild, {**wild, "private": True}, {**wild, "match": {"host": "*.test"}}]
    identities = {
        load(tmp_path / f"{n}", pki, each).routes["orders"].identity for n, each in enumerate(specs)
    }
    assert len(identities) == 3


def test_identity_differs_with_the_intermediates_that_are_sent(pki: Pki, tmp_path: Path) -> None:
    """The leaf alone and the leaf with its chain: an upstream may take the one and not the other."""
    leaf = pki.ca.intermediate().caller("deep")
    identities = set()
    for name, chain in (("alone", False), ("whole", True)):
        files = leaf.write(tmp_path / name)
        files.certificate.write_bytes(leaf.certificate_pem(chain=chain))
        loaded = load(tmp_path / name, pki, one(pki), credentials={"alice": files.config})
        identities.add(loaded.routes["orders"].identity)
    assert len(identities) == 2


def test_route_without_a_credential_says_none(pki: Pki, tmp_path: Path) -> None:
    """In metrics and answers too; no other route's certificate is lent to it."""
    bare = {**one(pki), "id": "bare", "match": {"host": "bare.test"}, "credential": "none"}
    routes = load(tmp_path, pki, one(pki), bare).routes
    assert (routes["bare"].credential, routes["bare"].credential_id) == (None, "none")
    assert routes["bare"].context is not routes["orders"].context


def test_other_certificate_changes_the_routes_that_present_it_and_no_others(pki: Pki, tmp_path: Path) -> None:
    """And back again, as if it had never been another: connections of that time may go on."""
    others = [{**one(pki), "id": id, "match": {"host": f"{id}.test"}} for id in ("twin", "open", "bobs")]
    others[1]["credential"], others[2]["credential"] = "none", "bob"
    first = load(tmp_path / "first", pki, one(pki), *others)
    renewed = pki.ca.caller("alice").write(tmp_path / "renewed")
    second = load(
        tmp_path / "first", pki, one(pki), *others, credentials={**pki.credentials, "alice": renewed.config}
    )
    back = with_credentials(second, {"alice": first.credentials["alice"]})
    assert back.credentials == {**second.credentials, "alice": first.credentials["alice"]}
    for id, route in back.routes.items():
        assert route.identity == first.routes[id].identity
        assert (route is second.routes[id]) == (id in ("open", "bobs"))
    assert back.routes["orders"].context is back.routes["twin"].context
    assert back.routes["orders"].context is not second.routes["orders"].context
    assert second.routes["orders"].identity != first.routes["orders"].identity
    upstream = back.routes["orders"].upstream("orders.test")
    assert upstream.route is back.routes["orders"]


def test_it_knows_every_file_that_it_was_loaded_from(pki: Pki, tmp_path: Path) -> None:
    """With how each looked, so that a change can be told."""
    store = write_private(tmp_path / "me.p12", pki.ca.caller("me").pkcs12("word"))
    word = write_private(tmp_path / "word", b"word")
    credentials = {
        "alice": pki.credentials["alice"],
        "me": {"pkcs12": str(store), "passphrase": {"file": str(word)}},
    }
    found = load(tmp_path, pki, one(pki), credentials=credentials)
    named = {found.path, pki.alice.certificate, pki.alice.key, store, word, pki.trust}
    assert found.files == look(named)


def test_what_changes_while_it_is_read_shows_afterwards(
    pki: Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How a file looked is noted before it is read: afterwards would be too late."""
    key = tmp_path / "alice.key"
    shutil.copy(pki.alice.key, key)
    credentials = {"alice": {"certificate": str(pki.alice.certificate), "key": str(key)}}
    original = sidecert.generation.loading.load

    def change_then_load(*arguments: Any) -> Any:
        found = original(*arguments)
        key.write_bytes(key.read_bytes() + b"\n")
        return found

    monkeypatch.setattr(sidecert.generation.loading, "load", change_then_load)
    found = load(tmp_path, pki, one(pki), credentials=credentials)
    assert {path for path, before in found.files.items() if signature(path) != before} == {key}


def test_files_of_a_load_that_fails_are_known_too(pki: Pki, tmp_path: Path) -> None:
    """Also those that are not there: they may come."""
    missing = tmp_path / "missing.key"
    credentials = {"alice": {"certificate": str(pki.alice.certificate), "key": str(missing)}}
    path = tmp_path / "sidecert.yaml"
    path.write_text(yaml.safe_dump(config([one(pki)], credentials)))
    files: Signatures = {}
    with pytest.raises(ConfigError):
        build(path, 1, files=files)
    assert files == look({path, pki.alice.certificate, missing, pki.trust})
    files.clear()
    with pytest.raises(ConfigError):
        build(tmp_path / "none.yaml", 1, files=files)
    assert files == look([tmp_path / "none.yaml"])


@pytest.mark.parametrize(("leaf", "between"), [(1, 9), (9, 1)])
def test_credential_is_valid_until_the_first_of_what_it_presents_expires(
    leaf: int, between: int, pki: Pki, tmp_path: Path
) -> None:
    """The leaf, or an intermediate that is sent behind it."""
    issuer = Authority("between", parent=pki.ca, ends=between * DAY)
    files = issuer.caller("me", ends=leaf * DAY).write(tmp_path / "files")
    loaded = load(tmp_path, pki, one(pki), credentials={"alice": files.config}).credentials["alice"]
    assert loaded.valid_until == pytest.approx(time.time() + DAY.total_seconds(), abs=60)
