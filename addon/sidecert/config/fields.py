"""What the models are made of: the types of their fields, each what converts a value paired with the schema
of what is written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    WrapValidator,
)

from sidecert.config import callers, values
from sidecert.config.binds import Bind
from sidecert.config.binds import bind as parse_bind

ID_SCHEMA = {"type": "string", "pattern": "^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$"}
_DURATION_SCHEMA = {"type": "string", "pattern": "^[0-9]{1,9}(ms|s|m|h)$"}
_HOST = "[^\\s*/@?#]+"
_FILE_SCHEMA = {"type": "string", "minLength": 1}


class Model(BaseModel):
    """Frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


def _in_folder(parse: Callable[[object, Path | None], Any]) -> Callable[[object, ValidationInfo], Any]:
    """A validator that resolves relative paths in the folder of the config file."""
    return lambda value, info: parse(value, (info.context or {}).get("folder"))


def _credential(value: object) -> str | None:
    """The id of a credential; the word `none` is None."""
    return None if value in (None, "none") else values.name(value)


def whole(least: int, most: int) -> tuple[PlainValidator, WithJsonSchema]:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    return PlainValidator(partial(values.whole, least=least, most=most)), WithJsonSchema(schema)


header_bytes = partial(values.size, least=1 << 10, most=1 << 20)

Id = Annotated[str, PlainValidator(values.name), WithJsonSchema(ID_SCHEMA)]
Port = Annotated[
    int, PlainValidator(values.port), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 65535})
]
Flag = Annotated[bool, PlainValidator(values.flag), WithJsonSchema({"type": "boolean"})]
Duration = Annotated[float, PlainValidator(values.duration), WithJsonSchema(_DURATION_SCHEMA)]
Drain = Annotated[float, PlainValidator(values.drain), WithJsonSchema(_DURATION_SCHEMA)]
Size = Annotated[
    int, PlainValidator(header_bytes), WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,9}(KiB|MiB)$"})
]
HostName = Annotated[
    str, PlainValidator(values.host_name), WithJsonSchema({"type": "string", "pattern": f"^{_HOST}$"})
]
HostPattern = Annotated[
    str,
    PlainValidator(values.host_pattern),
    WithJsonSchema({"type": "string", "pattern": f"^(\\*\\.)?{_HOST}$"}),
]
HostHeader = Annotated[
    str, PlainValidator(values.host_header), WithJsonSchema({"type": "string", "pattern": f"^{_HOST}$"})
]
PathPattern = Annotated[
    str, PlainValidator(values.path_pattern), WithJsonSchema({"type": "string", "pattern": "^/[^?#\\\\]*$"})
]
Method = Annotated[str, PlainValidator(values.method)]
Methods = Annotated[
    frozenset[Method],
    BeforeValidator(values.method_list),
    WithJsonSchema({"type": "array", "minItems": 1, "items": {"enum": sorted(values.METHODS)}}),
]
EnvName = Annotated[
    str,
    PlainValidator(values.environment_name),
    WithJsonSchema({"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"}),
]
FilePath = Annotated[Path, PlainValidator(_in_folder(values.file_path)), WithJsonSchema(_FILE_SCHEMA)]
Trust = Annotated[
    Path | Literal["system", "insecure"],
    PlainValidator(_in_folder(values.trust)),
    WithJsonSchema({"anyOf": [{"enum": ["system", "insecure"]}, _FILE_SCHEMA]}),
]
TlsVersion = Annotated[
    str, PlainValidator(values.tls_version), WithJsonSchema({"enum": [1.2, 1.3, "1.2", "1.3"]})
]
CredentialName = Annotated[str | None, PlainValidator(_credential), WithJsonSchema(ID_SCHEMA)]
BindAddress = Annotated[
    Bind,
    PlainValidator(_in_folder(parse_bind)),
    WithJsonSchema({"type": "string", "pattern": "^(unix:.+|(\\[[0-9A-Fa-f:.]+\\]|[^:\\s/*]+):[0-9]{1,5})$"}),
]


def _any_or_list(pattern: str, least: int) -> dict[str, Any]:
    items = {"type": "string", "pattern": pattern}
    return {"anyOf": [{"const": callers.ANY}, {"type": "array", "minItems": least, "items": items}]}


Network = Annotated[callers.Network, PlainValidator(callers.network)]
Networks = Annotated[
    tuple[Network, ...],
    WrapValidator(callers.networks),
    WithJsonSchema(_any_or_list("^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$", least=1)),
]
Origin = Annotated[str, PlainValidator(callers.origin)]
Origins = Annotated[
    frozenset[Origin],
    WrapValidator(callers.origins),
    WithJsonSchema(_any_or_list("^[A-Za-z][A-Za-z0-9+.-]*://[^/?#@\\s]+$", least=0)),
]
SocketMode = Annotated[
    int, PlainValidator(callers.mode), WithJsonSchema({"type": "string", "pattern": "^0[0-7]{3}$"})
]
