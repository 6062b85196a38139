"""Which route a request takes, beside a reference that tries every route on every request."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecert.config import RouteConfig, read
from sidecert.errors import Refusal
from sidecert.routing import Router, conflicts, ties

HOST = "orders.example.com"


def route(id: str, host: str = HOST, upstream: str | None = None, **match: Any) -> RouteConfig:
    """A route as a config gives it."""
    return RouteConfig.model_validate(
        {
            "id": id,
            "match": {"host": host, **{key: value for key, value in match.items() if value is not None}},
            "upstream": {"host": upstream} if upstream else {},
            "credential": "none",
        }
    )


def found(
    routes: Sequence[RouteConfig],
    host: str = HOST,
    port: int = 80,
    path: bytes = b"/",
    method: bytes = b"GET",
) -> str:
    """The id of the route that a request takes, else the outcome of its refusal."""
    try:
        return Router(routes).find(host, port, path, method)[0].id
    except Refusal as refusal:
        return refusal.outcome


def refusal(router: Router, *request: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        router.find(*request)
    return caught.value


# Hosts


@pytest.mark.parametrize(
    ("asked", "matched"),
    [
        ("orders.example.com", "orders.example.com"),
        ("Orders.EXAMPLE.com", "orders.example.com"),
        ("orders.example.com.", "orders.example.com"),
    ],
)
def test_the_host_is_compared_in_its_normal_form(asked: str, matched: str) -> None:
    """Case and a trailing dot do not matter, and the host comes back as the config has it."""
    chosen, host = Router([route("orders")]).find(asked, 80, b"/", b"GET")
    assert (chosen.id, host) == ("orders", matched)


def test_an_international_name_matches_in_either_spelling() -> None:
    """The A-label and the U-label are one host."""
    router = Router([route("books", "bücher.example")])
    for asked in ("bücher.example", "BÜCHER.example", "xn--bcher-kva.example"):
        assert router.find(asked, 80, b"/", b"GET")[1] == "xn--bcher-kva.example"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("a.example.com", "wild"),
        ("b.a.example.com", "wild"),
        ("B.A.Example.Com.", "wild"),
        ("example.com", "no_route"),
        ("aexample.com", "no_route"),
        ("a.example.com.evil.test", "no_route"),
        (".example.com", "bad_request"),
        ("a..example.com", "bad_request"),
        ("", "bad_request"),
        ("a b.example.com", "bad_request"),
    ],
)
def test_a_wildcard_takes_one_or_more_labels_and_never_the_bare_domain(asked: str, expected: str) -> None:
    """`*.example.com` is not `example.com`, nor a name that only ends in the same letters."""
    assert found([route("wild", "*.example.com")], asked) == expected


def test_the_name_that_a_wildcard_matched_comes_back_normalised() -> None:
    """It becomes the upstream host, so it must not depend on how the caller wrote it."""
    assert Router([route("wild", "*.example.com")]).find("B.A.Example.COM.", 80, b"/", b"GET")[1] == (
        "b.a.example.com"
    )


def test_addresses_are_hosts() -> None:
    """An address in the config is matched in any of its spellings."""
    routes = [route("four", "192.0.2.7"), route("six", "2001:db8::7")]
    assert found(routes, "192.0.2.7") == "four"
    assert found(routes, "2001:DB8:0:0:0:0:0:7") == "six"


# Ports


def test_the_port_is_the_one_of_the_url() -> None:
    """A route with a port takes that port only, one without takes any."""
    with_port, without = route("p", port=8080), route("any", "*.example.com")
    assert found([with_port], port=8080) == "p"
    assert found([with_port], port=80) == "no_route"
    assert found([without], port=1) == "any"


# Paths


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/", b"/", True),
        ("/", b"/a", False),
        ("/a", b"/a", True),
        ("/a", b"/A", False),
        ("/a", b"/a/", False),
        ("/a", b"//a", False),
        ("/a/", b"/a", False),
        ("/a//b", b"/a//b", True),
        ("/a//b", b"/a/b", False),
        ("/*", b"/", True),
        ("/*", b"/a", True),
        ("/*", b"/a/b", False),
        ("/a/*", b"/a", False),
        ("/a/*", b"/a/", True),
        ("/a/*/b", b"/a/x/b", True),
        ("/a/*/b", b"/a/x/y/b", False),
        ("/**", b"/", True),
        ("/**", b"/a/b/c/", True),
        ("/a/**", b"/a", True),
        ("/a/**", b"/a/", True),
        ("/a/**", b"/a/b//c", True),
        ("/a/**", b"/ab", False),
        ("/a/**/b", b"/a/b", True),
        ("/a/**/b", b"/a/b/b/b", True),
        ("/a/**/b", b"/a/b/c", False),
        ("/**/a/**/b", b"/x/a/a/y/b", True),
        ("/**/a/*/b", b"/a/a/x/b", True),
        ("/a/**/", b"/a/", True),
        ("/a/**/", b"/a/x", False),
        ("/%61", b"/a", True),
        ("/a", b"/%61", True),
        ("/a%2Fb", b"/a%2fb", True),
        ("/a%2Fb", b"/a/b", False),
        ("/a/**", b"/a/b%2Fc", True),
        ("/a/b/**", b"/a%2Fb/c", False),
        ("/%2A", b"/*", True),
        ("/%2A", b"/a", False),
        ("/a b", b"/a%20b", True),
        ("/é", b"/%C3%A9", True),
        ("/é", b"/%E9", False),
        ("/%25", b"/%25", True),
        ("/a", b"/%2561", False),
        ("/.well-known/x", b"/.well-known/x", True),
        ("/...", b"/...", True),
        ("/**", b"*", False),
    ],
)
def test_a_path_matches_segment_by_segment(pattern: str, path: bytes, matches: bool) -> None:
    """`*` is one segment and `**` any number; each segment is decoded once; empty ones count."""
    assert found([route("r", path=pattern)], path=path) == ("r" if matches else "no_route")


def test_a_route_without_a_path_takes_any_even_the_asterisk_of_options() -> None:
    """`OPTIONS *` asks about the whole host, so no path pattern matches it."""
    assert found([route("r")], path=b"*", method=b"OPTIONS") == "r"


@pytest.mark.parametrize(
    "path",
    [
        b"/..",
        b"/.",
        b"/a/../b",
        b"/a/./b",
        b"/a/..",
        b"/a/%2e%2E/b",
        b"/a/.%2e",
        b"/a/%2e",
        b"/a/..;x/b",
        b"/a/.;x=1",
        b"/a/%2e%2e%3Bx",
        b"/a/..%2Fb",
        b"/a/b%2F..",
        b"/a/b%2F..%2Fc",
        b"/a\\b",
        b"/a%5Cb",
        b"/a%5c..%5cb",
        b"/a\0",
        b"/a%00b",
        b"/%zz",
        b"/%",
        b"/a%2",
        b"/a%2/b",
    ],
)
@pytest.mark.parametrize("pattern", [None, "/**"])
def test_a_path_that_two_parsers_could_read_differently_is_refused(path: bytes, pattern: str | None) -> None:
    """With 400, whatever the routes say about paths; on a pinned listener too."""
    router = Router([route("r", path=pattern)])
    assert refusal(router, HOST, 80, path, b"GET").outcome == "bad_request"
    assert refusal(router, "unknown.test", 80, path, b"GET").status == 400
    with pytest.raises(Refusal) as caught:
        router.find_pinned("r", HOST, frozenset(), path, b"GET")
    assert caught.value.status == 400


def test_many_wildcards_on_a_long_path_stay_cheap() -> None:
    """Matching goes back to the last `**` only, so this ends at all."""
    pattern = "/**/a" * 12 + "/b"
    assert found([route("r", path=pattern)], path=b"/a" * 256) == "no_route"


@pytest.mark.parametrize("segment", [b"/a", b"/", b"%2Fa", b"/;", b"/%61"])
def test_a_path_of_too_many_segments_is_refused(segment: bytes) -> None:
    """Each could cost a look at every pattern, in every reading; no honest path has so many."""
    router = Router([route("any"), route("deep", path="/**/x/**")])
    assert router.find(HOST, 80, b"/a" + segment * 255, b"GET")[0].id == "any"
    refused = refusal(router, HOST, 80, b"/a" + segment * 256, b"GET")
    assert (refused.status, refused.outcome) == (400, "bad_request")
    assert "more segments than the 256" in refused.detail
    with pytest.raises(Refusal, match="more segments than"):
        router.find_pinned("any", HOST, frozenset(), b"/a" + segment * 20_000, b"GET")


# Paths that services read in different ways

ADMIN = [route("all"), route("admin", path="/admin/**"), route("one", path="/files/*")]


@pytest.mark.parametrize(
    "path",
    [
        b"//admin/x",
        b"///admin",
        b"/admin%2Fx",
        b"/admin%2fx",
        b"/%2Fadmin/x",
        b"/admin;a=b/x",
        b"/admin;/x",
        b"/admin%3Ba=b/x",
        b"/;/admin/x",
        b"/;a%2Fb/admin",
        b"/%2F;a/%61dmin;b//x",
        b"//files/a%2Fb",  # to a service that merges slashes and takes %2F for data
        b"/files;a/b",
        b"/files/a;b%2Fc",  # cut before it is decoded, or after
    ],
)
def test_a_path_that_a_service_may_read_as_another_routes_is_refused(path: bytes) -> None:
    """It would be executed under the certificate of the route that it was not meant to take."""
    router = Router(ADMIN)
    refused = refusal(router, HOST, 80, path, b"GET")
    assert (refused.status, refused.outcome) == (400, "bad_request")
    assert "two ways that belong to different routes" in str(refused)
    assert refusal(router, HOST.upper(), 80, path, b"GET").outcome == "bad_request"
    with pytest.raises(Refusal) as caught:
        router.explain(HOST, 80, path, b"GET")
    assert str(caught.value) == str(refused)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/admin/a%2Fb", "admin"),
        (b"/admin//b;c", "admin"),
        (b"/other//x;y%2Fz", "all"),
        (b"/files/a;version=1", "one"),
        (b"/admin%20x", "all"),
        (b"/admin:x", "all"),
    ],
)
def test_a_path_that_is_one_routes_in_every_reading_is_taken(path: bytes, expected: str) -> None:
    """Parameters, merged slashes and %2F do no harm where no other route is reached by them."""
    assert found(ADMIN, path=path) == expected


@pytest.mark.parametrize("others", [[], [route("b", path="/b/**")], [route("put", methods=["PUT"])]])
@pytest.mark.parametrize(
    "path",
    [
        b"/files/x%2Fsecret",
        b"/files/x%2fsecret",
        b"/files/x%2f",
        b"/files/%3Bx%2Fy",
        b"/dirs//end",
        b"/dirs/;x/end",
    ],
)
def test_a_path_that_a_service_may_read_as_no_routes_is_refused(
    others: list[RouteConfig], path: bytes
) -> None:
    """It would be executed although no route allows it, under the certificate of the one that was taken."""
    router = Router([route("one", path="/files/*"), route("two", path="/dirs/*/end"), *others])
    assert refusal(router, HOST, 80, b"/files/x/secret", b"GET").status == 403
    refused = refusal(router, HOST, 80, path, b"GET")
    assert (refused.status, refused.outcome) == (400, "bad_request")
    assert "only one belongs to a route" in str(refused)
    with pytest.raises(Refusal) as caught:
        router.explain(HOST, 80, path, b"GET")
    assert str(caught.value) == str(refused)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        (None, b"//a;b%2Fc/"),
        ("/files/**", b"/files/x%2Fsecret;a//"),
        ("/files/*", b"/files/x;v=1"),
        ("/a%2Fb", b"/a%2fb"),
        ("/a//b", b"/a//b"),
        ("/a;v/**", b"/a;v/x"),
        ("/projects/group%2Fname/*/x", b"/projects/group%2Fname/3/x"),
    ],
)
def test_a_path_that_its_only_route_takes_in_every_reading_is_taken(pattern: str | None, path: bytes) -> None:
    """Those that the pattern itself can be read in count as well: its author meant them."""
    router = Router([route("r", path=pattern)])
    assert router.find(HOST, 80, path, b"GET")[0].id == "r"
    assert router.find_pinned("r", HOST, frozenset(), path, b"GET")[0].id == "r"


def test_what_a_pattern_can_be_read_as_allows_no_more_than_that() -> None:
    """`/g%2Fn/*` allows `/g/n/x` to a service that reads it so, and not one segment more."""
    router = Router([route("r", path="/g%2Fn/*")])
    for path in (b"/g%2Fn/x%2Fy", b"/g%2Fn/x;y%2Fz"):
        assert refusal(router, HOST, 80, path, b"GET").status == 400
    assert refusal(router, HOST, 80, b"/g/n/x", b"GET").status == 403


def test_the_route_of_another_host_port_or_method_makes_no_path_ambiguous() -> None:
    """Only a route that would take the very request counts; a wildcard around the host may be one."""
    for other in ({"host": "other.test"}, {"port": 81}, {"methods": ["PUT"]}):
        assert found([route("all"), route("admin", path="/admin/**", **other)], path=b"//admin/x") == "all"
    wild = route("wild", "*.example.com", path="/admin/**")
    assert found([route("r", path="/*/*/x"), wild], path=b"//admin/x") == "bad_request"


def test_on_a_pinned_listener_every_reading_of_the_path_must_be_its_routes() -> None:
    """It has no other route, so a service must not be led out of what the route allows."""
    router = Router([route("r", path="/files/*"), route("any")])
    for path in (b"/files/a%2Fb", b"/files/a%2fb;c"):
        with pytest.raises(Refusal, match="only one is for this listener's route r") as caught:
            router.find_pinned("r", HOST, frozenset(), path, b"GET")
        assert caught.value.status == 400
    for path in (b"/files/a;b", b"/files/a%20b"):
        assert router.find_pinned("r", HOST, frozenset(), path, b"GET")[0].id == "r"
    assert router.find_pinned("any", HOST, frozenset(), b"//files;a%2Fb", b"GET")[0].id == "any"


# The most specific route

ORDERED = [
    route("exact-port-literal-get", port=80, path="/a/b", methods=["GET"]),
    route("exact-port-literal", port=80, path="/a/b"),
    route("exact-port-deep", port=80, path="/a/**/b"),
    route("exact-port-prefix-get", port=80, path="/a/**", methods=["GET"]),
    route("exact-port-prefix", port=80, path="/a/**"),
    route("exact-port-any", port=80, path="/**"),
    route("exact-port", port=80),
    route("exact-literal", path="/a/b"),
    route("exact-prefix", path="/a/*"),
    route("exact-get", methods=["GET"]),
    route("exact"),
    route("longer-port", "*.b.example.com", port=80),
    route("longer-path", "*.b.example.com", path="/a/b"),
    route("longer", "*.b.example.com"),
    route("shorter-port", "*.example.com", port=80),
    route("shorter", "*.example.com"),
]


def _ordered() -> list[RouteConfig]:
    return [
        each.model_copy(update={"match": each.match.model_copy(update={"host": "a.b.example.com"})})
        if each.match.host == HOST
        else each
        for each in ORDERED
    ]


def test_the_most_specific_route_wins_then_the_next() -> None:
    """Taking the winner away each time gives the whole order, whatever the order in the file."""
    rest = _ordered()
    random.Random(7).shuffle(rest)
    order = []
    while rest:
        order.append(found(rest, "a.b.example.com", path=b"/a/b"))
        rest = [each for each in rest if each.id != order[-1]]
    assert order == [each.id for each in ORDERED]


def test_a_less_specific_host_takes_what_the_specific_one_leaves() -> None:
    """All that match compete: an exact host does not hide the wildcard for other paths, ports, methods."""
    wild = route("wild", "*.example.com")
    assert found([route("p", path="/a/**"), wild], path=b"/b") == "wild"
    assert found([route("p", port=8080), wild]) == "wild"
    assert found([route("p", methods=["POST"]), wild]) == "wild"
    assert found([route("p", port=80, path="/a/**"), route("q", path="/b")], path=b"/b") == "q"


def test_a_literal_path_wins_against_a_pattern_that_takes_it_too() -> None:
    """`/a/**` has more characters than `/a` before its `*`, and yet `/a` means exactly this."""
    routes = [route("tree", path="/a/**"), route("leaf", path="/a")]
    assert found(routes, path=b"/a") == "leaf"
    assert found(routes, path=b"/a/b") == "tree"


def test_what_a_pattern_is_worth_does_not_depend_on_its_escapes() -> None:
    """Two spellings of one pattern tie, so that neither wins by its length."""
    routes = [route("plain", path="/a/**"), route("escaped", path="/%61/**")]
    assert conflicts(routes) == [(routes[0], routes[1])]


# Refusals


def test_a_method_that_only_other_methods_match_is_refused_as_such() -> None:
    """403 with the methods that would do."""
    router = Router(
        [route("orders", methods=["GET", "POST"]), route("wild", "*.example.com", methods=["PUT"])]
    )
    refused = refusal(router, HOST, 80, b"/", b"DELETE")
    assert (refused.status, refused.outcome) == (403, "method_not_allowed")
    assert "orders takes GET or POST; wild takes PUT" in refused.detail
    assert refusal(router, "x.test", 80, b"/", b"DELETE").outcome == "no_route"


def test_methods_are_case_sensitive() -> None:
    """`get` is no GET (RFC 9110 9.1)."""
    assert found([route("r", methods=["GET"])], method=b"get") == "method_not_allowed"


def test_a_refusal_names_the_configured_hosts_when_they_are_few() -> None:
    """The commonest mistake is a name, and a caller should see the right one."""
    refused = refusal(Router([route("orders")]), "orders.example.org", 80, b"/", b"GET")
    assert (refused.status, refused.outcome) == (403, "no_route")
    assert "orders.example.org" in refused.detail
    assert refused.remedy == "the configured hosts are orders.example.com"
    assert refusal(Router([]), "a.test", 80, b"/", b"GET").remedy == "no route is configured"


def test_a_refusal_among_many_hosts_names_the_nearest_one_only() -> None:
    """One letter wrong is found; a host like none of them gets a count."""
    router = Router([route("orders"), *(route(f"r{n}", f"host{n}.test") for n in range(20))])
    assert "nearest is orders.example.com" in refusal(router, "ordres.example.com", 80, b"/", b"GET").remedy
    assert "nearest" not in refusal(router, "zzz", 80, b"/", b"GET").remedy
    names = [*(f"host{n}-of-many.test" for n in range(20)), "t-none.test"]
    others = Router([route(f"r{n}", name) for n, name in enumerate(names)])
    assert "nearest" not in refusal(others, "typo.test", 80, b"/", b"GET").remedy  # only the ends are alike
    assert "nearest is t-none.test" in refusal(others, "t-nonne.test", 80, b"/", b"GET").remedy
    crowd = Router([route(f"r{n}", f"host{n}.test") for n in range(200)])
    assert refusal(crowd, "host7.tset", 80, b"/", b"GET").remedy.startswith("200 other hosts are configured")


def test_a_refusal_says_which_routes_have_the_host_and_what_they_lack() -> None:
    """The first condition of each that does not hold, for a few of them."""
    router = Router([route("orders", path="/rest/**"), route("soap", port=8080)])
    detail = refusal(router, HOST, 80, b"/x", b"GET").detail
    assert "orders: the path /x does not match /rest/**" in detail
    assert "soap: port 8080 wanted, the URL has 80" in detail
    many = Router([route(f"r{n}", path=f"/{n}/**") for n in range(100)])
    assert refusal(many, HOST, 80, b"/x", b"GET").detail.count("does not match") == 5


def test_a_refusal_never_repeats_a_query_or_a_control_character_and_stays_short() -> None:
    """What a caller sent is shown escaped and cut."""
    router = Router([route("orders", path="/rest/**", methods=["GET"])])
    detail = refusal(router, HOST, 80, b"/\x1b[31m\r\n\xff" + b"x" * 5000 + b"?token=s3cret", b"GET").detail
    assert "\\x1b[31m\\r\\n\\xff" in detail
    assert len(detail) < 1000
    for text in (detail, refusal(router, HOST, 80, b"/%zz?token=s3cret", b"GET").detail):
        assert "s3cret" not in text
        assert text.isprintable()
    for request in ((f"a\n{'y' * 5000}", 80, b"/", b"GET"), (HOST, 80, b"/rest", b"X\n" * 500)):
        refused = refusal(router, *request)
        assert refused.detail.isprintable()
        assert len(refused.detail) < 500


# Pinned listeners

OWN = frozenset({"127.0.0.1", "::1"})


@pytest.mark.parametrize(
    ("asked", "called"),
    [
        (None, HOST),
        (HOST, HOST),
        ("ORDERS.example.com.", HOST),
        ("localhost", HOST),
        ("LOCALHOST", HOST),
        ("127.0.0.1", HOST),
        ("0:0:0:0:0:0:0:1", HOST),
        ("real.example.net", HOST),
    ],
)
def test_a_pinned_listener_takes_its_own_names_and_those_of_its_route(asked: str | None, called: str) -> None:
    """Its address, localhost, match.host and upstream.host, or no Host; the route is always its own."""
    router = Router([route("orders", upstream="real.example.net"), route("port", port=80, path="/**")])
    chosen, host = router.find_pinned("orders", asked, OWN, b"/x", b"GET")
    assert (chosen.id, host) == ("orders", called)


@pytest.mark.parametrize(
    "asked", ["evil.test", "127.0.0.2", "10.0.0.1", "x.orders.example.com", "example.com"]
)
def test_a_pinned_listener_refuses_any_other_host(asked: str) -> None:
    """A page that rebinds its DNS name to the listener's address must not get through."""
    with pytest.raises(Refusal) as caught:
        Router([route("orders")]).find_pinned("orders", asked, OWN, b"/", b"GET")
    assert (caught.value.status, caught.value.outcome) == (403, "host_not_allowed")
    assert asked in caught.value.detail
    assert HOST in caught.value.remedy


def test_a_listener_elsewhere_does_not_answer_for_loopback_addresses() -> None:
    """An address is the listener's own only if it listens there; a name that is none is a bad request."""
    router = Router([route("orders")])
    for asked, outcome in (("127.0.0.1", "host_not_allowed"), ("a b", "bad_request")):
        with pytest.raises(Refusal) as caught:
            router.find_pinned("orders", asked, frozenset({"192.0.2.1"}), b"/", b"GET")
        assert caught.value.outcome == outcome
    assert router.find_pinned("orders", "192.0.2.1", frozenset({"192.0.2.1"}), b"/", b"GET")[1] == HOST


def test_a_pinned_wildcard_calls_the_host_that_was_named_else_the_upstream() -> None:
    """Where neither a Host nor the config says which host, there is nothing to call."""
    router = Router([route("wild", "*.example.com"), route("fixed", "*.example.com", "up.test", path="/**")])
    assert router.find_pinned("wild", "A.example.com", OWN, b"/", b"GET")[1] == "a.example.com"
    assert router.find_pinned("fixed", "127.0.0.1", OWN, b"/", b"GET")[1] == "up.test"
    assert router.find_pinned("fixed", None, OWN, b"/", b"GET")[1] == "up.test"
    for asked in (None, "localhost"):
        with pytest.raises(Refusal) as caught:
            router.find_pinned("wild", asked, OWN, b"/", b"GET")
        assert caught.value.outcome == "host_not_allowed"


def test_on_a_pinned_listener_path_and_methods_hold_and_the_port_does_not() -> None:
    """The listener has a port of its own, so match.port would never hold."""
    router = Router([route("orders", port=8080, path="/rest/**", methods=["GET"])])
    assert router.find_pinned("orders", None, OWN, b"/rest/1", b"GET")[0].id == "orders"
    for path, method, outcome in ((b"/x", b"GET", "no_route"), (b"/rest", b"PUT", "method_not_allowed")):
        with pytest.raises(Refusal) as caught:
            router.find_pinned("orders", None, OWN, path, method)
        assert caught.value.outcome == outcome


# Explanations


def test_explain_says_of_every_route_why_it_wins_or_loses() -> None:
    """The winner first, then the other matches, then the nearest misses."""
    router = Router(
        [
            route("other", "other.test"),
            route("bare", "*.orders.example.com"),
            route("port", port=8080),
            route("path", path="/b/**"),
            route("method", methods=["PUT"]),
            route("wild", "*.example.com"),
            route("plain"),
            route("winner", path="/a/**"),
        ]
    )
    told = [(each.route.id, each.matched, each.reason) for each in router.explain(HOST, 80, b"/a/1", b"GET")]
    assert told == [
        ("winner", True, "the most specific route that matches"),
        ("plain", True, "less specific than winner: it names no path"),
        ("wild", True, "less specific than winner: its host is a wildcard"),
        ("method", False, "method PUT wanted, not GET"),
        ("path", False, "the path /a/1 does not match /b/**"),
        ("port", False, "port 8080 wanted, the URL has 80"),
        ("other", False, "the host differs: other.test wanted"),
        ("bare", False, "the wildcard *.orders.example.com does not match orders.example.com itself"),
    ]


@pytest.mark.parametrize(
    ("winner", "loser", "reason"),
    [
        ({"host": "*.b.example.com"}, {"host": "*.example.com"}, "its wildcard has fewer labels"),
        ({"port": 80}, {}, "it names no port"),
        ({"path": "/a/b"}, {"path": "/a/**"}, "its path has a wildcard"),
        ({"path": "/a/*"}, {"path": "/**"}, "its path has fewer literal characters before the first *"),
        ({"path": "/*/b"}, {"path": "/**"}, "its path has fewer literal characters"),
        ({"methods": ["GET"]}, {}, "it names no methods"),
    ],
)
def test_explain_names_the_first_difference(
    winner: dict[str, Any], loser: dict[str, Any], reason: str
) -> None:
    """In the order in which routes are compared."""
    base = {"host": "a.b.example.com"}
    router = Router([route("loser", **{**base, **loser}), route("winner", **{**base, **winner})])
    first, second = router.explain("a.b.example.com", 80, b"/a/b", b"GET")
    assert (first.route.id, second.reason) == ("winner", f"less specific than winner: {reason}")


# Against a reference that knows no trees

HOSTS = ["example.com", "a.example.com", "b.a.example.com", "other.test"]
MATCH_HOSTS = [*HOSTS, "*.example.com", "*.a.example.com"]
patterns = st.none() | st.lists(
    st.sampled_from(["a", "b", "%62", "", "*", "**", "a%2Fb"]), min_size=1, max_size=4
).map(lambda parts: "/" + "/".join(parts))
method_sets = st.none() | st.sets(st.sampled_from(["GET", "POST", "PUT"]), min_size=1).map(sorted)
matches = st.fixed_dictionaries(
    {
        "host": st.sampled_from(MATCH_HOSTS),
        "port": st.none() | st.sampled_from([80, 8080]),
        "path": patterns,
        "methods": method_sets,
    }
)
route_lists = st.lists(matches, max_size=12).map(
    lambda all_matches: [route(f"r{number}", **match) for number, match in enumerate(all_matches)]
)
requests = st.tuples(
    st.sampled_from(HOSTS),
    st.sampled_from([80, 8080, 81]),
    st.lists(
        st.sampled_from(["a", "b", "%61", "", "a%2fb", "c", "a;x", "b%3By", ";x", "%2F"]),
        min_size=1,
        max_size=6,
    ).map(lambda parts: ("/" + "/".join(parts)).encode()),
    st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD"]),
)
Parts = tuple[bytes, ...]


def _parts(path: bytes) -> Parts:
    return tuple(part if part in (b"*", b"**") else unquote_to_bytes(part) for part in path[1:].split(b"/"))


@cache
def _fits(pattern: Parts, path: Parts) -> bool:
    if not pattern:
        return not path
    if pattern[0] == b"**":
        return _fits(pattern[1:], path) or (bool(path) and _fits(pattern, path[1:]))
    return bool(path) and pattern[0] in (b"*", path[0]) and _fits(pattern[1:], path[1:])


@cache
def _meet(one: Parts, two: Parts) -> bool:
    """Whether some path fits both patterns."""
    if not one or not two:
        return set(one + two) <= {b"**"}
    if one[0] == b"**":
        return _meet(one[1:], two) or _meet(one, two[1:])
    if two[0] == b"**":
        return _meet(two, one)
    return (one[0] == two[0] or b"*" in (one[0], two[0])) and _meet(one[1:], two[1:])


def _takes(each: RouteConfig, host: str, port: int, path: bytes, method: bytes | None) -> bool:
    match = each.match
    wild = match.host.startswith("*.")
    return (
        (host.endswith(match.host[1:]) if wild else host == match.host)
        and match.port in (None, port)
        and (match.path is None or _fits(_parts(match.path.encode()), _parts(path)))
        and (match.methods is None or method is None or method.decode() in match.methods)
    )


def _worth(each: RouteConfig) -> tuple[object, ...]:
    """How specific a route is, read off the words of the interface."""
    match = each.match
    wild = match.host.startswith("*.")
    literal = match.path is not None and "*" not in match.path
    decoded = (match.path or "").replace("%62", "b").replace("%2F", "/")
    return (
        not wild,
        match.host.count(".") if wild else 0,
        match.port is not None,
        literal,
        len(decoded.split("*", 1)[0]),
        len(decoded.replace("*", "")),
        match.methods is not None,
    )


@settings(max_examples=1500, deadline=None)
@given(route_lists, requests)
def test_the_router_agrees_with_trying_every_route(
    routes: list[RouteConfig], request_: tuple[str, int, bytes, bytes]
) -> None:
    """The route found is a best one of those that match; refusals tell the method from the rest."""
    taking = [each for each in routes if _takes(each, *request_)]
    best = max(map(_worth, taking), default=None)
    expected = {each.id for each in taking if _worth(each) == best}
    if not taking:
        reachable = any(_takes(each, *request_[:3], None) for each in routes)
        expected = {"method_not_allowed" if reachable else "no_route"}
    if found(routes, *request_) == "bad_request":
        assert _has_readings_of_others(routes, request_, expected)
        with pytest.raises(Refusal, match="in two ways"):
            Router(routes).explain(*request_)
        return
    assert found(routes, *request_) in expected
    explained = Router(routes).explain(*request_)
    assert len(explained) == len(routes)
    assert {each.route.id for each in explained if each.matched} == {each.id for each in taking}
    if taking:
        assert explained[0].route.id == found(routes, *request_)
    if len(expected) > 1:  # a tie that a request can see must have been told at load
        told = {frozenset((one.id, two.id)) for one, two in conflicts(routes)}
        assert all(frozenset((a, b)) in told for a in expected for b in expected if a != b)


def _readings(path: bytes) -> set[bytes]:
    """A raw path as it is after any of: %2F decoded, parameters cut, slashes merged; in any order."""
    steps: list[Callable[[bytes], bytes]] = [
        lambda text: re.sub(rb"(?i)%2f", b"/", text),
        lambda text: re.sub(rb"(?i)(?:;|%3b)[^/]*", b"", text),
        lambda text: re.sub(rb"/+", b"/", text),
    ]
    found, todo = {path}, [path]
    while todo:
        text = todo.pop()
        new = {step(text) for step in steps} - found
        found |= new
        todo += new
    return found


def _has_readings_of_others(
    routes: Sequence[RouteConfig], request_: tuple[str, int, bytes, bytes], expected: set[str]
) -> bool:
    """Whether some reading of the request's path takes another route, or none; ties and all."""
    host, port, path, method = request_
    for reading in _readings(path):
        taking = [each for each in routes if _takes(each, host, port, reading, method)]
        best = max(map(_worth, taking), default=None)
        if len(expected | {each.id for each in taking if _worth(each) == best}) > 1 or not taking:
            return True
    return False


@settings(max_examples=1500, deadline=None)
@given(route_lists, requests)
def test_no_reading_of_a_path_that_was_routed_leaves_the_route(
    routes: list[RouteConfig], request_: tuple[str, int, bytes, bytes]
) -> None:
    """The path as any service reads it takes the same route, or what that route's pattern can be read as."""
    host, port, path, method = request_
    chosen = found(routes, *request_)
    if not chosen.startswith("r"):
        return
    pattern = next(each.match.path for each in routes if each.id == chosen)
    allowed = {_parts(each) for each in _readings((pattern or "/**").encode())}
    for reading in _readings(path):
        # A reading may itself be refused, having readings of its own.
        others = [each for each in routes if each.id != chosen and _takes(each, host, port, reading, method)]
        assert found(routes, host, port, reading, method) in (chosen, "bad_request") or (
            not others and any(_fits(each, _parts(reading)) for each in allowed)
        ), reading


@settings(max_examples=1000, deadline=None)
@given(route_lists)
def test_conflicts_are_the_pairs_that_tie_and_overlap(routes: list[RouteConfig]) -> None:
    """No more and no fewer than comparing every two routes finds, in the order of the file."""
    expected = {
        (one.id, two.id)
        for number, one in enumerate(routes)
        for two in routes[number + 1 :]
        if one.match.host == two.match.host
        and one.match.port == two.match.port
        and _worth(one) == _worth(two)
        and (one.match.methods is None or not one.match.methods.isdisjoint(two.match.methods or ()))
        and (
            one.match.path == two.match.path
            if one.match.path is None or two.match.path is None
            else _meet(_parts(one.match.path.encode()), _parts(two.match.path.encode()))
        )
    }
    told = [(one.id, two.id) for one, two in conflicts(routes)]
    assert set(told) == expected
    assert len(told) == len(expected)


def test_a_tie_is_a_problem_of_the_later_route(tmp_path: Path) -> None:
    """Located at its `match`, naming the other one, though a broken route stands before both."""
    path = tmp_path / "sidecert.yaml"
    path.write_text(
        "version: 1\nroutes:\n"
        "- {id: broken, match: {host: 7:7}, credential: none}\n"
        "- {id: first, match: {host: a.test, path: /x/*}, credential: none}\n"
        "- {id: second, match: {host: A.test, path: /x/**}, credential: none}\n"
    )
    (problem,) = ties(read(path))
    assert str(problem).startswith(f"{path}:5: routes[2].match: matches the same requests as route 'first'")
    assert not problem.warning


# Many routes


def _steps(router: Router, *request: Any) -> int:
    """How many lines of Python a lookup runs: a cost that no busy machine changes."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        router.find(*request)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("shape", ["hosts", "paths", "wildcards"])
def test_a_lookup_costs_the_same_among_ten_thousand_routes(shape: str) -> None:
    """Counted in steps: among one route and among 10,000 they are as many."""
    mine = route("mine", "*.example.com" if shape == "wildcards" else HOST, path="/rest/orders/**")
    crowd = {
        "hosts": lambda n: route(f"r{n}", f"h{n}.test", path="/**"),
        "paths": lambda n: route(f"r{n}", path=f"/rest/x{n}/**"),
        "wildcards": lambda n: route(f"r{n}", f"*.h{n}.test", path="/**"),
    }[shape]
    request = (HOST, 80, b"/rest/orders/1", b"GET")
    many = [crowd(number) for number in range(10_000)]
    assert _steps(Router([mine]), *request) == _steps(Router([*many, mine]), *request)
    assert conflicts([*many, mine]) == []


def test_conflicts_of_one_route_pasted_many_times_are_cut() -> None:
    """Two thousand copies make two million pairs; a thousand say it well enough."""
    copies = [route(f"r{number}", path="/a") for number in range(2000)]
    assert len(conflicts(copies)) == 1000
