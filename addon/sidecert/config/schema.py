"""The JSON schema of the config, for editors and other tools: the YAML as users write it."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from sidecert.config.models import Config

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class _AsWritten(GenerateJsonSchema):
    """A key without a value is an error, so what may be left out may still not be null."""

    def nullable_schema(self, schema: Any) -> Any:
        return self.generate_inner(schema["schema"])

    def encode_default(self, dft: Any) -> Any:
        """Only what is written as it is held; the other fields say their default in their own words."""
        return dft if isinstance(dft, str | int) else None


def schema() -> dict[str, Any]:
    """The schema as JSON values."""
    generated = Config.model_json_schema(schema_generator=_AsWritten)
    cleaned: dict[str, Any] = {"$schema": _DIALECT, **_cleaned(generated), "title": "sidecert config"}
    return cleaned


def _cleaned(value: Any, of_names: bool = False) -> Any:
    """Without the titles that pydantic makes of names, and without null as a default."""
    if isinstance(value, list):
        return [_cleaned(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _cleaned(each, of_names=key in ("properties", "$defs"))
        for key, each in value.items()
        if of_names or not (key == "title" or (key == "default" and each is None))
    }
