"""Whatever valid requests and answers are sent, each end gets the other's bytes, but for what must change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.both_ends import BothEnds, Call, Cut, both_ends, whole
from support.certs import Pki
from support.inspecting import inspecting
from support.lengths import rounds
from support.recorder import tls_recorder
from support.sidecar import config, route
from support.wire import (
    NO_BODY,
    Ask,
    Body,
    Chunk,
    Reply,
    Rewritten,
    bytewise,
    cut,
    until_close,
    with_chunks,
    with_length,
)

TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
IN_VALUE = bytes([9, *range(32, 127), *range(128, 256)])
IN_PATH = b"abcXYZ019-._~!$&'()*+,;=:@"
IN_QUERY = IN_PATH + b"/?{}[]|^`"


def made_of(alphabet: bytes, *, least: int = 0, most: int = 12) -> st.SearchStrategy[bytes]:
    """Byte strings of these bytes."""
    table = bytes(alphabet[value % len(alphabet)] for value in range(256))
    return st.binary(min_size=least, max_size=most).map(lambda data: data.translate(table))


def likely(usual: bytes, *others: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from([usual, usual, *others])


BLANKS = st.sampled_from([b"", b" ", b" ", b"\t", b"  ", b" \t "])
VALUES = st.tuples(BLANKS, made_of(IN_VALUE, most=20), BLANKS).map(b"".join)
# Not by chance the start of those that say who called, nor one that Connection must not name.
NAMES = made_of(TOKEN, least=1).filter(
    lambda name: not name.lower().startswith((b"$ws", b"mtls-", b"x-cert-", b"close", b"range"))
)
RANDOM_LINES = st.builds(lambda name, value: name + b":" + value, NAMES, VALUES).filter(
    lambda line: line.partition(b":")[0].lower() not in {b"host", b"upgrade", b"connection", b"expect"}
)
# Headers that go by rules of their own in one direction or both, or look as if they did.
OF_BOTH = [
    *(b"Keep-Alive: timeout=60, max=9", b"Proxy-Connection: keep-alive", b"TE: trailers, deflate;q=0.5"),
    *(b"Trailer: X-Sum", b"proxy-AUTHENTICATE: Basic", b"HTTP2-Settings: AAMAAABk", b"Content_Length: 7"),
    *(b"transfer_ENCODING: chunked", b"Keep_Alive: x", b"Content-Type: text/plain; charset=\xe4", b"Via: x"),
    *(b"Content-Length-X: 5", b"X-Content-Length: 5", b"Date: now", b"X-A: 1", b"x-a:2", b"X_A:3"),
]
OF_REQUESTS = [
    *(b"Proxy-Authorization: Basic YTpi", b"Expect: 100-continue", b"X-SSL-Client-Cert: CN=bob"),
    *(b"Client-Cert: :eA==:", b"X-Original-URL: /admin", b"X-Forwarded-Client-Cert: Hash=1"),
    *(b'Cookie: a=b; c="d"', b"cookie: sidecert-__Host-s=1;a=b", b"Authorization: Bearer x.y"),
    *(b"Range: bytes=0-", b"Accept-Encoding: gzip", b"Origin: http://orders.test", b"Location: /x"),
    b"Referer: http://orders.test/",
]
OF_ANSWERS: list[bytes | Rewritten] = [
    *(b"Sidecert-Outcome: ok", b"sidecert-OUTCOME:", b"Strict-Transport-Security: max-age=9"),
    *(b"Alt-Svc: h3", b"Expect-CT: max-age=0", b"Set-Cookie: a=1; Path=/; HttpOnly", b"Host: x"),
    *(b"set-cookie:b=2;SameSite=Lax", b"Location: ../x?y", b"Location:https://elsewhere.test:8443/"),
    *(b"Refresh: 5", b"Server: caf\xe9 \xff", b"X-SSL-Client-Cert: CN=bob", b"Cookie: a=b"),
    *(b"Upgrade: h2,h2c", b"Expect: x", b"Retry-After:  7\t"),
    Rewritten(
        b"Set-Cookie: a=1; Secure; Path=/",
        b"Set-Cookie: a=1; Path=/",
        b"Set-Cookie: a=1; Secure; Path=/",
    ),
    Rewritten(b"SET-COOKIE:a=1;SECURE", b"SET-COOKIE:a=1", b"SET-COOKIE:a=1;SECURE"),
    Rewritten(
        b"Set-Cookie: __Host-s=\xff;Path=/;Secure",
        b"Set-Cookie: sidecert-__Host-s=\xff;Path=/",
        b"Set-Cookie: __Host-s=\xff;Path=/;Secure",
    ),
    Rewritten(b"Set-Cookie: d=1; Domain=else.test", b"Set-Cookie: d=1", b"Set-Cookie: d=1"),
    Rewritten(b"Location: https://%OWN%/a?b#c", b"Location: %BASE%/a?b#c", b"Location: %BASE%/a?b#c"),
    Rewritten(b"content-location:https://%OWN%/", b"content-location:%BASE%/", b"content-location:%BASE%/"),
    Rewritten(b"Refresh: 5; url=https://%OWN%/", b"Refresh: 5; url=%BASE%/", b"Refresh: 5; url=%BASE%/"),
]
TRAILERS = st.lists(
    st.one_of(
        st.builds(lambda name, value: b"Z" + name + b":" + value, made_of(TOKEN), VALUES),
        st.sampled_from(
            [
                *(
                    b"X-Sum: 1",
                    b"x-sum:\t2 ",
                    b"Content-Length: 5",
                    b"Transfer-Encoding: chunked",
                    b"Host: x",
                ),
                *(b"Authorization: x", b"Set-Cookie: a=b", b"Content_Type: x", b"Sidecert-Outcome: ok"),
            ]
        ),
    ),
    max_size=4,
)

CHUNK_SIZES = st.sampled_from([b"%x", b"%x", b"%X", b"%08x", b"%x;a", b"%x;a=b;c", b'%x;q="\\" ;\t%%"'])
DATA = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\r\n" * 9, b"HTTP/1.1 200 OK\r\n\r\n"]),
    st.builds(lambda size: bytes(range(256)) * size, st.integers(1, 300)),
)
CHUNKS = st.lists(
    st.builds(Chunk, DATA.filter(bool), CHUNK_SIZES),
    max_size=5,
)
LENGTHS = likely(b"Content-Length: %d", b"content-LENGTH:00%d\t ")
LENGTH_BODIES = st.builds(with_length, DATA, LENGTHS)
CHUNK_BODIES = st.builds(
    with_chunks,
    CHUNKS,
    TRAILERS,
    likely(b"Transfer-Encoding: chunked", b"transfer-encoding:\tCHUNKED "),
    likely(b"0", b"000", b"0;last"),
)

SEGMENTS = st.builds(
    lambda letter, rest, coded: letter + rest + coded,
    st.sampled_from([b"a", b"Z", b"-"]),
    made_of(IN_PATH),
    st.sampled_from([b"", b"", b"%20", b"%C3%a9", b"%2F", b"%25"]),
)
PATHS = st.lists(st.one_of(SEGMENTS, st.just(b"")), max_size=4).map(lambda parts: b"/" + b"/".join(parts))
QUERIES = st.one_of(st.just(b""), made_of(IN_QUERY).map(lambda query: b"?" + query))
ORIGIN_FORMS = st.tuples(PATHS, QUERIES).map(b"".join)
AUTHORITIES = st.sampled_from(
    [b"orders.test", b"ORDERS.test", b"orders.test.", b"orders.test:80", b"orders.test:8"]
)
ABSOLUTE_FORMS = st.tuples(
    st.sampled_from([b"http://", b"HTTP://", b"https://"]),
    AUTHORITIES,
    st.one_of(ORIGIN_FORMS, st.just(b"")),
    QUERIES,
).map(lambda parts: b"".join(parts[:3]) + (parts[3] if b"?" not in parts[2] else b""))
METHODS = st.sampled_from(
    b"GET GET GET HEAD HEAD POST POST PUT DELETE OPTIONS PATCH TRACE PROPFIND M-SEARCH QUERY".split()
)


@st.composite
def asks(draw: st.DrawFn, *, pinned: bool = False) -> Ask:
    """A valid request of any shape."""
    minor = draw(st.sampled_from([1, 1, 1, 0]))
    absolute = draw(st.booleans())
    lines = draw(st.lists(st.one_of(RANDOM_LINES, st.sampled_from(OF_BOTH + OF_REQUESTS)), max_size=8))
    connection = draw(st.sampled_from([[], [], [], [b"keep-alive"], [b"close"], [b"Keep-Alive", b"X-a"]]))
    if draw(st.booleans()):
        connection = [*connection, draw(NAMES.filter(lambda name: b"Connection: " + name))]
    lines += [b"Connection:" + option for option in _spread(draw, connection)]
    if draw(st.integers(0, 9)) == 0:
        lines += [b"Upgrade: " + draw(st.sampled_from([b"websocket", b"h2c"])), b"connection: x, Upgrade"]
    lines = draw(st.permutations(lines))
    if not (minor == 0 and (absolute or pinned) and draw(st.booleans())):
        host = b"elsewhere.test" if absolute and draw(st.booleans()) else draw(AUTHORITIES)
        line = draw(likely(b"Host: %b", b"hOST:%b\t")) % host
        lines.insert(draw(st.integers(0, len(lines))), line)
    bodies = [st.just(NO_BODY), LENGTH_BODIES] + ([CHUNK_BODIES] if minor else [])
    return Ask(
        method=draw(METHODS),
        target=draw(ABSOLUTE_FORMS if absolute else ORIGIN_FORMS),
        lines=tuple(lines),
        body=draw(st.one_of(bodies)),
        minor=minor,
        framing_at=draw(st.integers(0, 9)),
    )


def _spread(draw: st.DrawFn, options: list[bytes]) -> list[bytes]:
    """The options as the values of one Connection header, or of several."""
    if draw(st.booleans()):
        return [draw(st.sampled_from([b", ", b" ,,", b",\t"])).join(options)] if options else []
    return [b" " + option for option in options]


ANSWER_LINES = st.lists(st.one_of(RANDOM_LINES, st.sampled_from(OF_BOTH + OF_ANSWERS)), max_size=8)
INTERIMS = st.lists(
    st.tuples(
        st.sampled_from([100, 102, 103, 103, 199]),
        st.lists(
            st.sampled_from([b"Link: </a>", b"X: \xff", b"Keep-Alive: x", b"Alt-Svc: x"]), max_size=2
        ).map(tuple),
    ),
    max_size=3,
).map(tuple)
STATUSES = st.one_of(st.sampled_from([200, 200, 200, 204, 304, 205, 302, 404, 500]), st.integers(200, 599))
REASONS = st.one_of(
    st.sampled_from([b"OK", b"", b"Not quite"]),
    made_of(IN_VALUE[1:], least=1).map(lambda reason: b"r" + reason + b"!"),
)


@st.composite
def replies(draw: st.DrawFn, method: bytes) -> Reply:
    """A valid answer of any shape to a `method` request."""
    minor = draw(st.sampled_from([1, 1, 1, 0]))
    status = draw(STATUSES)
    lines = draw(ANSWER_LINES)
    close = draw(st.sampled_from([False, False, False, True]))
    options = (
        [b"close"] if close else draw(st.sampled_from([[], [], [b"keep-alive"], [b"X-A", b"keep-alive"]]))
    )
    lines += [b"Connection:" + option for option in _spread(draw, options)]
    bodies = [LENGTH_BODIES, DATA.map(until_close)] + ([CHUNK_BODIES] if minor else [])
    body: Body = draw(st.one_of(bodies))
    if status == 204:
        body = NO_BODY
    reply = Reply(
        status=status,
        reason=draw(REASONS),
        lines=tuple(draw(st.permutations(lines))),
        body=body,
        minor=minor,
        interims=draw(INTERIMS) if minor else (),
        framing_at=draw(st.integers(0, 9)),
    )
    ends = close or (body.kind == "close" and reply.has_body(method))
    return replace(reply, ends=ends)


@dataclass(frozen=True)
class At:
    """Cuts at these places, wrapped around to the length there is."""

    places: tuple[int, ...]

    def __call__(self, data: bytes) -> list[bytes]:
        return cut(data, [place % len(data) for place in self.places])


def apart(data: bytes) -> list[bytes]:
    """Byte by byte, if it is not too much."""
    return bytewise(data) if len(data) < 300 else [data]


CUTS: st.SearchStrategy[Cut] = st.one_of(
    st.lists(st.integers(0, 500), max_size=8).map(tuple).map(At), st.sampled_from([whole, apart])
)


@st.composite
def pipelines(draw: st.DrawFn, *, pinned: bool = False) -> list[Call]:
    """One to four requests with their answers."""
    calls = []
    for _ in range(draw(st.integers(1, 4))):
        ask = draw(asks(pinned=pinned))
        calls.append(Call(ask, draw(replies(ask.method)), draw(CUTS)))
    return calls


# A failure is told with all its bytes, however many they are.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")


@pytest.fixture(scope="module")
def ends(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BothEnds]:
    with both_ends(pki, tmp_path_factory.mktemp("ends")) as ends:
        yield ends


@pytest.fixture(scope="module")
def inspected_ends(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BothEnds]:
    """The same inside mitmdump, where every call is shown to an addon that changes nothing."""
    with tls_recorder(pki.upstream, pki.trust) as upstream:
        listeners = [{"bind": "127.0.0.1:0", "origins": "any"}]
        spec = config([route("orders", upstream, trust=pki.trust)], pki.credentials, listeners=listeners)
        with inspecting(tmp_path_factory.mktemp("inspected"), spec) as tool:
            yield BothEnds([tool.listener], upstream)


SLOWLY = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], print_blob=True)


@settings(SLOWLY, max_examples=rounds(250, 5000))
@given(calls=pipelines(), cut_asks=CUTS)
@pytest.mark.long_form(seconds=1800)
def test_both_ends_get_the_same_bytes(ends: BothEnds, calls: list[Call], cut_asks: Cut) -> None:
    """Heads byte for byte, bodies, trailers, interim answers, and the end of the connection."""
    ends.check(calls, cut_asks)


@settings(SLOWLY, max_examples=rounds(50, 1000))
@given(calls=pipelines(pinned=True), cut_asks=CUTS)
@pytest.mark.long_form(seconds=600)
def test_both_ends_get_the_same_bytes_through_a_pinned_listener(
    ends: BothEnds, calls: list[Call], cut_asks: Cut
) -> None:
    """The same where a caller of HTTP/1.0 need not name a host."""
    ends.check(calls, cut_asks, listener=1)


def for_mitmproxy(calls: list[Call]) -> bool:
    """Whether a request holds what mitmproxy deals with itself.

    An addon of its own takes an offer of HTTP/2 out, and who wants to see a body says 100 to get it.
    """
    own = b"upgrade: h2c", b"expect: 100-continue"
    return any(line.lower() in own for call in calls for line in call.ask.lines)


@settings(SLOWLY, max_examples=rounds(50, 1000))
@given(calls=pipelines().filter(lambda calls: not for_mitmproxy(calls)), cut_asks=CUTS)
@pytest.mark.long_form(seconds=900)
def test_both_ends_get_the_same_bytes_when_somebody_looks(
    inspected_ends: BothEnds, calls: list[Call], cut_asks: Cut
) -> None:
    """A call that was made a flow, and was not changed, goes through as any other."""
    inspected_ends.check(calls, cut_asks)


def test_trailers_stay_with_their_answer(ends: BothEnds) -> None:
    """They are not sent again behind the next answer of that connection, which may be another caller's."""
    first = Call(Ask(), Reply(body=with_chunks([Chunk(b"one")], [b"X-Sum: 1"])))
    ends.check([first, Call(Ask(), Reply(body=until_close(b"two"), ends=True))])
