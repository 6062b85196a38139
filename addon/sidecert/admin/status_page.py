"""The status page: one HTML document with no script and nothing to fetch. Pure: values in, HTML out."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from sidecert.http_verdict import Signature
from sidecert.metrics import CredentialLabels, Metrics, RouteStats
from sidecert.outcome import Outcome
from sidecert.words import moment

MAX_ROWS = 200
"""Routes and credentials that the page shows; the metrics have them all."""

_SOON_DAYS = 30
_NOT_ASKED = "did not ask for a certificate"
_DAY = 86400


@dataclass(frozen=True, slots=True)
class RouteRow:
    """A route in words; `credential` is an id or "none"."""

    id: str
    match: str
    upstream: str
    credential: str
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the page tells beside the metrics; `listeners` are addresses by label, `started` epoch seconds."""

    config_file: str
    started: float
    ready: bool
    listeners: Mapping[str, Sequence[str]]
    routes: Sequence[RouteRow]


def render(snapshot: Snapshot, metrics: Metrics, now: float) -> bytes:
    """The page as UTF-8; `now` in epoch seconds. Whatever the values hold is escaped."""
    facts = {
        "Version": metrics.build["version"],
        "Generation": str(metrics.generation),
        "Uptime": _uptime(now - snapshot.started),
        "Config": snapshot.config_file,
    }
    state = '<b class="good">ready</b>' if snapshot.ready else '<b class="bad">not ready</b>'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>sidecert</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><style>{_STYLE}</style></head>
<body><header><h1>sidecert</h1>{state}<nav><a href="/metrics">metrics</a></nav></header>
{_reload(metrics)}
<dl>{"".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())}</dl>
<main>{_routes(snapshot.routes, metrics)}
{_credentials(metrics, now)}
{_listeners(snapshot.listeners, metrics)}</main>
</body></html>
""".encode("utf-8", "backslashreplace")


def _reload(metrics: Metrics) -> str:
    if metrics.last_load_ok:
        return ""
    return (
        '<p><b class="bad">The last reload failed.</b> The config on disk is not in force; the log has every '
        "problem, and so has <code>sidecert check</code>.</p>"
    )


def _routes(routes: Sequence[RouteRow], metrics: Metrics) -> str:
    rows = [_route(route, metrics.route(route.id)) for route in routes[:MAX_ROWS]]
    return _table(
        "Routes",
        len(routes),
        (
            *("Route", "Matches", "Upstream", "Credential"),
            *("Handshakes", "Calls", "Refused in answers", "Connections"),
        ),
        rows,
    )


def _route(route: RouteRow, stats: RouteStats) -> str:
    upstream = escape(route.upstream)
    if route.insecure:
        upstream += ' <b class="bad">not verified</b>'
    if stats.circuit_open():
        upstream += ' <b class="bad">circuit open</b>'
    answered = sum(stats.codes)
    calls = f"{answered}" + (f" <small>+{stats.in_progress} now</small>" if stats.in_progress else "")
    by_sidecert, by_upstream = stats.codes[3], stats.codes[7]
    calls += _chip("bad", "5xx by sidecert", by_sidecert) + _chip("warn", "5xx by upstream", by_upstream)
    outcomes = _outcomes(stats, certificate=route.credential != "none")
    refused = "".join(_chip("bad", each, stats.http_rejections.get(each, 0)) for each in Signature)
    connections = f"{stats.active} <small>active</small> {stats.idle} <small>idle</small>"
    return (
        f"<tr><th>{escape(route.id)}</th><td>{escape(route.match)}</td><td>{upstream}</td>"
        f"<td>{escape(route.credential)}</td><td>{outcomes}</td>"
        f"<td>{calls}</td><td>{refused or '<small>none</small>'}</td><td>{connections}</td></tr>"
        f"{_failure(stats)}"
    )


def _outcomes(stats: RouteStats, *, certificate: bool) -> str:
    """What came of the handshakes; with a `certificate` to show, also how often none was asked for."""
    outcomes = stats.outcomes()
    if not outcomes:
        return "<small>none yet</small>"
    chips = "".join(
        _chip("good" if each is Outcome.OK else "bad", each, outcomes.get(each, 0)) for each in Outcome
    )
    return chips + (_chip("warn", _NOT_ASKED, stats.cert_requests[False]) if certificate else "")


def _chip(kind: str, words: str, count: int) -> str:
    return f' <span class="chip {kind}">{words} <b>{count}</b></span>' if count else ""


def _failure(stats: RouteStats) -> str:
    """A row below the route's own: how its last failed call failed, and what to do."""
    last = stats.last_failure
    if last is None:
        return ""
    return (
        f'<tr class="last"><td colspan="8">last failure, {moment(last.at)}: <b class="bad">'
        f"{escape(last.outcome)}</b> {escape(last.cause)} <b>What to do:</b> {escape(last.remedy)}</td></tr>"
    )


def _credentials(metrics: Metrics, now: float) -> str:
    held = metrics.held_back
    order = sorted(metrics.credentials, key=lambda one: (one.credential not in held, one.not_after))
    rows = [_credential(one, held.get(one.credential), now) for one in order[:MAX_ROWS]]
    return _table("Credentials", len(order), ("Credential", "Expires", "Left", "SHA-256"), rows)


def _credential(credential: CredentialLabels, held: str | None, now: float) -> str:
    left = credential.not_after - now
    days = int(left // _DAY)
    if left <= 0:
        words, kind = "expired", "bad"
    elif credential.not_before > now:
        words, kind = "not valid yet", "bad"
    else:
        words, kind = ("1 day" if days == 1 else f"{days} days"), "warn" if days < _SOON_DAYS else "good"
    return (
        f"<tr><th>{escape(credential.credential)}</th><td>{moment(credential.not_after)}</td>"
        f'<td><b class="{kind}">{words}</b></td><td><code>{escape(credential.fingerprint)}</code></td></tr>'
        f"{_held_back(held)}"
    )


def _held_back(why: str | None) -> str:
    """A row below the credential's own: why its newer certificate is not in force."""
    if why is None:
        return ""
    return f'<tr class="last"><td colspan="4"><b class="bad">newer one held back</b> {escape(why)}</td></tr>'


def _listeners(listeners: Mapping[str, Sequence[str]], metrics: Metrics) -> str:
    rows = [
        f"<tr><th>{escape(label)}</th><td>{escape(', '.join(addresses))}</td>"
        f"<td>{metrics.listener(label).connections}</td></tr>"
        for label, addresses in listeners.items()
    ]
    return _table("Listeners", len(rows), ("Listener", "Address", "Connections"), rows)


def _table(title: str, total: int, heads: Iterable[str], rows: Sequence[str]) -> str:
    if not rows:
        return f"<section><h2>{title}</h2><p>none</p></section>"
    more = f"<p>and {total - len(rows)} more</p>" if total > len(rows) else ""
    head = "".join(f"<th>{text}</th>" for text in heads)
    return (
        f"<section><h2>{title} <small>{total}</small></h2><div><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{more}</section>"
    )


def _uptime(seconds: float) -> str:
    minutes, second = divmod(max(0, int(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour} h"
    if hours:
        return f"{hour} h {minute} min"
    return f"{minute} min {second} s" if minutes else f"{second} s"


_STYLE = """
:root{--ground:#f6f7f9;--card:#fff;--ink:#1b1f24;--faint:#667080;--line:#e3e6eb;
--good:#17713b;--warn:#8a5a00;--bad:#b3261e;--link:#1f5fbf}
@media(prefers-color-scheme:dark){:root{--ground:#111418;--card:#1a1e24;--ink:#e6e9ee;--faint:#98a2b0;
--line:#2b313a;--good:#69d394;--warn:#f0b958;--bad:#ff8a80;--link:#8ab8ff}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.5rem;max-width:76rem;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}
header{display:flex;gap:.8rem;align-items:baseline}
h1{margin:0;font-size:1.5rem;letter-spacing:-.02em}
nav{margin-left:auto}
a{color:var(--link)}
dl{display:flex;flex-wrap:wrap;gap:.5rem 2.5rem;margin:1rem 0 1.5rem}
dt,small,thead th{color:var(--faint);font-weight:400;font-size:.8rem}
dd{margin:0;overflow-wrap:anywhere}
h2{margin:0;padding:.8rem 1rem .5rem;font-size:1rem}
section{margin-bottom:1.2rem;background:var(--card);border:1px solid var(--line);border-radius:.6rem}
section div{overflow-x:auto}
section p{margin:0;padding:.2rem 1rem .8rem;color:var(--faint)}
table{width:100%;border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.45rem 1rem;text-align:left;vertical-align:top}
tbody th{font-weight:600}
tbody tr{border-top:1px solid var(--line)}
tbody tr.last{border:0;font-size:.85rem}
.last td{padding-top:0;overflow-wrap:anywhere}
code{font-size:.75rem;overflow-wrap:anywhere}
.good{color:var(--good)}.warn{color:var(--warn)}.bad{color:var(--bad)}
.chip{display:inline-block;padding:0 .5rem;
border:1px solid;border-radius:1rem;font-size:.8rem;white-space:nowrap}
"""

STYLE_HASH = "sha256-" + base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
"""What a Content-Security-Policy names to allow the page's style, and no other."""
