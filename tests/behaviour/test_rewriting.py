"""A login over plain HTTP through the real sidecar, at an upstream that takes its caller for a TLS client."""

from __future__ import annotations

import http.cookiejar
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from support.certs import Pki
from support.clients import Address, Answer, curl, talk, talking, url
from support.recorder import Exchange, TlsRecorder, echo, fixed, head
from support.sidecar import Sidecar, StartSidecar, route

COOKIE = "__Host-session=s3cret; Path=/; Secure; HttpOnly; SameSite=None; Partitioned"
HSTS = "Strict-Transport-Security", "max-age=31536000; includeSubDomains"


def login(exchange: Exchange) -> None:
    """Gives a session as to a browser and sends it on to an absolute address of its own; then echoes."""
    seen = exchange.read_body()
    if seen.target != "/login":
        echo(exchange)
        return
    fields = [
        ("Location", f"https://{seen.header('Host')}/next?a=1"),
        ("Set-Cookie", COOKIE),
        ("Set-Cookie", f"__Secure-user=ann; Domain={exchange.seen.server_name or 'orders.corp'}; Secure"),
        ("Set-Cookie", "plain=1"),
        HSTS,
        ("Alt-Svc", 'h3=":8443"; ma=86400'),
        ("Content-Length", "0"),
    ]
    exchange.send(head(302, *fields))


def start(sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, **upstream: object) -> Sidecar:
    """A sidecar with an open listener, a pinned one and routes for `orders.test` and `localhost`."""
    return sidecar(
        route("orders", recorder, trust=pki.trust, **upstream),
        route("local", recorder, trust=pki.trust, host="localhost", **upstream),
        listeners=[{"bind": "127.0.0.1:0"}, {"bind": "127.0.0.2:0", "route": "orders"}],
    )


def port_of(address: Address) -> int:
    assert not isinstance(address, str)
    return address[1]


def by_forward_proxy(sidecar: Sidecar) -> tuple[str, list[str], Address | None]:
    """The URL, curl's arguments for it, and the proxy."""
    return "http://orders.test", [], sidecar.listeners[0]


def by_host(sidecar: Sidecar) -> tuple[str, list[str], Address | None]:
    """The name leads to the listener, as an entry in /etc/hosts would make it."""
    port = port_of(sidecar.listeners[0])
    return f"http://orders.test:{port}", ["--resolve", f"orders.test:{port}:127.0.0.1"], None


def by_pinned_listener(sidecar: Sidecar) -> tuple[str, list[str], Address | None]:
    """The listener's own address."""
    return url(sidecar.listeners[1], ""), [], None


WAYS = [by_forward_proxy, by_host, by_pinned_listener]
Way = Callable[[Sidecar], tuple[str, list[str], Address | None]]


@pytest.mark.parametrize("way", WAYS)
def test_curl_logs_in_and_keeps_its_session(
    way: Way, sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki, tmp_path: Path
) -> None:
    """It follows the redirect through sidecert and sends the cookies back, in a later run of curl too."""
    recorder.answer = login
    running = start(sidecar, recorder, pki)
    base, arguments, proxy = way(running)
    jar = str(tmp_path / "jar")

    answer = curl(f"{base}/login", "-L", "-c", jar, "-b", jar, *arguments, proxy=proxy)

    assert answer.status == 200, answer.message
    first, second = recorder.requests
    assert (first.subject, second.subject) == ("alice", "alice")
    assert second.target == "/next?a=1"
    assert second.header("Host") == first.header("Host") == recorder.address
    assert cookies(second.header("Cookie")) == ["__Host-session=s3cret", "__Secure-user=ann", "plain=1"]
    assert "sidecert-__Host-session" in Path(jar).read_text()

    later = curl(f"{base}/later", "-c", jar, "-b", jar, *arguments, proxy=proxy)
    assert later.status == 200, later.message
    assert cookies(recorder.requests[2].header("Cookie")) == cookies(second.header("Cookie"))


@pytest.mark.parametrize("way", ["proxy", "host", "pinned"])
def test_python_logs_in_and_keeps_its_session(
    way: str, sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """The same with urllib on http.client and its cookie jar."""
    recorder.answer = login
    running = start(sidecar, recorder, pki)
    proxies = {"http": url(running.listeners[0])} if way == "proxy" else {}
    base = {
        "proxy": "http://orders.test",
        "host": f"http://localhost:{port_of(running.listeners[0])}",
        "pinned": url(running.listeners[1], ""),
    }[way]
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    )

    for _ in range(2):
        with opener.open(f"{base}/login", timeout=20) as response:
            assert response.status == 200
            assert response.url == f"{base}/next?a=1"

    assert [seen.target for seen in recorder.requests] == ["/login", "/next?a=1"] * 2
    for seen in recorder.requests[1:]:
        assert cookies(seen.header("Cookie")) == ["__Host-session=s3cret", "__Secure-user=ann", "plain=1"]


@pytest.mark.parametrize("way", WAYS)
def test_sidecert_itself_follows_no_redirect(
    way: Way, sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """The caller gets the 302, with its own address in it and nothing that is for TLS only."""
    recorder.answer = login
    base, arguments, proxy = way(start(sidecar, recorder, pki))
    answer = curl(f"{base}/login", *arguments, proxy=proxy)
    assert answer.headers == [
        ("Location", f"{base}/next?a=1"),
        ("Set-Cookie", "sidecert-__Host-session=s3cret; Path=/; HttpOnly"),
        ("Set-Cookie", "sidecert-__Secure-user=ann"),
        ("Set-Cookie", "plain=1"),
        ("Content-Length", "0"),
    ]
    assert len(recorder.requests) == 1


def test_a_caller_without_host_gets_a_relative_address(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """HTTP/1.0 to a pinned listener."""
    recorder.answer = login
    running = start(sidecar, recorder, pki)
    answer = talk(running.listeners[1], b"GET /login HTTP/1.0\r\n\r\n")
    assert b"\r\nLocation: /next?a=1\r\n" in answer
    assert b"\r\nSet-Cookie: sidecert-__Secure-user=ann\r\n" in answer


def test_a_caller_of_an_https_address_keeps_it_and_its_secure_cookies(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """GET https://... over plain HTTP, as a forward proxy accepts it."""
    recorder.answer = login
    running = start(sidecar, recorder, pki)
    raw = b"GET https://Orders.test/login HTTP/1.1\r\nHost: orders.test\r\n\r\n"
    with talking(running.listener, raw) as talker:
        answer = talker.read_answer()
        assert answer.header("Location") == "https://Orders.test/next?a=1"
        assert answer.header("Set-Cookie") == COOKIE
        assert answer.header("Strict-Transport-Security") is None
        talker.send(
            b"GET https://Orders.test/next HTTP/1.1\r\nHost: x\r\nCookie: __Host-session=s3cret\r\n\r\n"
        )
        assert talker.read_answer().status == 200
    assert recorder.requests[1].header("Cookie") == "__Host-session=s3cret"


def answer_with(
    running: Sidecar, recorder: TlsRecorder, *fields: tuple[str, str], target: str = "http://orders.test/"
) -> Answer:
    recorder.answer = fixed(b"fine", 201, *fields)
    return running.get(target)


def test_all_names_of_the_upstream_are_its_own(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """The address, the server name and the Host that it is called with."""
    running = start(sidecar, recorder, pki, server_name="localhost", host_header="Api.Corp")
    for authority in (
        recorder.address,
        f"LOCALHOST:{recorder.port}",
        "api.corp",
        f"api.corp:{recorder.port}",
    ):
        answer = answer_with(
            running,
            recorder,
            ("Location", f"//{authority}/a"),
            ("Content-Location", f"https://{authority}/b"),
            ("Refresh", f"5; url=https://{authority}/c"),
        )
        assert answer.header("Location") == "http://orders.test/a"
        assert answer.header("Content-Location") == "http://orders.test/b"
        assert answer.header("Refresh") == "5; url=http://orders.test/c"


def test_addresses_elsewhere_and_all_other_headers_stay(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """Another port of the upstream's host, a relative reference, the origin of another route's upstream."""
    running = sidecar(
        route("orders", recorder, trust=pki.trust),
        {
            "id": "other",
            "match": {"host": "other.test"},
            "upstream": {"host": "other.test", "trust": str(pki.trust)},
            "credential": "bob",
        },
    )
    for fields in (
        [("Location", "https://127.0.0.1/a"), ("Link", f"<https://{recorder.address}/>; rel=next")],
        [("Location", "../a?b"), ("Content-Location", "https://elsewhere.test/"), ("Refresh", "5")],
        [("Location", f"http://{recorder.address}/a"), ("Set-Cookie", "a=1; Path=/; HttpOnly")],
        [("location", "https://other.test:8443/b"), ("Vary", "Cookie"), ("Warning", '199 - "Secure"')],
    ):
        answer = answer_with(running, recorder, *fields)
        assert answer.headers == [*fields, ("Content-Length", "4")]


def test_two_routes_of_one_host_keep_the_callers_address(
    sidecar: StartSidecar, recorder: TlsRecorder, pki: Pki
) -> None:
    """The path is the upstream's, so the next call is routed by it as any other."""
    running = sidecar(
        route("one", recorder, trust=pki.trust, host="api.test", match={"path": "/one/**"}),
        route("two", recorder, trust=pki.trust, host="api.test", match={"path": "/two/**"}, credential="bob"),
    )
    location = "Location", f"https://{recorder.address}/two/x"
    answer = answer_with(running, recorder, location, target="http://api.test/one/x")
    followed = answer.header("Location")
    assert followed == "http://api.test/two/x"
    running.get(followed)
    assert [seen.subject for seen in recorder.requests] == ["alice", "bob"]


def cookies(value: str | None) -> list[str]:
    return sorted((value or "").split("; "))
