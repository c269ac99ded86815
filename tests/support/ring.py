"""A keyring for computers that have none: a plug-in of the `keyring` package that keeps a file.

Name it with PYTHON_KEYRING_BACKEND=tests.support.ring.FileRing, and its file with RING.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from keyring.backend import KeyringBackend
from keyring.errors import PasswordDeleteError


class FileRing(KeyringBackend):
    """All entries in one JSON file."""

    priority = 1

    def get_password(self, service: str, username: str) -> str | None:
        """Look an entry up."""
        return self._read().get(f"{service}/{username}")

    def set_password(self, service: str, username: str, password: str) -> None:
        """Keep an entry."""
        self._write(self._read() | {f"{service}/{username}": password})

    def delete_password(self, service: str, username: str) -> None:
        """Remove an entry."""
        entries = self._read()
        if entries.pop(f"{service}/{username}", None) is None:
            raise PasswordDeleteError("there is no such entry")
        self._write(entries)

    @property
    def _path(self) -> Path:
        return Path(os.environ["RING"])

    def _read(self) -> dict[str, str]:
        return dict(json.loads(self._path.read_text())) if self._path.exists() else {}

    def _write(self, entries: dict[str, str]) -> None:
        self._path.write_text(json.dumps(entries))
