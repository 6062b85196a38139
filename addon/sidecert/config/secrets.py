"""Where a passphrase is: an environment variable or a file. The config itself never holds one."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pydantic import ConfigDict, Field

from sidecert.config import fields

_MOST = 65536  # bytes of a passphrase file; whatever is larger is no passphrase


class SecretError(Exception):
    """A secret cannot be had; the words never hold it, nor a path that may be the secret by mistake."""

    def __init__(self, wrong: str, right: str) -> None:
        super().__init__(f"{wrong}; {right}")
        self.wrong = wrong
        self.right = right


class SecretSource(fields.Model):
    """Where a secret is, never the secret itself. One of the two."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})
    env: fields.EnvName | None = Field(default=None, description="The environment variable that holds it.")
    file: fields.FilePath | None = Field(
        default=None, description="The file that holds it; one trailing newline is trimmed."
    )

    def resolve(self, environ: Mapping[str, str]) -> str:
        """The secret, without one trailing newline. `SecretError` when it is unset, empty or unreadable."""
        secret = self._from_file(self.file) if self.file else self._from(environ)
        secret = secret.removesuffix("\n").removesuffix("\r") if secret.endswith("\n") else secret
        if not secret:
            place = "file" if self.file else "environment variable"
            raise SecretError(
                f"this {place} is empty", "put the passphrase there, or leave the key passphrase out"
            )
        return secret

    def _from(self, environ: Mapping[str, str]) -> str:
        name = self.env or ""
        if name in environ:
            return environ[name]
        # only what looks like a variable is repeated: some write the secret itself here
        shown = f"the environment variable {name}" if name.isupper() else "this environment variable"
        raise SecretError(f"{shown} is not set", "set it where sidecert is started, or use {file: PATH}")

    def _from_file(self, path: Path) -> str:
        try:
            with open(path, "rb", opener=_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise SecretError("this is not a regular file", "name the file that holds the passphrase")
                data = file.read(_MOST + 1)
            if len(data) > _MOST:
                raise SecretError(
                    "this file is too large for a passphrase", "name a file that holds nothing else"
                )
            return data.decode()
        except FileNotFoundError:
            where = (
                f"no such file in {path.parent}"
                if path.parent.is_dir()
                else "the file's folder does not exist"
            )
            raise SecretError(where, "name the file that holds the passphrase") from None
        except IsADirectoryError:
            raise SecretError("this is a directory", "name the file that holds the passphrase") from None
        except OSError as error:
            wrong = f"the file cannot be read: {error.strerror or 'input/output error'}"
            raise SecretError(wrong, "let this user read it") from None
        except UnicodeDecodeError:
            raise SecretError(
                "this file is not UTF-8 text", "name a file that holds only the passphrase"
            ) from None


def _at_once(path: str, flags: int) -> int:
    """Opens a file without waiting: a named pipe would hold a check, a start or a reload up for ever."""
    # A terminal must not become this process's own either.
    for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC"):
        flags |= getattr(os, name, 0)
    return os.open(path, flags)
