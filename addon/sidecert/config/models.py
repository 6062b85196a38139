"""The config as frozen models, of converted values; their JSON schema is the YAML as users write it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from sidecert.config import callers, fields, values
from sidecert.config.binds import bind
from sidecert.config.fields import Model
from sidecert.config.mistake import Mistake
from sidecert.config.secrets import SecretSource


def _default(written: str, parse: Callable[[object], Any], description: str) -> Any:
    """A field whose default is given as users would write it."""
    return Field(default=parse(written), description=description, json_schema_extra={"default": written})


class ListenerConfig(Model):
    """An address that plain HTTP calls come in on."""

    bind: fields.BindAddress = Field(
        description="HOST:PORT, [V6]:PORT or unix:PATH. Port 0 takes a free one."
    )
    route: fields.Id | None = Field(
        default=None, description="Pin the listener: all its calls belong to the route with this id."
    )
    allow: fields.Networks | None = Field(
        default=None,
        description="Addresses and networks whose callers may call, or `any`. Required where bind is not "
        "loopback; by default loopback callers may.",
    )
    origins: fields.Origins = Field(
        default=frozenset(),
        description="Origins of web pages that may make a browser call, or `any`; none by default.",
        json_schema_extra={"default": []},
    )
    mode: fields.SocketMode = Field(
        default=callers.DEFAULT_MODE,
        description="Of a unix socket's file: who may open it may call.",
        json_schema_extra={"default": "0660"},
    )


class AdminConfig(Model):
    """Where metrics, health and the status page are served."""

    bind: fields.BindAddress = Field(
        default=bind("127.0.0.1:9090", None),
        description="As a listener's. Beyond loopback only metrics and health are answered.",
        json_schema_extra={"default": "127.0.0.1:9090"},
    )


class CredentialConfig(Model):
    """A certificate chain with its private key: PEM files, or one PKCS#12 file."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["certificate", "key"], "not": {"required": ["pkcs12"]}},
                {
                    "required": ["pkcs12"],
                    "not": {"anyOf": [{"required": ["certificate"]}, {"required": ["key"]}]},
                },
            ]
        }
    )
    certificate: fields.FilePath | None = Field(
        default=None, description="PEM file: the leaf first, then its intermediates."
    )
    key: fields.FilePath | None = Field(
        default=None, description="PEM file: PKCS#1, PKCS#8 or SEC1, encrypted or not."
    )
    pkcs12: fields.FilePath | None = Field(
        default=None, description="A .p12 or .pfx file, instead of certificate and key."
    )
    passphrase: SecretSource | None = Field(
        default=None,
        description="Where the passphrase is: {env: NAME} or {file: PATH}. Never the passphrase itself.",
    )
    prove: fields.Flag = Field(
        default=True,
        description="At a reload, show a changed certificate to the upstreams first: as long as one of them "
        "refuses it and the one before is valid, that one stays in force.",
    )

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that it is loaded from."""
        secret = None if self.passphrase is None else self.passphrase.file
        named = (self.certificate, self.key, self.pkcs12, secret)
        return tuple(path for path in named if path is not None)


class MatchConfig(Model):
    """The calls that a route takes. The most specific route wins, never the order in the file."""

    host: fields.HostPattern = Field(
        description="The host called, or *.example.com for all names below example.com."
    )
    port: fields.Port | None = Field(
        default=None, description="The port in the caller's URL; any when left out."
    )
    path: fields.PathPattern | None = Field(
        default=None,
        description="Begins with /; * stands for one segment, ** for any number. Any path when left out.",
    )
    methods: fields.Methods | None = Field(default=None, description="Any method when left out.")


class TlsConfig(Model):
    """The TLS versions that may be used with the upstream."""

    min: fields.TlsVersion = Field(
        default="1.2", description="The oldest.", json_schema_extra={"default": 1.2}
    )
    max: fields.TlsVersion = Field(
        default="1.3", description="The newest.", json_schema_extra={"default": 1.3}
    )

    @model_validator(mode="after")
    def _in_order(self) -> TlsConfig:
        if self.min > self.max:
            raise Mistake(f"min {self.min} is above max {self.max}", "write min: 1.2, or max: 1.3", ("min",))
        return self


class TimeoutsConfig(Model):
    """How long each step may take: a number with ms, s, m or h."""

    connect: fields.Duration = _default(
        "5s", values.duration, "To open a connection, and to wait for a full pool."
    )
    handshake: fields.Duration = _default("5s", values.duration, "The TLS handshake.")
    response: fields.Duration = _default(
        "60s", values.duration, "From the call to the first byte of the answer."
    )
    stall: fields.Duration = _default("60s", values.duration, "Between two pieces of a body, either way.")
    idle: fields.Duration = _default("60s", values.duration, "How long an unused connection is kept.")


class PoolConfig(Model):
    """The connections to the upstream that calls share."""

    max_idle: Annotated[int, *fields.whole(0, 65535)] = Field(
        default=32, description="Unused connections kept."
    )
    max_connections: Annotated[int, *fields.whole(1, 65535)] = Field(
        default=256, description="Connections at once; more calls wait, at most timeouts.connect."
    )
    max_waiting: Annotated[int, *fields.whole(0, 65535)] = Field(
        default=100, description="Calls that wait for one at once; more get 503."
    )

    @model_validator(mode="after")
    def _within(self) -> PoolConfig:
        if "max_idle" in self.model_fields_set and self.max_idle > self.max_connections:
            wrong = f"{self.max_idle} is more than max_connections, {self.max_connections}"
            raise Mistake(wrong, f"write at most {self.max_connections}", ("max_idle",))
        return self


class CircuitConfig(Model):
    """When an upstream that keeps failing is left alone for a while."""

    failures: Annotated[int, *fields.whole(0, 65535)] = Field(
        default=5,
        description="Attempts to open a connection that fail in a row before calls are answered at once with "
        "503 and the last verdict. 0: never.",
    )
    pause: fields.Duration = _default("10s", values.duration, "How long until a call tries again.")


class UpstreamConfig(Model):
    """The TLS service that is called."""

    host: fields.HostName | None = Field(
        default=None, description="The host that is called; default: the host that was matched."
    )
    port: fields.Port = Field(default=8443, description="The port that is called.")
    server_name: fields.HostName | None = Field(
        default=None,
        description="Sent as SNI and looked for in the upstream's certificate; default: the upstream host.",
    )
    host_header: fields.HostHeader | None = Field(
        default=None, description="The Host header sent; default: host and port."
    )
    trust: fields.Trust = Field(
        default="system",
        description="What the upstream's certificate is checked against: a PEM file of CAs (or of that very "
        "certificate), `system`, or `insecure` to check nothing, for a lab.",
    )
    tls: TlsConfig = Field(default=TlsConfig(), json_schema_extra={"default": {"min": 1.2, "max": 1.3}})
    timeouts: TimeoutsConfig = Field(default=TimeoutsConfig(), json_schema_extra={"default": {}})
    pool: PoolConfig = Field(default=PoolConfig(), json_schema_extra={"default": {}})
    circuit: CircuitConfig = Field(default=CircuitConfig(), json_schema_extra={"default": {}})


class RouteConfig(Model):
    """Which calls go where, and with which certificate."""

    id: fields.Id = Field(description="The route's name in metrics, logs and answers.")
    match: MatchConfig
    upstream: UpstreamConfig = Field(default=UpstreamConfig(), json_schema_extra={"default": {}})
    credential: fields.CredentialName = Field(
        description="The id of the credential to call with; `none` says on purpose: no certificate."
    )
    private: fields.Flag = Field(
        default=False,
        description="Let a host that the caller chose through a wildcard have a private address.",
    )


class LimitsConfig(Model):
    """Bounds on what callers can take up."""

    connections: Annotated[int, *fields.whole(1, 1_000_000)] = Field(
        default=1000, description="Callers' connections at once."
    )
    header_bytes: fields.Size = _default(
        "64KiB", fields.header_bytes, "Size of a request's header, 1KiB to 1MiB."
    )
    header_timeout: fields.Duration = _default("10s", values.duration, "To send a request's header.")
    keepalive: fields.Duration = _default(
        "75s", values.duration, "How long a caller's unused connection is kept."
    )


class Config(Model):
    """A whole config."""

    version: Literal[1] = Field(description="The version of this format.")
    listeners: tuple[ListenerConfig, ...] = Field(
        default=(ListenerConfig(bind=bind("127.0.0.1:8080", None)),),
        description="Where plain HTTP calls come in.",
        json_schema_extra={"default": [{"bind": "127.0.0.1:8080"}], "minItems": 1},
    )
    admin: AdminConfig = Field(default=AdminConfig(), json_schema_extra={"default": {}})
    credentials: dict[str, CredentialConfig] = Field(
        default_factory=dict,
        description="The certificates to call with, each under an id.",
        json_schema_extra={"propertyNames": fields.ID_SCHEMA | {"not": {"const": "none"}}, "default": {}},
    )
    routes: tuple[RouteConfig, ...] = Field(description="Calls that no route matches are refused.")
    limits: LimitsConfig = Field(default=LimitsConfig(), json_schema_extra={"default": {}})
    drain: fields.Drain = _default("30s", values.drain, "How long calls may take to end when sidecert stops.")
