"""Config, certificate, key and store files with anything in them, and what must hold whatever that is.

A config becomes a generation or problems that a user can act on; a credential is whole or has findings.
Nothing else is ever raised, no word is unprintable or without end, and no secret is in any of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import strategies as st

from sidecert.config import CredentialConfig, SecretSource, TlsConfig
from sidecert.credentials import load, load_trust
from sidecert.errors import ConfigError, Refusal
from sidecert.generation import build
from sidecert.tls import TlsFailure, make_context
from support.certs import DAY, Authority, private_folder, write_private

PASS = "correct horse"
CASES = Path(__file__).parents[1] / "cases" / "config"
NOW = 1.8e9
_KEY = ec.derive_private_key(0x51DECE27, ec.SECP256R1())
"""No secret, and the same at all times: what a file of an earlier run led to, it leads to again."""
_LONG = 3650 * DAY
LONGEST = 4000  # characters of a line that is told

type Play = Callable[[bytes], str]
"""Tries the content of a file; gives what came of it in a word, for counting."""


class SpoiltFiles:
    """Plays contents of files, one after the other, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)
        authority = Authority(ends=_LONG)
        self._leaf = authority.caller("alice", key=_KEY, starts=-_LONG, ends=_LONG)
        self._trust = authority.pem
        for id in ("alice", "bob", "me"):
            self._leaf.write(folder, id)
        authority.write(folder, "ca")
        write_private(folder / "bob.p12", self._leaf.pkcs12(PASS))
        write_private(folder / "bob.pass", PASS.encode())

    # -- the config ------------------------------------------------------------------------------------

    @staticmethod
    def configs() -> Iterator[bytes]:
        """Contents to begin with."""
        for path in sorted(CASES.glob("*/*.yaml")):
            yield path.read_bytes()
        yield (CASES.parents[2] / "config" / "example.yaml").read_bytes()

    def play_config(self, data: bytes) -> str:
        """A config with these bytes, and calls to what it leads to."""
        path = _rewrite(self._folder / "sidecert.yaml", data)
        try:
            generation = build(path, 1, {"ALICE_PASS": PASS}, NOW)
        except ConfigError as exc:
            problems = exc.problems
            generation = None
        else:
            problems = generation.warnings
        _check_words(str(problem) for problem in problems)
        assert (generation is None) == any(not problem.warning for problem in problems)
        if generation is None:
            return "refused"
        for route in generation.config.routes:
            host = route.match.host.replace("*", "some")
            for target in (b"/", b"/a/b/c", b"/integration/rest/x"):
                try:
                    found, matched = generation.router.find(host, 80, target, b"GET")
                except Refusal:
                    continue
                assert generation.routes[found.id].upstream(matched).host
        return "taken"

    # -- credentials and trust -------------------------------------------------------------------------

    @cached_property
    def files(self) -> tuple[bytes, ...]:
        """Contents to begin with, each behind the byte that says which file it is."""
        leaf = self._leaf
        contents = (
            (0, leaf.certificate_pem()),
            (0, leaf.certificate_pem() + self._trust),
            (1, leaf.key_pem()),
            (1, leaf.key_pem(form="traditional")),
            (1, leaf.key_pem(PASS)),
            (2, leaf.pkcs12(PASS)),
            (2, leaf.pkcs12(PASS, old=True)),
            (2, leaf.pkcs12()),
            (3, self._trust),
            (3, self._trust + leaf.certificate_pem()),
        )
        return tuple(bytes((kind,)) + content for kind, content in contents)

    def play_file(self, data: bytes) -> str:
        """The file that the first byte names, with the others as they should be."""
        kind, content = data[0] % 4 if data else 0, data[1:]
        path = _rewrite(self._folder / "spoilt", content)
        if kind == 3:
            trusted, findings = load_trust(path, NOW)
            _check_words(f"{finding.wrong}; {finding.right}" for finding in findings)
            assert bool(trusted) != any(not finding.warning for finding in findings)
            return "trusted" if trusted else "refused"
        config = CredentialConfig(
            certificate=None if kind == 2 else path if kind == 0 else self._folder / "alice.crt",
            key=None if kind == 2 else path if kind == 1 else self._folder / "alice.key",
            pkcs12=path if kind == 2 else None,
            passphrase=None if kind == 0 else SecretSource(env="PASS"),
        )
        credential, findings = load("alice", config, {"PASS": PASS}, NOW)
        _check_words(f"{finding.wrong}; {finding.right}" for finding in findings)
        assert (credential is None) == any(not finding.warning for finding in findings)
        if credential is None:
            return "refused"
        assert _public(credential.key) == _public(credential.certificate), "another's key"
        try:
            make_context(credential, "system", TlsConfig())
        except TlsFailure:
            return "not for TLS"
        return "loaded"


def _rewrite(path: Path, data: bytes) -> Path:
    """Without emptying the file first: many file systems then write each version to the disk."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(data)
        file.truncate()
    return path


def _public(holder: object) -> bytes:
    return holder.public_key().public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _check_words(lines: Iterator[str]) -> None:
    for line in lines:
        assert line.isprintable(), line
        assert len(line) <= LONGEST, line
        assert PASS not in line, line


def spoilt(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of `seeds` with a few cuts, copies and other bytes in it, or bytes that were never a file."""
    edit = st.tuples(st.integers(0, 1 << 16), st.integers(0, 200), st.binary(max_size=12))

    def spoil(seed: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
        for place, length, instead in edits:
            at = place % (len(seed) + 1)
            copied = seed[at : at + length] if instead[:1] == b"\0" else instead
            seed = seed[:at] + copied + seed[at + (length if length % 3 else 0) :]
        return seed

    mutated = st.builds(spoil, st.sampled_from(seeds), st.lists(edit, max_size=5))
    return st.one_of(mutated, mutated, mutated, st.binary(max_size=300))
