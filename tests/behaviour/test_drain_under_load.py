"""SIGTERM at any moment under load: each call is answered, or was never begun.

What has reached sidecert's sockets cannot be seen from outside, so the account goes by what a caller knows.
Its call is owed an answer when its request was written before SIGTERM was sent, on a connection that stood
by then: the kernel has it, and sidecert must read it. A later call may be answered; or its connection is
refused; or it ends, before any byte of an answer, with the upstream never having seen the call. Where the
connection was new, it may not even be reset: it had come to the listener's queue and been accepted.
"""

from __future__ import annotations

import http.client
import random
import signal
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from support.certs import Pki
from support.clients import Address, Talker
from support.lengths import rounds
from support.peers import Peers
from support.recorder import Exchange, TlsRecorder, head
from support.sidecar import END, Sidecar, config, route, running

CALLERS = 3  # of each kind
SLOW = 0.05  # seconds that every fifth answer takes


def _answer(asked: Exchange) -> None:
    body = asked.read_body().target.encode()
    if zlib.crc32(body) % 5 == 0:
        time.sleep(SLOW)
    asked.send(head(200, ("Content-Length", str(len(body)))) + body)


class Account:
    """Callers of one sidecar and what became of each of their calls."""

    def __init__(self, addresses: list[Address]) -> None:
        self.addresses = addresses
        self.told = threading.Event()  # SIGTERM is about to be sent
        self.fates: Counter[str] = Counter()
        self.answered: set[str] = set()
        self.unanswered: set[str] = set()
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, kinds: list[Callable[[Account, Address, str], bool]]) -> None:
        for kind in kinds:
            for number in range(CALLERS):
                address = self.addresses[number % len(self.addresses)]
                name = f"/{kind.__name__.strip('_')}/{number}"
                thread = threading.Thread(target=self._work, args=(kind, address, name), daemon=True)
                self._threads.append(thread)
                thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(END)
            assert not thread.is_alive(), "a caller hangs"

    def _work(self, kind: Callable[[Account, Address, str], bool], address: Address, name: str) -> None:
        try:
            count = 0
            while kind(self, address, f"{name}/{count}"):
                count += 1
        except Exception as error:
            self.wrong.append(f"{name}: {error!r}")

    def connect(self, address: Address) -> Talker | None:
        """None where nobody listens any more."""
        try:
            return Talker(address)
        except (ConnectionRefusedError, FileNotFoundError):
            if not self.told.is_set():
                self.wrong.append("refused before SIGTERM")
            self.fates["refused"] += 1
            return None

    def read(self, talker: Talker, targets: list[str], *, owed: bool, fresh: bool) -> bool:
        """Reads the answers to `targets`; False where the connection has ended, as it may."""
        for number, target in enumerate(targets):
            try:
                answer = talker.read_answer()
            except (EOFError, ConnectionError) as error:
                self._ended(talker, targets[number:], error, owed=owed, fresh=fresh)
                return False
            with self._lock:
                self.answered.add(target)
            if answer.status != 200 or answer.body != target.encode():
                self.wrong.append(f"{target}: {answer.status} {answer.body[:200]!r}")
            self.fates["answered"] += 1
            if (answer.header("Connection") or "").lower() == "close":
                self.fates["told to close"] += 1
                if not self.told.is_set():
                    self.wrong.append(f"{target}: told to close before SIGTERM")
                # What was asked for behind it is no call of ours (RFC 9112 section 9.6), unless it was owed.
                if rest := targets[number + 1 :]:
                    self._ended(talker, rest, EOFError(), owed=owed, fresh=False)
                return False
        return True

    def _ended(
        self, talker: Talker, targets: list[str], error: Exception, *, owed: bool, fresh: bool
    ) -> None:
        with self._lock:
            self.unanswered.update(targets)
        self.fates["not begun"] += len(targets)
        if owed or talker.buffer or not self.told.is_set():
            self.wrong.append(f"{targets}: {error!r}, owed={owed}, after {talker.buffer[:100]!r}")
        if fresh and isinstance(error, ConnectionResetError):
            self.wrong.append(f"{targets}: reset in the listener's queue")


def _ask(account: Account, talker: Talker, targets: list[str], data: bytes, *, fresh: bool) -> bool:
    """Sends `data`, which asks for `targets`; they are owed an answer if SIGTERM came only after that."""
    try:
        talker.send(data)
    except OSError as error:
        account._ended(talker, targets, error, owed=False, fresh=fresh)
        return False
    return account.read(talker, targets, owed=not account.told.is_set(), fresh=fresh)


def _get(target: str, *fields: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: one.test", *fields, "", ""]).encode()


def _one_connection_per_request(account: Account, address: Address, name: str) -> bool:
    talker = account.connect(address)
    if talker is None:
        return False
    with talker:
        _ask(account, talker, [name], _get(name), fresh=True)
        return True


def _keep_alive(account: Account, address: Address, name: str) -> bool:
    talker = account.connect(address)
    if talker is None:
        return False
    with talker:
        for number in range(20):
            target = f"{name}.{number}"
            if not _ask(account, talker, [target], _get(target), fresh=not number):
                break
        return True


def _pipelined(account: Account, address: Address, name: str) -> bool:
    talker = account.connect(address)
    if talker is None:
        return False
    with talker:
        targets = [f"{name}.{number}" for number in range(5)]
        _ask(account, talker, targets, b"".join(map(_get, targets)), fresh=True)
        return True


def _slow_body(account: Account, address: Address, name: str) -> bool:
    """Its head is with the kernel before SIGTERM, or not; the body goes on coming after it."""
    talker = account.connect(address)
    if talker is None:
        return False
    with talker:
        talker.send(f"POST {name} HTTP/1.1\r\nHost: one.test\r\nContent-Length: 5\r\n\r\n".encode())
        owed = not account.told.is_set()
        try:
            for _ in range(5):
                time.sleep(0.01)  # a slow caller is what this is
                talker.send(b"x")
        except OSError as error:
            account._ended(talker, [name], error, owed=owed, fresh=True)
            return True
        account.read(talker, [name], owed=owed, fresh=True)
        return True


KINDS = [_one_connection_per_request, _keep_alive, _pipelined, _slow_body]


def _ready(sidecar: Sidecar) -> bool:
    try:
        return sidecar.ask_admin("GET", "/-/ready").status == 200
    except (OSError, http.client.HTTPException):
        return False  # it has ended


def _round(folder: Path, upstream: TlsRecorder, pki: Pki, wait: float) -> Counter[str]:
    """One sidecar, from its start to its end under load; what became of the calls."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "in.sock"
    upstream.requests.clear()
    whole = config(
        [route("one", upstream, trust=pki.trust)],
        pki.credentials,
        listeners=[{"bind": "127.0.0.1:0"}, {"bind": f"unix:{path}"}],
        drain="20s",
    )
    with running(folder, whole) as sidecar:
        account = Account([sidecar.listener, str(path)])
        account.start(KINDS)
        upstream.wait_for(lambda: len(upstream.requests) > 20)
        time.sleep(wait)  # any moment will do
        account.told.set()
        sidecar.signal(signal.SIGTERM)
        while path.exists() and sidecar.process.poll() is None:
            time.sleep(0.001)
        assert not _ready(sidecar), "a listener was closed while it was still called ready"
        account.join()
        assert sidecar.process.wait(20) == 0
        assert not account.wrong, account.wrong[:10]
    seen = Counter(each.target for each in upstream.requests)
    assert [target for target, count in seen.items() if count != 1] == [], "sent more than once"
    assert seen.keys() == account.answered
    assert not seen.keys() & account.unanswered
    return account.fates


@pytest.mark.long_form(seconds=900)
def test_no_call_is_lost_when_the_sidecar_ends_under_load(peers: Peers, pki: Pki, tmp_path: Path) -> None:
    """Over TCP and a unix socket, from all kinds of callers at once; the upstream sees each call once."""
    upstream = peers.recorder(answer=_answer)
    luck = random.Random(1)
    total: Counter[str] = Counter()
    for number in range(rounds(5, 100)):
        total += _round(tmp_path / str(number), upstream, pki, luck.uniform(0, 0.3))
    print(f"what became of the calls: {dict(total)}")
    assert total["answered"] > 100
    assert total["refused"]
    assert total["told to close"]
